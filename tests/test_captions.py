"""Captions: counted when planned, delivered as tokens, the same in process and from a daemon."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from navit_loader import LoaderConfig, PackedBatch, PackedLoader, RemoteLoader, build_index, open_index
from navit_loader.errors import ConfigError, IndexFileError
from navit_loader.index import Index
from navit_loader.index.subset import write_subset
from navit_loader.render.engine import Engine
from navit_loader.summary import summarise
from navit_model.train.checkpoint import open_image_model
from navit_model.train.settings import RunConfig
from navit_model.train.tasks.contrastive import Contrastive
from navit_model.world import World

from .service_kit import Daemon, digest
from .source_kit import encode, write_tar, write_tree

WORDS = [
    "a",
    "small",
    "photograph",
    "of",
    "one",
    "two",
    "three",
    "red",
    "green",
    "blue",
    "cats",
    "dogs",
    "and",
    "Häuser",
    "象",
]
PLAN = {
    "sequence_length": 64, "max_tokens": 16, "max_images": 12, "patch_sizes": [4], "block_images": 64, "seed": 3,
    "resolution": {"kind": "uniform", "low": 8, "high": 16},
}  # fmt: skip


def caption(i: int) -> str:
    """Some words; none for one in six."""
    return "" if i % 6 == 5 else " ".join(WORDS[j % len(WORDS)] for j in range(i, i + 1 + 2 * (i % 7)))


def source(folder: Path, count: int = 90) -> Path:
    """Images of noise and a manifest with captions."""
    write_tree(folder, {f"{i:03d}.png": encode("PNG", 16 + i % 9, 12 + i % 5, seed=i) for i in range(count)})
    lines = ({"path": f"{i:03d}.png", "label": i % 3, "caption": caption(i)} for i in range(count))
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "m.jsonl"


def tokenizer(path: Path, end: bool) -> Path:
    """A byte-pair tokenizer, trained here and now on our captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        [caption(i) for i in range(200)], trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<end>"])
    )
    if end:
        made.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    made.enable_truncation(3)
    made.enable_padding(length=8)
    made.save(str(path))
    return path


def config(index: Path, **plan: object) -> LoaderConfig:
    return LoaderConfig.from_dict({"data": {"index": str(index), "batch_size": 3}, "plan": PLAN | plan})


def texts(index: Index, batch: PackedBatch) -> list[tuple[int, list[int]]]:
    """(row, tokens) of each image of a batch, by its segments."""
    found = []
    cuts = itertools.pairwise(batch.text_cu_seqlens.tolist())
    flat = batch.text.reshape(-1)
    for ids in batch.image_ids:
        for row in ids[ids >= 0]:
            low, high = next(cuts)
            found.append((int(row), flat[low:high].tolist()))
        low, high = next(cuts)
        assert (flat[low:high] == -1).all(), "the rest of each sequence is padding"
    assert all(low == high == flat.size for low, high in cuts)
    return found


@pytest.mark.parametrize("kind", ["bytes", "bpe", "bpe+end"])
def test_batches_carry_the_tokens_of_their_captions(tmp_path: Path, kind: str) -> None:
    manifest, output, cap = source(tmp_path / "images"), tmp_path / "x.arrow", 9
    made = None if kind == "bytes" else tokenizer(tmp_path / "tokenizer.json", kind.endswith("end"))
    build_index(manifest, output, tokenizer=made)
    index = open_index(output)
    expected = {}
    for row in index.table().to_pylist():
        text = row["caption"] or ""
        if made is None:
            ids, end = [*text.encode(), 256] if text else [], 256
        else:
            from tokenizers import Tokenizer

            real = Tokenizer.from_file(str(made))
            real.no_truncation()
            real.no_padding()
            ids, end = real.encode(text).ids if text else [], 1 if kind.endswith("end") else -1
        assert row["caption_tokens"] == len(ids)
        expected[len(expected)] = ids if len(ids) <= cap else ids[:cap] if end < 0 else [*ids[: cap - 1], end]
    assert max(map(len, expected.values())) == cap, "some caption is cut"
    assert index.tokens.vocabulary > max(max(ids) for ids in expected.values() if ids)
    with PackedLoader(config=config(output, text_tokens=50, max_text_tokens=cap)) as loader:
        assert (loader.vocabulary, loader.max_text_tokens) == (index.tokens.vocabulary, cap)
        found = [pair for batch in loader for pair in texts(index, batch)]
    assert dict(found) == expected and len(found) == 90
    # A part of the index says the same of its rows.
    keep = np.arange(90) % 4 == 1
    write_subset(index, keep, tmp_path / "part.arrow")
    with PackedLoader(config=config(tmp_path / "part.arrow", text_tokens=50, max_text_tokens=cap)) as loader:
        part = dict(pair for batch in loader for pair in texts(loader.engine.indexes[0], batch))
    assert [part[i] for i in range(len(part))] == [expected[int(row)] for row in np.flatnonzero(keep)]


def test_a_daemon_delivers_the_same_captions(tmp_path: Path) -> None:
    build_index(source(tmp_path / "images"), tmp_path / "x.arrow")
    plan = "\n".join(f"{k} = {json.dumps(v)}" for k, v in PLAN.items() if not isinstance(v, dict))
    (tmp_path / "c.toml").write_text(
        f'[data]\nindex = "{tmp_path / "x.arrow"}"\nbatch_size = 3\n[plan]\ntext_tokens = 60\n{plan}\n'
        '[plan.resolution]\nkind = "uniform"\nlow = 8\nhigh = 16\n'
    )
    with PackedLoader(config=LoaderConfig.from_toml(tmp_path / "c.toml")) as loader:
        local = list(loader)
    with Daemon(tmp_path / "c.toml") as daemon:
        for shared in (True, False):
            with RemoteLoader([daemon.endpoint], shared=shared) as loader:
                assert (loader.vocabulary, loader.max_text_tokens) == (257, 60)
                remote = list(loader)
            assert [digest(batch) for batch in remote] == [digest(batch) for batch in local]
            assert all(
                np.array_equal(a.text, b.text) and (a.text >= 0).any() for a, b in zip(remote, local, strict=True)
            )


