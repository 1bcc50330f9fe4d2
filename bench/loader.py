"""A whole loader, two cores, delivered to the trainer's process: ours beside torch's DataLoader with torchvision and beside
timm's NaFlex loader, and ours again on one core, to see what the second one brings.

In: a folder of JPEG files (made by `corpus.py` where none is given). Out: images/s, tokens/s and padding, epochs in turns.
Two loaders of one core each, in processes that share nothing, show what a second core is worth on the machine: caches,
memory and the clock are shared. All draw sides from U(64, 256) and cut patches of 16 × 16. Ours fills sequences of 1,024
tokens; the DataLoader's collate does so too, first-fit over 128 images. timm packs nothing: it draws one length for a whole
batch from the squares 4² to 16², keeps aspect ratios, and pads each image to that length; its rows are taken as u8, before
it normalises them. datago, where it is installed, does another job: it crops and resizes every image to about 256 × 256 and
hands out Pillow images, neither cut into patches nor packed. DALI, where it is installed, reads, draws, decodes and resizes
on its own two threads; patches and first-fit are made here. Padding counts sequences that hold an image: an epoch's last
batch is filled with empty ones, which weigh only in a short epoch.

`--mixed`: of every five files one is progressive JPEG, one WebP, one PNG, as in a folder from the web; DALI and datago are
left out then.

    python bench/loader.py [--folder DIR] [--count 2000] [--mixed] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import mix, write
from kit import Report, installed, parse, turns
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from navit_loader import LoaderConfig, PackedLoader, build_index

P, L, LOW, HIGH, TOKENS, WORKERS, COLLATE = 16, 1024, 64, 256, 256, 2, 128
SQUARES = tuple(side * side for side in range(LOW // P, HIGH // P + 1))
REST = 1.5
"""Seconds between two epochs: what a loader makes ahead for its next one must not run on into another's time."""
Counts = tuple[int, int, int]
"""Images, tokens, slots."""

OURS, ALONE = "navit PackedLoader, two cores", "navit PackedLoader, one core"
APART = "navit PackedLoader, two processes of one core each"
THEIRS, TIMM = "torch DataLoader + torchvision, two workers", "timm NaFlex loader, two workers"
DATAGO = "datago, all at 256 tokens, unpacked"
DALI = "DALI on the CPU + first-fit, two threads"


class Patches(Dataset[torch.Tensor]):
    """Decode, antialiased resize at a drawn side, patches: u8 `[tokens, P·P·3]`, in torchvision."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        decode = decode_jpeg if self.files[i].endswith(".jpg") else decode_image
        image = decode(read_file(self.files[i]), ImageReadMode.RGB)
        _, height, width = image.shape
        side = min(float(torch.empty(()).uniform_(LOW, HIGH)), (height * width) ** 0.5)
        h = max(1, int(side * (height / width) ** 0.5 / P))
        w = max(1, int(side * (width / height) ** 0.5 / P))
        image = resize(image, [h * P, w * P], InterpolationMode.BICUBIC, antialias=True)
        return image.reshape(3, h, P, w, P).permute(1, 3, 2, 4, 0).reshape(h * w, P * P * 3)


def first_fit(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The collate: images to the first sequence with room; patches `[B, L, P·P·3]` and segment ids `[B, L]`."""
    rooms: list[int] = []
    slots: list[tuple[int, int]] = []
    for item in items:
        b = next((b for b, room in enumerate(rooms) if room >= len(item)), len(rooms))
        if b == len(rooms):
            rooms.append(L)
        slots.append((b, L - rooms[b]))
        rooms[b] -= len(item)
    patches = torch.zeros(len(rooms), L, P * P * 3, dtype=torch.uint8)
    ids = torch.full((len(rooms), L), -1, dtype=torch.int16)
    for e, (item, (b, at)) in enumerate(zip(items, slots, strict=True)):
        patches[b, at : at + len(item)] = item
        ids[b, at : at + len(item)] = e
    return patches, ids


def ours(loader: PackedLoader) -> Counts:
    """One epoch of `PackedLoader`, every batch as torch tensors."""
    images = tokens = slots = 0
    for batch in loader:
        images += batch.num_images
        tokens += batch.num_tokens
        slots += int((batch.segment_ids >= 0).any(1).sum()) * L
        batch.to("cpu")
    return images, tokens, slots


def theirs(loader: DataLoader[Any], images: int) -> Counts:
    """One epoch of the DataLoader."""
    tokens = slots = 0
    for _patches, ids in loader:
        tokens += int((ids >= 0).sum())
        slots += ids.numel()
    return images, tokens, slots


