"""The engines of a daemon's plans: of each the newest, and older ones whose epochs clients have not finished.

In: engines by plan name, and hellos. Out: the engine that a client is to be served from. Where `data.refresh` is set, a
hello of a client that begins an epoch opens an index that was replaced; whoever is in the middle of an epoch goes on with
the old file, which stays mapped. Apart from the server, since it alone knows that a plan's name can stand for several plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from ..errors import NavitError, ServiceError
from .protocol import PlanInfo

if TYPE_CHECKING:
    from ..render.engine import Engine
    from .log import Journal


class Editions:
    """Engines by key: the plan's name, with a number behind it where an index was taken up later.

    Args:
        plans: the engines of the start. One that a newer one has replaced is closed when nobody needs it.
        bound: bytes of batches that the daemon holds at most.
        journal: what is said.
        came: called with each engine that is opened here.
        gone: called with each engine that is closed here, before that.

    Attributes:
        engines: by key.
        infos: what hellos say of them.
    """

    def __init__(
        self,
        plans: Mapping[str, Engine],
        bound: int,
        journal: Journal,
        came: Callable[[Engine], None],
        gone: Callable[[Engine], None],
    ) -> None:
        self.engines = dict(plans)
        self.infos = {name: PlanInfo.of(engine, name, bound) for name, engine in plans.items()}
        self._keys = {name: [name] for name in plans}  # of each plan, the newest last
        self._opened = dict.fromkeys(plans, 0)
        self._bound, self._journal, self._came, self._gone = bound, journal, came, gone

    def choose(self, name: str, plan_id: str, render_id: str, used: Collection[str]) -> str:
        """The key of the engine for a client.

        Args:
            name: the plan; empty for the first.
            plan_id: what the client has begun with; empty for the newest.
            render_id: the same.
            used: keys of the engines that clients use.

        Raises:
            ServiceError: there is no such plan, or not with these ids.
        """
        name = name or next(iter(self._keys))
        keys = self._keys.get(name)
        if keys is None:
            raise ServiceError(f"no plan '{name}' is served here; there is {', '.join(self._keys)}")
        asked = (plan_id, render_id)
        found = self._with_ids(keys, asked)
        if found is None:
            self._renew(name, keys, used)
            found = keys[-1] if asked == ("", "") else self._with_ids(keys, asked)
        if found is None:
            newest = self.engines[keys[-1]]
            raise ServiceError(
                f"plan {plan_id} with renderer {render_id} was asked for; plan '{name}' is {newest.plan_id} with "
                f"{newest.render_id} here, and its index of before is not open any more"
            )
        return found

    def close(self) -> None:
        """Closes what was opened here; the engines of the start are the caller's."""
        for key in [key for key in self.engines if key not in self._keys]:
            self._drop(key)

    def _with_ids(self, keys: list[str], ids: tuple[str, str]) -> str | None:
        return next((k for k in keys if (self.engines[k].plan_id, self.engines[k].render_id) == ids), None)

    def _renew(self, name: str, keys: list[str], used: Collection[str]) -> None:
        """Opens the indexes of a plan anew, where they were replaced and it is to look."""
        engine = self.engines[keys[-1]]
        if not engine.config.data.refresh:
            return
        try:
            indexes = engine.renewed()
            if engine.serves(indexes):
                return
            successor = engine.successor(indexes)
        except NavitError as e:
            # Whoever serves goes on with what it has; the clients' plan says which that is.
            self._journal.say("index", f"plan={name!r} a new index cannot be taken up: {e}", logging.WARNING)
            return
        self._opened[name] += 1
        key = f"{name}#{self._opened[name]}"
        self.engines[key], self.infos[key] = successor, PlanInfo.of(successor, name, self._bound)
        self._came(successor)
        keys.append(key)
        rows = sum(index.num_rows for index in indexes)
        self._journal.say("index", f"plan={name!r} id={successor.plan_id} a new index of {rows} images", logging.INFO)
        # The one before is kept for clients that come back in the middle of their epoch.
        for old in [k for k in keys[:-2] if k not in used]:
            keys.remove(old)
            self._drop(old)

    def _drop(self, key: str) -> None:
        engine = self.engines.pop(key)
        del self.infos[key]
        self._gone(engine)
        engine.close()
