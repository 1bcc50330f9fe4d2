"""nvJPEG's way on the same plan as the Rust renderer, and the kernels that cut patches.

On a GPU where there is one, else on the CPU (torchvision's decoder) and in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navit_loader import PackedLoader, RemoteLoader, build_index
from navit_loader.batch import FAILED, OK
from navit_loader.errors import ConfigError, RenderError, StateError

from .dali_kit import DEVICES, SIZE, VIEWS, both, host, impossible_table, jpeg, pixels, same_but_pixels, turned
from .rendering import difference, encode, photo, planned
from .service_kit import Daemon, digest, load

pytest.importorskip("torchvision", reason="torchvision is not installed")
from navit_loader.render.nvjpeg import NvjpegRenderer
from navit_loader.render.nvjpeg.resample import FILTERS, resize

# torchvision's call is to move to TorchCodec one day, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")

KERNEL = """
import sys
import numpy as np, torch
from navit_loader.render.device.kernel import launch
from navit_loader.render.device.patchify import gather
from navit_loader.render.device.tokens import Tokens
assert launch is not None
device = sys.argv[1]
for patch_size in (4, 7, 14, 16, 32):
    rng = np.random.default_rng(patch_size)
    grids = rng.integers(1, 7, (12, 2))
    images = [torch.randint(0, 256, (*(g * patch_size), 3), dtype=torch.uint8, device=device) for g in grids]
    of = np.repeat(np.arange(12), 3)
    blocks = (rng.random((36, 2)) * grids[of]).astype(np.int64)
    tokens = Tokens(rng.permutation(50)[:36], of, blocks, (np.arange(36) % 8).astype(np.uint8))
    one, other = (torch.zeros((50, patch_size**2 * 3), dtype=torch.uint8, device=device) for _ in range(2))
    launch(images, tokens, patch_size, one)
    gather(images, tokens, patch_size, other)
    assert torch.equal(one, other) and one.any(), patch_size
print("equal")
"""

FUSED = """
import sys
import numpy as np, torch
from navit_loader.render.device.patchify import gather
from navit_loader.render.device.tokens import Tokens
from navit_loader.render.nvjpeg.kernel import launch
from navit_loader.render.nvjpeg.resample import FILTERS, resize
assert launch is not None
device = sys.argv[1]
for number, filter in enumerate(FILTERS):
    for patch_size in (4, 14, 16) if device == "cuda" else (4, 6):
        rng = np.random.default_rng(patch_size + 100 * number)
        grids = rng.integers(1, 4, (6, 2))
        images = [torch.randint(0, 256, (3, int(h), int(w)), dtype=torch.uint8, device=device)
                  for h, w in rng.integers(5, 90 if device == "cuda" else 24, (6, 2))]
        crops = np.zeros((6, 4), np.float32)
        for n, image in enumerate(images):
            h, w = image.shape[1:]
            if n % 2:
                top, left = rng.integers(h), rng.integers(w)
                crops[n] = top, left, rng.integers(top, h) + 1, rng.integers(left, w) + 1
            else:
                crops[n] = 0, 0, h, w
        of = np.repeat(np.arange(6), 2)
        blocks = (rng.random((12, 2)) * grids[of]).astype(np.int64)
        tokens = Tokens(rng.permutation(20)[:12], of, blocks, (np.arange(12) % 8).astype(np.uint8))
        sizes = (grids * patch_size).astype(np.float32)
        one, other = (torch.zeros((20, patch_size**2 * 3), dtype=torch.uint8, device=device) for _ in range(2))
        launch(images, crops, sizes, tokens, patch_size, filter, one)
        whole = [resize(i, c, s, filter) for i, c, s in zip(images, crops.tolist(), sizes.astype(int).tolist())]
        gather(whole, tokens, patch_size, other)
        far = (one.int() - other.int()).abs()
        assert int(far.max()) <= 1 and float((far > 0).float().mean()) < 0.01, (filter, patch_size, int(far.max()))
        assert one.any()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("program", [KERNEL, FUSED], ids=["patches", "resized patches"])
def test_the_kernels_equal_plain_pytorch(program: str, device: str) -> None:
    """Every frame, several P, every filter. Without a GPU Triton's interpreter runs the same kernel on the host's memory."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "01"[device == "cpu"]}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, device], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "equal", done.stderr


PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


@settings(max_examples=60, deadline=None)
@given(
    filter=st.sampled_from(sorted(FILTERS)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cut=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_resampling_is_pillows(
    filter: str, size: tuple[int, int], target: tuple[int, int], cut: tuple[float, ...]
) -> None:
    """Within its rounding between the two passes, whatever the crop. Pillow also clips there: no pixel is near black."""
    (h, w), rng = size, np.random.default_rng(size)
    image = rng.integers(64, 192, (h, w, 3), np.uint8)
    top, left = int(cut[0] * (h - 1)), int(cut[1] * (w - 1))
    bottom, right = top + 1 + int(cut[2] * (h - top - 1)), left + 1 + int(cut[3] * (w - left - 1))
    found = resize(torch.from_numpy(image).permute(2, 0, 1), [top, left, bottom, right], list(target), filter)
    box = (left, top, right, bottom)
    wanted = np.asarray(Image.fromarray(image).resize(target[::-1], PILLOW[filter], box))
    assert np.abs(found.numpy().astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "mean", "nearly_all"),
    [("4:4:4", 0.6, 8), ("4:2:2", 1.1, 14), ("4:2:0", 1.4, 18), ("progressive", 1.4, 18), ("grey", 0.3, 5)],
)
def test_nvjpeg_equals_the_rust_renderer(kind: str, mean: float, nearly_all: float, device: str) -> None:
    """Every orientation, flip, crop, drop and view: all other fields equal, pixels as near as another decoder's can be."""
    files, sizes, sequences, orientations = turned(lambda o: jpeg(kind, o))
    options = {"orientations": orientations, "limits": VIEWS, "patch_size": 8, "batch_size": 5}
    want, encoded, _ = both(files, sizes, sequences, **options)
    with NvjpegRenderer(device) as renderer:
        got = renderer(encoded)
        assert renderer.stats() == {"images": 16, "by_cpu": 0, "failed": 0, "pipelines": 1}
    same_but_pixels(got, want)
    # nvJPEG takes the nearest chroma sample where the others interpolate.
    slack = 1 if device == "cpu" else 2.5
    for mine, theirs in zip(pixels(got), pixels(want), strict=True):
        found = difference(mine, theirs)
        assert found[0] <= slack * mean and found[1] <= slack * nearly_all, found


