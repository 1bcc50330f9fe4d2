"""Formats that the engine does not read itself, through Pillow: HEIF (with pillow-heif), JPEG 2000, PPM and more.

In: encoded bytes. Out: size and orientation, or pixels in the stored frame. The engine starts this very file as a helper
process, one for each thread that meets such an image, and talks to it over pipes; so no thread of the engine ever takes the
interpreter's lock, and a decoder that crashes takes nobody with it. Run as a file, it must not import the package.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import select
import struct
import sys
import warnings
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL import Image

    from ._packer import Helpers

FORMATS = {
    "avif": "AVIF",
    "heif": "HEIF",
    "jpeg2000": "JPEG2000",
    "ppm": "PPM",
    "ico": "ICO",
    "icns": "ICNS",
    "dds": "DDS",
    "qoi": "QOI",
    "sgi": "SGI",
    "tiff": "TIFF",
}
"""The engine's names of the formats that come here and Pillow's. Of TIFF and AVIF, only what its own decoders leave."""

_SELDOM = {"bmp": "BMP", "gif": "GIF"}
"""The same, of which only what the engine's decoder misreads comes here: too little to tie every index of them to a version."""

_CONVERTED = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
"""What comes here only so that its colour profile is applied."""

IDLE_SECONDS = 30
"""A helper that nobody asks for so long ends; the engine starts another when it needs one."""

CPU_SECONDS = 60
"""Of one image; a file that keeps its decoder busy for longer is hostile. The system ends the helper."""

PROFILE_BYTES = 65536
"""Of a colour profile; its description stands near the front."""

REQUEST = struct.Struct("<BQQ")
"""0 for the header or 1 for the pixels (of 16 bits a sample, 2 makes the image's largest value white, and 9 to 15 that of so
many bits), and `CONVERT` · most pixels allowed · bytes of the file, which follow."""

REPLY = struct.Struct("<BIIBBQ")
"""0, or 1 for a failure · width, height as stored · EXIF orientation · channels, 0 without pixels, and `DEEP` · bytes that
follow: the samples and then the colour profile, or the reason of the failure, a line end, and the detail."""

CONVERT = 16
"""Added to what is wanted where colour profiles are to be applied; the reply has none then, unless it does not fit."""

DEEP = 16
"""Added to the channels where the samples had 16 bits."""

_TURNED_BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""The `Image.Transpose` that undoes each orientation."""


class Refused(Exception):
    """Why there are no pixels.

    Attributes:
        reason: a word of the quarantine ledger.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def command() -> list[str]:
    """How the engine starts a helper; empty where there is no interpreter to start."""
    # -P: the package's own folder must not stand first on the path, where `index` or `config` would hide others.
    return [sys.executable, "-P", os.path.abspath(__file__)] if sys.executable else []


_SHARED: dict[int, Helpers] = {}


def helpers() -> Helpers:
    """The helpers of this process, for all that renders or probes in it. A forked child starts its own."""
    from ._packer import Helpers

    return _SHARED.setdefault(os.getpid(), Helpers(command()))


def revisions(formats: Iterable[str], convert: bool = False) -> list[str]:
    """What decides the pixels of `formats`, as far as they come here: the versions of Pillow and its libraries.

    Args:
        formats: the engine's names.
        convert: whether colour profiles are applied, which happens here for all.
    """
    from PIL import __version__, features

    named = set(formats) & (FORMATS | (_CONVERTED if convert else {})).keys()
    found = [f"pillow {__version__}"] if named else []
    for name, feature in (("avif", "avif"), ("jpeg2000", "jpg_2000"), ("tiff", "libtiff")):
        if name in named:
            found.append(f"{feature} {features.version(feature)}")
    if convert and named:
        found.append(f"littlecms2 {features.version('littlecms2')}")
    if "heif" in named:
        try:
            found.append(f"pillow-heif {importlib.metadata.version('pillow-heif')}")
        except importlib.metadata.PackageNotFoundError:
            found.append("pillow-heif none")
    return found


