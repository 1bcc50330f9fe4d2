"""Where a patch stands: NaViT's position embeddings (arXiv 2307.06304, Table 3), FlexiViT's resized grid, and 2D rotation.

In: (y, x) of each token and the (h, w) of its image. Out: one vector a token, or the angles of the rotation. Every variant
is a gather from tables that are separable by axis, so there is no loop over images and every shape is static. Apart,
since the encoder does not know which variant it reads.

| `positions` | row of Table 3 |
|---|---|
| `learned_1d` | ViT's 1D: one vector per raster index y·w + x |
| `learned_2d` | Pix2Struct's: one vector per (y, x) |
| `factorised`, `_stacked`, `_multiplied` | absolute, learned: φ_y(y) and φ_x(x), added, stacked or multiplied |
| `sinusoidal` | absolute, fixed waves, stacked; `sinusoidal_xy` takes x first and ends its wavelengths one step earlier |
| `fourier` | absolute: sine and cosine of a learned linear map of (y, x) |
| `fractional_fourier`, `_learned`, `_sinusoidal` | the same of y/h and x/w; tables are interpolated linearly |

Beside them `resized_grid` (FlexiViT, SigLIP 2: a small learned grid, resized to each image's) and `resized_axes` (NaFlexViT:
φ_y and φ_x, each resized to the image's count, added).

Shapes: T tokens · D width · G `max_grid` · K channels of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import NaViTConfig
from .embed import resize_matrix


class Positions(nn.Module):
    """The position embedding that `config.positions` names; `none` gives zero."""

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.kind, self.size, self.fraction = config.positions, config.max_grid, config.fraction
        width, size = config.width, config.max_grid
        if self.kind in ("factorised", "factorised_stacked", "factorised_multiplied", "fractional_learned"):
            part = width // 2 if self.kind == "factorised_stacked" else width
            # A product of two has the size of one: each takes the root of the usual 0.02.
            std = 0.02**0.5 if self.kind == "factorised_multiplied" else 0.02
            self.y = _table(size, part, std)
            self.x = _table(size, part, std)
        elif self.kind in ("learned_1d", "learned_2d"):
            self.table = _table(size * size, width)
        elif "sinusoidal" in self.kind:
            self.waves: Tensor
            steps = width // 4 - (self.kind != "sinusoidal_xy")
            self.register_buffer("waves", sinusoids(size, width // 2, steps), persistent=False)
        elif self.kind in ("fourier", "fractional_fourier"):
            # A few periods over the range, whichever unit it has.
            self.frequencies = nn.Parameter(torch.empty(2, width // 2))
            nn.init.normal_(self.frequencies, std=4 * math.pi / (size if self.kind == "fourier" else 1))
        elif self.kind in ("resized_grid", "resized_axes"):
            rows, columns = config.position_grid
            if self.kind == "resized_grid":
                self.table = _table(rows * columns, width)
            else:
                self.y, self.x = _table(rows, width), _table(columns, width)
            how = (size, config.position_filter, config.position_antialias, config.position_corners)
            self.rows: Tensor
            self.columns: Tensor
            self.register_buffer("rows", _resizes(rows, *how), persistent=False)
            self.register_buffer("columns", _resizes(columns, *how), persistent=False)

    def forward(self, at_T2: Tensor, grid_T2: Tensor) -> Tensor | None:
        """Position vectors `[T, D]`, or None for `none`.

        Args:
            at_T2: i64 `[T, 2]`, (y, x) of each token, at least 0.
            grid_T2: i64 `[T, 2]`, (h, w) of each token's image, at least 1.
        """
        y, x = at_T2.unbind(1)
        if self.kind == "factorised":
            return F.embedding(y, self.y) + F.embedding(x, self.x)
        if self.kind == "factorised_stacked":
            return torch.cat([F.embedding(y, self.y), F.embedding(x, self.x)], 1)
        if self.kind == "factorised_multiplied":
            return F.embedding(y, self.y) * F.embedding(x, self.x)
        if self.kind == "learned_1d":
            return F.embedding(y * grid_T2[:, 1] + x, self.table)
        if self.kind == "learned_2d":
            return F.embedding(y * self.size + x, self.table)
        if self.kind == "sinusoidal":
            return torch.cat([self.waves[y], self.waves[x]], 1)
        if self.kind == "sinusoidal_xy":
            return torch.cat([self.waves[x], self.waves[y]], 1)
        if self.kind == "fourier":
            return self._fourier(at_T2.to(self.frequencies.dtype))
        if self.kind == "none":
            return None
        by = grid_T2.amax(1, keepdim=True).expand(-1, 2) if self.fraction == "longer" else grid_T2
        if self.kind in ("resized_grid", "resized_axes"):
            a, b = self.rows[by[:, 0], y], self.columns[by[:, 1], x]
            if self.kind == "resized_axes":
                return a.to(self.y.dtype) @ self.y + b.to(self.x.dtype) @ self.x
            weights = (a[:, :, None] * b[:, None, :]).flatten(1)
            return weights.to(self.table.dtype) @ self.table
        fraction = at_T2.float() / by
        if self.kind == "fractional_fourier":
            return self._fourier(fraction.to(self.frequencies.dtype))
        v, u = fraction.unbind(1)
        if self.kind == "fractional_learned":
            return _interpolate(self.y, v) + _interpolate(self.x, u)
        return torch.cat([_interpolate(self.waves, v), _interpolate(self.waves, u)], 1)

    def _fourier(self, point_T2: Tensor) -> Tensor:
        angle = point_T2 @ self.frequencies
        return torch.cat([angle.sin(), angle.cos()], 1)


class Rotation(nn.Module):
    """2D rotary positions (arXiv 2104.09864; by axis as in arXiv 2403.13298): half of a head turns with y, half with x.

    Which channels turn with which axis is an order of the rows of queries and keys alone: weights that know another one are
    put in ours when they are taken over (`navit_model.weights.convert.rope_order`).
    """

    def __init__(self, config: NaViTConfig) -> None:
        super().__init__()
        self.places, self.offset = config.rope_places, config.rope_offset
        self.grid: Tensor
        self.register_buffer("grid", torch.tensor(config.rope_grid, dtype=torch.float32), persistent=False)
        quarter = config.width // config.heads // 4
        self.speeds: Tensor
        speeds = config.rope_base ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
        if config.rope_speeds == "alternating":
            speeds = torch.stack([speeds, speeds * config.rope_base ** -(0.5 / quarter)])
        if config.rope_places == "centred":
            speeds = 2 * math.pi * speeds
        self.register_buffer("speeds", speeds, persistent=False)
        self.learned = config.rope_speeds == "learned"

    def forward(self, at_T2: Tensor, grid_T2: Tensor, turns_T: Tensor) -> dict[str, Any]:
        """What the blocks want of it, made once for all layers: cosine and sine, each f32 `[T, 1, K/2]`, as `rotation`; or,
        where their speeds are their own, the `places`, f32 `[T, 2]`.

        Args:
            at_T2: i64 `[T, 2]`, (y, x) of each token.
            grid_T2: i64 `[T, 2]`, (h, w) of each token's image, at least 1.
            turns_T: bool `[T]`; prefix tokens have no place and do not turn.
        """
        places_T2 = self._places(at_T2, grid_T2) * turns_T[:, None]
        if self.learned:
            return {"places": places_T2}
        angle = (places_T2[:, :, None] * self.speeds).flatten(1)[:, None, :]
        return {"rotation": (angle.cos(), angle.sin())}

    def _places(self, at_T2: Tensor, grid_T2: Tensor) -> Tensor:
        at_T2 = at_T2.float() + self.offset
        if self.places == "scaled":
            return at_T2 / grid_T2 * self.grid
        if self.places == "centred":
            return 2 * ((at_T2 + 0.5) / grid_T2) - 1
        return at_T2


def turned(places_T2: Tensor, speeds_2HK: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine `[T, H, K/2]` of what learned speeds `[2, H, K/2]` make of places, in float32."""
    speeds = speeds_2HK.float()
    angle = places_T2[:, 0, None, None] * speeds[0] + places_T2[:, 1, None, None] * speeds[1]
    return angle.cos(), angle.sin()


