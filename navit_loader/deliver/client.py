"""`RemoteLoader`: the batches of `PackedLoader`, made by daemons in other processes.

In: addresses. Out: an iterator over `PackedBatch` in plan order, byte for byte what `PackedLoader` gives. It needs
neither the index nor the configuration: the daemon's hello says what the plan looks like, and where batches start is
computed here from the counts of its planning blocks, which are asked for as the iteration reaches them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Literal

from .._packer import Layout
from ..errors import ConfigError, ServiceError
from ..plan.layouts import Known, recent
from ..service.connection import Connection
from ..service.endpoint import Want
from ..service.security import ClientKeys
from .boundary import Agree
from .decoders import Decode, Decoding


class RemoteLoader(Decoding):
    """Iterates the packed batches of an epoch, asked from interchangeable daemons. For one thread at a time.

    A daemon that dies, stops or is cut off costs time, never a batch: what it was asked for is asked from another, or
    from itself when it is back. Batches are views of the memory in which they arrived, which is free when they are.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        rank: int | None = None,
        world_size: int | None = None,
        batch_size: int | None = None,
        prefetch: int = 4,
        remainder: Literal["fill", "drop"] | None = None,
        plan: str = "",
        keys: str | os.PathLike[str] | None = None,
        memory_mb: int = 1024,
        connect_timeout_s: float = 10.0,
        deadline_s: float = 10.0,
        timeout_s: float = 120.0,
        heartbeat_s: float = 1.0,
        shared: bool = True,
        decode: Decode = "cpu",
        device: str = "cpu",
        refresh: bool = False,
        agree: Agree | None = None,
        ledger: str = "",
    ) -> None:
        """Connects and learns the plan.

        Args:
            endpoints: one `tcp://HOST:PORT` or `ipc://PATH` per daemon; all must serve the same plan.
            rank: this process among `world_size`; both default from torchrun's environment.
            world_size: processes that share an epoch.
            batch_size: B; None takes the daemon's `data.batch_size`.
            prefetch: batches asked for in advance.
            remainder: `fill` or `drop` at an epoch's end; None takes the daemon's `data.remainder`.
            plan: name of the plan, where a daemon serves several; empty for its first.
            keys: folder with `client.key_secret` and `server.key`, made by `navit-loader keys`.
            memory_mb: bytes of batches in advance at most, in MiB.
            connect_timeout_s: seconds until the first daemon must have answered.
            deadline_s: seconds after which a batch is asked for at another daemon too.
            timeout_s: seconds without an answer from any daemon after which waiting ends in an error; it bounds how
                long a daemon may take to come back.
            heartbeat_s: seconds between heartbeats; after three missed ones a connection counts as broken.
            shared: take batches of a daemon on this host through shared memory.
            decode: `cpu`, the daemon's pixels; `dali`, its files, decoded here (docs/dali.md); `auto`, the faster of
                them, measured on the first batches.
            device: where DALI decodes, such as `cuda`; on a GPU its batches are torch tensors there.
            refresh: at each epoch's start, ask the daemons whether their index was replaced (they need `data.refresh` too),
                and read the epoch from the new one.
            agree: as for `PackedLoader`; needed for `refresh` and for `decode = "auto"` with several ranks.
            ledger: path of the quarantine ledger (JSON lines) of what DALI cannot decode here; empty keeps it in memory
                alone. What daemons decode is in their own.

        Raises:
            ServiceError: no daemon answers (each is named with the reason), one refuses, two disagree about the plan,
                or a batch does not fit into `memory_mb`.
            ConfigError: a value that is not allowed.
        """
        if prefetch < 1:
            raise ConfigError(f"prefetch = {prefetch} is not allowed; it must be at least 1")
        if remainder not in (None, "fill", "drop"):
            raise ConfigError(f"remainder = {remainder!r} is not allowed; choose 'fill' or 'drop'")
        if batch_size is not None and batch_size > 65536:
            raise ConfigError(f"batch_size = {batch_size} is not allowed; it must be at most 65536")
        super().__init__(rank, world_size, 1 if batch_size is None else batch_size, False, refresh, agree)
        memory = self._memory = memory_mb * 2**20
        self._prefetch = prefetch
        self._connection = Connection(
            endpoints,
            plan=plan,
            keys=None if keys is None else ClientKeys.read(keys),
            memory=memory,
            connect_timeout_s=connect_timeout_s,
            deadline_s=deadline_s,
            timeout_s=timeout_s,
            heartbeat_s=heartbeat_s,
            shared=shared,
            refresh=refresh,
        )
        info = self._connection.info
        self.plan_id, self.render_id = info.plan_id, info.render_id
        self.classes = list(info.classes)
        self.label_width = info.label_width
        self.vocabulary, self.max_text_tokens = info.vocabulary, info.max_text_tokens
        self.batch_size = info.batch_size if batch_size is None else batch_size
        self.drop = (info.remainder if remainder is None else remainder) == "drop"
        nbytes = info.nbytes(self.batch_size)
        if nbytes > min(memory, info.memory):
            self._connection.close()
            raise ServiceError(
                f"a batch of {self.batch_size} sequences takes {nbytes:,} bytes; memory_mb allows {memory:,} here and "
                f"serve.memory_mb {info.memory:,} at the daemon: raise them or lower batch_size"
            )
        self._credits = max(1, min(prefetch, memory // nbytes))
        self._layouts: Known = Known()
        try:
            self._choose(decode, device, {"memory_mb": memory_mb, "ledger": ledger})
        except BaseException:
            self._connection.close()
            raise
        self._connection.starved_s = 0.0  # measuring was not the user's waiting

    @property
    def starved_s(self) -> float:
        """Seconds that the user has waited for batches so far."""
        return self._connection.starved_s

    def _look(self) -> str:
        self._connection.renew()
        return f"plan {self._connection.info.plan_id}, renderer {self._connection.info.render_id}"

    def _take_up(self) -> None:
        info = self._connection.info
        if (info.plan_id, info.render_id) != (self.plan_id, self._engine_render_id):
            self._layouts.clear()
            self._renamed(info.plan_id, info.render_id)

    def _layout(self, epoch: int) -> Layout:
        def make() -> Layout:
            run, num_blocks, counts = self._connection.layout(epoch, 0, 1)
            layout = Layout.remote(run, num_blocks)
            layout.extend(counts)
            return layout

        return recent(self._layouts, epoch, make)

    def _extend(self, layout: Layout, blocks: int) -> None:
        epoch = next(epoch for epoch, known in self._layouts.items() if known is layout)
        _, _, counts = self._connection.layout(epoch, layout.known, blocks)
        if not len(counts):
            raise ServiceError(f"the daemon gave no counts from block {layout.known} of {layout.num_blocks} on")
        layout.extend(counts)

    def _next_start(self, layout: Layout, first: int) -> int:
        while (found := layout.next(first, self.batch_size)) is None:
            self._extend(layout, max(1, layout.known))
        return found

    def _whole(self, layout: Layout) -> Layout:
        while layout.known < layout.num_blocks:
            self._extend(layout, layout.num_blocks - layout.known)
        return layout

    def _ahead(self, epoch: int, encoded: bool) -> Generator[tuple[Any, int], None, None]:
        walk = self._walk(self._layout(epoch), self._start)
        ahead: deque[tuple[Want, int]] = deque()
        credits = self._prefetch if encoded else self._credits
        try:
            while True:
                # Each word to the daemon wakes threads on both sides. So where batches are here before they are wanted,
                # the next are asked for several at a time.
                if len(ahead) <= credits // 2 or not ahead[0][0].settled:
                    while len(ahead) < credits and (step := next(walk, None)) is not None:
                        ahead.append((self._ask(epoch, step[0], encoded), step[1]))
                if not ahead:
                    break
                want, behind = ahead[0]
                found = self._connection.batch(want), behind
                ahead.popleft()
                del want
                yield found
                # Let go of it, so that its memory is free as soon as the caller has let go too.
                del found
        finally:
            self._connection.forget([want for want, _ in ahead])

    def _ask(self, epoch: int, first: int, encoded: bool) -> Want:
        place = self._layout(epoch).place(first)
        if encoded:
            # All that are asked for at once may be as large as this.
            limit = self._memory // self._prefetch
            return self._connection.want_encoded(epoch, first, self.batch_size, limit, place)
        return self._connection.want_batch(epoch, first, self.batch_size, place)

    def close(self) -> None:
        """Says goodbye to the daemons. Safe to call twice."""
        self._close_decoder()
        self._connection.close()

    def __enter__(self) -> RemoteLoader:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()