def serve_epochs(index: Path, settings: dict[str, Any], core: int, ask: Connection) -> None:
    """A process of one core that gives an epoch's counts for each word it is sent, until it is sent none."""
    os.sched_setaffinity(0, {core})
    with PackedLoader(index, LoaderConfig.from_dict(settings)) as loader:
        while ask.recv():
            ask.send(ours(loader))


@contextmanager
def apart(index: Path, settings: dict[str, Any]) -> Iterator[Callable[[], Counts]]:
    """Two of them; an epoch is one of each, at once."""
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    cores = sorted(os.sched_getaffinity(0))[-2:]
    processes = [
        context.Process(target=serve_epochs, args=(index, settings, core, there), daemon=True)
        for core, (_, there) in zip(cores, pipes, strict=True)
    ]
    for process in processes:
        process.start()

    def epoch() -> Counts:
        for here, _ in pipes:
            here.send(True)
        images, tokens, slots = (sum(counts) for counts in zip(*(here.recv() for here, _ in pipes), strict=True))
        return images, tokens, slots

    try:
        yield epoch
    finally:
        for here, _ in pipes:
            here.send(False)
        for process in processes:
            process.join()


class Pictures(Dataset[tuple[Image.Image, int]]):
    """What timm's loader takes: Pillow images that are not decoded yet."""

    transform = None

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.open(self.files[i]).convert("RGB"), 0


def naflex(files: list[str]) -> Any:
    """timm's NaFlex training loader without augmentation, its worker processes alone."""
    from timm.data.naflex_loader import create_naflex_loader

    return create_naflex_loader(
        Pictures(files),
        patch_size=P,
        train_seq_lens=SQUARES,
        max_seq_len=TOKENS,
        batch_size=32,
        is_training=True,
        no_aug=True,
        interpolation="bicubic",
        num_workers=WORKERS,
        pin_memory=False,
        device=torch.device("cpu"),
    ).loader


def timms(loader: Any) -> Counts:
    """One epoch of it."""
    images = tokens = slots = 0
    for batch, _ in loader:
        valid = batch["patch_valid"]
        images += len(valid)
        tokens += int(valid.sum())
        slots += valid.numel()
    return images, tokens, slots


def datagos(folder: Path, images: int) -> Counts:
    """One epoch of datago, whose threads are Rust's too."""
    from datago import DatagoClient

    config = {
        "source_type": "file",
        "source_config": {"root_path": str(folder), "rank": 0, "world_size": 1},
        "image_config": {
            "crop_and_resize": True,
            "default_image_size": HIGH,
            "downsampling_ratio": P,
            "min_aspect_ratio": 0.5,
            "max_aspect_ratio": 2.0,
            "image_to_rgb8": True,
        },
        "prefetch_buffer_size": 128,
        "samples_buffer_size": 128,
        "limit": images,
    }
    client = DatagoClient(json.dumps(config))
    tokens = 0
    for _ in range(images):
        picture = client.get_sample().image
        tokens += picture.width * picture.height // (P * P)
        np.asarray(picture)
    client.stop()
    return images, tokens, tokens


def dalis(files: list[str]) -> Callable[[], Counts]:
    """DALI as its users set it up: its reader, decoder and resize on two threads, the same draws; patches, first-fit here."""
    from nvidia import dali
    from nvidia.dali import fn, math, types

    pipeline = dali.Pipeline(COLLATE, num_threads=WORKERS, device_id=None, exec_dynamic=True, prefetch_queue_depth=2)
    with pipeline:
        encoded, _ = fn.readers.file(files=files, random_shuffle=True, name="reader")
        shape = fn.cast(fn.peek_image_shape(encoded), dtype=types.FLOAT)
        height, width = shape[0], shape[1]
        side = math.min(fn.random.uniform(range=[LOW, HIGH]), math.sqrt(height * width))
        rows = math.max(1.0, math.floor(side * math.sqrt(height / width) / P)) * P
        columns = math.max(1.0, math.floor(side * math.sqrt(width / height) / P)) * P
        image = fn.decoders.image(encoded, device="cpu", output_type=types.RGB)
        size = fn.stack(rows, columns)
        pipeline.set_outputs(fn.resize(image, size=size, interp_type=types.INTERP_CUBIC, antialias=True))
    pipeline.build()

    def epoch() -> Counts:
        images = tokens = slots = 0
        while images < len(files):
            items = []
            for sample in pipeline.run()[0]:
                pixels = torch.from_numpy(np.asarray(sample))
                h, w = pixels.shape[0] // P, pixels.shape[1] // P
                items.append(pixels.reshape(h, P, w, P, 3).permute(0, 2, 1, 3, 4).reshape(h * w, P * P * 3))
            _, ids = first_fit(items)
            images += len(items)
            tokens += int((ids >= 0).sum())
            slots += ids.numel()
        return images, tokens, slots

    return epoch


