"""What can still be drawn of a broken image file.

In: its bytes, on standard input. Out: a small JPEG of what is there, on standard output; nothing, where nothing is. Run as a
file, in a process of its own: it decodes what every other decoder has refused, and may crash over it. It must not import the
package.
"""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

SIDE = 200
"""Pixels of the longer side at most."""

MAX_PIXELS = 1 << 26

PATIENCE_S = 10.0


def torn(data: bytes) -> bytes:
    """A JPEG of what is left of a file; empty where nothing is."""
    command = [sys.executable, "-P", __file__]
    try:
        return subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE_S).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def _draw(data: bytes) -> bytes:
    from PIL import Image, ImageFile, ImageOps

    ImageFile.LOAD_TRUNCATED_IMAGES = True
    warnings.simplefilter("ignore")
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > MAX_PIXELS:
        return b""
    image.draft("RGB", (SIDE, SIDE))
    drawn = ImageOps.exif_transpose(image).convert("RGB")
    if drawn.getcolors(1):  # nothing but what an empty picture is filled with
        return b""
    drawn.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=85)
    return out.getvalue()


if __name__ == "__main__":
    try:
        sys.stdout.buffer.write(_draw(sys.stdin.buffer.read()))
    except Exception:  # whatever a decoder of damaged bytes raises
        sys.exit(1)
