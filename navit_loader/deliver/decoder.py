"""Which decoder makes a loader's pixels: the engine's on the CPU, or another from encoded batches.

In: what the user asked for, and the loader's batches made either way. Out: the choice, and the `render_id` that names it, so
that a saved state knows it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import ConfigError, NavitError
from ..plan import identity
from .boundary import Agree

if TYPE_CHECKING:
    from ..render.device.renderer import DeviceRenderer

log = logging.getLogger("navit_loader")

Decode = Literal["auto", "cpu", "dali", "nvjpeg"]
"""`cpu`: pixels come from the engine; `dali`, `nvjpeg`: they are made here from encoded files, by DALI or by nvJPEG through
torchvision; `auto`: `cpu` or `dali`, whichever is faster."""

_CLASSES = {"dali": "DaliRenderer", "nvjpeg": "NvjpegRenderer"}
"""The renderer of each decoder but the engine's, in the folder of `render/` with the decoder's name."""

Batches = Callable[[bool], Generator[tuple[Any, int], None, None]]
"""The batches of an epoch, and what stands beside each; through the renderer or the engine."""

_MEASURED_S = 1.0
_WARM_BATCHES = 6
_MEASURED_BATCHES = 16


class Decoder:
    """The decoder of a loader.

    Args:
        decode: what the user asked for.
        device: where another decoder than the engine's renders.
        options: of its `DeviceRenderer`.
        agree: gives every rank's text to every rank.
        world_size: ranks that have to choose alike.

    Attributes:
        name: the decoder in use, `cpu` for the engine's.
        measured: images per second of each decoder, over all ranks, where `auto` measured them; else empty.
        renderer: of another decoder, once it was used.

    Raises:
        ConfigError: an unknown decoder.
    """

    def __init__(
        self, decode: Decode, device: str, options: dict[str, Any], agree: Agree | None, world_size: int
    ) -> None:
        if decode not in get_args(Decode):
            raise ConfigError(f"decode = {decode!r} is not allowed; choose one of {', '.join(get_args(Decode))}")
        self._asked, self._device, self._options, self._agree = decode, device, options, agree
        self._world_size = world_size
        self.name = "cpu"
        self.measured: dict[str, float] = {}
        self.renderer: DeviceRenderer | None = None

    def alone(self, key: str, what: str) -> None:
        """Says that the plan has a key for what the engine alone does, in words: `auto` is `cpu` then.

        Raises:
            ConfigError: another decoder was asked for.
        """
        if self._asked not in ("auto", "cpu"):
            raise ConfigError(f"decode = '{self._asked}' cannot do {key}; take decode = 'cpu', or leave {key} out")
        if self._asked == "auto":
            log.info("decode = cpu, since the plan %s", what)
        self._asked = "cpu"

    def settle(self, batches: Batches) -> None:
        """Makes the choice; with `auto` by taking the first batches both ways.

        Raises:
            ConfigError: a decoder where it cannot work, or `auto` where ranks could not agree.
        """
        if self._asked == "auto":
            if self._agree is None and self._world_size > 1:
                raise ConfigError(
                    f"decode = 'auto' with world_size = {self._world_size} needs agree=FUNCTION, by which all ranks choose "
                    "alike (torch.distributed.all_gather_object does it); navit-model gives it by itself; or name one that is "
                    "not 'auto'"
                )
            self._measure(batches)
        else:
            self._use(self._asked)

    def render_id(self, engine: str) -> str:
        """The `render_id` of pixels by the decoder in use, from that of the engine."""
        if self.name == "cpu":
            return engine
        assert self.renderer is not None
        return identity.with_decoder(engine, self.renderer.decoder_name(self._device))

    def follow(self, render_id: str) -> None:
        """With `auto`, the decoder of a state in place of the measured one."""
        name = identity.decoder_of(render_id)
        if self._asked == "auto" and name:
            self._use("dali" if name.startswith("dali") else "cpu")
            log.info("decode = auto: %s, as in the state", self.name)

    def close(self) -> None:
        """Ends what the renderer has begun."""
        if self.renderer is not None:
            self.renderer.close()

    def _use(self, name: str) -> None:
        if name != "cpu" and self.renderer is None:
            kind = getattr(import_module(f"..render.{name}", __package__), _CLASSES[name])
            self.renderer = kind(self._device, **self._options)
        self.name = name

    def _measure(self, batches: Batches) -> None:
        """Takes the first batches by both ways and goes on with the faster; every rank with the same."""
        mine, why = "", "the others say why"
        try:
            self._use("dali")
            mine = f"{self._rate(batches, True)} {self._rate(batches, False)}"
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
        self.measured.update(cpu=cpu, dali=dali)
        self._use("dali" if dali > cpu else "cpu")
        log.info("decode = auto: %s (cpu %s images/s, dali %s)", self.name, f"{cpu:,.0f}", f"{dali:,.0f}")

    def _rate(self, batches: Batches, dali: bool) -> float:
        """Images per second, behind the first batches: what is made ahead of them would count for nothing."""
        images = 0
        taken = [(time.perf_counter(), 0)]
        with closing(batches(dali)) as found:
            for batch, _ in islice(found, _WARM_BATCHES + _MEASURED_BATCHES):
                images += batch.num_images
                taken.append((time.perf_counter(), images))
                if len(taken) > _WARM_BATCHES + 1 and taken[-1][0] - taken[_WARM_BATCHES][0] > _MEASURED_S:
                    break
            if dali and self.renderer is not None:
                self.renderer.settle()
        # An epoch that ends soon after them shows no steady state: then its batches were all made ahead, and all count.
        ended_early = len(taken) <= 2 * _WARM_BATCHES
        steady = len(taken) > _WARM_BATCHES and taken[-1][0] - taken[_WARM_BATCHES][0] > _MEASURED_S
        before, seen = taken[0 if ended_early and not steady else _WARM_BATCHES]
        return (images - seen) / (time.perf_counter() - before)
