"""The model over packed batches: no image sees another, packing changes no result, every backend equals the plain one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navit_loader import LoaderConfig, PackedBatch, pack_images
from navit_loader.batch import FAILED, OK
from navit_loader.config import Drop, PlanConfig, Resolution
from navit_loader.errors import ConfigError, ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.losses.classification import classification_loss
from navit_model.model.attention import attention, choose, segments

CONFIG = NaViTConfig(width=48, depth=3, heads=3, patch_size=8, max_grid=16, classes=7)
LOADER = LoaderConfig(
    plan=PlanConfig(
        sequence_length=96,
        max_tokens=40,
        max_images=8,
        patch_sizes=(8,),
        resolution=Resolution(kind="native"),
        drop=Drop(kind="constant", rate=0.3),
    )
)


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = [(int(h), int(w)) for h, w in rng.integers(1, 6, (count, 2)) * 8]
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


def model(**changes: Any) -> NaViT:
    torch.manual_seed(0)
    net = NaViT(replace(CONFIG, **changes))
    torch.nn.init.normal_(net.head.weight)
    return net.eval()


def logits_by_image(net: NaViT, batch: PackedBatch) -> dict[int, torch.Tensor]:
    with torch.no_grad():
        logits = net(batch.to("cpu"))
    return {int(batch.image_ids[b, e]): logits[b, e] for b, e in np.argwhere(batch.status == OK)}


@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_changing_one_image_changes_no_other(backend: str) -> None:
    images = pictures(9)
    net = model(attention=backend)
    before = logits_by_image(net, pack_images(images, LOADER))
    images[4] = 255 - images[4]
    after = logits_by_image(net, pack_images(images, LOADER))
    assert not torch.equal(before.pop(4), after.pop(4))
    for i, logits in before.items():
        assert torch.equal(logits, after[i]), f"image {i}"


@pytest.mark.parametrize("backend", ["dense", "segments"])
def test_packed_equals_one_at_a_time(backend: str) -> None:
    images = pictures(12, 1)
    whole = replace(LOADER, plan=replace(LOADER.plan, drop=Drop()))
    net = model(attention=backend)
    packed = logits_by_image(net, pack_images(images, whole))
    assert len(packed) == 12
    for i, image in enumerate(images):
        alone = logits_by_image(net, pack_images([image], whole))[0]
        assert (alone - packed[i]).abs().max() < 1e-5


def test_order_in_a_sequence_changes_nothing() -> None:
    images = pictures(4, 2)
    plan = replace(LOADER.plan, sequence_length=160, drop=Drop())
    net = model()
    results = []
    for seed in (0, 1, 2):
        batch = pack_images(images, replace(LOADER, plan=replace(plan, seed=seed)))
        results.append((batch.image_ids[batch.status == OK].tolist(), logits_by_image(net, batch)))
    assert len({tuple(order) for order, _ in results}) > 1
    for _, logits in results[1:]:
        for i in range(4):
            assert (logits[i] - results[0][1][i]).abs().max() < 1e-5


layouts = st.lists(st.integers(1, 24), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(lengths=layouts, empties=st.integers(0, 3), seed=st.integers(0, 99))
def test_backends_equal_the_plain_one(lengths: list[int], empties: int, seed: int) -> None:
    """Forward and gradients; one-token segments and repeated offsets among them."""
    total = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths), np.full(empties, total)]).astype(np.int32)
    cu = torch.from_numpy(offsets)
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(total, 2, 8, generator=generator) for _ in range(4)]
    found = []
    for backend in ("dense", "segments"):
        q, k, v = (x.clone().requires_grad_() for x in base[:3])
        out = attention(q, k, v, segments(cu, 24, total, backend))  # type: ignore[arg-type]
        (out * base[3]).sum().backward()
        found.append((out.detach(), q.grad, k.grad, v.grad))
    # The plainest form of all: one segment at a time, written out.
    for start, end in itertools.pairwise(offsets):
        if end > start:
            q, k, v = (x[start:end].transpose(0, 1) for x in base[:3])
            plain = ((q @ k.transpose(1, 2)) / 8**0.5).softmax(-1) @ v
            assert torch.allclose(found[0][0][start:end], plain.transpose(0, 1), atol=1e-5)
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def masked(batch: PackedBatch, image: int, poison: int) -> PackedBatch:
    """The batch as if `image` had failed at render, with `poison` left in its slots."""
    arrays = {k: v.copy() for k, v in batch.arrays().items()}
    b, e = np.argwhere(batch.image_ids == image)[0]
    at = arrays["segment_ids"][b] == e
    arrays["patches"][b, at] = poison
    arrays["segment_ids"][b, at] = -1
    arrays["status"][b, e] = FAILED
    return replace(batch, **arrays)


def test_what_lies_in_masked_slots_reaches_no_gradient() -> None:
    batch = pack_images(pictures(9, 3), LOADER, labels=np.arange(9) % 7)
    grads = []
    for poison in (0, 255):
        net = model().train()
        total, count = classification_loss(net(masked(batch, 5, poison).to("cpu")), masked(batch, 5, poison).to("cpu"))
        assert int(count) == 8
        total.backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None and b is not None and torch.isfinite(a).all()
        assert torch.allclose(a, b, atol=1e-6)


def test_a_wholly_masked_batch_has_zero_loss_and_finite_gradients() -> None:
    batch = pack_images(pictures(3, 4), LOADER, labels=[0, 1, 2])
    for image in range(3):
        batch = masked(batch, image, 0)
    net = model().train()
    total, count = classification_loss(net(batch.to("cpu")), batch.to("cpu"))
    total.backward()
    assert int(count) == 0 and total.item() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_losses_equal_plain_references(kind: str) -> None:
    batch = pack_images(pictures(9, 5), LOADER, labels=[0, 1, -1, 3, 4, 5, 6, 0, 1]).to("cpu")
    logits = torch.randn(*batch.status.shape, 7)
    total, count = classification_loss(logits, batch, kind=kind)  # type: ignore[arg-type]
    expected = 0.0
    for b, e in torch.nonzero((batch.status == OK) & (batch.labels[..., 0] >= 0)).tolist():
        x, label = logits[b, e].double(), int(batch.labels[b, e, 0])
        if kind == "softmax":
            expected -= float(x.log_softmax(-1)[label])
        else:
            expected -= float(sum(torch.nn.functional.logsigmoid(x[c] if c == label else -x[c]) for c in range(7)))
    assert int(count) == 8
    assert abs(float(total) - expected) < 1e-4


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="heads = 5"):
        NaViTConfig(heads=5)
    with pytest.raises(ConfigError, match="'X/16'"):
        NaViTConfig.preset("X/16")
    with pytest.raises(ModelError, match="'torch_varlen' needs a CUDA device"):
        choose("torch_varlen", torch.device("cpu"))
    with pytest.raises(ModelError, match="patches of 8 pixels, the model takes 16"):
        NaViT(replace(CONFIG, patch_size=16))(pack_images(pictures(1), LOADER).to("cpu"))
    tall = pack_images([np.zeros((8 * 20, 8, 3), np.uint8)], LOADER).to("cpu")
    with pytest.raises(ModelError, match="max_grid"):
        model()(tall)
    labelled = pack_images(pictures(1), LOADER, labels=[7]).to("cpu")
    with pytest.raises(ModelError, match="the label 7, but there are 7 classes"):
        classification_loss(torch.zeros(*labelled.status.shape, 7), labelled)


def test_presets_have_their_published_sizes() -> None:
    """ViT, Table 1: 86 M parameters for B, 307 M for L."""
    for name, millions in (("B/16", 86), ("L/16", 304)):
        with torch.device("meta"):
            net = NaViT(NaViTConfig.preset(name, classes=1000))
        encoder = sum(p.numel() for block in net.blocks for p in block.parameters()) / 1e6
        assert abs(encoder - millions) < 0.02 * millions
