"""Several labels an image, none at all, classes that two indexes do not share: learnt, scored, said before the first step."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from navit_loader import LoaderConfig, build_index, open_index, pack_images
from navit_loader.batch import NO_CLASS, PackedBatch
from navit_loader.errors import ConfigError, ModelError
from navit_model.evaluate.classification import judge
from navit_model.losses.classification import classification_loss
from navit_model.train import checkpoint
from navit_model.train.run import train
from navit_model.train.settings import RunConfig
from navit_model.train.tasks.classification import Classification

sys.path.insert(0, str(Path(__file__).parent))
from shapes import table, write_index
from source_kit import encode, write_tree

LABELS = [[0], [1, 2], [], None, [0, 2], []]


def batch_of(labels: list[Any]) -> PackedBatch:
    rows = [[*(v or []), -1, -1, -1][:3] if v != [] else [NO_CLASS, -1, -1] for v in labels]
    images = [np.full((16, 16, 3), 9, np.uint8)] * len(labels)
    plan = {"sequence_length": 16, "max_tokens": 4, "patch_sizes": [8], "order": {"kind": "sequential"}}
    return pack_images(images, LoaderConfig.from_dict({"plan": plan}), labels=np.array(rows))


def test_sigmoids_start_at_one_in_as_many_as_there_are_classes() -> None:
    """The loss of an image then is log C and about 1, where one half each would cost C·log 2."""
    model = {"width": 32, "depth": 1, "heads": 2, "classes": 1000, "patch_size": 8}
    net = Classification.build(RunConfig.from_dict({"model": model, "train": {"loss": "sigmoid"}}))
    batch = batch_of([[0], [7], [999]]).to("cpu")
    total, count = classification_loss(net(batch), batch, kind="sigmoid")
    assert float((total / count).detach()) == pytest.approx(math.log(999) + 1000 * math.log(1 + 1 / 999), rel=1e-4)


def test_an_image_of_no_class_is_learnt_by_sigmoids_alone() -> None:
    batch = batch_of(LABELS)
    logits = torch.randn(*batch.status.shape, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(())
    for b, e in np.argwhere(batch.image_ids >= 0):
        given = LABELS[batch.image_ids[b, e]]
        if given is not None:
            hot = torch.tensor([float(k in given) for k in range(3)])
            expected += nn.functional.binary_cross_entropy_with_logits(logits[b, e], hot, reduction="sum")
    total, count = classification_loss(logits, batch.to("cpu"), kind="sigmoid")
    torch.testing.assert_close(total, expected)
    assert int(count) == 5
    assert int(classification_loss(logits, batch.to("cpu"), kind="softmax")[1]) == 3


class Says(nn.Module):
    """A model that says the same of an image by its row, whatever its pixels."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, batch: PackedBatch) -> Tensor:
        return self.logits[batch.image_ids.clamp(min=0)]


def manifest(folder: Path, labels: list[Any]) -> Path:
    names = [f"{i}.png" for i in range(len(labels))]
    write_tree(folder, {name: encode("PNG", 16, 16, seed=i) for i, name in enumerate(names)})
    (folder / "m.jsonl").write_text(
        "".join(json.dumps({"path": n, "label": v}) + "\n" for n, v in zip(names, labels, strict=True))
    )
    build_index(folder / "m.jsonl", folder / "x.arrow")
    return folder / "x.arrow"


