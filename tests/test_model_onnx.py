"""Classifiers as ONNX files: the model's answers, for any number of images of any grids, from plain arrays."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from navit_loader import LoaderConfig, pack_images
from navit_loader.batch import OK
from navit_loader.errors import ModelError
from navit_model import NaViT, NaViTConfig
from navit_model.cli import main
from navit_model.use.frozen import planned
from navit_model.use.onnx import export_onnx, inputs_of
from navit_model.use.opened import open_model

sys.path.insert(0, str(Path(__file__).parent))
from packed import packed

CONFIG = NaViTConfig(width=32, depth=2, heads=2, patch_size=4, classes=5, max_grid=16)


def saved(path: Path, **changes: Any) -> NaViT:
    """A model with random weights, saved."""
    torch.manual_seed(0)
    model = NaViT(replace(CONFIG, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return model


KINDS: list[dict[str, Any]] = [
    {},
    {"pool": "class", "class_token": True, "registers": 2},
    {"pool": "mean", "rope": True, "positions": "none", "norm": "rms", "mlp_gate": True},
    {"positions": "fourier", "patch_sizes": (4, 8), "class_token": True, "distill_token": True},
]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_an_onnx_file_answers_as_the_model_does(tmp_path: Path, changes: dict[str, Any], capsys: Any) -> None:
    model, file = saved(tmp_path / "model", **changes), tmp_path / "model.onnx"
    side = model.config.patch_sizes[-1] if model.config.patch_sizes else 4
    assert main(["export", str(tmp_path / "model"), "-o", str(file), "--patch-size", str(side)]) == 0
    assert "5 classes; logits within" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name != "model"] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == [str(n) for n in range(5)]
    assert (meta["patch_size"], meta["loss"]) == (str(side), "softmax")
    # What it says of how images are seen gives the batch that predict would make.
    config = LoaderConfig.from_dict(json.loads(meta["images"]))
    opened = open_model(tmp_path / "model", torch.device("cpu"))
    picture = np.random.default_rng(0).integers(0, 255, (5 * side + 1, 3 * side, 3), np.uint8)
    (ours,), batch = session.run(None, inputs_of(pack_images([picture], config))), pack_images([picture], config)
    assert config.plan == planned(opened, patch_size=side).plan
    assert ours.shape == (1, 5) and batch.grids[0, 0].tolist() == [5, 3]
    assert torch.from_numpy(ours).softmax(-1).numpy() == pytest.approx(opened.chances(batch)[0, :1].numpy(), abs=1e-4)
    shape: dict[str, Any] = {
        "length": 60,
        "longest": 50,
        "images": 4,
        "patch": side,
        "prefix": model.config.prefix_tokens,
    }
    for seed, drop in enumerate((0.0, 0.5)):
        grids = [[(2, 3), (4, 4), (1, 5)], [], [(6, 6)], [(3, 3), (1, 1)]]
        batch = packed(grids, failed=[(0, 1)], drop=drop, seed=seed, **shape)
        (found,) = session.run(None, inputs_of(batch))
        with torch.no_grad():
            wanted = model(batch.to("cpu")).numpy()[batch.status == OK]
        assert np.abs(found - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: Any) -> None:
    saved(tmp_path / "features", classes=0)
    with pytest.raises(ModelError, match="has no classifier of its own"):
        export_onnx(open_model(tmp_path / "features", torch.device("cpu")), tmp_path / "x.onnx")
    assert main(["export", str(tmp_path / "features"), "-o", str(tmp_path / "none" / "x.onnx")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    saved(tmp_path / "windows", window=4)
    with pytest.raises(ModelError, match=r"attends in windows \(model.window\)"):
        export_onnx(open_model(tmp_path / "windows", torch.device("cpu")), tmp_path / "x.onnx")
    saved(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "-o", str(tmp_path / "x.onnx"), "--patch-size", "8"]) == 2
    assert "takes patches of 4 pixels, not of 8" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["features", "model", "windows"]
