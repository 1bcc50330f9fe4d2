"""big_vision's `.npz` files, FlexiViT's first of all → configuration and weights of a NaViT with the same outputs.

In: a file with the parameters of big_vision's ViT: patch embedding, learned position grid, encoder, class token or attention
pooling, classifier. Out: a `NaViTConfig` and its weights, part by part; arrays are read when their turn comes. Kernels and
position grids are resized as big_vision does: bilinear, the one without antialias, the other with it. For other patch sizes
than the base open the file with `patch_sizes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from torch import Tensor

from navit_loader.errors import ModelError

from ..config import NaViTConfig
from .convert import OtherModel, Taken, Weights, query

PREFIXES = ("params/img/", "params/", "opt/target/", "")


class Arrays(Mapping[str, Tensor]):
    """The arrays of an `.npz` below a prefix, read one by one; bfloat16 is stored as two bytes without a name."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            ModelError: it is missing or damaged.
        """
        try:
            # Looked at first: NumPy leaves a file open that is no archive.
            if not is_zipfile(path):
                raise ValueError("no archive" if path.is_file() else "no such file")
            self.stored = np.load(path, allow_pickle=False)
            names = list(self.stored.files)
        except (OSError, ValueError, BadZipFile) as e:
            raise ModelError(f"'{path}' cannot be read ({e}); copy the file again") from None
        self.prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in names), "")
        self.names = [name.removeprefix(self.prefix) for name in names if name.startswith(self.prefix)]

    def __getitem__(self, name: str) -> Tensor:
        value = self.stored[self.prefix + name]
        if value.dtype.kind == "V":
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def open_npz(path: Path) -> Taken:
    """Configuration and weights.

    Raises:
        ModelError: the file is missing or damaged, or holds another model; names the weight.
    """
    source = OtherModel(f"'{path}'", Arrays(path))
    kernel = source.take("embedding/kernel")
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != 3:
        raise ModelError(f"'{path}': 'embedding/kernel' has shape {list(kernel.shape)}, not [P, P, 3, D]")
    side = round(source.take("pos_embedding").shape[-2] ** 0.5)
    first = "Transformer/encoderblock_0/"
    heads = source.take(f"{first}MultiHeadDotProductAttention_0/query/kernel").shape[1]
    hidden = source.take(f"{first}MlpBlock_0/Dense_0/kernel").shape[1]
    depth = 0
    while source.has(f"Transformer/encoderblock_{depth}/LayerNorm_0/scale"):
        depth += 1
    width = kernel.shape[-1]
    config = NaViTConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        patch_size=kernel.shape[0],
        positions="resized_grid",
        position_grid=(side, side),
        qk_norm=False,
        qkv_bias=True,
        norm_bias=True,
        # Flax's gelu is the approximation.
        activation="gelu_tanh",
        class_token=source.has("cls"),
        pool="class" if source.has("cls") else "map" if source.has("MAPHead_0/probe") else "mean",
        classes=len(source.take("head/bias")) if source.has("head/bias") else 0,
    )
    return config, _weights(source, config, kernel)


def _weights(source: OtherModel, config: NaViTConfig, kernel: Tensor) -> Iterator[Weights]:
    table = source.take("pos_embedding").reshape(-1, config.width)
    found = {
        "patch_embed.proj.weight": kernel.flatten(0, 2).T,
        "patch_embed.proj.bias": source.take("embedding/bias"),
        "positions.table": table,
    }
    yield found | ({"prefix": source.take("cls").view(1, -1)} if config.class_token else {})
    for n in range(config.depth):
        theirs, ours = f"Transformer/encoderblock_{n}/", f"blocks.{n}."
        yield {
            **_norm(source, f"{theirs}LayerNorm_0", f"{ours}norm1"),
            **_norm(source, f"{theirs}LayerNorm_1", f"{ours}norm2"),
            **_heads(source, f"{theirs}MultiHeadDotProductAttention_0", ("query", "key", "value"), f"{ours}qkv"),
            **_out(source, f"{theirs}MultiHeadDotProductAttention_0", f"{ours}out"),
            **_linear(source, f"{theirs}MlpBlock_0/Dense_0", f"{ours}mlp.up"),
            **_linear(source, f"{theirs}MlpBlock_0/Dense_1", f"{ours}mlp.down"),
        }
    yield _norm(source, "Transformer/encoder_norm", "norm")
    if config.pool == "map":
        head = "MAPHead_0/MultiHeadDotProductAttention_0"
        asks = _heads(source, head, ("query",), "q")
        yield {
            "pool.query": query(source.take("MAPHead_0/probe"), asks["q.weight"], asks["q.bias"], config.heads),
            **_heads(source, head, ("key", "value"), "pool.kv"),
            **_out(source, head, "pool.out"),
            **_norm(source, "MAPHead_0/LayerNorm_0", "pool.norm"),
            **_linear(source, "MAPHead_0/MlpBlock_0/Dense_0", "pool.mlp.up"),
            **_linear(source, "MAPHead_0/MlpBlock_0/Dense_1", "pool.mlp.down"),
        }
    if config.classes:
        yield _linear(source, "head", "head")
    source.finish()


def _norm(source: OtherModel, theirs: str, ours: str) -> Weights:
    return {f"{ours}.weight": source.take(f"{theirs}/scale"), f"{ours}.bias": source.take(f"{theirs}/bias")}


def _linear(source: OtherModel, theirs: str, ours: str) -> Weights:
    return {f"{ours}.weight": source.take(f"{theirs}/kernel").T, f"{ours}.bias": source.take(f"{theirs}/bias")}


def _heads(source: OtherModel, theirs: str, parts: tuple[str, ...], ours: str) -> Weights:
    """Projections `[D, H, K]` as one layer."""
    return {
        f"{ours}.weight": torch.cat([source.take(f"{theirs}/{part}/kernel").flatten(1).T for part in parts]),
        f"{ours}.bias": torch.cat([source.take(f"{theirs}/{part}/bias").flatten() for part in parts]),
    }


def _out(source: OtherModel, theirs: str, ours: str) -> Weights:
    """The projection back, `[H, K, D]`."""
    weight = source.take(f"{theirs}/out/kernel").flatten(0, 1).T
    return {f"{ours}.weight": weight, f"{ours}.bias": source.take(f"{theirs}/out/bias")}
