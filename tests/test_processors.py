"""Tensors for other people's models: batches laid out as each family has them, and `ImageProcessor` beside the family's own
processor in transformers, fast and Pillow's: keys, shapes, dtypes and grids equal, pixels within bounds."""

from __future__ import annotations

import importlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")

from navit_loader import ImageProcessor, LoaderConfig, PackedBatch, pack_images, sizing  # noqa: E402
from navit_loader.errors import ConfigError, PlanError, RenderError  # noqa: E402
from navit_loader.plan.preprocessor import CLASSES  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs warn of their own deprecations.

SIZES = [(37, 1000), (480, 640), (350, 166), (15, 20), (224, 224)]
WORST = 4.0
"""Steps of 1/255; weights have other bits."""


def photo(height: int, width: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


PHOTOS = [photo(*size, n) for n, size in enumerate(SIZES)]
# Hard edges, where filters that overshoot differ in what they clip.
PHOTOS.append(Image.fromarray(np.random.default_rng(9).integers(0, 2, (90, 70, 3), dtype=np.uint8) * 255))


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


MODULES = {
    "Qwen2VL": "qwen2_vl",
    "Glm4v": "glm4v",
    "Glm46V": "glm46v",
    "PaddleOCRVL": "paddleocr_vl",
    "Siglip2": "siglip2",
    "Lfm2Vl": "lfm2_vl",
    "Pixtral": "pixtral",
    "Kimi_K25": "kimi_k25",
    "Gemma4": "gemma4",
}
WITHOUT_PIL = ("Lfm2Vl", "Kimi_K25")
HAD = {"Lfm2VlImageProcessor": {"do_image_splitting": False}}
"""Settings without which a family cuts tiles."""


def theirs(kind: str, pil: bool = False, **settings: Any) -> Any:
    """The family's own."""
    name = MODULES[kind.removesuffix("ImageProcessor")]
    settings = {**HAD.get(kind, {}), **settings}
    module = f"transformers.models.{name}.image_processing_{'pil_' if pil else ''}{name}"
    return getattr(importlib.import_module(module), kind + ("Pil" if pil else ""))(**settings)


def same(ours: Any, other: Any, scale: float) -> None:
    assert list(ours) == list(other)
    for key, value in other.items():
        assert (ours[key].shape, ours[key].dtype) == (value.shape, value.dtype), key
        if key != "pixel_values":
            assert torch.equal(ours[key], value), key
    off = (ours["pixel_values"] - other["pixel_values"]).abs() * (255 * scale)
    assert off.mean() <= 0.5 and off.max() <= WORST


@pytest.mark.parametrize("pil", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_processors_agree(kind: str, pil: bool) -> None:
    if pil and kind.startswith(WITHOUT_PIL):
        pytest.skip("there is no Pillow form of it")
    ours, other = ImageProcessor(kind, **HAD.get(kind, {})), theirs(kind, pil)
    scale = float(np.mean(ours.image_std)) if ours.do_normalize else 1.0
    same(ours(PHOTOS), other(PHOTOS, return_tensors="pt"), scale)
    files = [jpeg(image) for image in PHOTOS]
    same(ours(files), other([Image.open(io.BytesIO(file)) for file in files], return_tensors="pt"), scale)


def test_random_sizes_have_equal_grids() -> None:
    rng = np.random.default_rng(5)
    sizes = np.exp(rng.uniform(np.log(20), np.log(500), (25, 2))).astype(int)
    images = [Image.fromarray(np.full((h, w, 3), n, np.uint8)) for n, (h, w) in enumerate(sizes)]
    for kind in CLASSES:
        ours = ImageProcessor(kind, **HAD.get(kind, {}))(images)
        other = theirs(kind)(images, return_tensors="pt")
        for key in set(other) - {"pixel_values"}:
            assert torch.equal(ours[key], other[key]), (kind, key)


def test_folder_is_read_offline(tmp_path: Path) -> None:
    other = theirs("Qwen2VLImageProcessor", patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3, max_pixels=65536)
    other.save_pretrained(tmp_path)
    ours = ImageProcessor.from_pretrained(tmp_path)
    same(ours(images=PHOTOS, return_tensors="pt"), other(PHOTOS, return_tensors="pt"), 0.5)
    assert ours.merge_size == 2
    nested = tmp_path / "nested"
    nested.mkdir()
    table = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (nested / "processor_config.json").write_text(json.dumps({"image_processor": table}))
    assert ImageProcessor.from_pretrained(nested).settings == ours.settings


def test_takes_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PHOTOS[1].save(path)
    ours = ImageProcessor("Siglip2ImageProcessor")
    one = ours(path)["pixel_values"]
    for image in (str(path), path.read_bytes(), PHOTOS[1], np.asarray(PHOTOS[1]), [[PHOTOS[1]]]):
        assert torch.equal(ours(image)["pixel_values"], one)
    assert np.array_equal(ours.preprocess(path, return_tensors="np")["pixel_values"], one)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(path)["pixel_values"], one)


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        ((10, 2400), "Qwen2VLImageProcessor"),
        ((2, 3000), "PixtralImageProcessor"),
        ((5, 1100), "PaddleOCRVLImageProcessor"),
        ((5, 1100), "Glm4vImageProcessor"),
    ],
)
def test_same_verdict(size: tuple[int, int], kind: str) -> None:
    bad = Image.new("RGB", size[::-1])
    with pytest.raises((ValueError, RuntimeError)):
        theirs(kind)([bad], return_tensors="pt")
    with pytest.raises(PlanError, match=r"^images\[1\] of \d+ × \d+ pixels: .*leave it out$"):
        ImageProcessor(kind)([PHOTOS[0], bad])


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("Gemma4ImageProcessor", {"max_soft_tokens": 100}, "max_soft_tokens = 100 is none of"),
        (
            "Kimi_K25ImageProcessor",
            {"size": {"max_height": 9, "max_width": 8}},
            "max_height and max_width must be equal",
        ),
        ("PixtralImageProcessor", {"size": {"height": 64}}, "height and width must be equal"),
        ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 64}}, "size\\['longest_edge'\\] = None"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_both(kind: str, settings: Any, said: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        theirs(kind, **settings)([PHOTOS[1]], return_tensors="pt")
    with pytest.raises(ConfigError, match=said):
        ImageProcessor(kind, **settings)


PLANNED: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2VLImageProcessor": ("qwen_vl", {"min_pixels": 50_000, "max_pixels": 90_000}),
    "Glm4vImageProcessor": ("glm4v", {"size": {"shortest_edge": 100_000, "longest_edge": 200_000}}),
    "PaddleOCRVLImageProcessor": ("paddleocr_vl", {"size": {"shortest_edge": 60_000, "longest_edge": 90_000}}),
    "Siglip2ImageProcessor": ("siglip2", {"max_num_patches": 100}),
    "Lfm2VlImageProcessor": ("siglip2", {"max_image_tokens": 100}),
    "PixtralImageProcessor": ("pixtral", {"size": {"longest_edge": 300}}),
    "Kimi_K25ImageProcessor": ("kimi", {"max_patches": 300}),
    "Gemma4ImageProcessor": ("gemma4", {"max_soft_tokens": 70}),
}


