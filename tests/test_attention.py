"""What kernels of others are told: the calls that flash-attn and PyTorch take, and the ones known to go wrong in them.

The kernels themselves run on GPUs alone. Here a module with flash-attn's name and signature stands in for it: it notes how it
was called, refuses what flash-attn refuses, and attends by the plain formula.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from navit_loader import LoaderConfig, pack_images
from navit_loader.batch import OK
from navit_loader.config import PlanConfig, Resolution
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.model import attention as module
from navit_model.model.attention import attention, segments

from .packed import packed


class Flash(ModuleType):
    """flash-attn, as far as a CPU can be it; `pair` answers with a tuple, as version 3 does."""

    def __init__(self, name: str, pair: bool) -> None:
        super().__init__(name)
        # Where a module is looked for before it is imported.
        self.__spec__ = ModuleSpec(name, None)
        self.pair = pair
        self.calls: list[dict[str, Any]] = []

    def flash_attn_varlen_func(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, causal: bool
    ) -> Any:
        lengths = cu_q.diff()
        # Rows behind the last offset, or beyond the bound, are left as they were in memory.
        out = torch.full_like(q, torch.nan)
        if max_q == 1 and bool((lengths == 0).any()):
            raise RuntimeError("shape '[-1]' is invalid")
        for start, end in zip(cu_q[:-1].tolist(), cu_q[1:].tolist(), strict=True):
            end = min(end, start + max_q)
            part = [x[start:end].transpose(0, 1) for x in (q, k, v)]
            out[start:end] = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=causal).transpose(0, 1)
        self.calls.append({"cu": (cu_q, cu_k), "most": (max_q, max_k), "causal": causal})
        return (out, None) if self.pair else out


@pytest.fixture(params=[False, True], ids=["2", "3"])
def flash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flash:
    name = "flash_attn_interface" if request.param else "flash_attn"
    found = Flash(name, request.param)
    monkeypatch.setitem(sys.modules, name, found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(module, "_kernels", {})
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
@example(lengths=[1, 0, 1], causal=False, seed=0)
def test_flash_attention_is_told_what_it_takes(flash: Flash, lengths: list[int], causal: bool, seed: int) -> None:
    """Empty segments and one-token images among them: one list of offsets for queries and keys, a bound of 2 at least."""
    cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    total, most = sum(lengths), max(lengths)
    torch.manual_seed(seed)
    q, k, v = (torch.randn(total, 2, 8) for _ in range(3))
    found, plain = (
        attention(q, k, v, segments(cu, most, total, backend, causal=causal))  # type: ignore[arg-type]
        for backend in ("flash_attn", "dense")
    )
    assert torch.allclose(found, plain, atol=1e-5)
    call = flash.calls[-1]
    assert call["cu"][0] is call["cu"][1] and call["causal"] is causal
    assert call["most"][0] == call["most"][1] >= 2


def test_every_row_of_a_loaders_batch_is_written(flash: Flash) -> None:
    """Padding lies in segments no longer than the largest image, and the last of them ends with the last token."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8 * h, 8 * w, 3), np.uint8) for h, w in ((1, 1), (2, 3), (3, 3), (1, 5), (2, 2))]
    plan = PlanConfig(
        sequence_length=40, max_tokens=9, max_images=4, patch_sizes=(8,), resolution=Resolution(kind="native")
    )
    batch = pack_images(images, LoaderConfig(plan=plan)).to("cpu")
    total = batch.segment_ids.numel()
    assert batch.padding > 0.3 and batch.max_seqlen == 9
    q, k, v = (torch.randn(total, 2, 8, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, segments(batch.cu_seqlens, batch.max_seqlen, total, "flash_attn"))
    assert torch.isfinite(out).all()
    out.sum().backward()
    assert q.grad is not None and torch.isfinite(q.grad).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("old", [True, False], ids=["2.10", "2.12"])
def test_pytorchs_kernel_is_called_by_either_signature(
    monkeypatch: pytest.MonkeyPatch, old: bool, causal: bool
) -> None:
    called: list[tuple[Any, ...]] = []

    def before(
        q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, is_causal: bool = False
    ) -> Tensor:
        called.append((max_q, max_k, is_causal))
        return q

    def since(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int] = (-1, -1),
    ) -> Tensor:
        called.append((max_q, max_k, window_size == (-1, 0)))
        return q

    monkeypatch.setattr(varlen, "varlen_attn", before if old else since)
    monkeypatch.setattr(module, "_kernels", {})
    x = torch.zeros(4, 2, 8)
    attention(x, x, x, segments(torch.tensor([0, 4]), 4, 4, "torch_varlen", causal=causal))
    assert called == [(4, 4, causal)]


def test_what_is_no_batch_is_named() -> None:
    """The first thing that a user of timm tries is a tensor of images."""
    net = NaViT(NaViTConfig(width=32, depth=1, heads=2, patch_size=4))
    host = packed([[(2, 2)]], length=8, longest=8, images=1)
    for wrong, words in (
        (torch.zeros(1, 3, 8, 8), "not a Tensor"),
        ([torch.zeros(3, 8, 8)], "not a list"),
        (host, "not one with ndarrays"),
    ):
        with pytest.raises(ModelError, match=rf"takes a PackedBatch with tensors, {words}"):
            net(wrong)
    elsewhere = replace(host.to("cpu"), patches=torch.empty(1, 8, 48, dtype=torch.uint8, device="meta"))
    with pytest.raises(ModelError, match="the batch lies on meta, the model on cpu"):
        net(elsewhere)
    assert net(host.to("cpu"))[host.status == OK].shape == (1, 32)
