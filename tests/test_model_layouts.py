"""Whatever the layout and the options: images apart, masked memory harmless, every backend as the plain one."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from packed import Grid, packed

from navit_loader.batch import OK, PackedBatch
from navit_loader.errors import ConfigError, ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.losses.classification import classification_loss
from navit_model.model.attention import attention, choose, segments

SMALL = NaViTConfig(width=24, depth=2, heads=2, patch_size=4, max_grid=12, classes=5)
LENGTH, LONGEST, IMAGES = 40, 20, 6
KINDS = get_args(get_type_hints(NaViTConfig)["positions"])


def model(**changes: Any) -> NaViT:
    torch.manual_seed(0)
    net = NaViT(replace(SMALL, **changes))
    for head in (net.head, net.distill_head):
        if isinstance(head, torch.nn.Linear):
            torch.nn.init.normal_(head.weight)
    return net.eval()


def batch(sequences: list[list[Grid]], **changes: Any) -> PackedBatch:
    return packed(sequences, **{"length": LENGTH, "longest": LONGEST, "images": IMAGES, **changes}).to("cpu")


@st.composite
def layouts(draw: st.DrawFn, prefix: int = 0) -> list[list[Grid]]:
    """Up to three sequences: empty ones, one-token images, images of M tokens, full sequences."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        room, sequence = LENGTH, []
        while len(sequence) < IMAGES and draw(st.booleans()):
            h = draw(st.integers(1, 10))
            w = draw(st.integers(1, max(1, min(12, (LONGEST - prefix) // h))))
            if h * w + prefix > min(room, LONGEST):
                break
            sequence.append((h, w))
            room -= h * w + prefix
        found.append(sequence)
    return found


FULL = [[(4, 5), (2, 10)], [(1, 1), (1, 1), (3, 3)], []]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"rope": True, "width": 32},
    {"pool": "mean", "registers": 2},
    {"pool": "class", "class_token": True, "distill_token": True, "prompts": 1},
    {"layer_scale": 0.1, "qk_norm": False, "qkv_bias": True, "norm_bias": True, "activation": "gelu_tanh"},
    {"positions": "resized_grid", "patch_size": 8, "patch_sizes": (4, 8)},
    {"pool": "mean", "registers": 1, "norm_pooled": True, "embed_norm": True, "activation": "quick_gelu"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_backends_agree_forward_and_backward(options: dict[str, Any], data: st.DataObject) -> None:
    """Whatever stands in masked memory, NaN too: the same logits and gradients from every backend."""
    net = model(**options)
    k = net.config.prefix_tokens
    sequences = data.draw(layouts(k))
    slots = [(b, e) for b, sequence in enumerate(sequences) for e in range(len(sequence))]
    failed = data.draw(st.lists(st.sampled_from(slots), unique=True)) if slots else []
    some = batch(sequences, prefix=k, drop=0.3, seed=data.draw(st.integers(0, 9)), failed=failed, floats=True)
    blank = replace(some, patches=some.patches.nan_to_num(0.0))
    found = []
    for backend, given_batch in (("dense", blank), ("dense", some), ("segments", some)):
        net.config = replace(net.config, attention=backend)
        net.zero_grad()
        logits = net(given_batch)
        total, _ = classification_loss(logits, given_batch)
        (total + logits.where(some.status[..., None] == OK, 0).square().sum()).backward()
        grads = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found.append((logits[some.status == OK].detach(), grads))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a - b).norm() <= 1e-5 * max(float(a.norm()), 1.0)


@pytest.mark.parametrize("options", [*OPTIONS, *({"positions": kind} for kind in KINDS)], ids=str)
def test_images_are_apart_and_packing_changes_nothing(options: dict[str, Any]) -> None:
    """In one sequence or alone, beside anything: the same logits."""
    net = model(**options)
    k = net.config.prefix_tokens
    sequences = [[(3, 4), (1, 1), (2, 5)], [(2, 2), (1, 9 - k)]]
    some = batch(sequences, prefix=k)
    with torch.no_grad():
        logits = net(some)
        changed = replace(some, patches=some.patches.clone())
        changed.patches[0, some.segment_ids[0] == 1] = 99
        after = net(changed)
        assert torch.equal(logits[0, [0, 2]], after[0, [0, 2]]) and torch.equal(logits[1], after[1])
        assert not torch.equal(logits[0, 1], after[0, 1]) or k == LONGEST
        for b, sequence in enumerate(sequences):
            for e, grid in enumerate(sequence):
                alone = batch([[grid]], prefix=k)
                alone.patches[0, : int((some.segment_ids[b] == e).sum())] = some.patches[b, some.segment_ids[b] == e]
                assert (net(alone)[0, 0] - logits[b, e]).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_nan_in_masked_memory_changes_no_gradient(backend: str) -> None:
    """A failed image, padding and a wholly masked sequence, all full of NaN."""
    found = []
    for fill in (float("nan"), 0.0):
        net = model(attention=backend, prompts=1, drop_path=0.0).train()
        some = batch([[(2, 3), (3, 3)], [(2, 2)], []], failed=[(0, 1), (1, 0)], floats=True, prefix=1)
        some.patches.masked_fill_(some.patches.isnan(), fill)
        total, count = classification_loss(net(some), some)
        total.backward()
        assert int(count) == 1
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert a is not None and torch.isfinite(a).all() and torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_variant_tells_places_apart_at_any_grid(kind: str) -> None:
    """At every grid within the tables, none of them seen before: finite, and a swap of two patches is noticed."""
    net = model(positions=kind)
    for grid in ((1, 1), (1, 12), (10, 2), (4, 4)):
        some = batch([[grid]])
        with torch.no_grad():
            logits = net(some)[0, 0]
            n = grid[0] * grid[1]
            turned = replace(some, patches=some.patches.clone())
            turned.patches[0, :n] = some.patches[0, :n].flip(0)
            assert torch.isfinite(logits).all()
            moved = float((net(turned)[0, 0] - logits).abs().max())
        assert moved < 1e-4 if kind == "none" or n == 1 else moved > 1e-6


def test_rotation_sees_distances_alone() -> None:
    net = model(positions="none", rope=True, width=32)
    near = batch([[(2, 3)]])
    far = replace(near, positions=near.positions + 5, grids=near.grids + 5)
    with torch.no_grad():
        assert (net(near)[0, 0] - net(far)[0, 0]).abs().max() < 1e-5


def test_order_of_images_does_not_matter() -> None:
    net = model(positions="fractional_learned")
    a, b = batch([[(2, 3), (4, 2)]]), batch([[(4, 2), (2, 3)]])
    for e, other in ((0, 1), (1, 0)):
        b.patches[0, b.segment_ids[0] == other] = a.patches[0, a.segment_ids[0] == e]
    with torch.no_grad():
        assert (net(a)[0, [0, 1]] - net(b)[0, [1, 0]]).abs().max() < 1e-5


def test_stochastic_depth_is_drawn_per_image_and_keeps_the_mean() -> None:
    net = model(depth=2, drop_path=0.5, positions="none", pool="mean")
    same = batch([[(1, 1)] * IMAGES for _ in range(40)])
    same.patches[:] = 7
    with torch.no_grad():
        plain = net.forward_head(net.forward_features(same), same, pre_logits=True)
        net.train()
        torch.manual_seed(0)
        drawn = net.encode(net._embed(same), same, (1,))[1][0][:, :IMAGES]
        rows = {tuple(row.tolist()) for row in drawn.flatten(0, 1).round(decimals=4)}
    # Attention and MLP of the last block, each there or not.
    assert len(rows) == 4
    assert torch.isfinite(plain).all()


def test_checkpointing_changes_no_gradient() -> None:
    some = batch(FULL)
    found = []
    for enable in (False, True):
        net = model().train()
        net.set_grad_checkpointing(enable)
        classification_loss(net(some), some)[0].backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert a is not None and torch.equal(a, b)


def test_intermediates_are_the_tokens_on_the_way() -> None:
    net = model()
    some = batch(FULL)
    with torch.no_grad():
        last, found = net.forward_intermediates(some, [0, -1])
        assert len(found) == 2 and torch.equal(net.norm(found[1]), last)
        assert torch.equal(last, net.forward_features(some))
        for more, count in ((None, 2), (1, 1)):
            some_found = net.forward_intermediates(some, more)[1]
            assert len(some_found) == count and torch.equal(some_found[-1], found[1])
        net.config = replace(net.config, attention="dense")
        for a, b in zip(found, net.forward_intermediates(some, [0, 1])[1], strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(ModelError, match="2 blocks"):
        net.forward_intermediates(some, [2])
    with pytest.raises(ModelError, match="2 blocks"):
        net.forward_intermediates(some, 3)


def test_classifiers_come_and_go() -> None:
    net = model(classes=0)
    some = batch(FULL)
    assert net(some).shape == (3, IMAGES, 24)
    net.reset_classifier(num_classes=9)
    assert net(some).shape == (3, IMAGES, 9)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at it while tracing
def test_compiles_whole_and_once_for_all_layouts() -> None:
    """No graph break; the embedding is compiled once for each P, one block for all, the rest once, whatever the images."""
    sizes = (2, 4, 8)
    net = model(attention="dense", classes=3, patch_sizes=sizes)
    plain = deepcopy(net)
    graphs: list[list[str]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):  # which `compile` raises to what it needs
        net.compile(backend=compiler)
        for seed, p in enumerate([*sizes, *sizes]):
            layout = (FULL, [[(2, 2)], [], [(5, 4), (5, 4)]], [[], [], []])[(seed + seed // 3) % 3]
            some = batch(layout, patch=p, seed=seed)
            total = [f(some).square().mean() for f in (net, plain)]
            for t in total:
                t.backward()
            assert torch.allclose(*total, atol=1e-6)
    for (name, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.allclose(p.grad, q.grad, atol=1e-5), name
    encoders = sum(any("scaled_dot_product" in target for target in targets) for targets in graphs)
    assert encoders == 1 and len(graphs) == len(sizes) + 3
    copy = deepcopy(net)
    torch.nn.init.zeros_(copy.head.weight)
    assert not copy(some).any() and net(some).any()


def test_segments_cannot_be_compiled() -> None:
    with pytest.raises(ModelError, match="'segments' cannot be traced"):
        model().compile()


def test_bad_batches_are_refused_by_name() -> None:
    net = model()
    cases: list[tuple[str, dict[str, Any]]] = [
        ("patches of 4 pixels, the model takes 8", {"config": {"patch_size": 8}}),
        ("0 prefix tokens an image, the model 2", {"config": {"registers": 2}}),
        ("12 patches on a side", {"config": {"max_grid": 8}}),
        ("12 patches in all", {"config": {"max_grid": 3, "positions": "learned_1d"}}),
        ("a segment has 20 tokens, but max_seqlen = 9", {"batch": {"max_seqlen": 9}}),
        ("cu_seqlens ends at 20", {"batch": {"cu_seqlens": torch.tensor([0, 20], dtype=torch.int32)}}),
    ]
    some = batch([[(1, 12)]])
    for words, change in cases:
        with pytest.raises(ModelError, match=words):
            model(**change.get("config", {}))(replace(some, **change.get("batch", {})))
    net.patch_embed.register_forward_hook(lambda *_: pytest.fail("a kernel ran first"))
    for broken in (net.half(), with_backend(deepcopy(net), "torch_varlen")):
        with pytest.raises(ModelError, match=r"float16|needs a CUDA device"):
            broken(some)
    with pytest.raises(ModelError, match="'flash_attn' needs a CUDA device"):
        choose("flash_attn", torch.device("cpu"))
    with pytest.raises(ConfigError, match="pool = 'class'"):
        NaViTConfig(pool="class")
    with pytest.raises(ConfigError, match="multiple of 4"):
        NaViTConfig(width=30, heads=2, positions="sinusoidal")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
@pytest.mark.parametrize("backend", ["torch_varlen", "flash_attn"])
def test_gpu_kernels_equal_the_plain_one(backend: str) -> None:
    device = torch.device("cuda")
    try:
        choose(backend, device)
    except ModelError as e:
        pytest.skip(f"gpu: {e}")
    some = batch([[(4, 5), (1, 1)], [], [(2, 2)]]).to(device)
    total = some.segment_ids.numel()
    torch.manual_seed(0)
    base = [torch.randn(total, 2, 64, device=device, dtype=torch.bfloat16) for _ in range(4)]
    found = []
    for name in ("dense", backend):
        q, k, v = (x.clone().requires_grad_() for x in base[:3])
        out = attention(q, k, v, segments(some.cu_seqlens, some.max_seqlen, total, name))  # type: ignore[arg-type]
        (out * base[3]).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and torch.allclose(a.float(), b.float(), atol=3e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
def test_a_step_on_the_gpu_never_waits_for_the_host() -> None:
    net = model(width=128, heads=2).cuda().train()
    some = batch(FULL).to("cuda")
    for synchronises in ("default", "error"):  # the first step warms up
        torch.cuda.set_sync_debug_mode(synchronises)
        try:
            with torch.autocast("cuda", torch.bfloat16):
                total, count = classification_loss(net(some), some)
            (total / count).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu: no CUDA device here")
def test_compiled_on_the_gpu_equals_the_plain_one() -> None:
    net = model(width=128, heads=2).cuda()
    some = batch(FULL).to("cuda")
    with torch.no_grad():
        plain = with_backend(net, "dense")(some)
        net = with_backend(net, "auto")
        net.compile()
        with torch.autocast("cuda", torch.bfloat16):
            fast = net(some)
    ok = some.status == OK
    assert torch.allclose(plain[ok], fast[ok], atol=3e-2 * float(plain[ok].abs().max()))


def with_backend(net: NaViT, backend: str) -> NaViT:
    net.config = replace(net.config, attention=backend)
    return net
