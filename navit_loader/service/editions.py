"""The editions of a daemon's plans: of each the newest, and older ones whose epochs clients have not finished.

In: engines by plan name, and hellos. Out: the engine that a client is to be served from. Where `data.refresh` is set, a
hello of a client that begins an epoch opens an index that was replaced; whoever is in the middle of an epoch goes on with
the old file, which stays mapped. A large index takes seconds to open, so that happens on a thread, and the hellos wait for it
rather than the other clients. Apart from the server, since it alone knows that a plan's name can stand for several plans.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import NavitError, ServiceError
from .protocol import PlanInfo

if TYPE_CHECKING:
    from ..render.engine import Engine
    from .log import ServiceLog

V = TypeVar("V")


class Editions(Generic[V]):
    """Engines by key: the plan's name, with a number behind it where an index was taken up later.

    Args:
        plans: the engines of the start. One that a newer one has replaced is closed when nobody needs it.
        bound: bytes of batches that the daemon holds at most.
        log: what is said.
        came: called with each engine that is opened here.
        gone: called with each engine that is closed here, before that.
        wake: called on another thread when an index was looked at.

    Attributes:
        engines: by key.
        infos: what hellos say of them.
    """

    def __init__(
        self,
        plans: Mapping[str, Engine],
        bound: int,
        log: ServiceLog,
        came: Callable[[Engine], None],
        gone: Callable[[Engine], None],
        wake: Callable[[], None],
    ) -> None:
        self.engines = dict(plans)
        self.infos = {name: PlanInfo.of(engine, name, bound) for name, engine in plans.items()}
        self._keys = {name: [name] for name in plans}  # of each plan, the newest last
        self._opened = dict.fromkeys(plans, 0)
        self._bound, self._log, self._came, self._gone, self._wake = bound, log, came, gone, wake
        self._waiting: dict[str, dict[bytes, V]] = {}  # for the next look at a plan's indexes
        self._looking: dict[str, tuple[threading.Thread, dict[bytes, V]]] = {}
        self._looked: deque[tuple[str, Engine | NavitError | None]] = deque()

    def choose(self, name: str, plan_id: str, render_id: str, looked: bool = False) -> str | None:
        """The key of the engine for a client; None where the indexes of its plan are to be looked at first.

        Args:
            name: the plan; empty for the first.
            plan_id: what the client has begun with; empty for the newest.
            render_id: the same.
            looked: they were looked at.

        Raises:
            ServiceError: there is no such plan, or not with these ids.
        """
        name = name or next(iter(self._keys))
        keys = self._keys.get(name)
        if keys is None:
            raise ServiceError(f"no plan '{name}' is served here; there is {', '.join(self._keys)}")
        for key in keys:
            if (self.engines[key].plan_id, self.engines[key].render_id) == (plan_id, render_id):
                return key
        newest = self.engines[keys[-1]]
        if newest.config.data.refresh and not looked:
            return None
        if plan_id or render_id:
            raise ServiceError(
                f"plan {plan_id} with renderer {render_id} was asked for; plan '{name}' is {newest.plan_id} with "
                f"{newest.render_id} here, and its index of before is not open any more"
            )
        return keys[-1]

    def look(self, name: str, peer: bytes, visitor: V) -> None:
        """Looks whether the indexes of a plan were replaced, on a thread; the visitor comes out of `looked`.

        Args:
            name: as for `choose`.
            peer: who waits; a second visitor of the same peer takes the place of the first.
            visitor: what is given back.
        """
        name = name or next(iter(self._keys))
        self._waiting.setdefault(name, {})[peer] = visitor
        self._begin(name)

    def looked(self, used: Callable[[], Collection[str]]) -> Iterator[V]:
        """Takes up what was found, and gives back who waited for it.

        Args:
            used: says the keys of the engines that clients use.
        """
        while self._looked:
            name, found = self._looked.popleft()
            if isinstance(found, NavitError):
                # Whoever serves goes on with what it has; the clients' plan says which that is.
                why = f"plan={name!r} a new index cannot be taken up: {found}"
                self._log.say("index", why, logging.WARNING)
            elif found is not None:
                self._take_up(name, found, used())
            yield from self._looking.pop(name)[1].values()
            self._begin(name)

    def close(self) -> None:
        """Closes what was opened here; the engines of the start are the caller's."""
        for thread, _ in self._looking.values():
            thread.join()
        for _, found in self._looked:
            if found is not None and not isinstance(found, NavitError):
                found.close()
        self._looked.clear()
        for key in [key for key in self.engines if key not in self._keys]:
            self._drop(key)

    def _begin(self, name: str) -> None:
        """Whoever came while a look was under way may have come behind a replacement: the next look is theirs."""
        if name not in self._looking and (visitors := self._waiting.pop(name, None)):
            engine = self.engines[self._keys[name][-1]]
            thread = threading.Thread(target=self._open, args=(name, engine), name="navit-open", daemon=True)
            self._looking[name] = thread, visitors
            thread.start()

    def _open(self, name: str, engine: Engine) -> None:
        """On its thread: the engine of the indexes as they stand now, None where it would be the same, or why there is none."""
        found: Engine | NavitError | None = None
        try:
            indexes = engine.renewed()
            if not engine.serves(indexes):
                found = engine.successor(indexes)
        except NavitError as e:
            found = e
        except BaseException as e:  # a panic of the engine too: whoever waits for this look waits for an answer
            found = ServiceError(f"{type(e).__name__}: {e}")
        self._looked.append((name, found))
        self._wake()

    def _take_up(self, name: str, engine: Engine, used: Collection[str]) -> None:
        keys = self._keys[name]
        self._opened[name] += 1
        key = f"{name}#{self._opened[name]}"
        self.engines[key], self.infos[key] = engine, PlanInfo.of(engine, name, self._bound)
        self._came(engine)
        keys.append(key)
        rows = sum(index.num_rows for index in engine.indexes)
        self._log.say("index", f"plan={name!r} id={engine.plan_id} a new index of {rows} images", logging.INFO)
        # The one before is kept for clients that come back in the middle of their epoch.
        for old in [k for k in keys[:-2] if k not in used]:
            keys.remove(old)
            self._drop(old)

    def _drop(self, key: str) -> None:
        engine = self.engines.pop(key)
        del self.infos[key]
        self._gone(engine)
        engine.close()
