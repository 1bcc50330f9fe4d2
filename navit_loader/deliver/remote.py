"""`RemoteLoader`: the batches of `PackedLoader`, made by daemons in other processes.

In: addresses, or the name of a fleet. Out: a `Loader` whose supply is a connection, byte for byte what `PackedLoader` gives. It
needs neither the index nor the configuration: the daemon's hello says what the plan looks like, and where batches start is
computed here from the counts of its planning blocks, which are asked for as the iteration reaches them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal

from .._packer import Layout
from ..batch import PackedBatch
from ..errors import ConfigError, ServiceError, StateError
from ..fleet.cluster import SCHEME
from ..fleet.follow import Follower
from ..plan.layouts import recent
from ..render.encoded import EncodedBatch
from ..service.connection import Connection
from ..service.endpoint import Want
from ..service.names import Names, named
from ..service.protocol import PlanInfo
from ..service.roster import Followed
from ..service.security import ClientKeys
from . import boundary
from .boundary import Agree
from .cursor import Cursor, Step
from .decoder import Decode, Decoder
from .loader import Loader


class RemoteLoader(Loader):
    """A `Loader` whose batches are asked from interchangeable daemons. For one thread at a time.

    A daemon that dies, stops or is cut off costs time, never a batch: what it was asked for is asked from another, or
    from itself when it is back. Batches are read-only views of the memory in which they arrived, which is free when they are.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
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
            endpoints: `tcp://HOST:PORT` or `ipc://PATH` of daemons, which all must serve the same plan; a host's name stands
                for all addresses that it has, which are looked up every few seconds. Or `ray://NAME`, whose daemons are
                followed as they come and go (docs/fleet.md). It brings its keys.
            rank: this process among `world_size`; both default from torchrun's environment.
            world_size: processes that share an epoch.
            batch_size: B; None takes the daemon's `data.batch_size`.
            prefetch: batches asked for in advance; of a fleet, or a name that stands for several, from each of its daemons.
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
            decode: `cpu`, the daemon's pixels; `dali` or `nvjpeg`, its files, decoded here (docs/dali.md); `auto`, the
                faster of `cpu` and `dali`, measured on the first batches.
            device: where they decode, such as `cuda`; on a GPU its batches are torch tensors there.
            refresh: at each epoch's start, ask the daemons whether their index was replaced (they need `data.refresh` too),
                and read the epoch from the new one.
            agree: as for `PackedLoader`; needed for `refresh` and for `decode = "auto"` with several ranks.
            ledger: path of the quarantine ledger (JSON lines) of what cannot be decoded here; empty keeps it in memory
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
        cursor = Cursor(rank, world_size, 1 if batch_size is None else batch_size, False)
        boundary.check(refresh, agree, cursor.world_size)
        decoder = Decoder(decode, device, {"memory_mb": memory_mb, "ledger": ledger}, agree, cursor.world_size)
        memory = memory_mb * 2**20
        source, secret = _source(endpoints, keys, connect_timeout_s)
        self._connection = Connection(
            source,
            plan=plan,
            keys=secret,
            memory=memory,
            connect_timeout_s=connect_timeout_s,
            deadline_s=deadline_s,
            timeout_s=timeout_s,
            heartbeat_s=heartbeat_s,
            shared=shared,
            refresh=refresh,
        )
        info = self._connection.info
        self.classes = list(info.classes)
        self.label_width = info.label_width
        self.vocabulary, self.max_text_tokens = info.vocabulary, info.max_text_tokens
        cursor.batch_size = info.batch_size if batch_size is None else batch_size
        cursor.drop = (info.remainder if remainder is None else remainder) == "drop"
        try:
            if info.warps:
                decoder.alone("[plan.warp]", "warps images")
            if info.masks:
                decoder.alone("plan.targets.masks", "has masks")
        except ConfigError:
            self._connection.close()
            raise
        nbytes = info.nbytes(cursor.batch_size)
        if nbytes > min(memory, info.memory):
            self._connection.close()
            raise ServiceError(
                f"a batch of {cursor.batch_size} sequences takes {nbytes:,} bytes; memory_mb allows {memory:,} here and "
                f"serve.memory_mb {info.memory:,} at the daemon: raise them or lower batch_size"
            )
        listed = 0 if isinstance(source, Follower) else len(endpoints)
        supply = _Remote(self._connection, prefetch, memory, nbytes, listed)
        super().__init__(cursor, supply, decoder, refresh, agree)
        self._connection.starved_s = 0.0  # measuring was not the user's waiting

    @property
    def served(self) -> PlanInfo:
        """What the daemons say of their plan."""
        return self._connection.info

    @property
    def starved_s(self) -> float:
        """Seconds that the user has waited for batches so far."""
        return self._connection.starved_s

    @property
    def lacking(self) -> dict[str, int]:
        """By endpoint, images that it masked so far and another one had."""
        return dict(self._connection.opinions.lacking)