def test_several_labels_are_scored_on_all_and_no_class_on_none(tmp_path: Path) -> None:
    index = manifest(tmp_path, LABELS)
    #         right,      right (2nd), right,         unlabelled, wrong,       wrong
    logits = [[4, -4, -4], [-4, -4, 4], [-4, -4, -4], [4, -4, -4], [-4, 4, -4], [4, -4, -4]]
    config = LoaderConfig.from_dict({"data": {"batch_size": 1}, "plan": {"sequence_length": 16, "max_tokens": 4}})
    said = torch.tensor(logits, dtype=torch.float32)
    score, answers = judge(Says(said), str(index), config, sigmoid=True, keep=3)
    assert answers.chances is not None and answers.labels is not None
    torch.testing.assert_close(answers.chances[[0, 1, 2, 4, 5]], said.sigmoid()[[0, 1, 2, 4, 5]])
    assert answers.labels[1].tolist() == [1, 2]
    assert (score.images, score.accuracy) == (5, 3 / 5)
    assert answers.right.tolist() == [1, 1, 1, 0, 0, 0] and answers.counted.tolist() == [1, 1, 1, 0, 1, 1]
    score, _ = judge(Says(torch.tensor(logits, dtype=torch.float32)), str(index), config)
    assert (score.images, score.accuracy) == (3, 2 / 3), "a softmax is not asked whether there is a class at all"


def test_what_a_softmax_does_not_learn_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(manifest(tmp_path, LABELS))
    for loss, said in (("softmax", True), ("sigmoid", False)):
        train(RunConfig.from_dict(table(index, tmp_path / loss, steps=1, loss=loss)))
        words = "of the 2 images with several labels the lowest, of the 2 known to be of no class nothing"
        assert (words in capsys.readouterr().out) == said


def test_other_classes_of_the_held_out_index_are_found_before_the_first_step(tmp_path: Path) -> None:
    index = write_index(tmp_path / "train")
    classes = open_index(index).classes
    held = write_tree(tmp_path / "held", {f"{name}/1.png": encode("PNG", 16, 16) for name in classes[1:]})
    build_index(held, tmp_path / "held.arrow")
    run = table(index, tmp_path / "run", steps=1)
    run["data"]["eval_index"] = str(tmp_path / "held.arrow")
    with pytest.raises(ConfigError, match=rf"held\.arrow' has the classes .* index it again with --classes {index}"):
        train(RunConfig.from_dict(run))
    build_index(held, tmp_path / "held.arrow", classes=index)
    assert train(RunConfig.from_dict(run))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_an_image_of_weight_two_counts_as_the_same_image_twice(kind: Any) -> None:
    batch = batch_of([[0], [1], [2], [1]]).to("cpu")
    logits = torch.randn(*batch.status.shape, 3, generator=torch.Generator().manual_seed(0))
    plain = classification_loss(logits, batch, kind=kind)[0]
    one = classification_loss(logits, batch, kind=kind, weights=torch.tensor([1.0, 2.0, 1.0]))[0]
    expected = torch.zeros(())
    for b, e in np.argwhere(batch.image_ids.numpy() >= 0):
        if batch.labels[b, e, 0] == 1:
            said = logits[b, e]
            expected += -said.log_softmax(-1)[1] if kind == "softmax" else -nn.functional.logsigmoid(said[1])
    torch.testing.assert_close(one - plain, expected)


def test_balanced_classes_count_the_same_and_one_in_the_mean(tmp_path: Path) -> None:
    index = manifest(tmp_path, [[0]] * 6 + [[1]] * 2 + [[2]] * 4)
    run = table(str(index), tmp_path / "run", steps=2, class_weights="balanced")
    train(RunConfig.from_dict(run))
    saved = checkpoint.open_checkpoint(tmp_path / "run").config
    weights = saved.train.class_weights
    assert isinstance(weights, dict)
    assert [weights[name] * n for name, n in (("0", 6), ("1", 2), ("2", 4))] == pytest.approx([4, 4, 4])
    run["train"]["steps"] = 3
    with pytest.raises(ModelError, match=r"train\.steps = 2"):
        train(RunConfig.from_dict(run), resume=True)
    run["train"] |= {"steps": 2, "class_weights": {"1": 2.0}}
    with pytest.raises(ModelError, match=r"train\.class_weights\."):
        train(RunConfig.from_dict(run), resume=True)
    run["train"]["class_weights"] = {"zebra": 2.0}
    with pytest.raises(ConfigError, match=r"train\.class_weights\.zebra: the index has no class of that name"):
        train(RunConfig.from_dict(run), resume=True)
