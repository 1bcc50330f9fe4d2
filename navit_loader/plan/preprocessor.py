"""Settings of other people's image processors, and what they mean for a plan.

In: a model's folder with a `preprocessor_config.json`, or settings by name. Out: those settings, checked, with the family's
own where none is given; and `[plan.resolution]` of the same sizes. Apart, since a plan (`sizing`) and `ImageProcessor` read
the same folders. Source of names and defaults: the image processors of transformers 5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..errors import ConfigError, reason
from ..families import FAMILIES
from .config import RULES, Resolution

BILINEAR, BICUBIC = 2, 3
FILTERS: Mapping[int, Literal["lanczos", "bilinear", "bicubic", "area"]] = {
    1: "lanczos",
    BILINEAR: "bilinear",
    BICUBIC: "bicubic",
    4: "area",
}
"""Pillow's numbers of filters."""

SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""What Gemma 4 may make of an image at most."""


class Class(NamedTuple):
    """A processor: the family whose tensors it makes, the rule of its sizes, and what holds where a folder says nothing."""

    family: str
    rule: str
    settings: Mapping[str, Any]

    def defaults(self) -> dict[str, Any]:
        """All of them, with what holds in every processor and in every one of the family."""
        of = FAMILIES[self.family]
        return {**ALWAYS, "image_mean": of.mean, "image_std": of.std, **self.settings}


_QWEN = {"resample": BICUBIC, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
_GLM = Class("glm4v", "glm", {**_QWEN, "size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}})

CLASSES: Mapping[str, Class] = {
    "Qwen2VLImageProcessor": Class(
        "qwen_vl", "qwen", {**_QWEN, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}}
    ),
    "Glm4vImageProcessor": _GLM,
    "Glm46VImageProcessor": _GLM,
    "PaddleOCRVLImageProcessor": Class(
        "paddleocr_vl",
        "paddleocr",
        {**_QWEN, "temporal_patch_size": 1, "size": {"shortest_edge": 384 * 384, "longest_edge": 1536 * 1536}},
    ),
    "Siglip2ImageProcessor": Class(
        "siglip2", "siglip2", {"resample": BILINEAR, "patch_size": 16, "max_num_patches": 256}
    ),
    "Lfm2VlImageProcessor": Class(
        "siglip2",
        "lfm2",
        {
            "resample": BILINEAR,
            "encoder_patch_size": 16,
            "downsample_factor": 2,
            "min_image_tokens": 64,
            "max_image_tokens": 256,
            "do_image_splitting": True,
            "return_row_col_info": False,
        },
    ),
    "PixtralImageProcessor": Class(
        "pixtral",
        "pixtral",
        {"resample": BICUBIC, "patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}},
    ),
    "Kimi_K25ImageProcessor": Class(
        "kimi",
        "kimi",
        {
            "resample": BICUBIC,
            "patch_size": 14,
            "merge_size": 2,
            "max_patches": 16384,
            "size": {"max_height": 512, "max_width": 512},
        },
    ),
    "Gemma4ImageProcessor": Class(
        "gemma4",
        "gemma4",
        {
            "do_normalize": False,
            "resample": BICUBIC,
            "patch_size": 16,
            "max_soft_tokens": 280,
            "pooling_kernel_size": 3,
        },
    ),
}
"""Processors by the name that transformers has for them."""

ALWAYS = {"do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
"""What holds beside these in all of them."""

FIXED = {
    "do_resize": True,
    "do_center_crop": False,
    "do_convert_rgb": True,
    "do_pad": True,
    "do_image_splitting": False,
    "return_row_col_info": False,
}
"""Settings that can be had in no other way."""

COUNTS = (
    "patch_size",
    "encoder_patch_size",
    "merge_size",
    "temporal_patch_size",
    "max_num_patches",
    "max_patches",
    "max_soft_tokens",
    "pooling_kernel_size",
    "downsample_factor",
    "min_image_tokens",
    "max_image_tokens",
)
"""Settings that are whole numbers above 0, where a processor has them."""


def sizing(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The keys of `[plan]` by which images get the sizes that a model's own processor gives them: `patch_sizes` and
    `resolution`.

    Args:
        folder: of the model; see `read`. Mistral 3's `spatial_merge_size` in `processor_config.json` counts.

    Raises:
        ConfigError: it cannot be read, or sizes by no rule that is known.
    """
    kind, given, path = read(folder)
    try:
        of = named(kind)
        had = checked(of.defaults(), given)
        patch, merge = patch_of(had), 1
        if of.rule == "pixtral":
            merge = _table(Path(folder) / "processor_config.json").get("spatial_merge_size", 1)
        found = resolution(of.rule, had, merge)
    except ConfigError as e:
        raise ConfigError(f"'{path}': {e}") from None
    keys = ("kind", "rule", *RULES[of.rule])
    return {"patch_sizes": [patch], "resolution": {key: getattr(found, key) for key in keys}}


