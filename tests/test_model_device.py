"""The GPU path without a GPU: whole forward passes on PyTorch's fake CUDA tensors.

They have shapes, dtypes and devices and no values, so a call that PyTorch's kernels do not take, a tensor left on the CPU, and
any wait for the host (a value read, a shape that depends on one) are errors, as on the device itself. What they cannot tell
is whether the numbers are right, nor can gradients be taken without a driver; tests marked `gpu` do both.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from navit_loader.batch import PackedBatch
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.config import ContrastiveConfig, TextConfig
from navit_model.losses.classification import classification_loss
from navit_model.losses.contrastive import sigmoid_contrastive, softmax_contrastive
from navit_model.model.attention import FUSED, _kernel, _varlen, attention, choose, segments
from navit_model.model.dense import finer, rasters
from navit_model.model.owl import OwlHead
from navit_model.model.segmenter import LinearSegmenter, RegionSegmenter, Segmenter
from navit_model.model.towers import TwoTowers

from .packed import packed

SMALL = NaViTConfig(width=128, depth=2, heads=2, patch_size=4, max_grid=12, classes=5)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that PyTorch asks the driver for on the way: which GPU it is."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def there(module: nn.Module) -> nn.Module:
    """The module on a CUDA device that is not there; call it in a `FakeTensorMode`."""
    for part in module.modules():
        part._parameters |= {name: nn.Parameter(moved(p)) for name, p in part._parameters.items() if p is not None}
        part._buffers |= {name: moved(b) for name, b in part._buffers.items() if b is not None}
    return module.train()


def moved(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cuda")


def batch_there(prefix: int = 0) -> PackedBatch:
    host = packed([[(4, 5), (1, 1)], []], length=48, longest=24, images=6, prefix=prefix).to("cpu")
    return replace(host, **{name: moved(value) for name, value in host.arrays().items()})


def owl(net: NaViT, head: nn.Module, batch: PackedBatch) -> Tensor:
    found = head(net.forward_features(batch), batch, torch.empty(3, 16, device="cuda"))
    cells = rasters(found.logits, batch, 20)[0]
    return found.boxes.sum() + cells.sum()  # type: ignore[no-any-return]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"rope": True, "positions": "resized_grid", "pool": "mean", "registers": 2, "drop_path": 0.2, "dropout": 0.1},
    {
        "positions": "fractional_fourier",
        "pool": "class",
        "class_token": True,
        "distill_token": True,
        "layer_scale": 0.1,
    },
    {"qk_norm": False, "checkpointing": True},
    {
        "rope": True,
        "rope_places": "centred",
        "positions": "none",
        "pool": "class",
        "class_token": True,
        "mlp_gate": True,
        "norm": "rms",
    },
    {
        "rope": True,
        "rope_speeds": "learned",
        "norm_place": "both",
        "mlp_norm": True,
        "v_norm": True,
        "last_norm": False,
    },
    {"rope": True, "rope_places": "scaled", "window": 2, "window_free": (1,), "patch_norm": True, "parallel": True},
    {"differential": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_training_step_on_a_gpu_reads_nothing_on_the_host(hopper: None, options: dict[str, Any], kind: Any) -> None:
    net = NaViT(replace(SMALL, **options)).bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        there(net)
        batch = batch_there(net.config.prefix_tokens)
        logits = net(batch)
        total, count = classification_loss(logits, batch, kind=kind)
        assert logits.shape == (2, 6, 5) and {x.device.type for x in (logits, total, count)} == {"cuda"}


HEADS: dict[str, Callable[[NaViT], tuple[nn.Module, Callable[[nn.Module, PackedBatch], Tensor]]]] = {
    "segmenter": lambda net: (Segmenter(net, 3), lambda head, batch: head(batch).sum()),
    "finer": lambda net: (LinearSegmenter(net, 3), lambda head, batch: finer(head(batch), batch, 2).sum()),
    "regions": lambda net: (RegionSegmenter(net, 3, 4), lambda head, batch: head(batch).masks.sum()),
    "owl": lambda net: (OwlHead(128, 16), lambda head, batch: owl(net, head, batch)),
}


@pytest.mark.parametrize("kind", ["mlp", "mean", "convolved"])
def test_merged_tokens_on_a_gpu_read_nothing_on_the_host(hopper: None, kind: Any) -> None:
    own = {"merge": 2, "merge_kind": kind, "merge_width": 128, "merge_hidden": 64, "merge_taps": (0,)}
    net = NaViT(replace(SMALL, window=4, **own)).bfloat16()  # type: ignore[arg-type]
    with FakeTensorMode(allow_non_fake_inputs=True):
        there(net)
        merged = net.forward_merged(batch_there())
        assert merged.tokens.shape == merged.taps[0].shape == (2, 12, 128)
        assert {x.device.type for x in (merged.tokens, merged.segment_ids)} == {"cuda"}


@pytest.mark.parametrize("name", HEADS)
def test_heads_on_a_gpu_read_nothing_on_the_host(hopper: None, name: str) -> None:
    net = NaViT(SMALL)
    head, step = HEADS[name](net)
    both = nn.ModuleList([net, head]).bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        there(both)
        assert step(head, batch_there()).device.type == "cuda"


@pytest.mark.parametrize("causal", [False, True])
def test_two_towers_on_a_gpu_read_nothing_on_the_host(hopper: None, causal: bool) -> None:
    text = TextConfig(width=128, depth=1, heads=2, vocabulary=50, max_tokens=12, causal=causal, pool="map")
    towers = TwoTowers(replace(SMALL, classes=0), text, ContrastiveConfig(width=32)).bfloat16()
    with FakeTensorMode(allow_non_fake_inputs=True):
        there(towers)
        batch = batch_there()
        captions = {"text": (2, 30), "text_cu_seqlens": (15,)}
        empty = {name: torch.empty(size, dtype=torch.int32, device="cuda") for name, size in captions.items()}
        images, texts, scale, bias = towers(replace(batch, **empty))
        assert images.shape == texts.shape == (2, 6, 32) and scale.device.type == "cuda" and bias is None


@pytest.mark.parametrize("loss", [softmax_contrastive, sigmoid_contrastive])
def test_contrastive_losses_on_a_gpu_read_nothing_on_the_host(loss: Any) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = [torch.empty(50, 16, device="cuda", requires_grad=True) for _ in range(2)]
        extra = [
            torch.empty((), device="cuda", requires_grad=True) for _ in range(2 if loss is sigmoid_contrastive else 1)
        ]
        total, count = loss(*rows, torch.empty(50, dtype=torch.bool, device="cuda"), *extra)
        assert total.requires_grad and {total.device.type, count.device.type} == {"cuda"}


def test_float32_without_autocast_is_refused_before_the_first_kernel(hopper: None) -> None:
    net = NaViT(replace(SMALL, attention="torch_varlen"))
    net.patch_embed.register_forward_hook(lambda *_: pytest.fail("a kernel ran first"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        there(net)
        with pytest.raises(ModelError, match=r"takes bfloat16 or float16, not torch\.float32; use autocast"):
            net(batch_there())


def test_heads_that_no_kernel_takes_are_refused_before_the_first_one(hopper: None) -> None:
    for channels, ok in ((8, True), (64, True), (256, True), (18, False), (4, False), (264, False)):
        if ok:
            assert choose("auto", torch.device("cuda"), torch.bfloat16, channels) != "segments"
        else:
            with pytest.raises(ModelError, match=rf"multiple of 8 channels, 256 at most; width / heads is {channels}"):
                choose("auto", torch.device("cuda"), torch.bfloat16, channels)
    assert choose("dense", torch.device("cuda"), torch.float32, 18) == "dense"
    assert choose("auto", torch.device("cpu"), torch.float32, 18) == "segments"

    def nothing(*_: Any) -> None:
        pytest.fail("a kernel ran first")

    net = NaViT(NaViTConfig(width=36, depth=1, heads=2, patch_size=4)).bfloat16()
    net.patch_embed.register_forward_hook(nothing)
    text = TextConfig(width=36, depth=1, heads=2, vocabulary=50, max_tokens=12)
    towers = TwoTowers(NaViTConfig(width=32, depth=1, heads=2, patch_size=4), text, ContrastiveConfig(width=32))
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = batch_there()
        with pytest.raises(ModelError, match="width / heads is 18"):
            there(net)(batch)
        captions = {
            name: torch.empty(size, dtype=torch.int32, device="cuda")
            for name, size in {"text": (2, 30), "text_cu_seqlens": (15,)}.items()
        }
        with pytest.raises(ModelError, match="width / heads is 18"):
            there(towers.bfloat16())(replace(batch, **captions))


def test_a_kernel_that_is_not_installed_is_named() -> None:
    if importlib.util.find_spec("flash_attn") or importlib.util.find_spec("flash_attn_interface"):
        pytest.skip("flash-attn is installed here")
    with pytest.raises(ModelError, match="no flash-attn is installed; install it or use 'torch_varlen'"):
        choose("flash_attn", torch.device("cuda"))


def test_kernels_are_found_before_a_trace_begins(hopper: None) -> None:
    """`fullgraph` would stop at an import or at a look at a signature."""
    device = torch.device("cuda")
    assert choose("auto", device) in FUSED

    def inside(x: Tensor) -> Tensor:
        names = [choose(name, device) for name in ("torch_varlen", "auto")]
        where = [segments(x, 20, 80, name, causal=causal) for name in names for causal in (False, True)]
        return x + sum(callable(_kernel(w.backend, w.causal)) for w in where)

    torch._dynamo.reset()
    assert torch.compile(inside, backend="eager", fullgraph=True)(torch.ones(1)).item() == 5


@pytest.mark.parametrize("causal", [False, True])
def test_pytorchs_kernel_takes_our_call(hopper: None, causal: bool) -> None:
    """With strided values, as one slice of the joint projection, and with the mask of a causal text tower."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        qkv = torch.empty(80, 3, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        offsets = torch.empty(9, device="cuda", dtype=torch.int32)
        where = segments(offsets, 20, 80, "torch_varlen", causal=causal)
        out = attention(*qkv.unbind(1), where)
        assert out.shape == (80, 2, 64) and out.dtype == torch.bfloat16


def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
    """The signature in PyTorch 2.10."""


def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    """The signature since PyTorch 2.11, as far as we use it."""


def installed() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("theirs", [of_2_10, of_2_11, None], ids=["2.10", "2.11", "installed"])
def test_the_varlen_call_fits_every_signature(
    theirs: Callable[..., Any] | None, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = installed() if theirs is None else theirs
    seen: dict[str, Any] = {}

    def called(*args: Any, **options: Any) -> None:
        seen.update(inspect.signature(function).bind(*args, **options).arguments)

    called.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", called)
    _varlen(causal)(*"qkv", "cu", "cu", 7, 7)
    assert (seen["query"], seen["cu_seq_k"], seen["max_k"]) == ("q", "cu", 7)
    assert (seen.get("is_causal", False) or seen.get("window_size", (-1, -1)) == (-1, 0)) is causal
