"""What a photograph costs in each format, to packed patches, beside others in the same run.

In: photographs of 0.2 megapixels (`corpus.py`), written in each format. Out: processor time an image of each peer, decoded,
resized and cut into patches in one thread, and the ratio to the best of them. Processor time, since other processes on the
machine change it less than they change a clock's. Where a library can be asked to decode and nothing else, its time is the
floor beneath all of them. Peers that are not installed are named and left out.

    python bench/decode_formats.py [--count 60] [--repeat 9] [--only WebP]

`--dali`: which of these formats DALI could take besides JPEG. One photograph in many formats; the CPU milliseconds of DALI
and of our renderer for an image, and how the pixels differ in steps of 1/255. DALI decodes all of these on the CPU,
whatever its device. Where DALI fails, the row says so. Formats that our renderer reads through Pillow are compared with
Pillow itself.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import PIL
from corpus import make, photographs
from decode import Case, P, Peer, _each, _patches, grids, ours, pillow
from kit import Report, installed, parse, seconds_of, turns
from PIL import Image

FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG, 4:2:0": ("JPEG", {"quality": 90}),
    "JPEG, 4:4:4": ("JPEG", {"quality": 90, "subsampling": "4:4:4"}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "PNG": ("PNG", {}),
    "WebP, lossy": ("WEBP", {"quality": 80}),
    "WebP, lossy, alpha": ("WEBP", {"quality": 80}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"quality": 75}),
    "AVIF, alpha": ("AVIF", {"quality": 75}),
    "JPEG XL": ("JXL", {"quality": 90}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
}


GOALS = {"WebP, lossless": 1.3}
"""Times the best peer."""


def case(name: str, photos: list[Image.Image], sides: tuple[int, int] | None) -> Case:
    """The photographs in one format, and grids of at most 256 tokens."""
    kind, options = FORMATS[name]
    files = []
    for photo in photos:
        image, out = photo, io.BytesIO()
        if "alpha" in name:
            image = photo.copy()
            image.putalpha(Image.radial_gradient("L").resize(photo.size))
        image.save(out, kind, **options)
        files.append(out.getvalue())
    sizes = [photo.size[::-1] for photo in photos]
    return files, sizes, grids(sizes, 256, sides)


def torchvision(case: Case) -> Callable[[], None] | None:
    import torch
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)

    def one(data: bytes, h: int, w: int) -> object:
        image = decode_image(torch.from_numpy(np.frombuffer(data, np.uint8).copy()), mode=ImageReadMode.RGB)
        image = resize(image, [h * P, w * P], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return image.permute(1, 2, 0).reshape(h, P, w, P, 3).permute(0, 2, 1, 3, 4).contiguous()

    try:
        one(case[0][0], *case[2][0])
    except RuntimeError:  # of BMP, TIFF and AVIF
        return None
    return _each(case, one)


def opencv(case: Case) -> Callable[[], None] | None:
    import cv2

    cv2.setNumThreads(1)
    if cv2.imdecode(np.frombuffer(case[0][0], np.uint8), cv2.IMREAD_COLOR_RGB) is None:  # JPEG XL
        return None

    def one(data: bytes, h: int, w: int) -> object:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return _patches(cv2.resize(image, (w * P, h * P), interpolation=cv2.INTER_AREA), h, w)

    return _each(case, one)


def libwebp(case: Case) -> Callable[[], None] | None:
    """Decoding alone, by the copy in Pillow's wheel: to Y, U, V where a file is lossy and opaque, as we do, or to RGB(A)."""
    found = sorted((Path(PIL.__file__).parents[1] / "pillow.libs").glob("libwebp-*"))
    if not found or case[0][0][8:12] != b"WEBP":
        return None
    library = ctypes.CDLL(str(found[0]))
    plane = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for name, planes in (("YUV", 3), ("RGB", 1), ("RGBA", 1)):
        getattr(library, f"WebPDecode{name}Into").argtypes = [ctypes.c_char_p, ctypes.c_size_t, *plane * planes]
        getattr(library, f"WebPDecode{name}Into").restype = ctypes.c_void_p
    memory = np.zeros(max(h * w for h, w in case[1]) * 4, np.uint8)
    modes = [(Image.open(io.BytesIO(data)).mode, b"VP8L" in data[:64]) for data in case[0]]

    def run() -> None:
        to = memory.ctypes.data
        for data, (h, w), (mode, lossless) in zip(case[0], case[1], modes, strict=True):
            if mode == "RGB" and not lossless:
                cw, ch = (w + 1) // 2, (h + 1) // 2
                u, v = to + h * w, to + h * w + ch * cw
                done = library.WebPDecodeYUVInto(data, len(data), to, h * w, w, u, ch * cw, cw, v, ch * cw, cw)
            else:
                decode, n = (library.WebPDecodeRGBInto, 3) if mode == "RGB" else (library.WebPDecodeRGBAInto, 4)
                done = decode(data, len(data), to, h * w * n, w * n)
            assert done, "libwebp refuses a file of the corpus"

    return run