def test_the_tokenizer_is_part_of_what_an_index_is(tmp_path: Path) -> None:
    manifest = source(tmp_path / "images")
    paths = {}
    for name, made in (
        ("bytes", None),
        ("bpe", tokenizer(tmp_path / "t.json", False)),
        ("end", tokenizer(tmp_path / "e.json", True)),
    ):
        paths[name] = tmp_path / f"{name}.arrow"
        build_index(manifest, paths[name], tokenizer=made)
    opened = [open_index(path) for path in paths.values()]
    assert len({index.tokens.hash for index in opened}) == len({index.render_fingerprint for index in opened}) == 3
    assert len({index.plan_fingerprint for index in opened}) == 3, "their counts differ"
    mixture = [{"index": str(paths["bpe"])}, {"index": str(paths["end"])}]
    with pytest.raises(ConfigError, match="different tokenizers"):
        PackedLoader(config=LoaderConfig.from_dict({"data": {"mixture": mixture}, "plan": PLAN | {"text_tokens": 50}}))
    # Refreshing with another tokenizer counts everything anew.
    build_index(manifest, paths["bytes"], tokenizer=tmp_path / "t.json", refresh=True)
    assert paths["bytes"].read_bytes() == paths["bpe"].read_bytes()


def test_a_blank_caption_is_none_in_every_format(tmp_path: Path) -> None:
    png = encode("PNG", 16, 16)
    write_tree(tmp_path, {"1.png": png})
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "1.png", "caption": " \n"}))
    (tmp_path / "m.csv").write_text('path,caption\n1.png," "\n')
    write_tar(tmp_path / "m.tar", {"1.png": png, "1.txt": b" \n", "2.png": png, "2.json": b'{"caption": " \\n"}'})
    pq.write_table(pa.table({"image": [png], "caption": ["\t"]}), tmp_path / "m.parquet")
    for name in ("m.jsonl", "m.csv", "m.tar", "m.parquet"):
        build_index(tmp_path / name, tmp_path / "x.arrow")
        assert "caption" not in open_index(tmp_path / "x.arrow").table().column_names


def test_a_word_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "dog": 1}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    write_tree(tmp_path, {f"{i}.png": encode("PNG", 16, 16) for i in range(2)})
    lines = [json.dumps({"path": f"{i}.png", "caption": text}) for i, text in enumerate(("a dog", "a cat"))]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(IndexFileError, match=r"t\.json' cannot say 'a cat': .*; give it an unknown token"):
        build_index(tmp_path / "m.jsonl", tmp_path / "x.arrow", tokenizer=tmp_path / "t.json")


def test_captions_that_are_cut_are_counted(tmp_path: Path) -> None:
    build_index(source(tmp_path / "images"), tmp_path / "x.arrow")
    made = config(tmp_path / "x.arrow", text_tokens=60, max_text_tokens=20)
    cut = sum(len(caption(i).encode()) + 1 > 20 for i in range(90))
    with Engine(made) as engine:
        assert 0 < summarise(engine, 0)["captions_cut"] == cut < 90
    with PackedLoader(config=made) as loader:
        table = {
            "data": {"index": "x"},
            "plan": {"text_tokens": 60, "max_text_tokens": 20},
            "train": {"task": "contrastive"},
        }
        run = Contrastive.prepare(RunConfig.from_dict(table), loader)
        task = Contrastive(run, [], World.join("cpu"), open_image_model)
        assert task.notes(loader) == [f"{cut} captions have more than 20 tokens, and are cut (plan.max_text_tokens)"]


def test_what_is_wrong_with_captions_is_said(tmp_path: Path) -> None:
    png = encode("PNG", 16, 16)
    folder = write_tree(tmp_path / "images", {"a/1.png": png})
    build_index(folder, tmp_path / "x.arrow")
    with pytest.raises(ConfigError, match="has a caption"):
        PackedLoader(config=config(tmp_path / "x.arrow", text_tokens=10))
    for bad, words in ((7, "is no text"), ("half \ud800", "cannot be written as UTF-8")):
        (tmp_path / "m.jsonl").write_text(json.dumps({"path": "images/a/1.png", "caption": bad}))
        with pytest.raises(IndexFileError, match=f"line 1: .*{words}"):
            build_index(tmp_path / "m.jsonl", tmp_path / "y.arrow")
    members = {"a.png": png, "a.json": b'{"caption": "half \\ud800"}', "b.png": png, "b.txt": b"whole"}
    done = build_index(write_tar(tmp_path / "x.tar", members), tmp_path / "z.arrow")
    assert (done.rows, done.broken) == (1, 1)
    assert "cannot be written as UTF-8" in open_index(tmp_path / "z.arrow").quarantine()[0]["reason"]
    (tmp_path / "no.json").write_text("{}")
    for path, words in ((tmp_path / "no.json", "is no tokenizer.json"), (tmp_path / "gone.json", "cannot be read")):
        with pytest.raises(IndexFileError, match=words):
            build_index(folder, tmp_path / "w.arrow", tokenizer=path)