def read(folder: str | os.PathLike[str]) -> tuple[str, dict[str, Any], Path]:
    """The processor's name, its settings, and the file that they stand in: `preprocessor_config.json`, or a
    `processor_config.json` that holds them. Offline.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    for name, inside in (("preprocessor_config.json", ()), ("processor_config.json", ("image_processor",))):
        path = Path(folder) / name
        found: Any = _table(path)
        for key in inside:
            found = found.get(key, {})
        if not found:
            continue
        if not isinstance(found, dict) or not isinstance(kind := found.get("image_processor_type"), str):
            raise ConfigError(
                f"'{path}' names no image_processor_type; give the folder of a model of {', '.join(CLASSES)}"
            )
        return kind, found, path
    raise ConfigError(f"'{os.fspath(folder)}' holds no preprocessor_config.json; give the folder of a model")


def _table(path: Path) -> dict[str, Any]:
    """A JSON file's; empty where there is no file."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise ConfigError(f"'{path}' cannot be read: {reason(e)}") from None
    except ValueError as e:
        raise ConfigError(f"'{path}' is no configuration of an image processor: {e}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"'{path}' is no configuration of an image processor, but of type {type(found).__name__}")
    return found


def named(kind: str) -> Class:
    """A processor by its name, of which transformers 4 had a `Fast` form and 5 has one for Pillow.

    Raises:
        ConfigError: it is none of `CLASSES`.
    """
    found = CLASSES.get(kind.removesuffix("Fast").removesuffix("Pil"))
    if found is None:
        raise ConfigError(f"image_processor_type = '{kind}' is none of those that are known: {', '.join(CLASSES)}")
    return found


def checked(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them. Those that are of no use to any processor here are left out.

    Raises:
        ConfigError: a value that cannot be.
    """
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in FIXED.items():
        if (found := given.get(key, base.get(key, value))) != value:
            raise ConfigError(f"{key} = {found!r} is not done here; it must be {value!r}")
    had = {key: given.get(key, value) for key, value in base.items()}
    if "size" in had:
        size = had["size"] = dict(had["size"]) if isinstance(had["size"], Mapping) else {}
        for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            # Older folders hold them beside `size`, some within it.
            if (pixels := given.get(key, size.pop(key, None))) is not None:
                size[edge] = pixels
    if had["resample"] not in FILTERS:
        raise ConfigError(
            f"resample = {had['resample']!r} is none of {', '.join(f'{k} ({v})' for k, v in FILTERS.items())}"
        )
    for key in ("image_mean", "image_std"):
        if not isinstance(had[key], Sequence) or len(had[key]) != 3:
            raise ConfigError(f"{key} = {had[key]!r} is not possible; give three numbers")
    if isinstance(patch := had.get("patch_size"), Mapping):
        if patch.get("height") != patch.get("width"):
            raise ConfigError(f"patch_size = {patch!r} is not done here; patches must be square")
        had["patch_size"] = patch.get("height")
    for key in COUNTS:
        if key in had:
            _whole(key, had[key])
    if (most := had.get("max_soft_tokens", 70)) not in SOFT_TOKENS:
        raise ConfigError(f"max_soft_tokens = {most} is none of {', '.join(map(str, SOFT_TOKENS))}")
    return had


def _whole(key: str, value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} = {value!r} is not possible; give a whole number above 0")
    return value


def _edge(had: Mapping[str, Any], *keys: str) -> int:
    """What `size` has by one of these names, or by all of two or more."""
    found = {had["size"].get(key) for key in keys}
    if len(found) > 1:
        raise ConfigError(f"size = {had['size']!r} is not done here; {' and '.join(keys)} must be equal")
    return _whole(f"size['{keys[0]}']", found.pop())


def patch_of(had: Mapping[str, Any]) -> int:
    """P."""
    found: int = had["patch_size"] if "patch_size" in had else had["encoder_patch_size"]
    return found


def resolution(rule: str, had: Mapping[str, Any], merge: int = 1) -> Resolution:
    """`[plan.resolution]` of a processor's sizes.

    Args:
        rule: of its class.
        had: settings, as `checked` gives them.
        merge: of Pixtral, whose image processor has no such setting.

    Raises:
        ConfigError: bounds that cannot be.
    """
    area = patch_of(had) ** 2
    keys: dict[str, int]
    if rule in ("qwen", "glm", "paddleocr"):
        keys = {"min_pixels": _edge(had, "shortest_edge"), "max_pixels": _edge(had, "longest_edge")}
        if rule == "glm":
            frames = had["temporal_patch_size"]
            for key, pixels in keys.items():
                if pixels % frames:
                    raise ConfigError(
                        f"{key} = {pixels} of {frames} frames is not done here; temporal_patch_size must divide it"
                    )
                keys[key] = pixels // frames
        keys["merge"] = had["merge_size"]
    elif rule == "lfm2":
        merge = had["downsample_factor"]
        block = area * merge**2
        keys = {
            "merge": merge,
            "min_pixels": had["min_image_tokens"] * block,
            "max_pixels": had["max_image_tokens"] * block,
        }
    elif rule == "siglip2":
        keys = {"max_pixels": had["max_num_patches"] * area}
    elif rule == "pixtral":
        longest = ("longest_edge",) if had["size"].get("longest_edge") else ("height", "width")
        keys = {"merge": merge, "max_side": _edge(had, *longest)}
    elif rule == "kimi":
        side = _edge(had, "max_height", "max_width") * patch_of(had)
        keys = {"merge": had["merge_size"], "max_pixels": had["max_patches"] * area, "max_side": side}
    else:
        merge = had["pooling_kernel_size"]
        keys = {"merge": merge, "max_pixels": had["max_soft_tokens"] * area * merge**2}
    return Resolution(kind="smart", rule=rule, **keys)  # type: ignore[arg-type]
