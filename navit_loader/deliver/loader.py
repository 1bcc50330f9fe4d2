"""`PackedLoader`: planned and rendered batches in this process.

In: an index and a configuration. Out: an iterator over `PackedBatch`, rendered ahead on the engine's threads, always in
plan order, whatever finishes first.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator
from typing import Any

from .._packer import Layout
from ..config import LoaderConfig
from ..index import Index
from ..render.encoded import PendingEncoded
from ..render.engine import Engine
from ..render.pending import Pending
from .boundary import Agree
from .decoders import Decode, Decoding

log = logging.getLogger("navit_loader")


class PackedLoader(Decoding):
    """Iterates the packed batches of an epoch.

    After an epoch's last batch the state moves to the start of the next one, so that `for epoch in range(n)` around
    `for batch in loader` needs nothing else. Breaking out of a loop and iterating again goes on behind the last batch.
    """

    def __init__(
        self,
        index: str | os.PathLike[str] | Index | None = None,
        config: LoaderConfig | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        decode: Decode = "cpu",
        device: str = "cpu",
        agree: Agree | None = None,
    ) -> None:
        """Opens the index and starts the threads.

        Args:
            index: an index or its path; None takes `config.data`.
            config: what to plan and how to render; None is the default configuration.
            rank: this process among `world_size`; both default from torchrun's environment.
            world_size: processes that share an epoch.
            decode: `cpu`, the engine's decoder; `dali`, NVIDIA's (docs/dali.md); `auto`, the faster of them, measured
                on the first batches.
            device: where DALI decodes, such as `cuda`; on a GPU its batches are torch tensors there.
            agree: gives every rank the texts of all ranks, in their order; with several ranks needed for `data.refresh`,
                where they compare what they see when an epoch begins, and for `decode = "auto"`, where they choose alike.

        Raises:
            NavitError: see `Engine`, `rank_and_world` and `DaliRenderer`.
        """
        config = LoaderConfig() if config is None else config
        data = config.data
        super().__init__(rank, world_size, data.batch_size, data.remainder == "drop", data.refresh, agree)
        self.engine = Engine(config, index)
        self._indexes = self.engine.indexes
        self._failed_before: list[dict[str, Any]] = []
        self.config = config
        self.plan_id = self.engine.plan_id
        self.render_id = self.engine.render_id
        render = config.render
        options = {name: getattr(render, name) for name in ("threads", "memory_mb", "ledger", "failure_limit")}
        try:
            self._choose(decode, device, options)
        except BaseException:
            self.engine.close()
            raise

    @property
    def classes(self) -> list[str]:
        """Class names by label."""
        return self.engine.classes

    @property
    def vocabulary(self) -> int:
        """Caption token ids are below this; 0 without captions."""
        return self.engine.vocabulary

    @property
    def max_text_tokens(self) -> int:
        """Tokens of one caption at most."""
        return self.config.plan.caption_cap

    def _look(self) -> str:
        self._indexes = self.engine.renewed()
        parts = (f"{i.num_rows:,} images {i.plan_fingerprint[:12]}.{i.render_fingerprint[:12]}" for i in self._indexes)
        return " and ".join(parts)

    def _take_up(self) -> None:
        if self.engine.serves(self._indexes):
            return
        old, new = self.engine, self.engine.successor(self._indexes)
        before, now = (sum(index.num_rows for index in each.indexes) for each in (old, new))
        log.info("epoch %d is read from a new index: %d images, %d before", self._epoch, now, before)
        self._failed_before += old.failures()
        self.engine = new
        self._renamed(new.plan_id, new.render_id)
        old.close()

    def _layout(self, epoch: int) -> Layout:
        return self.engine.layout(epoch)

    def _ahead(self, epoch: int, encoded: bool) -> Generator[tuple[Any, int], None, None]:
        layout = self._layout(epoch)
        walk = self.engine.foreseen(self._walk(layout, self._start), epoch, self.batch_size)
        submit = self.engine.submit_encoded if encoded else self.engine.submit
        ahead: deque[tuple[Pending | PendingEncoded, int]] = deque()
        try:
            while True:
                while len(ahead) < self.config.render.prefetch and (step := next(walk, None)) is not None:
                    ahead.append((submit(epoch, step[0], self.batch_size), step[1]))
                if not ahead:
                    break
                pending, behind = ahead.popleft()
                batch = pending.wait()
                assert batch is not None, "without a timeout there is a batch or an error"
                del pending
                found = batch, behind
                del batch
                yield found
                # Let go of it, so that its buffers return to the pool as soon as the caller does too.
                del found
        finally:
            for pending, _ in ahead:
                pending.cancel()

    def stats(self) -> dict[str, Any]:
        """See `Engine.stats`; since the index in use was opened."""
        return self.engine.stats()

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger so far: what the engine could not have or decode, then what DALI could not."""
        return self._failed_before + self.engine.failures() + super().failures()

    def close(self) -> None:
        """Stops the threads. Safe to call twice."""
        self._close_decoder()
        self.engine.close()

    def __enter__(self) -> PackedLoader:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()