def _source(
    given: str | Sequence[str], keys: str | os.PathLike[str] | None, connect_timeout_s: float
) -> tuple[Sequence[str] | Followed, ClientKeys | None]:
    """Where daemons are, the addresses themselves or who follows what they name; and the keys, which a fleet's brings."""
    endpoints = [given] if isinstance(given, str) else [str(endpoint) for endpoint in given or ()]
    if not any(endpoint.startswith(SCHEME) for endpoint in endpoints):
        secret = None if keys is None else ClientKeys.read(keys)
        return Names(endpoints, secret) if not isinstance(given, str) and named(endpoints) else given, secret
    if len(endpoints) > 1:
        raise ServiceError(f"endpoints = {list(endpoints)!r} must name one fleet alone, which has all its daemons")
    if keys is not None:
        raise ConfigError(
            f"keys = {str(keys)!r} is not allowed with '{endpoints[0]}'; a fleet brings its own: leave it out"
        )
    return Follower(endpoints[0], connect_timeout_s), None


class _Remote:
    """The supply of a `RemoteLoader`: a connection, and the counts that it gave.

    Args:
        connection: to the daemons.
        prefetch: batches asked for in advance.
        memory: bytes of batches in advance at most.
        nbytes: of a batch with pixels.
        listed: daemons that the user has named one by one.
    """

    def __init__(self, connection: Connection, prefetch: int, memory: int, nbytes: int, listed: int) -> None:
        self._connection, self._prefetch, self._listed = connection, prefetch, listed
        self._most = max(1, memory // nbytes)
        self._limit = memory // prefetch  # all encoded batches that are asked for at once may be as large as this
        self._layouts: OrderedDict[int, _RemoteLayout] = OrderedDict()
        self.plan_id, self.render_id = connection.info.plan_id, connection.info.render_id

    def layout(self, epoch: int) -> _RemoteLayout:
        return recent(self._layouts, epoch, lambda: _RemoteLayout(self._connection, epoch))

    def counts(self, epoch: int, most: int) -> tuple[int, list[int]]:
        blocks = self.layout(epoch).num_blocks
        return blocks, self._connection.layout(epoch, 0, min(most, blocks))[2].tolist()

    def ask(self, epoch: int, steps: Iterator[Step], batch_size: int, encoded: bool) -> Iterator[tuple[_Wanted, int]]:
        connection, layout = self._connection, self.layout(epoch)
        for first, behind in steps:
            place = layout.place(first)
            if encoded:
                want = connection.want_encoded(epoch, first, batch_size, self._limit, place)
            else:
                want = connection.want_batch(epoch, first, batch_size, place)
            yield _Wanted(connection, want), behind
            del want

    def ahead(self, encoded: bool) -> tuple[int, int]:
        # Each word to the daemon wakes threads on both sides. So where batches are here before they are wanted, the next are
        # asked for several at a time.
        credits, connection = self._prefetch, self._connection
        if not encoded:
            # Those that are not met yet, or are gone, have no share: another would have to make it beside its own.
            each = max(1, connection.serving) if connection.daemons > self._listed else 1
            credits = min(self._most, credits * each)
        return credits // 2, credits

    def look(self) -> str:
        self._connection.renew()
        return f"plan {self._connection.info.plan_id}, renderer {self._connection.info.render_id}"

    def take_up(self) -> None:
        ids = self._connection.info.plan_id, self._connection.info.render_id
        if ids != (self.plan_id, self.render_id):
            self._layouts.clear()
            self.plan_id, self.render_id = ids

    def close(self) -> None:
        self._connection.close()


class _Wanted:
    """A batch that was asked from a daemon."""

    def __init__(self, connection: Connection, want: Want) -> None:
        self._connection, self._want = connection, want

    @property
    def ready(self) -> bool:
        return self._want.settled

    def wait(self) -> PackedBatch | EncodedBatch:
        return self._connection.batch(self._want)

    def cancel(self) -> None:
        self._connection.forget([self._want])


class _RemoteLayout:
    """How the sequences of an epoch fall into batches, by the counts of a daemon, asked for where they are missing."""

    def __init__(self, connection: Connection, epoch: int) -> None:
        self._connection, self._epoch, self._plan_id = connection, epoch, connection.info.plan_id
        run, num_blocks, counts = connection.layout(epoch, 0, 1)
        self._table = Layout.remote(run, num_blocks)
        self._table.extend(counts)
        self.place, self.num_blocks = self._table.place, num_blocks

    @property
    def num_sequences(self) -> int | None:
        return self._table.num_sequences

    def next(self, first: int, batch_size: int) -> int:
        while (found := self._table.next(first, batch_size)) is None:
            self._extend(max(1, self._table.known))
        return found

    def steps(self, first: int, batch_size: int, world_size: int, drop: bool) -> int:
        while (missing := self._table.num_blocks - self._table.known) > 0:
            self._extend(missing)
        return self._table.steps(first, batch_size, world_size, drop)

    def _extend(self, blocks: int) -> None:
        if self._connection.info.plan_id != self._plan_id:
            raise StateError(f"epoch {self._epoch} was begun with an index that was replaced since; iterate anew")
        _, _, counts = self._connection.layout(self._epoch, self._table.known, blocks)
        if not len(counts):
            raise ServiceError(
                f"the daemon gave no counts from block {self._table.known} of {self._table.num_blocks} on"
            )
        self._table.extend(counts)