def libavif(case: Case) -> Callable[[], None] | None:
    """Container and decoding alone, to Y, U, V, by the copy in Pillow's wheel, on one thread: its dav1d is the floor."""
    found = sorted((Path(PIL.__file__).parents[1] / "pillow.libs").glob("libavif-*"))
    if not found or case[0][0][4:12] != b"ftypavif":
        return None
    library = ctypes.CDLL(str(found[0]))
    library.avifDecoderCreate.restype = ctypes.c_void_p
    library.avifDecoderSetIOMemory.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    for name in ("Parse", "NextImage", "Destroy"):
        getattr(library, f"avifDecoder{name}").argtypes = [ctypes.c_void_p]

    def one(data: bytes, h: int, w: int) -> None:
        decoder = library.avifDecoderCreate()
        failed = library.avifDecoderSetIOMemory(decoder, data, len(data))
        failed = failed or library.avifDecoderParse(decoder) or library.avifDecoderNextImage(decoder)
        library.avifDecoderDestroy(decoder)
        assert not failed, "libavif refuses a file of the corpus"

    return _each(case, one)


def libjpeg(case: Case) -> Callable[[], None] | None:
    """Decoding alone, by the copy of libjpeg-turbo in Pillow's wheel: to Y, Cb, Cr, at the DCT scale that we use too."""
    if not case[0][0].startswith(b"\xff\xd8"):
        return None

    def run() -> None:
        for data, (h, w) in zip(case[0], case[2], strict=True):
            image = Image.open(io.BytesIO(data))
            image.draft("YCbCr", (w * P, h * P))
            image.load()

    return run


def peers(report: Report) -> dict[str, Peer]:
    found: dict[str, Peer] = {"navit": ours, "torchvision": torchvision}
    for name, module, peer in (("OpenCV area", "cv2", opencv), ("Pillow", "PIL", pillow)):
        if installed(module):
            found[name] = peer
        else:
            report.left_out(name)
    return found | {"libjpeg-turbo alone": libjpeg, "libwebp alone": libwebp, "libavif alone": libavif}


def beside_peers(report: Report, count: int, repeat: int, only: str) -> None:
    photos = [Image.open(io.BytesIO(data)).convert("RGB") for data in make(count, 0.2, 0.35)]
    each = peers(report)
    if installed("pillow_jxl"):
        import_module("pillow_jxl")  # Pillow writes and reads it from here on
    else:
        report.left_out("JPEG XL", "no pillow-jxl-plugin that could write it")
        del FORMATS["JPEG XL"]
    for title, sides in (("sides U(64, 256)", (64, 256)), ("256 tokens", None)):
        for name in (n for n in FORMATS if n.startswith(only)):
            files = case(name, photos, sides)
            runs = {peer: run for peer, make in each.items() if (run := make(files)) is not None}
            spent = turns({peer: seconds_of(run, time.process_time) for peer, run in runs.items()}, repeat)
            report.row(
                name, {peer: [1e3 * s / count for s in of] for peer, of in spent.items()}, "ms an image", better="lower",
                table=title, bounds=[n for n in runs if n.endswith(" alone")], goal=GOALS.get(name),
                kilobytes=round(sum(map(len, files[0])) / count / 1e3),
            )  # fmt: skip


WIDTH, HEIGHT, GRID, COUNT = 640, 427, (13, 20), 16


