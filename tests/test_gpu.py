"""What only a GPU can show: kernels against the oracle, masked memory, compiled and recorded steps, no wait for the host.

`bench/gpu.py` runs these and all others that are marked `gpu` on a rented machine.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.losses.classification import classification_loss
from navit_model.model.attention import Backend, attention, choose, segments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here"),
]

FULL = [[(4, 5), (2, 10)], [(1, 1), (1, 1), (3, 3)], []]
KERNELS: list[Backend] = ["torch_varlen", "flash_attn", "triton"]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def batch(floats: bool = False, seed: int = 0) -> PackedBatch:
    return packed(FULL, length=40, longest=20, images=6, floats=floats, failed=[(1, 1)], seed=seed).to("cuda")


def model(**changes: object) -> NaViT:
    torch.manual_seed(0)
    shape = NaViTConfig(width=128, depth=3, heads=2, patch_size=4, max_grid=12, classes=5)
    net = NaViT(replace(shape, **changes)).cuda()  # type: ignore[arg-type]
    torch.nn.init.normal_(net.head.weight, std=0.1)
    return net


def there(backend: Backend) -> None:
    try:
        choose(backend, torch.device("cuda"))
    except ModelError as e:
        pytest.skip(f"gpu: {e}")


def step(net: NaViT, some: PackedBatch, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    with torch.autocast("cuda", dtype):
        total, count = classification_loss(net(some), some)
    loss = total / count
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("channels", [32, 64, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("longest", [256, 300])
def test_kernels_equal_the_oracle_both_ways(
    backend: Backend, dtype: str, channels: int, causal: bool, longest: int
) -> None:
    """Segments of 1 to 300 tokens, empty ones among them and at the end; against float64 on the same inputs."""
    there(backend)
    lengths = [longest, 0, 1, 17, 128, 129, 0, 64, 1, 255, 0]
    total = sum(lengths)
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    torch.manual_seed(0)
    base = [torch.randn(total, 3, channels, device="cuda").to(HALF[dtype]) for _ in range(4)]
    found = []
    for name, kind in (("dense", torch.float64), (backend, HALF[dtype])):
        q, k, v = (x.to(kind).requires_grad_() for x in base[:3])
        out = attention(q, k, v, segments(cu, longest, total, name, causal=causal))  # type: ignore[arg-type]
        out.backward(base[3].to(kind))
        found.append([out.detach(), q.grad, k.grad, v.grad])
    for exact, fast in zip(*found, strict=True):
        assert exact is not None and fast is not None
        error = (fast.double() - exact).norm() / exact.norm()
        assert bool(error < (1.5e-2 if dtype == "bfloat16" else 2e-3)), float(error)


@pytest.mark.parametrize("backend", KERNELS)
def test_masked_memory_may_hold_anything(backend: Backend) -> None:
    """NaN in every masked slot changes neither logits nor gradients."""
    there(backend)
    some = batch(floats=True)
    clean = replace(some, patches=torch.nan_to_num(some.patches))
    found = []
    for given in (some, clean):
        net = model(attention=backend)
        loss = step(net, given)
        found.append([loss, *(p.grad for p in net.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.isfinite(a).all() and torch.allclose(a, b, atol=1e-5, rtol=1e-2)


@pytest.mark.parametrize("dtype", HALF)
def test_a_compiled_step_equals_the_eager_one(dtype: str) -> None:
    """Forward and backward, without a graph break, over several layouts and with stochastic depth's own draws switched off."""
    torch._dynamo.reset()
    eager, fast = model(), model()
    fast.compile()
    for seed in range(3):
        some = batch(seed=seed)
        losses = [step(net, some, HALF[dtype]) for net in (eager, fast)]
        assert torch.allclose(*losses, rtol=2e-2)
    for (name, a), b in zip(eager.named_parameters(), fast.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            error = (a.grad - b.grad).norm() / a.grad.norm().clamp_min(1e-6)
            assert bool(error < 6e-2), (name, float(error))


def test_a_compiled_step_with_every_part_trains() -> None:
    """Rotation, prefix tokens, layer scale, stochastic depth: one trace for each kind of block, and finite gradients."""
    torch._dynamo.reset()
    net = model(rope=True, drop_path=0.3, layer_scale=0.1, class_token=True, pool="class").train()
    net.compile()
    some = packed(FULL, length=50, longest=24, images=6, prefix=1).to("cuda")
    for _ in range(3):
        step(net, some)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_step_has_no_host_sync_by_the_profiler() -> None:
    """Nothing waits: neither a synchronise call nor a copy to the host stands in the trace of a step."""
    net = model(drop_path=0.2).train()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    some = batch()

    def whole() -> None:
        step(net, some)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        whole()
    torch.cuda.synchronize()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            whole()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in profile.events() or []]
    # The profiler itself synchronises the device once at its end.
    waits = [n for n in names if "Memcpy DtoH" in n or n in ("cudaStreamSynchronize", "cudaEventSynchronize")]
    assert names and not waits, waits


def test_a_step_is_one_cuda_graph() -> None:
    """Recorded once, replayed with other pixels: a step neither allocates for good, nor reads the host, nor knows a layout."""
    torch._dynamo.reset()
    nets = [model().train() for _ in range(2)]
    first, second = batch(seed=1), batch(seed=2)
    static = {name: value.clone() for name, value in first.arrays().items()}
    held = replace(first, **static)
    optimizers = [torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True, capturable=True) for net in nets]

    def whole(n: int, some: PackedBatch) -> torch.Tensor:
        loss = step(nets[n], some)
        optimizers[n].step()
        optimizers[n].zero_grad(set_to_none=False)
        return loss

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            whole(0, held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = whole(0, held)
    for _ in range(3):
        whole(1, first)
    for some in (second, first):
        for name, value in some.arrays().items():
            static[name].copy_(value)
        graph.replay()
        assert torch.allclose(loss, whole(1, some), rtol=3e-2)
    assert all(torch.isfinite(p).all() for p in nets[0].parameters())


@pytest.mark.parametrize("backend", KERNELS)
def test_images_do_not_see_one_another(backend: Backend) -> None:
    """Other pixels in one image leave the logits of all others as they are, bit for bit."""
    there(backend)
    net = model(attention=backend).eval()
    some = batch()
    other = some.patches.clone()
    mine = (some.segment_ids == 0)[..., None]
    other = torch.where(mine, 255 - other, other)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        a, b = net(some), net(replace(some, patches=other))
    rest = some.status == OK
    rest[:, 0] = False
    assert torch.equal(a[rest], b[rest]) and not torch.equal(a[:, 0], b[:, 0])
