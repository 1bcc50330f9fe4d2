"""`PackedLoader`: planned and rendered batches in this process.

In: an index and a configuration. Out: a `Loader` whose supply is the engine, which renders ahead on its own threads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

from .._packer import Layout, storage
from ..config import LoaderConfig
from ..errors import IndexFileError
from ..index import Index
from ..render.encoded import PendingEncoded
from ..render.engine import Engine
from ..render.pending import Pending
from . import boundary
from .boundary import Agree
from .cursor import Cursor, Step
from .decoder import Decode, Decoder
from .loader import Loader

log = logging.getLogger("navit_loader")


class PackedLoader(Loader):
    """A `Loader` whose batches are made in this process."""

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
            decode: `cpu`, the engine's decoder; `dali` or `nvjpeg`, NVIDIA's (docs/dali.md); `auto`, the faster of `cpu` and
                `dali`, measured on the first batches.
            device: where they decode, such as `cuda`; on a GPU its batches are torch tensors there.
            agree: gives every rank the texts of all ranks, in their order; with several ranks needed for `data.refresh`,
                where they compare what they see when an epoch begins, and for `decode = "auto"`, where they choose alike.

        Raises:
            NavitError: see `Engine`, `rank_and_world` and `DaliRenderer`.
        """
        config = LoaderConfig.checked(config)
        data, render = config.data, config.render
        cursor = Cursor(rank, world_size, data.batch_size, data.remainder == "drop")
        boundary.check(data.refresh, agree, cursor.world_size)
        options = {name: getattr(render, name) for name in ("threads", "memory_mb", "ledger", "failure_limit")}
        decoder = Decoder(decode, device, options, agree, cursor.world_size)
        if config.plan.warp is not None:
            decoder.alone("[plan.warp]", "warps images")
        if config.plan.targets is not None and config.plan.targets.masks:
            decoder.alone("plan.targets.masks", "has masks")
        self.config = config
        self._local = _Local(Engine(config, index), render.prefetch)
        super().__init__(cursor, self._local, decoder, data.refresh, agree)

    @property
    def engine(self) -> Engine:
        """The plan and the renderer in use."""
        return self._local.engine

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

    def stats(self) -> dict[str, Any]:
        """See `Engine.stats`; since the index in use was opened. Beside it, of the whole process, how often a read was tried
        again (`retries`), and reads that wait for storage now (`waiting`)."""
        return self.engine.stats() | storage()

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger so far: what the engine could not have or decode, then what another decoder could not."""
        return self._local.failed_before + self.engine.failures() + super().failures()


class _Local:
    """The supply of a `PackedLoader`: an engine, and those that took its place."""

    def __init__(self, engine: Engine, prefetch: int) -> None:
        self.failed_before: list[dict[str, Any]] = []
        self._prefetch = prefetch
        self._seen = engine.indexes
        self._serve(engine)

    def _serve(self, engine: Engine) -> None:
        self.engine, self.plan_id, self.render_id = engine, engine.plan_id, engine.render_id

    def layout(self, epoch: int) -> Layout:
        return self.engine.layout(epoch)

    def counts(self, epoch: int, most: int) -> tuple[int, list[int]]:
        layout = self.layout(epoch)
        return layout.num_blocks, layout.counts(0, min(most, layout.num_blocks)).tolist()

    def ask(
        self, epoch: int, steps: Iterator[Step], batch_size: int, encoded: bool
    ) -> Iterator[tuple[Pending | PendingEncoded, int]]:
        submit = self.engine.submit_encoded if encoded else self.engine.submit
        for first, behind in self.engine.foreseen(steps, epoch, batch_size):
            yield submit(epoch, first, batch_size), behind

    def ahead(self, encoded: bool) -> tuple[int, int]:
        return self._prefetch, self._prefetch

    def look(self) -> str:
        try:
            self._seen = self.engine.renewed()
        except IndexFileError as e:
            # Whoever writes it may be at it, or have failed; other ranks that see it whole differ, and say so.
            log.warning("the epoch is read from the index of before: %s", e)
            self._seen = self.engine.indexes
        parts = (f"{i.num_rows:,} images {i.plan_fingerprint[:12]}.{i.render_fingerprint[:12]}" for i in self._seen)
        return " and ".join(parts)

    def take_up(self) -> None:
        if self.engine.serves(self._seen):
            return
        old, new = self.engine, self.engine.successor(self._seen)
        before, now = (sum(index.num_rows for index in each.indexes) for each in (old, new))
        log.info("an epoch begins with a new index: %d images, %d before", now, before)
        self.failed_before += old.failures()
        self._serve(new)
        old.close()

    def close(self) -> None:
        self.engine.close()