def opened(data: bytes) -> tuple[Image.Image, int]:
    """The image, whose pixels are not decoded yet, and its EXIF orientation.

    Raises:
        Refused: it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    heif = data[4:8] == b"ftyp" and b"avif" not in data[8:64] and b"avis" not in data[8:64]
    if heif:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise Refused("unsupported", "HEIF is read where the package pillow-heif is installed") from None
        register_heif_opener()
    try:
        known = [name for name in (FORMATS | _SELDOM | _CONVERTED).values() if name in Image.OPEN]
        image = Image.open(io.BytesIO(data), formats=known)
        orientation = image.getexif().get(0x0112, 1)
    except UnidentifiedImageError:
        raise Refused("corrupt", "Pillow cannot make sense of its header") from None
    return image, orientation if orientation in range(1, 9) else 1


def converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB, from the colours of its profile; None where the two do not fit or the profile is broken.

    Relative colorimetric with black point compensation, as browsers do; grey under a profile of RGB is R = G = B.
    """
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}.get(profile[16:20].decode("latin-1"), "")
        clear = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
        alpha = image.convert("RGBA").getchannel("A") if clear else None
        grey = dict.fromkeys(("1", "L", "LA", "La"), ("L", "RGB"))
        if mode not in (grey | {"CMYK": ("CMYK",), "LAB": ("LAB",)}).get(image.mode, ("RGB",)):
            return None
        plain = image.convert("RGBA") if clear and image.mode not in ("LA", "La") else image
        out = ImageCms.profileToProfile(
            plain.convert(mode),
            source,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if out is None:
        return None
    out.info.clear()
    if alpha is not None:
        out.putalpha(alpha)
    return out


def pixels(image: Image.Image, orientation: int, wanted: int) -> tuple[tuple[int, int], bytes, int]:
    """Width and height of the stored frame, its samples row by row, and channels: 1 grey, 3 RGB, 4 RGBA. See `REQUEST`.

    With `CONVERT` a profile that was applied is gone from `image.info` afterwards.

    Raises:
        Refused: samples of an unusual type, or a size other than the header's.
    """
    from PIL import Image, ImageOps

    width, height = image.size
    asked, kind = image, image.format
    image.load()
    if kind == "TIFF" and orientation != 1:
        # Pillow turns TIFF alone when it loads it; the engine turns every image itself.
        image = ImageOps.exif_transpose(image).transpose(Image.Transpose(_TURNED_BACK[orientation]))
    elif image.size != (width, height):
        raise Refused("corrupt", f"{image.size[0]} × {image.size[1]} pixels, but its header says {width} × {height}")
    if image.mode.startswith("I;16") or (image.mode == "I" and kind == "PPM"):
        tags = getattr(image, "tag_v2", {})
        samples = _narrowed(image, tags.get(258, (16,))[0], wanted & ~CONVERT)
        if tags.get(262) == 0:
            # White is 0, which Pillow heeds at 8 bits alone.
            samples = samples.translate(bytes(range(255, -1, -1)))
        return image.size, samples, 1 | DEEP
    if image.mode in ("I", "F"):
        raise Refused("unsupported", f"samples of type '{image.mode}', which have no common range")
    profile = asked.info.get("icc_profile") if wanted & CONVERT else None
    if profile and (srgb := converted(image, profile)) is not None:
        del asked.info["icc_profile"]
        image = srgb
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return image.size, image.convert("RGBA").tobytes(), 4
    if image.mode in ("1", "L"):
        return image.size, image.convert("L").tobytes(), 1
    return image.size, image.convert("RGB").tobytes(), 3


def _narrowed(image: Image.Image, bits: int, wanted: int) -> bytes:
    """Samples of 16 bits as 8. Where a file has fewer of them, 12 say, Pillow gives their values as they are."""
    white = (1 << min(bits, 16)) - 1 if wanted == 1 else (1 << wanted) - 1
    if white == 65535:
        # The high byte counts, as everywhere in the engine.
        if image.mode == "I":
            return image.tobytes()[1 if sys.byteorder == "little" else 2 :: 4]
        return image.tobytes()[0 if image.mode.endswith("B") else 1 :: 2]
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    if wanted == 2:
        white = max(1, int(values.max()))
    scaled: bytes = ((values.clip(0, white) * 255 + white // 2) // white).astype(np.uint8).tobytes()
    return scaled


def answer(data: bytes, wanted: int, max_pixels: int) -> list[bytes]:
    """One reply, in pieces."""
    from PIL import Image

    # Pillow holds this cap against every header before it decodes, those of images inside an icon too.
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        image, orientation = opened(data)
        width, height = image.size
        samples, profile, channels = b"", b"", 0
        if wanted:
            (width, height), samples, channels = pixels(image, orientation, wanted)
            profile = (image.info.get("icc_profile") or b"")[:PROFILE_BYTES]
    except Refused as e:
        return _refusal(e.reason, str(e))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as e:
        return _refusal("too_large", f"more than render.max_pixels = {max_pixels}: {e}")
    except MemoryError:
        return _refusal("memory", "Pillow has no memory for it")
    except NotImplementedError as e:
        return _refusal("unsupported", str(e))
    except Exception as e:
        # Whatever a plugin makes of bytes that lie: OSError, SyntaxError, ValueError, struct.error, KeyError ...
        cut = isinstance(e, EOFError) or "truncated" in str(e).lower()
        return _refusal("truncated" if cut else "corrupt", f"Pillow: {e or type(e).__name__}")
    head = REPLY.pack(0, width, height, orientation, channels, len(samples) + len(profile))
    return [head, samples, profile]


def _refusal(reason: str, detail: str) -> list[bytes]:
    text = f"{reason}\n{detail}".encode(errors="replace")
    return [REPLY.pack(1, 0, 0, 0, 0, len(text)), text]


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers requests until the engine closes its end, or asks for nothing for a while."""
    import resource

    from PIL import Image

    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    # A decoder that crashes must not fill the disk with its memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    while select.select([source], [], [], IDLE_SECONDS)[0]:
        head = source.read(REQUEST.size)
        if len(head) < REQUEST.size:
            return
        wanted, max_pixels, length = REQUEST.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard < 0 else min(limit, hard), hard))
        for piece in answer(data, wanted, max_pixels):
            sink.write(piece)
        sink.flush()
        del data


if __name__ == "__main__":
    # The engine asks again only after the answer, so the buffer never holds what `select` would wait for.
    serve(sys.stdin.buffer, sys.stdout.buffer)
