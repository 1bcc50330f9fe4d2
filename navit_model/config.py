"""`NaViTConfig`: the shape of a model, section `[model]` of a configuration.

In: TOML keys or keyword arguments. Out: a frozen dataclass that has checked itself. Presets name the usual sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from navit_loader.config import check_types, require
from navit_loader.errors import ConfigError

PRESETS: dict[str, tuple[int, int, int]] = {
    "Mu": (32, 3, 2),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
"""Width, depth and heads by name (ViT: arXiv 2010.11929, Table 1; Ti and S: DeiT, arXiv 2012.12877)."""


@dataclass(frozen=True, slots=True)
class NaViTConfig:
    """The shape of a NaViT.

    Attributes:
        width: D.
        depth: blocks.
        heads: H; D divides by it.
        mlp_ratio: hidden width of the MLP over D.
        patch_size: P that the patch embedding takes.
        max_grid: rows of each factorised position table: patches per side at most (NaViT, section 2.2).
        classes: outputs of the classifier; 0 where the loader's index says.
        qk_norm: normalise queries and keys per head (ViT-22B, arXiv 2302.05442, section 2).
        qkv_bias: biases in the query, key and value projections; the paper has none.
        norm_bias: biases in LayerNorm; the paper has none.
        attention: backend: `auto`, or one of `attention.BACKENDS` by name.
        mean: mean of each channel in 0..1, subtracted on the device.
        std: standard deviation of each channel in 0..1.
    """

    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    patch_size: int = 16
    max_grid: int = 64
    classes: int = 0
    qk_norm: bool = True
    qkv_bias: bool = False
    norm_bias: bool = False
    attention: Literal["auto", "dense", "segments", "torch_varlen"] = "auto"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_types(self)
        require(self.width >= 1, "width", self.width, "at least 1")
        require(self.depth >= 1, "depth", self.depth, "at least 1")
        require(
            self.heads >= 1 and self.width % self.heads == 0,
            "heads",
            self.heads,
            f"a divisor of width = {self.width}",
        )
        require(self.mlp_ratio > 0, "mlp_ratio", self.mlp_ratio, "above 0")
        require(1 <= self.patch_size <= 512, "patch_size", self.patch_size, "between 1 and 512 pixels")
        require(1 <= self.max_grid <= 32767, "max_grid", self.max_grid, "between 1 and 32767 patches")
        require(self.classes >= 0, "classes", self.classes, "at least 0")
        require(all(s > 0 for s in self.std), "std", self.std, "above 0 in each channel")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> NaViTConfig:
        """A usual size with its patch size, such as `B/16`, with keys changed as wanted.

        Raises:
            ConfigError: names the preset and those there are.
        """
        size, _, patch = name.partition("/")
        if size not in PRESETS or not patch.isdigit():
            raise ConfigError(
                f"preset {name!r} is not known; take {', '.join(PRESETS)} with a patch size, as in 'B/16'"
            )
        width, depth, heads = PRESETS[size]
        return replace(cls(width=width, depth=depth, heads=heads, patch_size=int(patch)), **changes)