@contextmanager
def one_core() -> Iterator[None]:
    """This thread, and those that it starts meanwhile, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a class-per-folder tree of JPEG, WebP and PNG files")
    parser.add_argument("--count", type=int, default=2000, help="files to make where no folder is given")
    parser.add_argument("--mixed", action="store_true", help="make files of several formats")
    parser.add_argument("--repeat", type=int, default=5)
    args = parse(parser, {"count": 80, "repeat": 2})
    report = Report("loader-mixed" if args.mixed else "loader", __doc__, args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder
        if folder is None:
            folder = Path(temporary) / "images"
            write(folder / "all", args.count)
            if args.mixed:
                mix(folder / "all")
        measure(report, folder, Path(temporary) / "bench.arrow", args.repeat, 0.1 if args.quick else REST)
    report.finish()


def measure(report: Report, folder: Path, index: Path, repeat: int, rest: float) -> None:
    """Runs the peers in turn."""
    build_index(folder, index)
    files = sorted(str(path) for path in folder.rglob("*") if path.suffix in (".jpg", ".webp", ".png"))
    jpeg = all(path.endswith(".jpg") for path in files)
    settings: dict[str, Any] = {
        "data": {"batch_size": 8},
        "plan": {
            "sequence_length": L,
            "max_tokens": TOKENS,
            "patch_sizes": [P],
            "resolution": {"kind": "uniform", "low": LOW, "high": HIGH},
        },
        "render": {"threads": WORKERS},
    }
    config = LoaderConfig.from_dict(settings)
    lone = settings | {"render": {"threads": 1, "fetch_threads": 0}}
    peer = DataLoader(
        Patches(files),
        COLLATE,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=first_fit,
        persistent_workers=True,
        prefetch_factor=4,
    )
    with one_core():
        single = PackedLoader(index, LoaderConfig.from_dict(lone))
    with single, PackedLoader(index, config) as loader, apart(index, lone) as both:
        peers: dict[str, Callable[[], Counts]] = {
            OURS: lambda: ours(loader),
            ALONE: lambda: ours(single),
            APART: both,
            THEIRS: lambda: theirs(peer, len(files)),
        }
        if installed("timm"):
            flexible = naflex(files)
            peers[TIMM] = lambda: timms(flexible)
        else:
            report.left_out(TIMM)
        if not jpeg:
            report.left_out("datago, DALI", "not all files are JPEG")
        elif installed("datago"):
            peers[DATAGO] = lambda: datagos(folder, len(files))
        else:
            report.left_out(DATAGO)
        if jpeg and installed("nvidia.dali"):
            peers[DALI] = dalis(files)
        elif jpeg:
            report.left_out(DALI, "not installed (pip install nvidia-dali-cuda130)")

        def way(name: str) -> Callable[[], tuple[float, float, float]]:
            def epoch() -> tuple[float, float, float]:
                with one_core() if name == ALONE else nullcontext():
                    start = time.perf_counter()
                    images, tokens, slots = peers[name]()
                    seconds = time.perf_counter() - start
                return images / seconds, tokens / seconds, 100 * (1 - tokens / slots)

            return epoch

        rows = turns({name: way(name) for name in peers}, repeat, rest=rest)
    for n, unit in enumerate(("images/s", "tokens/s")):
        found = {name: [figures[n] for figures in of] for name, of in rows.items()}
        others = {name: of for name, of in found.items() if name not in (OURS, ALONE, APART)}
        goal = (2.2 if not jpeg else 2.0) if unit == "images/s" else None
        report.row("two cores", others | {"navit": found[OURS]}, unit, beside=THEIRS, goal=goal, files=len(files))
        report.row("one core", others | {"navit": found[ALONE]}, unit, beside=THEIRS)
        if unit == "images/s":
            if TIMM in others:
                report.row("two cores, beside timm", {"navit": found[OURS], TIMM: found[TIMM]}, unit, goal=5)
            both_rows = {"navit": found[OURS], "one core": found[ALONE], "two processes of one core each": found[APART]}
            bounds = list(both_rows)[1:]
            report.row("what the second core brings", both_rows, unit, bounds=bounds, beside="one core", goal=1.9)
    found = {name: [figures[2] for figures in of] for name, of in rows.items() if name not in (ALONE, APART, DATAGO)}
    report.row("padding", {"navit": found.pop(OURS)} | found, "%", better="lower")


if __name__ == "__main__":
    main()
