"""What stands where in image files: windows, boxes and maps through the command line; owls by texts and pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from navit_loader.config import LoaderConfig, PlanConfig, Resolution
from navit_loader.errors import ModelError
from navit_loader.picture import pixels_of
from navit_loader.render.images import pack_images, picture_size, upright_pixels
from navit_model import NaViTConfig
from navit_model.cli import main
from navit_model.config import DetectionConfig, PanopticConfig, SegmentationConfig
from navit_model.model.owl import Proposals
from navit_model.train.settings import RunConfig, TrainConfig
from navit_model.train.tasks import task_of
from navit_model.use.located import locate
from navit_model.use.opened import OpenedModel
from navit_model.use.owls import open_owl
from navit_model.use.windows import ends_inside, joined_map, one_of_each, windows_of

from .weights_kit import shaken

CPU = torch.device("cpu")
NATIVE = Resolution(kind="native")


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 900), width=st.integers(1, 900), patch=st.sampled_from([4, 16]), tokens=st.integers(1, 400)
)
def test_windows_cover_an_image_and_keep_to_the_budget(height: int, width: int, patch: int, tokens: int) -> None:
    windows = windows_of((height, width), patch, tokens)
    seen = np.zeros((height, width), bool)
    for top, left, tall, wide in windows:
        assert top >= 0 and left >= 0 and top + tall <= height and left + wide <= width
        assert max(1, tall // patch) * max(1, wide // patch) <= tokens
        seen[top : top + tall, left : left + wide] = True
    assert seen.all()


def test_windows_put_together_are_the_image() -> None:
    whole = np.arange(90 * 70).reshape(90, 70)
    windows = windows_of((90, 70), 4, 64)
    assert len(windows) > 4
    parts = [whole[y : y + h, x : x + w] for y, x, h, w in windows]
    assert (joined_map((90, 70), windows, parts) == whole).all()
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [30, 30, 40, 40]], np.float64)
    kept = one_of_each(boxes, np.array([0.5, 0.9, 0.4, 0.1]), np.array([0, 0, 1, 0]), np.zeros(4, bool))
    assert kept.tolist() == [1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), height=st.integers(8, 400), width=st.integers(8, 400))
def test_an_object_is_told_once_however_windows_cut_it(data: Any, height: int, width: int) -> None:
    """Each window tells exactly what it sees of an object, a part as surely as the whole."""
    windows = windows_of((height, width), 4, 100)
    _, _, tall, wide = windows[0]
    # No larger than what two windows share, so that one of them sees the whole, off their edges.
    w, h = (data.draw(st.floats(2, max(2.0, side / 5))) for side in (wide, tall))
    x, y = data.draw(st.floats(0, width - w)), data.draw(st.floats(0, height - h))
    told, cut = [], []
    for top, left, tall, wide in windows:
        box = np.array([max(x, left), max(y, top), min(x + w, left + wide), min(y + h, top + tall)])
        if (box[2:] - box[:2] > 0.5).all():
            told.append(box)
            cut.append(ends_inside(box[None], (top, left, tall, wide), (height, width))[0])
    boxes, scores = np.array(told), np.array(data.draw(st.permutations(range(len(told)))), np.float64)
    (kept,) = one_of_each(boxes, scores, np.zeros(len(told), np.int64), np.array(cut))
    assert boxes[kept] == pytest.approx([x, y, x + w, y + h])


SECTIONS: dict[str, Any] = {
    "detection": {"detection": DetectionConfig(classes=2)},
    "segmentation": {"segmentation": SegmentationConfig(classes=2)},
    "panoptic": {"panoptic": PanopticConfig(classes=2, queries=4, stuff=("b",))},
}


def opened_model(task: Any) -> OpenedModel:
    torch.manual_seed(0)
    model = NaViTConfig(width=16, depth=1, heads=2, patch_size=4, max_grid=64)
    plan = PlanConfig(patch_sizes=(4,), max_tokens=64, sequence_length=64)
    run = RunConfig(loader=LoaderConfig(plan=plan), model=model, train=TrainConfig(task=task), **SECTIONS[task])
    module = task_of(run).build(run).eval()
    return OpenedModel(Path("model"), run, module, task_of(run).image_model(module), ["a", "b"], None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n, (h, w) in enumerate([(20, 30), (70, 50)]):
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(folder / f"{n}.png")
    (folder / "2.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("task", SECTIONS)
@pytest.mark.parametrize("windows", [False, True])
def test_files_are_answered_in_pixels_of_the_source(task: str, windows: bool, photos: Path) -> None:
    opened = opened_model(task)
    if windows and task == "panoptic":
        with pytest.raises(ModelError, match="segments of windows cannot be put together"):
            list(locate(opened, [photos], windows=True))
        return
    first, second, bad = locate(opened, [photos], windows=windows, threshold=0.0)
    assert bad.error == "no image of a known format"
    for found, size in ((first, (20, 30)), (second, (70, 50))):
        assert found.size == size and not found.error
        drawn = found.drawn()
        assert drawn.size == size[::-1]
        if task == "detection":
            assert found.boxes and [s for _, _, s, _ in found.boxes] == sorted((s for _, _, s, _ in found.boxes))[::-1]
            for _, _, _, (x0, y0, x1, y1) in found.boxes:
                assert -1e-3 <= x0 <= x1 <= size[1] + 1e-3 and -1e-3 <= y0 <= y1 <= size[0] + 1e-3
        else:
            assert found.map is not None and found.map.shape == size
    if task == "detection":
        # A window of the size of the image is the image.
        (whole,) = locate(opened, [photos / "0.png"], windows=not windows, threshold=0.0)
        assert whole.boxes == first.boxes


def test_windows_see_what_a_small_picture_cannot_show(tmp_path: Path) -> None:
    """A detector that proposes each bright patch as it is finds a small bright square in place, by windows alone."""
    pixels = np.zeros((160, 120, 3), np.uint8)
    pixels[100:110, 60:70] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    opened = opened_model("detection")

    class Bright(torch.nn.Module):
        def forward(self, batch: Any) -> Proposals:
            found = opened.module(batch)
            bright = batch.patches.float().mean(-1, keepdim=True) / 255
            return replace(found, logits=(bright - 0.9).mul(100).expand(-1, -1, 2))

    told = replace(opened, module=Bright())
    (scaled,) = locate(told, [tmp_path / "x.png"], threshold=0.5)
    assert not scaled.boxes
    (found,) = locate(told, [tmp_path / "x.png"], threshold=0.5, windows=True)
    assert found.boxes
    for _, _, _, (x0, y0, x1, y1) in found.boxes:
        # A fresh head's boxes are a little larger than their patches.
        assert 59 <= x0 < x1 <= 71 and 99 <= y0 < y1 <= 111


def test_pictures_and_windows_have_the_pixels_of_the_engine(tmp_path: Path) -> None:
    """16 bits of grey, which Pillow clips, alpha, and a photograph on its side: each as every batch has it."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 65536, (70, 50)).astype(np.uint16)).save(tmp_path / "grey.png")
    Image.fromarray(rng.integers(0, 256, (70, 50, 4), np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(rng.integers(0, 256, (70, 50, 3), np.uint8)).save(tmp_path / "side.jpg", exif=exif)
    plan = PlanConfig(patch_sizes=(1,), sequence_length=4096, max_tokens=4096, max_grid=100, resolution=NATIVE)
    opened = opened_model("segmentation")
    seen: list[Any] = []
    module = opened.module
    told = replace(opened, module=lambda batch: seen.append(batch.patches) or module(batch))
    for path in sorted(tmp_path.iterdir()):
        ((_, _, wanted),) = pixels_of(pack_images([path], LoaderConfig(plan=plan)))
        assert (upright_pixels(path.read_bytes()) == wanted).all(), path
        seen.clear()
        (found,) = locate(told, [path], windows=True)
        windows = windows_of(found.size, 4, 64)
        assert len(seen) == len(windows) > 4
        for (top, left, *_), patches in zip(windows, seen, strict=True):
            assert (patches[0, 0].reshape(4, 4, 3).numpy() == wanted[top : top + 4, left : left + 4]).all(), path
        void = replace(found, map=np.full(found.size, -1))
        assert (np.asarray(void.drawn()) == wanted).all(), path


@pytest.fixture(scope="module")
def owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wide: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 40,
    }
    text = {**wide, "vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": 49}
    vision = {**wide, "patch_size": 4, "image_size": 32}
    config = transformers.Owlv2Config(vision_config=vision, text_config=text, projection_dim=32)
    folder = tmp_path_factory.mktemp("owl")
    shaken(transformers.Owlv2ForObjectDetection(config)).save_pretrained(folder)
    words = Tokenizer(WordLevel({"[U]": 0, "cat": 1, "dog": 2, "[B]": 48, "[E]": 49}, unk_token="[U]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing("[B] $A [E]", special_tokens=[("[B]", 48), ("[E]", 49)])
    words.save(str(folder / "tokenizer.json"))
    return folder


def test_an_owl_looks_for_texts_as_transformers_does(
    owl: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_owl(owl, CPU, names=["cat", "dog"])
    source = transformers.Owlv2ForObjectDetection.from_pretrained(owl).eval()
    image = torch.from_numpy(np.asarray(Image.open(photos / "0.png")).copy()).permute(2, 0, 1)[:, :20, :28] / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (opened.model.config.mean, opened.model.config.std))
    Image.fromarray((image * 255).permute(1, 2, 0).byte().numpy()).save(photos / "even.png")
    ids = torch.tensor([[48, 1, 49], [48, 2, 49]])
    with torch.no_grad():
        wanted = source(
            input_ids=ids,
            pixel_values=((image - mean) / std)[None],
            attention_mask=torch.ones_like(ids),
            interpolate_pos_encoding=True,
        )
    (found,) = locate(opened, [photos / "even.png"], threshold=0.0)
    scores = wanted.logits[0].sigmoid().flatten().sort(descending=True).values
    assert [s for _, _, s, _ in found.boxes] == pytest.approx(scores.tolist(), abs=1e-4)

    arguments = ["predict", str(owl), str(photos / "even.png"), "--device", "cpu", "--threshold", "0", "--json"]
    assert main([*arguments, "--queries", "cat", "dog", "--draw", str(photos / "drawn")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [box["score"] for box in told["boxes"]] == pytest.approx(scores.tolist(), abs=1e-4)
    assert {box["class"] for box in told["boxes"]} == {"cat", "dog"}
    with Image.open(photos / "drawn" / "even.png") as drawn:
        assert drawn.size == (28, 20)
    assert main([*arguments, "--query-image", str(photos / "0.png")]) == 0
    assert {box["class"] for box in json.loads(capsys.readouterr().out)["boxes"]} == {"0"}


def test_what_an_owl_cannot_look_for_is_one_line(owl: Path, photos: Path, tmp_path: Path) -> None:
    for said, asked in (
        ("give texts or pictures to look for, not both", {"names": ["a"], "pictures": [photos / "0.png"]}),
        (r"--query-image = '.*2.png' cannot be|images\[0\]", {"pictures": [photos / "2.png"]}),
        ("--query-image = '.*x.png' cannot be read", {"pictures": [tmp_path / "x.png"]}),
    ):
        with pytest.raises((ModelError, Exception), match=said) as error:
            open_owl(owl, CPU, **asked)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_no_picture_is_written_over(owl: Path, tmp_path: Path) -> None:
    sources = {}
    for n, name in enumerate(("a.png", "a.jpg", "b/a.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8 + n, 3), 40 * n, np.uint8)).save(tmp_path / name)
        sources[tmp_path / name] = (tmp_path / name).read_bytes()
    words = ["predict", str(owl), *map(str, sources), "--queries", "cat", "--draw", str(tmp_path), "--device", "cpu"]
    assert main(words) == 0
    assert {path: path.read_bytes() for path in sources} == sources
    sizes = {path.name: picture_size(0, path.read_bytes()) for path in tmp_path.glob("a-*.png")}
    assert sizes == {"a-2.png": (8, 8), "a-3.png": (8, 9), "a-4.png": (8, 10)}