@pytest.mark.parametrize("kind", PLANNED)
def test_a_plan_sized_from_a_folder_makes_the_processors_tensors(tmp_path: Path, kind: str) -> None:
    name, settings = PLANNED[kind]
    theirs(kind, **settings).save_pretrained(tmp_path)
    plan = {**sizing(tmp_path), "sequence_length": 3000, "max_tokens": 1500}
    batch = pack_images(PHOTOS, LoaderConfig.from_dict({"plan": plan}))
    shown = [PHOTOS[i] for i in batch.image_ids[batch.status == 1]]
    other, ours = theirs(kind, **settings)(shown, return_tensors="pt"), getattr(batch, f"to_{name}")()
    for key in {"image_grid_thw", "spatial_shapes", "image_sizes", "num_soft_tokens_per_image"} & set(other):
        assert torch.equal(ours[key], other[key]), key
    if name in ("qwen_vl", "glm4v", "paddleocr_vl", "pixtral"):
        assert (ours["pixel_values"] - other["pixel_values"]).abs().mean() < 0.02


def test_sizing_of_a_folder(tmp_path: Path) -> None:
    mistral = {"image_processor_type": "PixtralImageProcessor", "patch_size": 14, "size": {"longest_edge": 1540}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(mistral))
    (tmp_path / "processor_config.json").write_text(json.dumps({"spatial_merge_size": 2}))
    rule = {"kind": "smart", "rule": "pixtral", "merge": 2, "max_side": 1540}
    assert sizing(tmp_path) == {"patch_sizes": [14], "resolution": rule}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Lfm2VlImageProcessor"}))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json': do_image_splitting = True is not done here"):
        sizing(tmp_path)
    with pytest.raises(ConfigError, match=r"holds no preprocessor_config\.json"):
        sizing(tmp_path / "none")


def test_refusals(tmp_path: Path) -> None:
    ours = ImageProcessor("Siglip2ImageProcessor")
    with pytest.raises(RenderError, match=r"^images\[0\] cannot be decoded: "):
        ours(jpeg(PHOTOS[1])[:-2000])
    with pytest.raises(PlanError, match="at least one"):
        ours([])
    with pytest.raises(ConfigError, match="return_tensors"):
        ours(PHOTOS, return_tensors="tf")
    with pytest.raises(ConfigError, match="is none of those that are known"):
        ImageProcessor("ViTImageProcessor")
    with pytest.raises(ConfigError, match="do_center_crop"):
        ImageProcessor("Siglip2ImageProcessor", do_center_crop=True)
    with pytest.raises(ConfigError, match=r"holds no preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no configuration"):
        ImageProcessor.from_pretrained(tmp_path)


