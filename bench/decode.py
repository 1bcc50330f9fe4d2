"""One core: decode → antialiased resize → patches, ours beside others in the same run.

In: JPEG files in memory (`corpus.py`). Out: images/s of each peer and the ratio to torchvision. Each peer makes the same u8
patches of 16 × 16 pixels from the same files at the same target sizes (datago at its own, see there).

    python bench/decode.py [--count 300] [--repeat 7] [--pillow-simd DIR]

`--pillow-simd DIR`: where pillow-simd was installed (`pip install --target DIR pillow-simd`); it cannot live beside
Pillow, so it runs in a process of its own. Peers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from kit import Report, installed, parse, seconds_of, turns

P = 16
FULL, ALONE = "navit, full-size DCT", "libjpeg-turbo, decode alone"
GOALS = {"0.2 MP, sides U(64, 256)": 1.30, "0.2 MP, 256 tokens": 1.15, "2 MP, 256 tokens": 1.5}
"""Times torchvision; the stretch was 1.5 for the first and 1.30 for the second."""
Case = tuple[list[bytes], list[tuple[int, int]], list[tuple[int, int]]]
"""Files, their (height, width), and their target grids."""

Peer = Callable[[Case], Callable[[], None] | None]
"""Makes a way over the files of a case; None where the peer cannot do it."""


def grids(
    sizes: list[tuple[int, int]], tokens: int, sides: tuple[int, int] | None, seed: int = 1
) -> list[tuple[int, int]]:
    """Target grids, aspect ratio kept: sides drawn uniformly in pixels, or as many patches as fit `tokens`."""
    rng = np.random.default_rng(seed)
    found = []
    for height, width in sizes:
        side = float(rng.uniform(*sides)) if sides else tokens**0.5 * P
        h, w = side * (height / width) ** 0.5 / P, side * (width / height) ** 0.5 / P
        gh, gw = max(1, int(h)), max(1, int(w))
        if gh * (gw + 1) <= tokens and w % 1 > 0.5:
            gw += 1
        found.append((gh, gw))
    return found


def cases(count: int) -> dict[str, Case]:
    """The rows of the table."""
    from corpus import make
    from PIL import Image

    found: dict[str, Case] = {}
    for area, number in ((0.2, count), (2.0, max(4, count // 8))):
        files = make(number, area, 0.35)
        sizes = [Image.open(io.BytesIO(f)).size[::-1] for f in files]
        if area == 0.2:
            found["0.2 MP, sides U(64, 256)"] = (files, sizes, grids(sizes, 256, (64, 256)))
        found[f"{area:g} MP, 256 tokens"] = (files, sizes, grids(sizes, 256, None))
    return found


def in_memory(files: list[bytes]) -> tempfile.TemporaryDirectory[str]:
    """A folder of these files, by number, in memory where the system has such a place."""
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    for n, data in enumerate(files):
        (Path(folder.name) / f"{n:08d}").write_bytes(data)
    return folder


def ours(case: Case, **options: object) -> Callable[[], None]:
    """Our renderer on one thread, from files in memory (/dev/shm) to packed batches: it opens and reads them as well."""
    from navit_loader import _packer
    from navit_loader.config import RenderConfig

    files, sizes, targets = case
    length, sequences, sequence, end = 2048, [], [], 0
    for row, ((height, width), (h, w)) in enumerate(zip(sizes, targets, strict=True)):
        if end + h * w > length or len(sequence) == 64:
            sequences.append(sequence)
            sequence, end = [], 0
        image = {"row": row, "key": row, "crop": (0, 0, height, width), "offset": end, "kept": h * w, "grid": (h, w)}
        image |= {"teacher_offset": 0, "text_offset": 0, "teacher_grid": (0, 0), "source": 0, "flip": False}
        sequence.append(image)
        end += h * w
    sequences.append(sequence)
    folder, names = in_memory(files), [f"{n:08d}" for n in range(len(files))]
    planned = [_packer.PlannedBatch(0, n, P, 4, sequences[n : n + 4]) for n in range(0, len(sequences), 4)]
    source = {
        "width": [np.array([w for _, w in sizes], np.int32)],
        "height": [np.array([h for h, _ in sizes], np.int32)],
        "orientation": [np.ones(len(files), np.uint8)],
        "shard": [np.zeros(len(files), np.int32)],
        "shards": [f"{folder.name}/"],
        "name": [(8 * np.arange(len(files) + 1, dtype=np.int64), np.frombuffer("".join(names).encode(), np.uint8))],
        "offset": [np.zeros(len(files), np.int64)],
        "length": [np.array([len(data) for data in files], np.int64)],
    }
    limits = {"sequence_length": length, "max_tokens": 1024, "prefix_tokens": 0, "max_images": 64}
    limits |= {"label_width": 0, "text_tokens": 0, "max_text_tokens": 0, "teacher": None}
    config = RenderConfig(threads=1, fetch_threads=0, **options)  # type: ignore[arg-type]
    renderer = _packer.Renderer(config.to_json(), limits, [source])

    def run() -> None:
        pending = [renderer.submit(b) for b in planned]
        for p in pending:
            batch = p.wait()
            if (batch["status"] == 2).any():
                raise SystemExit(f"an image of the corpus failed: {renderer.failures()[:1]}")
        run.folder = folder  # type: ignore[attr-defined]  # while it runs
        run.stats = renderer.stats()  # type: ignore[attr-defined]
        run.last = batch  # type: ignore[attr-defined]

    return run


def _each(case: Case, one: Callable[[bytes, int, int], object]) -> Callable[[], None]:
    files, _, targets = case

    def run() -> None:
        for data, (h, w) in zip(files, targets, strict=True):
            one(data, h, w)

    return run


def _patches(pixels: np.ndarray, h: int, w: int) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(h, P, w, P, 3).transpose(0, 2, 1, 3, 4))


def torchvision(case: Case) -> Callable[[], None]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)

    def one(data: bytes, h: int, w: int) -> object:
        encoded = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
        image = resize(image, [h * P, w * P], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return image.permute(1, 2, 0).reshape(h, P, w, P, 3).permute(0, 2, 1, 3, 4).contiguous()

    return _each(case, one)


def pillow(case: Case) -> Callable[[], None]:
    from PIL import Image

    def one(data: bytes, h: int, w: int) -> object:
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((w * P, h * P), Image.Resampling.BICUBIC)
        return _patches(np.asarray(image), h, w)

    return _each(case, one)


def simplejpeg_opencv(case: Case) -> Callable[[], None]:
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)

    def one(data: bytes, h: int, w: int) -> object:
        image = cv2.resize(simplejpeg.decode_jpeg(data, "RGB"), (w * P, h * P), interpolation=cv2.INTER_AREA)
        return _patches(image, h, w)

    return _each(case, one)


def libjpeg_turbo_alone(case: Case) -> Callable[[], None]:
    import simplejpeg

    return _each(case, lambda data, h, w: simplejpeg.decode_jpeg(data, "RGB"))


def dali_on_cpu(case: Case) -> Callable[[], None]:
    """One of its threads; runs of 64 files, which it reads where they are."""
    from nvidia import dali
    from nvidia.dali import fn, types

    files, _, targets = case
    encoded = [np.frombuffer(data, np.uint8) for data in files]
    sizes = np.array(targets, np.float32) * P
    pipeline = dali.Pipeline(64, num_threads=1, device_id=None, exec_dynamic=True, prefetch_queue_depth=1)
    with pipeline:
        given = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        image = fn.decoders.image(given, device="cpu", output_type=types.RGB)
        size = fn.external_source(name="sizes", dtype=types.FLOAT, ndim=1)
        pipeline.set_outputs(fn.resize(image, size=size, interp_type=types.INTERP_CUBIC, antialias=True))
    pipeline.build()

    def run() -> None:
        for n in range(0, len(files), 64):
            pipeline.feed_input("files", encoded[n : n + 64])
            pipeline.feed_input("sizes", sizes[n : n + 64])
            for pixels, (h, w) in zip(pipeline.run()[0], targets[n : n + 64], strict=True):
                _patches(np.asarray(pixels), h, w)

    return run


def datago(case: Case) -> Callable[[], None] | None:
    """From files in memory (/dev/shm), since it takes no bytes; it crops to the nearest of its own sizes of about 256 tokens.
    They are the same for all images, so there is no row where sides are drawn."""
    from datago import DatagoClient

    files, _, targets = case
    if min(h * w for h, w in targets) < 200:
        return None
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    for n, data in enumerate(files):
        (Path(folder.name) / f"{n:06d}.jpg").write_bytes(data)
    config = {
        "source_type": "file",
        "source_config": {"root_path": folder.name, "rank": 0, "world_size": 1},
        "image_config": {
            "crop_and_resize": True,
            "default_image_size": 256,
            "downsampling_ratio": P,
            "min_aspect_ratio": 0.5,
            "max_aspect_ratio": 2.0,
            "image_to_rgb8": True,
        },
        "prefetch_buffer_size": 64,
        "samples_buffer_size": 64,
        "limit": len(files),
    }

    def run() -> None:
        assert folder  # kept as long as its reader
        client = DatagoClient(json.dumps(config))
        for _ in files:
            pixels = np.asarray(client.get_sample().image)
            _patches(pixels, pixels.shape[0] // P, pixels.shape[1] // P)
        client.stop()

    return run


class Elsewhere:
    """A peer in a process of its own: one line in, seconds out."""

    def __init__(self, folder: str, corpus: Path, core: int) -> None:
        env = os.environ | {"PYTHONPATH": f"{folder}:{Path(__file__).parent}"}
        command = [sys.executable, __file__, "--serve", str(corpus), "--core", str(core)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, name: str) -> float:
        assert self.process.stdin
        assert self.process.stdout
        print(name, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def serve(corpus: Path) -> None:
    """The other end of `Elsewhere`."""
    table = json.loads((corpus / "cases.json").read_text())
    runs = {}
    for name, (files, sizes, targets) in table.items():
        runs[name] = pillow(([(corpus / f).read_bytes() for f in files], sizes, targets))
    for line in sys.stdin:
        start = time.perf_counter()
        runs[line.strip()]()
        print(time.perf_counter() - start, flush=True)


def _write(table: dict[str, Case], folder: Path) -> None:
    names = {}
    for name, (files, sizes, targets) in table.items():
        paths = []
        for n, data in enumerate(files):
            path = f"{len(names)}_{n}.jpg"
            (folder / path).write_bytes(data)
            paths.append(path)
        names[name] = (paths, sizes, targets)
    (folder / "cases.json").write_text(json.dumps(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--pillow-simd", default="", metavar="DIR")
    parser.add_argument("--only", default="", help="comma-separated peers besides ours and torchvision")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parse(parser, {"count": 8, "repeat": 2})
    if args.serve:
        os.sched_setaffinity(0, {args.core})
        serve(args.serve)
        return
    report = Report("decode", __doc__, args)
    os.sched_setaffinity(0, {args.core})
    table = cases(args.count)
    peers: dict[str, Peer] = {"navit": ours, "torchvision": torchvision}
    wanted: Iterable[tuple[str, str, Peer]] = (
        (FULL, "numpy", lambda case: ours(case, dct_scaling=False)),
        ("Pillow", "PIL", pillow),
        ("simplejpeg + OpenCV area", "simplejpeg", simplejpeg_opencv),
        ("DALI on the CPU", "nvidia.dali", dali_on_cpu),
        ("datago, from /dev/shm", "datago", datago),
        (ALONE, "simplejpeg", libjpeg_turbo_alone),
    )
    for name, module, peer in wanted:
        if args.only and name not in args.only.split(","):
            continue
        if not installed(module):
            report.left_out(name)
        else:
            peers[name] = peer
    elsewhere = None
    if args.pillow_simd:
        folder = tempfile.TemporaryDirectory()
        _write(table, Path(folder.name))
        elsewhere = Elsewhere(args.pillow_simd, Path(folder.name), args.core)
    else:
        report.left_out("pillow-simd", "not given (--pillow-simd DIR)")
    for name, case in table.items():
        runs = {peer: run for peer, make in peers.items() if (run := make(case)) is not None}
        ways = {peer: seconds_of(run) for peer, run in runs.items()}
        if elsewhere:
            ways["pillow-simd"] = partial(elsewhere, name)
        count = len(case[0])
        found = {peer: [count / s for s in spent] for peer, spent in turns(ways, args.repeat).items()}
        given = {"files": count, "kilobytes": round(sum(map(len, case[0])) / count / 1e3)}
        given["tokens"] = round(float(np.mean([h * w for h, w in case[2]])))
        full = found.pop(FULL, None)
        report.row(
            "decode, resize, patches", found, "images/s", table=name, bounds=(ALONE,), beside="torchvision",
            goal=GOALS[name], **given,
        )  # fmt: skip
        if full:
            report.row(
                "the same by the full-size DCT", found | {"navit": full}, "images/s", table=name, bounds=(ALONE,)
            )
        stats = runs["navit"].stats  # type: ignore[attr-defined]
        for part in ("decode", "resize", "patches"):
            spent = stats[part] / stats["images"] * 1e6
            report.row(f"{part} alone, of ours", spent, "µs an image", table=name, better="lower")
    report.finish()


if __name__ == "__main__":
    main()
