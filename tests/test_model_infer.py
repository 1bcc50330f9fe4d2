"""Lists of images of any kind and size through `classify` and `embed`, budgets, cascades, and the packed forward exported."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

from navit_loader.errors import ModelError, PlanError
from navit_model import NaViT, NaViTConfig
from navit_model.use import images as lists
from navit_model.use.export import export

P = 8
CONFIG = NaViTConfig(
    width=32, depth=2, heads=2, patch_size=P, positions="resized_grid", max_grid=32, classes=6, registers=1
)


@pytest.fixture(scope="module")
def net() -> NaViT:
    torch.manual_seed(0)
    net = NaViT(CONFIG)
    torch.nn.init.normal_(net.head.weight, std=0.5)
    return net.eval()


def pictures(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


SIZES = [(16, 40), (24, 24), (8, 8), (64, 16), (40, 48), (16, 16)]


def alone(net: NaViT, image: np.ndarray) -> torch.Tensor:
    """One image at its own size, without the packer."""
    h, w = image.shape[0] // P, image.shape[1] // P
    batch = packed([[(h, w)]], length=1 + h * w, longest=1 + h * w, images=1, patch=P, prefix=1).to("cpu")
    rows = image.reshape(h, P, w, P, 3).transpose(0, 2, 1, 3, 4).reshape(h * w, -1)
    batch.patches[0, 1:] = torch.from_numpy(rows)
    with torch.no_grad():
        return net(batch)[0, 0]


def test_every_kind_of_image_at_its_own_size(net: NaViT, tmp_path: Path) -> None:
    images = pictures(SIZES)
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(images[3]).save(buffer, "PNG")
    mixed = [images[0], tmp_path / "a.png", Image.fromarray(images[2]), buffer.getvalue(), images[4], images[5]]
    net.train()
    found = net.classify(mixed)
    assert net.training and found.shape == (6, 6) and not found.requires_grad
    net.eval()
    for image, logits in zip(images, found, strict=True):
        assert (alone(net, image) - logits).abs().max() < 1e-5
    assert torch.equal(net.classify([str(tmp_path / "a.png")])[0], net.classify([images[1]])[0])
    assert net.embed(mixed).shape == (6, 32)
    assert torch.allclose(net.head(net.embed(mixed)), found, atol=1e-5)
    assert net.classify([]).shape == (0, 6)
    assert torch.equal(net.classify(images, np.int64(9)), net.classify(images, 9))


def test_portions_change_nothing(net: NaViT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(SIZES * 3)
    whole = net.classify(images, 20)
    monkeypatch.setattr(lists, "ROOM", 30)
    assert torch.allclose(net.classify(images, 20), whole, atol=1e-5)


def test_normalised_tensors_give_the_logits_of_their_pixels(net: NaViT) -> None:
    images = pictures(SIZES)
    floats = [(torch.from_numpy(i).permute(2, 0, 1) / 255 - 0.5) / 0.5 for i in images]
    assert torch.allclose(net.classify(floats, normalized=True), net.classify(images), atol=1e-5)
    smooth = [np.full((h, w, 3), 40 * n, np.uint8) for n, (h, w) in enumerate(SIZES)]
    floats = [(torch.from_numpy(i).permute(2, 0, 1) / 255 - 0.5) / 0.5 for i in smooth]
    for budget in (4, 30):  # resized, down and up
        assert torch.allclose(net.classify(floats, budget, True), net.classify(smooth, budget), atol=1e-4)


def test_budgets_scale_down_and_up(net: NaViT) -> None:
    images = pictures([(48, 96), (16, 16)])
    seen: list[list[int]] = []
    hook = net.blocks[0].register_forward_hook(
        lambda m, args, out: seen.append([n * (t - 1) for n, t in args[1].where.groups])
    )
    try:
        for budget, most in ((8, 8), (50, 50), (None, 72)):
            seen.clear()
            net.classify(images, budget)
            assert max(seen[0]) <= most
            # The small image is scaled up to a budget, and left alone without one.
            assert 4 in seen[0] if budget is None else sum(seen[0]) > 1.5 * 4
    finally:
        hook.remove()
    large = pictures([(8 * 40, 8 * 40)])  # beyond the position table: scaled down to it
    assert torch.isfinite(net.classify(large)).all()


def test_a_cascade_asks_again_for_the_unsure_alone(net: NaViT, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(SIZES * 2)
    small, large = net.classify(images, 4), net.classify(images, 25)
    chance = small.softmax(-1).amax(-1)
    sure = float(chance.median())
    found = net.classify(images, (4, 25), sure=sure)
    kept = chance >= sure
    assert 0 < int(kept.sum()) < len(images)
    assert torch.allclose(found[kept], small[kept], atol=1e-5) and torch.allclose(found[~kept], large[~kept], atol=1e-5)
    assert torch.allclose(net.classify(images, (4, 25), sure=0.0), small, atol=1e-5)
    assert torch.allclose(net.classify(images, (4, 25), sure=2.0, sigmoid=True), large, atol=1e-5)


def test_bad_images_are_named(net: NaViT, tmp_path: Path) -> None:
    good = pictures([(16, 16)])[0]
    buffer = io.BytesIO()
    Image.fromarray(pictures([(64, 64)])[0]).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[2000:2400] = bytes(400)
    (tmp_path / "torn.png").write_bytes(content)
    (tmp_path / "text.png").write_text("no image")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (
            ModelError,
            r"images\[1\] = '.*none.png' cannot be read: No such file",
            {"images": [good, tmp_path / "none.png"]},
        ),
        (
            PlanError,
            r"images\[1\] = '.*text.png': 8 bytes that are no image",
            {"images": [good, tmp_path / "text.png"]},
        ),
        (ModelError, r"images\[1\] = '.*torn.png' cannot be decoded", {"images": [good, tmp_path / "torn.png"]}),
        (PlanError, r"images\[0\] is an array of float", {"images": [good / 255]}),
        (ModelError, r"images\[0\] is a ndarray of shape \[16, 16, 3\]", {"images": [good / 255], "normalized": True}),
        (ModelError, "one image as", {"images": str(tmp_path / "torn.png")}),
        (ModelError, "one image as", {"images": good}),
        (ModelError, "tokens = 0", {"images": [good], "tokens": 0}),
        (ModelError, r"tokens = \(9, 4\)", {"images": [good], "tokens": (9, 4)}),
        (ModelError, r"tokens = \[\]", {"images": [good], "tokens": []}),
    ]
    for error, words, arguments in cases:
        with pytest.raises(error, match=words):
            net.classify(**arguments)
    for tokens, words in (((4, 9), "embed takes one budget"), ("9", "tokens = '9'"), (2.5, "tokens = 2.5")):
        with pytest.raises(ModelError, match=words):
            net.embed([good], tokens)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no classifier"):
        NaViT(NaViTConfig(width=32, depth=1, heads=2)).classify([good])


def test_the_packed_forward_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    some = NaViT(replace(CONFIG, attention="dense", pool="mean", rope=True)).eval()
    torch.nn.init.normal_(some.head.weight)
    shape: dict[str, Any] = {"length": 30, "longest": 20, "images": 4, "patch": P, "prefix": 1}
    first = packed([[(2, 3), (4, 4)], [(1, 1)]], **shape).to("cpu")
    program = export(some, first)
    torch.export.save(program, tmp_path / "navit.pt2")
    again = torch.export.load(tmp_path / "navit.pt2").module()
    for batch in (first, packed([[(1, 7)], [(3, 3), (2, 2), (1, 2)]], seed=1, **shape).to("cpu")):
        fields = (batch.patches, batch.positions, batch.segment_ids, batch.cu_seqlens, batch.grids)
        with torch.no_grad():
            assert torch.allclose(again(*fields), some(batch), atol=1e-6)
    with pytest.raises(ModelError, match="'segments' cannot be exported"):
        export(NaViT(CONFIG), first)
