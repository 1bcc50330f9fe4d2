"""`PackedLoader`: planned and rendered batches in this process.

In: an index and a configuration. Out: an iterator over `PackedBatch`, rendered ahead on the engine's threads, always in
plan order, whatever finishes first.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from ._packer import Layout
from .batch import PackedBatch
from .config import LoaderConfig
from .engine import Engine, Pending
from .index import Index
from .steps import Steps


class PackedLoader(Steps):
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
    ) -> None:
        """Opens the index and starts the threads.

        Args:
            index: an index or its path; None takes `config.data`.
            config: what to plan and how to render; None is the default configuration.
            rank: this process among `world_size`; both default from torchrun's environment.
            world_size: processes that share an epoch.

        Raises:
            NavitError: see `Engine` and `rank_and_world`.
        """
        config = LoaderConfig() if config is None else config
        super().__init__(rank, world_size, config.data.batch_size, config.data.remainder == "drop")
        self.engine = Engine(config, index)
        self.config = config
        self.plan_id = self.engine.plan_id
        self.render_id = self.engine.render_id

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

    def _layout(self, epoch: int) -> Layout:
        return self.engine.layout(epoch)

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches from the current position to the end of the epoch.

        Raises:
            RenderError: see `Pending.wait`; the state still names the batch that failed.
        """
        epoch = self._epoch
        self._start = self._next
        layout = self._layout(epoch)
        walk = self._walk(layout, self._start)
        ahead: deque[tuple[Pending, int]] = deque()
        try:
            while True:
                while len(ahead) < self.config.render.prefetch and (step := next(walk, None)) is not None:
                    ahead.append((self.engine.submit(epoch, step[0], self.batch_size), step[1]))
                if not ahead:
                    break
                pending, behind = ahead.popleft()
                batch = pending.wait()
                assert batch is not None, "without a timeout there is a batch or an error"
                self._epoch, self._next = epoch, behind
                del pending
                yield batch
                # Let go of it, so that its buffers return to the pool as soon as the caller does too.
                del batch
            self._epoch, self._next, self._start = epoch + 1, 0, 0
        finally:
            for pending, _ in ahead:
                pending.cancel()

    def stats(self) -> dict[str, Any]:
        """See `Engine.stats`."""
        return self.engine.stats()

    def failures(self) -> list[dict[str, Any]]:
        """See `Engine.failures`."""
        return self.engine.failures()

    def close(self) -> None:
        """Stops the threads. Safe to call twice."""
        self.engine.close()

    def __enter__(self) -> PackedLoader:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()