def files() -> dict[str, bytes]:
    """The photograph in each format."""
    photo = photographs()[0].resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    transparent = photo.copy()
    transparent.putalpha(Image.radial_gradient("L").resize(photo.size))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    palette = photo.quantize(60)
    found = {}

    def add(name: str, image: Image.Image, kind: str, **options: object) -> None:
        out = io.BytesIO()
        image.save(out, kind, **options)
        found[name] = out.getvalue()

    add("JPEG, 4:2:0", photo, "JPEG", quality=90)
    add("PNG", photo, "PNG")
    add("PNG, palette", palette, "PNG")
    add("PNG, 16 bits, grey", deep, "PNG")
    add("PNG, alpha", transparent, "PNG")
    add("WebP, lossy", photo, "WEBP", quality=80)
    add("WebP, lossless", photo, "WEBP", lossless=True)
    add("WebP, alpha", transparent, "WEBP", lossless=True)
    add("BMP", photo, "BMP")
    add("TIFF", photo, "TIFF")
    add("TIFF, LZW", photo, "TIFF", compression="tiff_lzw")
    add("TIFF, 16 bits, grey", deep, "TIFF")
    add("GIF", palette, "GIF")
    add("JPEG 2000", photo, "JPEG2000", quality_mode="rates", quality_layers=[10])
    return found


def by_dali(data: bytes) -> Callable[[], np.ndarray]:
    from nvidia import dali
    from nvidia.dali import fn, types

    pipeline = dali.Pipeline(batch_size=COUNT, num_threads=1, device_id=None, exec_dynamic=True, prefetch_queue_depth=1)
    with pipeline:
        given = fn.external_source(
            source=lambda: [np.frombuffer(data, np.uint8)] * COUNT, batch=True, dtype=types.UINT8, ndim=1
        )
        image = fn.decoders.image(given, device="cpu", output_type=types.RGB, adjust_orientation=False)
        size = [side * 16 for side in GRID]
        pipeline.set_outputs(fn.resize(image, size=size, interp_type=types.INTERP_CUBIC, antialias=True))
    pipeline.build()
    return lambda: np.array(pipeline.run()[0].at(0))


def by_us(data: bytes) -> Callable[[], np.ndarray]:
    run = ours(([data] * COUNT, [(HEIGHT, WIDTH)] * COUNT, [GRID] * COUNT), dct_scaling=False)

    def patches() -> np.ndarray:
        run()
        h, w = GRID
        found = run.last["patches"][0, : h * w]  # type: ignore[attr-defined]
        return found.reshape(h, w, 16, 16, 3).swapaxes(1, 2).reshape(h * 16, w * 16, 3)

    return patches


def by_pillow(data: bytes) -> Callable[[], np.ndarray]:
    def one() -> np.ndarray:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return np.asarray(image.resize((GRID[1] * 16, GRID[0] * 16), Image.Resampling.BICUBIC))

    return lambda: [one() for _ in range(COUNT)].pop()


def beside_dali(report: Report, repeat: int) -> None:
    for name, data in files().items():
        own = by_pillow(data) if name == "JPEG 2000" else by_us(data)
        try:
            theirs = by_dali(data)
            gap = np.abs(theirs().astype(int) - own().astype(int))
        except RuntimeError:
            report.left_out(name, "DALI cannot decode it")
            continue
        ways = {peer: seconds_of(run, time.process_time) for peer, run in (("navit", own), ("DALI", theirs))}
        spent = {peer: [1e3 * s / COUNT for s in of] for peer, of in turns(ways, repeat, warm=0).items()}
        differs = {"mean_difference": round(float(gap.mean()), 2), "difference_99_9": float(np.quantile(gap, 0.999))}
        report.row(name, spent, "ms an image", better="lower", table="one photograph, beside DALI", **differs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--only", default="", metavar="START", help="formats whose name starts so")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--dali", action="store_true", help="pixels and times beside DALI's")
    args = parse(parser, {"count": 2, "repeat": 2})
    if not args.dali:
        report = Report("decode-formats", __doc__, args)
        os.sched_setaffinity(0, {args.core})
        beside_peers(report, args.count, args.repeat, args.only)
    elif installed("nvidia.dali"):
        report = Report("decode-formats-dali", "Which formats could DALI take besides JPEG?", args)
        os.sched_setaffinity(0, {args.core})
        beside_dali(report, args.repeat)
    else:
        raise SystemExit("decode_formats.py: --dali needs NVIDIA DALI; pip install nvidia-dali-cuda130")
    report.finish()


if __name__ == "__main__":
    main()
