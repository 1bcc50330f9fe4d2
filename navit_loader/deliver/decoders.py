"""Which decoder makes a loader's pixels: the engine's on the CPU, or DALI from encoded batches.

In: a loader that can hand out batches either way, and what the user asked for. Out: its iteration, the choice, and a
`render_id` that names the choice, so that a saved state knows it. `PackedLoader` and `RemoteLoader` are built on it.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..batch import PackedBatch
from ..errors import ConfigError, NavitError
from ..plan import identity
from ..render.encoded import EncodedBatch
from .steps import Steps

if TYPE_CHECKING:
    from ..render.dali import DaliRenderer

log = logging.getLogger("navit_loader")

Decode = Literal["auto", "cpu", "dali"]
"""`cpu`: pixels come from the engine; `dali`: DALI makes them here from encoded files; `auto`: whichever is faster."""

_MEASURED_S = 1.0
_WARM_BATCHES = 6
_MEASURED_BATCHES = 16


class Decoding(Steps):
    """The steps of a loader, and the decoder of its pixels.

    Attributes:
        decode: the decoder in use, `cpu` or `dali`.
        measured: images per second of each decoder, over all ranks, where `auto` measured them; else empty.
    """

    decode: Literal["cpu", "dali"]
    measured: dict[str, float]

    def _choose(self, decode: Decode, device: str, options: dict[str, Any]) -> None:
        """Settles the decoder; the loader must be ready to iterate.

        Args:
            decode: what the user asked for.
            device: where DALI renders.
            options: of `DaliRenderer`.

        Raises:
            ConfigError: an unknown decoder, `dali` where it cannot work, or `auto` where ranks could not agree.
        """
        if decode not in get_args(Decode):
            raise ConfigError(f"decode = {decode!r} is not allowed; choose one of {', '.join(get_args(Decode))}")
        self._auto = decode == "auto"
        if self._auto and self._agree is None and self.world_size > 1:
            raise ConfigError(
                f"decode = 'auto' with world_size = {self.world_size} needs agree=FUNCTION, by which all ranks choose alike "
                "(torch.distributed.all_gather_object does it); navit-model gives it by itself; or name 'cpu' or 'dali'"
            )
        self._device, self._dali_options = device, options
        self._dali: DaliRenderer | None = None
        self._engine_render_id = self.render_id
        self.measured = {}
        self._use("cpu")
        if decode == "dali":
            self._use("dali")
        elif decode == "auto":
            self._measure_both()

    def _use(self, decode: Literal["cpu", "dali"]) -> None:
        if decode == "dali":
            from ..render.dali import DaliRenderer

            if self._dali is None:
                self._dali = DaliRenderer(self._device, **self._dali_options)
            self.render_id = identity.with_decoder(self._engine_render_id, DaliRenderer.decoder_name(self._device))
        else:
            self.render_id = self._engine_render_id
        self.decode = decode

    def _measure_both(self) -> None:
        """Takes the first batches by both ways and goes on with the faster; every rank with the same."""
        mine, why = "", "the others say why"
        try:
            self._use("dali")
            mine = f"{self._rate(True)} {self._rate(False)}"
        except NavitError as e:
            why = str(e)
        said = [mine] if self._agree is None else list(self._agree(mine))
        if "" in said:
            self._use("cpu")
            ranks = f" on {said.count('')} of {len(said)} ranks" if len(said) > 1 else ""
            log.info("decode = auto: cpu, since dali could not be measured%s: %s", ranks, why)
            return
        # The same sums of the same numbers everywhere.
        dali, cpu = (sum(map(float, rates)) for rates in zip(*map(str.split, said), strict=True))
        self.measured = {"cpu": cpu, "dali": dali}
        self._use("dali" if dali > cpu else "cpu")
        log.info("decode = auto: %s (cpu %s images/s, dali %s)", self.decode, f"{cpu:,.0f}", f"{dali:,.0f}")

    def _rate(self, dali: bool) -> float:
        """Images per second, behind the first batches: what is made ahead of them would count for nothing."""
        epoch, images = self._epoch, 0
        taken = [(time.perf_counter(), 0)]
        with closing(self._rendered(epoch) if dali else self._ahead(epoch, False)) as found:
            for batch, _ in islice(found, _WARM_BATCHES + _MEASURED_BATCHES):
                images += batch.num_images
                taken.append((time.perf_counter(), images))
                if len(taken) > _WARM_BATCHES + 1 and taken[-1][0] - taken[_WARM_BATCHES][0] > _MEASURED_S:
                    break
            if dali and self._dali is not None:
                self._dali.settle()
        # An epoch that ends soon after them shows no steady state: then its batches were all made ahead, and all count.
        ended_early = len(taken) <= 2 * _WARM_BATCHES
        steady = len(taken) > _WARM_BATCHES and taken[-1][0] - taken[_WARM_BATCHES][0] > _MEASURED_S
        before, seen = taken[0 if ended_early and not steady else _WARM_BATCHES]
        return (images - seen) / (time.perf_counter() - before)

    def _renamed(self, plan_id: str, render_id: str) -> None:
        """The loader reads another index from here on; its decoder stays."""
        self.plan_id, self._engine_render_id = plan_id, render_id
        self._use(self.decode)

    @abstractmethod
    def _ahead(self, epoch: int, encoded: bool) -> Generator[tuple[Any, int], None, None]:
        """From the current position to the epoch's end: each batch, packed or encoded, and where the next one starts."""

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches from the current position to the end of the epoch; behind its last batch, those of the next epoch.

        Raises:
            RenderError: a batch could not be rendered; the state still names it.
        """
        yield from self._from_here(lambda n: self._rendered(n) if self.decode == "dali" else self._ahead(n, False))

    def encoded(self) -> Iterator[EncodedBatch]:
        """The same batches with encoded files in place of pixels; the state moves as in an iteration of the loader.

        Raises:
            RenderError: a file stayed out of reach, or the files of a batch do not fit into the memory allowed.
        """
        yield from self._from_here(lambda n: self._ahead(n, True))

    def _from_here(self, ahead: Callable[[int], Generator[tuple[Any, int], None, None]]) -> Iterator[Any]:
        self._begin()
        self._start = self._next
        resumed = self._next > 0
        some = yield from self._hand_out(self._epoch, ahead(self._epoch))
        if resumed and not some:
            # Whoever takes exactly `len` batches never sees an epoch end; the next time it means the next one.
            yield from self._from_here(ahead)

    def _hand_out(self, epoch: int, found: Generator[tuple[Any, int], None, None]) -> Generator[Any, None, bool]:
        """Hands out what is found, moving the state, and returns whether there was anything."""
        some = False
        with closing(found):
            while (pair := next(found, None)) is not None:
                some = True
                self._epoch, self._next = epoch, pair[1]
                batch = pair[0]
                del pair
                yield batch
                # Let go of it, so that its memory is free as soon as the caller has let go too.
                del batch
        self._epoch, self._next, self._start = epoch + 1, 0, 0
        return some

    def _rendered(self, epoch: int) -> Generator[tuple[Any, int], None, None]:
        """The encoded batches through DALI: one is decoded while the one before it is used."""
        assert self._dali is not None
        ahead: deque[Any] = deque()
        source = self._ahead(epoch, True)
        try:
            while True:
                while len(ahead) < 2 and (pair := next(source, None)) is not None:
                    ahead.append((self._dali.submit(pair[0]), pair[1]))
                    del pair
                if not ahead:
                    return
                rendering, behind = ahead.popleft()
                found = rendering.wait(), behind
                del rendering
                yield found
                del found
        finally:
            for rendering, _ in ahead:
                rendering.cancel()
            source.close()

    def load_state_dict(self, state: dict[str, Any], *, other_renderer: bool = False) -> None:
        """As `Steps.load_state_dict`; with `decode = "auto"` the state's decoder is taken in place of the measured one."""
        name = identity.decoder_of(str(state.get("render_id", "")))
        if self._auto and name and not other_renderer:
            self._use("dali" if name.startswith("dali") else "cpu")
            log.info("decode = auto: %s, as in the state", self.decode)
        super().load_state_dict(state, other_renderer=other_renderer)

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger of what was fetched or decoded in this process: one entry per (epoch, image)."""
        return [] if self._dali is None else self._dali.failures()

    def _close_decoder(self) -> None:
        if self._dali is not None:
            self._dali.close()
