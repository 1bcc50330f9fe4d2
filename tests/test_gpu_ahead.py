"""What a CPU can say about a GPU step beforehand: the kernel's signature, no host value, shapes that no layout changes.

In: fake tensors that say that they lie on a GPU. A step over them runs every line of ours and no kernel: reading a value on the
host, or a shape that depends on one, is an error there, as it would be in a CUDA graph.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

from navit_loader.batch import PackedBatch
from navit_model import NaViT, NaViTConfig
from navit_model.losses.classification import classification_loss
from navit_model.model import attention as kernels
from navit_model.train.augment import augment
from navit_model.train.settings import AugmentConfig

LAYOUTS = ([[(4, 5), (2, 10)], [(1, 1), (3, 3)]], [[], [(1, 1)]])


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
    kernels._varlen(causal)(*"qkv", "cu", "cu", 7, 7)
    assert (seen["query"], seen["cu_seq_k"], seen["max_k"]) == ("q", "cu", 7)
    assert (seen.get("is_causal", False) or seen.get("window_size", (-1, -1)) == (-1, 0)) is causal


def on_gpu(batch: PackedBatch) -> PackedBatch:
    """The same shapes as fake tensors on a GPU that is not there."""
    arrays = {
        n: torch.empty(a.shape, dtype=torch.from_numpy(a).dtype, device="cuda") for n, a in batch.arrays().items()
    }
    return replace(batch, **arrays)


@pytest.mark.parametrize(
    "options", [{}, {"rope": True, "drop_path": 0.2, "layer_scale": 0.1}, {"positions": "resized_grid"}]
)
def test_a_step_reads_no_host_value_and_has_one_shape(options: dict[str, Any]) -> None:
    shape = NaViTConfig(width=64, depth=2, heads=2, patch_size=4, max_grid=12, classes=5, attention="torch_varlen")
    found = []
    for layout in LAYOUTS:
        some = packed(layout, length=40, longest=20, images=6)
        # Autocast is off where there is no GPU.
        net = NaViT(replace(shape, **options)).train().bfloat16()
        with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            net.to_empty(device="cuda")
            given = augment(on_gpu(some), AugmentConfig(layers=2), 0)
            total, count = classification_loss(net(given), given)
            # Autograd's own threads want a device that is there, so it ends with the loss.
            loss = total / count
            assert loss.device.type == "cuda" and loss.requires_grad
            found.append((loss.shape, net(given).shape, [node.shape for node in net.forward_intermediates(given)[1]]))
            with pytest.raises(DataDependentOutputException):
                total.item()  # the kind of fault that this test is for is seen
    assert found[0] == found[1] and found[0]
