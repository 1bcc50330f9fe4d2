"""Sequences of more tokens than 16 bits can number: one image of 65,536 patches among small ones, in process, served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from navit_loader import PackedLoader, RemoteLoader, build_index
from navit_loader.batch import OK
from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError, RenderError
from navit_model import NaViTConfig
from navit_model.use.images import _portions

from .service_kit import Daemon, digest

SIZES = [(512, 512), (64, 96), (300, 20), (512, 300), (2, 2), (512, 510), (40, 512)]
TOML = """
[data]
index = "{index}"
batch_size = 2
[plan]
sequence_length = 100_000
max_tokens = 70_000
max_images = 8
max_grid = 512
prefix_tokens = 1
patch_sizes = [2]
[plan.resolution]
kind = "native"
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    (folder / "images").mkdir()
    rng = np.random.default_rng(7)
    for n, (height, width) in enumerate(SIZES):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{n}.png")
    build_index(folder / "images", folder / "index.arrow")
    (folder / "navit.toml").write_text(TOML.format(index=folder / "index.arrow"))
    return folder / "navit.toml"


def test_every_pixel_of_a_long_image_is_in_its_place(config: Path) -> None:
    seen, longest = 0, 0
    with PackedLoader(config=LoaderConfig.from_toml(config)) as loader:
        for batch in loader:
            for b, e in np.argwhere(batch.status == OK):
                at = np.flatnonzero(batch.segment_ids[b] == e)
                height, width = batch.sizes[b, e]
                picture = np.zeros((height, width, 3), np.uint8)
                assert (batch.positions[b, at[0]] == (-1, 0)).all()
                for slot in at[1:]:
                    y, x = 2 * batch.positions[b, slot].astype(int)
                    picture[y : y + 2, x : x + 2] = batch.patches[b, slot].reshape(2, 2, 3)
                folder = config.parent / "images"
                assert np.array_equal(picture, np.asarray(Image.open(folder / f"{batch.image_ids[b, e]}.png")))
                assert len(at) == height * width // 4 + 1
                seen, longest = seen + 1, max(longest, len(at))
            assert batch.max_seqlen == 70_000
            assert batch.cu_seqlens[-1] == 200_000
    assert (seen, longest) == (len(SIZES), 65_537)


def test_a_daemon_serves_them_alike(config: Path) -> None:
    with PackedLoader(config=LoaderConfig.from_toml(config)) as loader:
        expected = [digest(batch) for batch in loader]
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint]) as loader:
        assert [digest(batch) for batch in loader] == expected


def test_an_image_for_a_model_may_have_more_than_32767_tokens() -> None:
    config = NaViTConfig(patch_size=2, positions="fourier", registers=1)
    large = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for tokens, found in ((40_000, 40_001), (None, 32_762)):  # as many as asked for, else 181 × 181 and the register
        ((_, batch),) = _portions(config, [large], tokens, False)
        assert batch.num_tokens == found


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sequence_length": 2**20 + 1}, "sequence_length"),
        ({"sequence_length": 2**20, "max_tokens": 40_000, "prefix_tokens": 32_768}, "prefix_tokens"),
    ],
)
def test_what_is_longer_still_is_refused(keys: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoaderConfig.from_dict({"plan": keys})


def test_a_batch_of_more_tokens_than_offsets_can_number_is_refused(config: Path) -> None:
    whole = LoaderConfig.from_toml(config)
    table = {"data": {"index": whole.data.index, "batch_size": 2048}, "plan": {"sequence_length": 2**20}}
    with (
        pytest.raises(RenderError, match=r"data\.batch_size"),
        PackedLoader(config=LoaderConfig.from_dict(table)) as loader,
    ):
        next(iter(loader))