def batch_of(
    grids: list[tuple[int, int]], patch: int, extra: list[bytes] | None = None, **plan: Any
) -> tuple[Any, PackedBatch]:
    """Images of whole grids in a batch, in the order in which it has them."""
    rng = np.random.default_rng(len(grids))
    images: list[Any] = [rng.integers(0, 256, (h * patch, w * patch, 3), dtype=np.uint8) for h, w in grids]
    table = {"patch_sizes": [patch], "sequence_length": 80, "max_tokens": 40, "resolution": {"kind": "native"}, **plan}
    batch = pack_images(images + (extra or []), LoaderConfig.from_dict({"plan": table}))
    return [Image.fromarray(images[i]) for i in batch.image_ids[batch.status == 1]], batch


GRIDS = [(4, 6), (10, 2), (2, 2), (6, 6), (2, 12), (4, 4)]


def test_batches_are_what_processors_make() -> None:
    images, batch = batch_of(GRIDS, 14, prefix_tokens=2)
    bounds = {"min_pixels": 28 * 28, "max_pixels": 14 * 14 * 40}
    for name, kind in (("qwen_vl", "Qwen2VLImageProcessor"), ("paddleocr_vl", "PaddleOCRVLImageProcessor")):
        other, ours = theirs(kind, **bounds)(images, return_tensors="pt"), getattr(batch, "to_" + name)()
        assert all(torch.equal(ours[key], other[key]) for key in other)
    ours = batch.to_qwen_vl()
    assert ours["cu_seqlens"].tolist() == [0, *np.cumsum(ours["image_grid_thw"].prod(1))]
    assert torch.equal(batch.to_glm4v()["pixel_values"], ours["pixel_values"])
    for name, kind, settings in (
        ("kimi", "Kimi_K25ImageProcessor", {}),
        ("pixtral", "PixtralImageProcessor", {"patch_size": {"height": 14, "width": 14}}),
    ):
        other, ours = theirs(kind, **settings)(images, return_tensors="pt"), getattr(batch, "to_" + name)()
        assert list(ours) == list(other) and all(torch.equal(ours[key], other[key]) for key in other)


def test_padded_families_agree_patch_by_patch() -> None:
    images, batch = batch_of(GRIDS, 16)
    other = theirs("Siglip2ImageProcessor", max_num_patches=40, do_resize=False)(images, return_tensors="pt")
    ours = batch.to_siglip2(max_num_patches=40)
    assert list(ours) == list(other) and all(torch.equal(ours[key], other[key]) for key in other)
    gemma = batch.to_gemma4(max_patches=40)
    assert gemma["num_soft_tokens_per_image"].tolist() == [h * w // 9 for h, w in ours["spatial_shapes"].tolist()]
    assert gemma["image_position_ids"][0, 1].tolist() == [1, 0]
    valid = ours["pixel_attention_mask"] == 1
    assert torch.allclose(gemma["pixel_values"][valid] * 2 - 1, ours["pixel_values"][valid], atol=1e-6)


def test_naflex_is_what_timm_collates() -> None:
    pytest.importorskip("timm")
    from timm.data.naflex_dataset import NaFlexCollator
    from timm.data.naflex_transforms import Patchify

    images, batch = batch_of(GRIDS, 16)
    tensors = [torch.from_numpy(np.asarray(image)).permute(2, 0, 1) / 255 * 2 - 1 for image in images]
    other, _ = NaFlexCollator(40)([(Patchify(16)(tensor), 0) for tensor in tensors])
    ours = batch.to_naflex(max_seq_len=40)
    assert torch.equal(ours["patch_coord"], other["patch_coord"]) and torch.equal(
        ours["patch_valid"], other["patch_valid"]
    )
    assert (ours["patches"] - other["patches"]).abs().max() < 1e-6
    # Dropped tokens are missing, and coordinates say which are there.
    _, dropped = batch_of(GRIDS, 16, drop={"kind": "constant", "rate": 0.5})
    ours = dropped.to_naflex()
    assert ours["patch_valid"].sum() == dropped.num_tokens < sum(h * w for h, w in GRIDS)
    with pytest.raises(PlanError, match="whole images"):
        dropped.to_siglip2()


def test_failed_images_are_absent() -> None:
    broken = jpeg(photo(64, 64, 1))
    images, batch = batch_of(GRIDS, 16, [broken[:-600]])
    assert (batch.status == 2).sum() == 1
    assert len(batch.to_siglip2()["spatial_shapes"]) == len(images) == (batch.status == 1).sum()


def test_batches_that_do_not_fit_are_refused() -> None:
    _, batch = batch_of([(3, 5)], 16)
    with pytest.raises(PlanError, match="3 × 5, which cannot be merged 2 × 2"):
        batch.to_qwen_vl()
    with pytest.raises(PlanError, match="more than the 8"):
        batch.to_siglip2(max_num_patches=8)
