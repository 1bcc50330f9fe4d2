"""Offline work on Ray Data: the parts of an index, of shards, of a check, of embeddings, on the machines of a cluster.

In: a `do` and its items (`Spread`), and the address of a Ray cluster. Out: the answers. The items are a data set that Ray Data
streams through tasks, or through a pool of actors where a worker keeps something; so it is Ray that places the work, does again
what a lost process or machine had, and asks for more machines. Answers are small: what is made goes into files, each put in
place by a rename.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

from ..errors import ConfigError, NavitError, ServiceError, needed, said
from ..spread import R, T
from .cluster import connected

BLOCKS = 10_000
"""Tasks at most: a block of the data set is one task, and with more items holds several."""

RETRIES = 3
"""Times that an item may take its worker down with it before it is taken for the cause."""

_ADDRESS = re.compile(r"auto|local|[^\s/:]+:\d+|\[[0-9a-fA-F:]+\]:\d+")


class OnRay:
    """A `Spread` over a Ray cluster, which is joined while the `with` block runs; one that the process is in already is used.

    Args:
        address: `HOST:PORT`, `auto` or `local`; empty takes what RAY_ADDRESS names, else the cluster of this host, else starts
            one.
        cpus: that one item takes.

    Attributes:
        gpus: that one worker takes which keeps something.
    """

    def __init__(self, address: str = "", *, cpus: int = 1) -> None:
        """Joins nothing yet.

        Raises:
            ConfigError: no address.
        """
        if address and not _ADDRESS.fullmatch(address):
            raise ConfigError(
                f"--ray = '{address}' is not the address of a Ray cluster, such as 10.0.0.1:6379, nor auto (the one of this "
                "host) or local (one for this process); to give none, give --ray last"
            )
        self._address, self._cpus = address, cpus
        self.gpus = 0

    def __enter__(self) -> OnRay:
        """Joins.

        Raises:
            ServiceError: no cluster is there.
            ExtraError: Ray is not installed.
        """
        self._joined = not needed("ray").is_initialized()
        self._ray = connected(self._address or None, alone=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._joined:
            self._ray.shutdown()

    def __str__(self) -> str:
        """What it is, for people."""
        there = self._ray.cluster_resources()
        alive = sum(node["Alive"] for node in self._ray.nodes())
        return f"Ray: {alive} nodes, {there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs"

    @property
    def has_gpus(self) -> bool:
        """Whether any machine of the cluster has a GPU."""
        return bool(self._ray.cluster_resources().get("GPU"))

    def __call__(self, do: Callable[[T], R], items: Sequence[T], *, kept: bool = False) -> Iterator[tuple[int, R]]:
        """See `Spread`.

        Raises:
            ServiceError: the cluster is gone, or an item took down every worker that had it.
        """
        if not items:
            return
        data = needed("ray.data")
        cloudpickle = needed("ray.cloudpickle")
        from ray.exceptions import RayError

        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        work = cloudpickle.dumps(do)
        rows = [{"number": number, "item": cloudpickle.dumps(item)} for number, item in enumerate(items)]
        found = data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS))
        if kept:
            found = found.map(
                _Worker,
                fn_constructor_args=(work,),
                compute=data.ActorPoolStrategy(min_size=1),
                num_cpus=self._cpus,
                num_gpus=self.gpus,
                max_restarts=-1,
                max_task_retries=RETRIES,
            )
        else:
            found = found.map(_once, fn_args=(work,), num_cpus=self._cpus, max_retries=RETRIES)
        try:
            for row in found.iter_rows():
                answer = pickle.loads(row["answer"])
                if isinstance(answer, NavitError | OSError):
                    raise answer
                yield int(row["number"]), answer
        except RayError as e:
            raise ServiceError(
                f"the work on Ray ended: {said(e)[0][:300]}; give the same command again, which does what is missing"
            ) from None


class _Worker:
    """What an actor keeps: its copy of `do`."""

    def __init__(self, work: bytes) -> None:
        self._work = work
        self._do: Callable[[Any], Any] | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer: Any
        try:
            # It may open files, which another machine may not see.
            self._do = self._do or pickle.loads(self._work)
            answer = self._do(pickle.loads(row["item"]))
        except (NavitError, OSError) as e:
            # Ray would wrap it, and do it again where it may pass.
            answer = e
        return {"number": row["number"], "answer": pickle.dumps(answer)}


def _once(row: dict[str, Any], work: bytes) -> dict[str, Any]:
    return _Worker(work)(row)
