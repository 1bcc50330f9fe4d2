"""`ImageProcessor`: the image processor of another model, over this engine.

In: a model's folder, or its settings; then images. Out: what that model's own processor in transformers makes of the same
images: the same tensors, grids and verdicts. Each image is rendered straight into its place in the tensor, so there is neither
a plan nor a batch here. transformers itself is not needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import _packer
from ..config import RenderConfig
from ..errors import ConfigError, PlanError, RenderError, needed
from ..families import FAMILIES, Layout, Scale
from ..foreign import helpers
from ..plan.preprocessor import FILTERS, checked, named, patch_of, read, resolution
from ..plan.sizing import sizes
from .images import picture, picture_size


class ImageProcessor:
    """As an image processor of transformers: call it with images.

    Args:
        kind: `image_processor_type`, as a key of `plan.preprocessor.CLASSES`.
        render: how files are decoded; the filter is the family's.
        exact: resize JPEG files from the very pixels that Pillow shows. False takes the loader's way, which is sooner, and
            further from the family's pixels: it decodes at a smaller scale where that is enough, and resizes Y, Cb and Cr.
        settings: as in the family's `preprocessor_config.json`.

    Raises:
        ConfigError: a family that is none of those, or a setting that it cannot have here.
    """

    def __init__(self, kind: str, *, render: RenderConfig | None = None, exact: bool = True, **settings: Any) -> None:
        self.of, self.render, self.exact = named(kind), render or RenderConfig(), exact
        self.settings = self._checked(self.of.defaults(), settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        render: RenderConfig | None = None,
        exact: bool = True,
        **settings: Any,
    ) -> ImageProcessor:
        """From a model's folder with a `preprocessor_config.json`, or a `processor_config.json` that holds one. Offline.

        Args:
            folder: where it lies.
            render: as for the class.
            exact: as for the class.
            **settings: as for the class; they go before the folder's.

        Raises:
            ConfigError: it cannot be read, or as for the class.
        """
        kind, found, path = read(folder)
        try:
            return cls(kind, render=render, exact=exact, **{**found, **settings})
        except ConfigError as e:
            raise ConfigError(f"'{path}': {e}") from None

    def _checked(self, base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with others over them, from which sizes follow."""
        had = checked(base, settings)
        resolution(self.of.rule, had)
        return had

    @cached_property
    def _floats(self) -> _packer.Floats:
        return _packer.Floats(helpers(), self.exact)

    def __getstate__(self) -> dict[str, Any]:
        """Without buffers, for processes that load data."""
        return {key: value for key, value in self.__dict__.items() if key != "_floats"}

    def __getattr__(self, name: str) -> Any:
        """A setting, such as `merge_size`, which transformers' processors of text and images ask for."""
        settings = self.__dict__.get("settings", {})
        if name not in settings:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return settings[name]

    def __call__(self, images: Any, return_tensors: str = "pt", **settings: Any) -> Mapping[str, Any]:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors, **settings)

    def preprocess(self, images: Any, return_tensors: str = "pt", **settings: Any) -> Mapping[str, Any]:
        """The tensors of images, in their order.

        Args:
            images: one or a list: paths, bytes of image files, PIL images, u8 arrays `[H, W, 3]` or `[H, W]`. Lists of lists
                are joined.
            return_tensors: `pt` or `np`.
            settings: for this call alone.

        Returns:
            transformers' `BatchFeature` where transformers is in use, else a dict; keys, shapes and dtypes are
            the family's.

        Raises:
            ConfigError: a setting that cannot be.
            PlanError: what is no image, or is of sides that the family refuses: names its number.
            RenderError: an image that cannot be decoded: names its number.
        """
        if return_tensors not in ("pt", "np"):
            raise ConfigError(f"return_tensors = {return_tensors!r} is not possible; give 'pt' or 'np'")
        torch = needed("torch") if return_tensors == "pt" else None
        had = self._checked(self.settings, settings) if settings else self.settings
        given = [picture(n, image) for n, image in enumerate(_flat(images))]
        if not given:
            raise PlanError("the processor was given no image; pass at least one")
        found = self._tensors(given, had)
        return _feature({key: v if torch is None else torch.from_numpy(v) for key, v in found.items()})

    def _tensors(self, given: list[Any], had: Mapping[str, Any]) -> dict[str, Any]:
        family = FAMILIES[self.of.family]
        if family.blocks > 1:
            family = replace(family, blocks=had["merge_size"])
        if "temporal_patch_size" in had:
            family = replace(family, repeats=had["temporal_patch_size"])
        patch, rule = patch_of(had), resolution(self.of.rule, had)
        given_sizes = np.array([picture_size(n, one) for n, one in enumerate(given)])
        # Where an image does not fill its last patches, as with Kimi, they are black there.
        targets, grids, refused = sizes(rule, patch, *given_sizes.T)
        if refused:
            n, why = refused[0]
            height, width = given_sizes[n]
            raise PlanError(f"images[{n}] of {height} × {width} pixels: {why}; crop it or leave it out")
        tokens = grids.prod(1)
        # The budget of a padded family.
        room = rule.max_pixels // patch**2
        layout = Layout(family, patch, grids, tokens, room)
        at = [np.divmod(np.arange(n), w) for n, w in zip(tokens, grids[:, 1], strict=True)]
        pixels = layout.empty()
        failed = self._floats.render(
            given,
            [(h, w) for h, w in targets.tolist()],
            grids[:, 1].tolist(),
            layout.starts.tolist(),
            [layout.places(y, x, int(w)) for (y, x), w in zip(at, grids[:, 1], strict=True)],
            layout.strides,
            _scale(had),
            replace(self.render, filter=FILTERS[had["resample"]]).to_json(),
            pixels.reshape(-1),
        )
        if failed:
            n, why = failed[0]
            raise RenderError(f"images[{n}] cannot be decoded: {why}")
        y, x = (np.concatenate(part) for part in zip(*at, strict=True))
        return layout.named(pixels, np.repeat(np.arange(len(given)), tokens), y, x)


def _scale(had: Mapping[str, Any]) -> Scale:
    factor = had["rescale_factor"] if had["do_rescale"] else 1.0
    if had["do_normalize"]:
        return Scale.normalising(had["image_mean"], had["image_std"], factor)
    return Scale.by(factor)


def _flat(images: Any) -> Iterable[Any]:
    """One image, images, or lists of images, as one after the other."""
    if not isinstance(images, list | tuple):
        return [images]
    return [one for image in images for one in (_flat(image) if isinstance(image, list | tuple) else [image])]


def _feature(tensors: dict[str, Any]) -> Mapping[str, Any]:
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return tensors
    made: Mapping[str, Any] = transformers.BatchFeature(tensors)
    return made
