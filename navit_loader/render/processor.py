"""`ImageProcessor`: the image processor of another model, over this engine.

In: a model's folder, or its settings; then images. Out: what that model's own processor in transformers makes of the same
images: the same tensors, grids and verdicts. Each image is rendered straight into its place in the tensor, so there is neither
a plan nor a batch here. transformers itself is not needed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import _packer
from ..config import RenderConfig
from ..errors import ConfigError, PlanError, RenderError, needed, reason
from ..families import CLIP_MEAN, CLIP_STD, FAMILIES, HALF, Ints, Layout, normalised
from ..foreign import helpers
from ..sizing import target
from .images import picture, picture_size

BILINEAR, BICUBIC = 2, 3
FILTERS = {1: "lanczos", BILINEAR: "bilinear", BICUBIC: "bicubic", 4: "area"}
"""Pillow's numbers of filters."""

_CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": BICUBIC}
_QWEN = {**_CLIP, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2VLImageProcessor": (
        "qwen_vl",
        {**_QWEN, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
    ),
    "Glm4vImageProcessor": (
        "glm4v",
        {**_QWEN, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}},
    ),
    "PaddleOCRVLImageProcessor": (
        "paddleocr_vl",
        {**_QWEN, "temporal_patch_size": 1, "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536}},
    ),
    "Siglip2ImageProcessor": (
        "siglip2",
        {"image_mean": HALF, "image_std": HALF, "resample": BILINEAR, "patch_size": 16, "max_num_patches": 256},
    ),
    "PixtralImageProcessor": (
        "pixtral",
        {**_CLIP, "patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}},
    ),
    "Kimi_K25ImageProcessor": (
        "kimi",
        {
            "image_mean": HALF,
            "image_std": HALF,
            "resample": BICUBIC,
            "patch_size": 14,
            "merge_size": 2,
            "max_patches": 16384,
            "size": {"max_height": 512, "max_width": 512},
        },
    ),
    "Gemma4ImageProcessor": (
        "gemma4",
        {
            "image_mean": (0.0, 0.0, 0.0),
            "image_std": (1.0, 1.0, 1.0),
            "do_normalize": False,
            "resample": BICUBIC,
            "patch_size": 16,
            "max_soft_tokens": 280,
            "pooling_kernel_size": 3,
        },
    ),
}
"""Processors by the name that transformers has for them: the family, and what holds where a folder says nothing."""

ALWAYS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
"""What holds beside these in all of them."""

FIXED = {"do_resize": True, "do_center_crop": False, "do_convert_rgb": True, "do_pad": True}
"""Settings that can be given in no other way."""


class ImageProcessor:
    """As an image processor of transformers: call it with images.

    Args:
        kind: `image_processor_type`, as a key of `CLASSES`.
        render: how files are decoded; the filter is the family's.
        exact: resize JPEG files from the very pixels that Pillow shows. False takes the loader's way, which is sooner, and
            further from the family's pixels: it decodes at a smaller scale where that is enough, and resizes Y, Cb and Cr.
        settings: as in the family's `preprocessor_config.json`.

    Raises:
        ConfigError: a family that is none of `CLASSES`, or a setting that it cannot have here.
    """

    def __init__(self, kind: str, *, render: RenderConfig | None = None, exact: bool = True, **settings: Any) -> None:
        plain = kind.removesuffix("Fast").removesuffix("Pil")
        if plain not in CLASSES:
            raise ConfigError(f"image_processor_type = '{kind}' is none of those that are known: {', '.join(CLASSES)}")
        self.kind, self.render, self.exact = plain, render or RenderConfig(), exact
        self.family, defaults = CLASSES[plain]
        self.settings = _checked({**ALWAYS, **defaults}, settings)

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
            render, exact, settings: as for the class; settings go before the folder's.

        Raises:
            ConfigError: it cannot be read, or as for the class.
        """
        for name, inside in (("preprocessor_config.json", ()), ("processor_config.json", ("image_processor",))):
            path = Path(folder) / name
            if not path.exists():
                continue
            try:
                found = json.loads(path.read_text())
                for key in inside:
                    found = found[key]
                kind = found["image_processor_type"]
            except OSError as e:
                raise ConfigError(f"'{path}' cannot be read: {reason(e)}") from None
            except (ValueError, KeyError, TypeError) as e:
                raise ConfigError(f"'{path}' is no configuration of an image processor: {e!r}") from None
            try:
                return cls(kind, render=render, exact=exact, **{**found, **settings})
            except ConfigError as e:
                raise ConfigError(f"'{path}': {e}") from None
        raise ConfigError(f"'{os.fspath(folder)}' holds no preprocessor_config.json; give the folder of a model")

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
        had = _checked(self.settings, settings) if settings else self.settings
        given = [picture(n, image) for n, image in enumerate(_flat(images))]
        if not given:
            raise PlanError("the processor was given no image; pass at least one")
        found = self._tensors(given, had)
        return _feature({key: v if torch is None else torch.from_numpy(v) for key, v in found.items()})

    def _tensors(self, given: list[Any], had: Mapping[str, Any]) -> dict[str, Any]:
        family = FAMILIES[self.family]
        if family.blocks > 1:
            family = replace(family, blocks=had["merge_size"])
        if "temporal_patch_size" in had:
            family = replace(family, repeats=had["temporal_patch_size"])
        patch, merge, pool = _side(had["patch_size"]), had.get("merge_size", 1), had.get("pooling_kernel_size", 3)
        targets = [_target(n, self.family, picture_size(n, one), had) for n, one in enumerate(given)]
        # Where an image does not fill its last patches, as with Kimi, they are black there.
        grids: Ints = -(-np.array(targets, np.int64) // (patch * merge)) * merge
        tokens: Ints = grids.prod(1)
        room = had.get("max_num_patches") or had.get("max_soft_tokens", 0) * pool * pool
        layout = Layout(family, patch, grids, tokens, room)
        at = [np.divmod(np.arange(n), w) for n, w in zip(tokens, grids[:, 1], strict=True)]
        pixels = layout.empty()
        failed = _packer.render_floats(
            given,
            targets,
            grids[:, 1].tolist(),
            layout.starts.tolist(),
            [layout.places(y, x, int(w)) for (y, x), w in zip(at, grids[:, 1], strict=True)],
            layout.strides,
            _values(had),
            replace(self.render, filter=FILTERS[had["resample"]]).to_json(),
            pixels.reshape(-1),
            helpers(),
            self.exact,
        )
        if failed:
            n, why = failed[0]
            raise RenderError(f"images[{n}] cannot be decoded: {why}")
        y, x = (np.concatenate(part) for part in zip(*at, strict=True))
        return layout.named(pixels, np.repeat(np.arange(len(given)), tokens), y, x)


def _values(had: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    factor = had["rescale_factor"] if had["do_rescale"] else 1.0
    if had["do_normalize"]:
        return normalised(had["image_mean"], had["image_std"], factor)
    return np.repeat(np.arange(256, dtype=np.float32)[None] * np.float32(factor), 3, 0)


def _target(n: int, family: str, size: tuple[int, int], had: Mapping[str, Any]) -> tuple[int, int]:
    try:
        return target(family, size, had)
    except PlanError as e:
        raise PlanError(f"images[{n}] of {size[0]} × {size[1]} pixels: {e}") from None


def _checked(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them. Those that are of no use to any processor here are left out.

    Raises:
        ConfigError: a value that cannot be.
    """
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in FIXED.items():
        if given.get(key, value) != value:
            raise ConfigError(f"{key} = {given[key]!r} is not done here; it must be {value!r}")
    had = {key: given.get(key, value) for key, value in base.items()}
    if "size" in had:
        size = dict(had["size"])
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            # Older folders hold them beside `size`, some within it.
            if (pixels := given.get(key, size.pop(key, None))) is not None:
                size[edge] = pixels
        had["size"] = size
    if had["resample"] not in FILTERS:
        raise ConfigError(
            f"resample = {had['resample']!r} is none of {', '.join(f'{k} ({v})' for k, v in FILTERS.items())}"
        )
    for key in ("image_mean", "image_std"):
        if not isinstance(had[key], Sequence) or len(had[key]) != 3:
            raise ConfigError(f"{key} = {had[key]!r} is not possible; give three numbers")
    counts = {
        key: had[key] for key in ("merge_size", "temporal_patch_size", "max_num_patches", "max_patches") if key in had
    }
    for key, value in {"patch_size": _side(had["patch_size"]), **counts}.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} = {value!r} is not possible; give a whole number above 0")
    return had


def _side(patch: Any) -> Any:
    if isinstance(patch, Mapping):
        if patch.get("height") != patch.get("width"):
            raise ConfigError(f"patch_size = {patch!r} is not done here; patches must be square")
        return patch.get("height")
    return patch


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