def rotate(x_THK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (i, i + K/2) of queries or keys `[T, H, K]`, in float32."""
    a, b = x_THK.float().chunk(2, -1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(a * sin, b, cos)], -1).to(x_THK.dtype)


def sinusoids(size: int, width: int, steps: int) -> Tensor:
    """Fixed waves `[size, width]`: sines, then cosines, of wavelengths 2π to 10000·2π in `steps` (arXiv 1706.03762)."""
    speeds = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float32) / max(steps, 1))
    angle = torch.arange(size, dtype=torch.float32)[:, None] * speeds
    return torch.cat([angle.sin(), angle.cos()], 1)


def _table(rows: int, width: int, std: float = 0.02) -> nn.Parameter:
    table = nn.Parameter(torch.empty(rows, width))
    nn.init.trunc_normal_(table, std=std)
    return table


def _interpolate(table: Tensor, fraction_T: Tensor) -> Tensor:
    """Rows of a table at fractions in [0, 1] of its length, linearly between neighbours."""
    place = fraction_T * (table.shape[0] - 1)
    low = place.floor().long()
    high = (low + 1).clamp_max(table.shape[0] - 1)
    share = (place - low)[:, None].to(table.dtype)
    return F.embedding(low, table) * (1 - share) + F.embedding(high, table) * share


def _resizes(base: int, size: int, filter: str, antialias: bool, corners: bool) -> Tensor:
    """`[G + 1, G, base]`: the resize of a base axis to each count n, row by row; rows of n = 0 and beyond n are 0."""
    found = torch.zeros(size + 1, size, base)
    for n in range(1, size + 1):
        found[n, :n] = resize_matrix(base, n, filter, antialias, corners).float()
    return found