@pytest.mark.parametrize("device", DEVICES)
def test_what_nvjpeg_cannot_decode_goes_to_the_cpu_renderer(device: str, caplog: pytest.LogCaptureFixture) -> None:
    files = [jpeg(seed=1), impossible_table(jpeg(seed=2)), encode(photo(150, 130, 3), "PNG"), jpeg(seed=4)]
    plan = [[planned(n, 12 * n, SIZE, (3, 4)) for n in range(4)]]
    want, encoded, _ = both(files, [SIZE] * 4, plan, failure_limit=1.0)
    with NvjpegRenderer(device, failure_limit=1.0) as renderer:
        got = renderer(encoded)
        assert renderer.stats() == {"images": 3, "by_cpu": 2, "failed": 1, "pipelines": 1}
        assert [entry["stage"] for entry in renderer.failures()] == ["decode"]
    same_but_pixels(got, want)
    assert host(got.status)[0, :4].tolist() == [OK, FAILED, OK, OK]
    assert "nvjpeg could not decode 1 of 3 images" in caplog.text


def test_it_refuses_by_name_and_ends_cleanly() -> None:
    with pytest.raises(ConfigError, match="device = 'tpu'"):
        NvjpegRenderer("tpu")
    _, encoded, _ = both([jpeg()], [SIZE], [[planned(0, 0, SIZE, (3, 4))]])
    with NvjpegRenderer() as renderer:
        renderer(encoded)
        with pytest.raises(ConfigError, match="one for each configuration"):
            renderer(replace(encoded, render=encoded.render | {"filter": "bilinear"}))
    with pytest.raises(RenderError, match="closed"):
        renderer.submit(encoded)
    assert not [t for t in threading.enumerate() if t.name == "navit-nvjpeg"]


def test_its_name_tells_devices_and_versions_apart() -> None:
    names: set[Any] = {NvjpegRenderer.decoder_name(d) for d in ("cpu", "cuda:0", "cuda:1")}
    assert len(names) == 2 and all(name.startswith("nvjpeg1-") for name in names)


def test_loaders_take_it_by_name_in_process_and_from_a_daemon(tmp_path: Path) -> None:
    """Every other field as the engine's; resumed in the middle; another decoder's state is refused by its name."""
    (tmp_path / "images").mkdir()
    for n in range(10):
        (tmp_path / "images" / f"{n}.jpg").write_bytes(jpeg(seed=n + 1))
    (tmp_path / "images" / "x.png").write_bytes(encode(photo(150, 130, 30), "PNG"))
    build_index(tmp_path / "images", tmp_path / "x.arrow")
    config = tmp_path / "run.toml"
    config.write_text(
        f'[data]\nindex = "{tmp_path / "x.arrow"}"\nbatch_size = 2\n'
        '[plan]\nsequence_length = 96\nmax_tokens = 48\nmax_images = 6\ndrop = { kind = "constant", rate = 0.2 }\n'
    )
    with PackedLoader(config=load(config)) as loader:
        wanted = list(loader)
    with PackedLoader(config=load(config), decode="nvjpeg") as here:
        assert here.decode == "nvjpeg" and "nvjpeg1-" in here.render_id
        found = [digest(batch) for batch in here]
    with PackedLoader(config=load(config), decode="nvjpeg") as again:
        for got, want in zip(again, wanted, strict=True):
            same_but_pixels(got, want)
            assert difference(got.patches, want.patches)[0] < 3
    with PackedLoader(config=load(config), decode="nvjpeg") as first:
        iteration = iter(first)
        start, state = [digest(next(iteration))], first.state_dict()
    with PackedLoader(config=load(config), decode="nvjpeg") as rest:
        rest.load_state_dict(state)
        assert start + [digest(batch) for batch in rest] == found
    with PackedLoader(config=load(config)) as other, pytest.raises(StateError, match="nvjpeg1"):
        other.load_state_dict(state)
    with Daemon(config) as daemon, RemoteLoader([daemon.endpoint], decode="nvjpeg") as there:
        assert [digest(batch) for batch in there] == found
