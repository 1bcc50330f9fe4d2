"""A zip of images, a class for each folder at its top, as `FolderSource` has them.

In: a zip whose images are stored, not compressed (`zip -0`), since only then their bytes lie in it as they are. Out: where they
lie. The central directory is read once, and of each image the header before it, which alone says where its bytes begin.
"""

from __future__ import annotations

import os
import posixpath
import struct
import zipfile

import numpy as np

from ...errors import IndexFileError
from .columns import Columns
from .rows import IMAGE_SUFFIXES, Source, kind_of
from .spans import Members, SpanSource

AGAIN = "that stand again behind themselves in the zip, where the last counts"
"""A reason for `Job.leave_out`."""

_LOCAL = struct.Struct("<4s22xHH")
_ARCHIVES = frozenset({"zip", "tar", "tgz", "gz", "7z", "rar"})


def open_file(path: str, columns: Columns) -> list[Source]:
    """The zip at an absolute path."""
    return [SpanSource(path, lambda: _members(path), table=False)]


def _members(path: str) -> Members:
    """Finds the images.

    Raises:
        IndexFileError: it is no zip, damaged, one part of several, or its images are compressed or encrypted.
    """
    if os.path.exists(f"{os.path.splitext(path)[0]}.z01"):
        raise IndexFileError(f"'{path}' is the last part of several; join them: zip -s 0 '{path}' --out whole.zip")
    images: dict[str, zipfile.ZipInfo] = {}
    others: dict[bytes, tuple[int, str]] = {}
    again: list[str] = []
    try:
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                if entry.is_dir():
                    continue
                end = _end(_path(entry))
                if end.decode() in IMAGE_SUFFIXES:
                    again += [entry.filename] if entry.filename in images else []
                    images[entry.filename] = entry
                else:
                    count, first = others.get(end, (0, entry.filename))
                    others[end] = (count + 1, first)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as e:
        raise IndexFileError(
            f"'{path}' is no zip, or a damaged or shortened one ({e}); fetch it again, or try to mend it: "
            f"zip -FF '{path}' --out mended.zip"
        ) from None
    _refuse(path, images, others)
    names = sorted(images, key=str.encode)
    reasons: dict[int, str] = {}
    offset = np.zeros(len(names), np.int64)
    with open(path, "rb") as raw:
        for i, name in enumerate(names):
            at = images[name].header_offset
            head = os.pread(raw.fileno(), _LOCAL.size, at) if 0 <= at < 1 << 62 else b""
            mark, name_bytes, extra_bytes = _LOCAL.unpack(head) if len(head) == _LOCAL.size else (b"", 0, 0)
            if mark != b"PK\3\4":
                reasons[i] = f"the zip has no member at byte {at}, where its directory says that one is; fetch it again"
                continue
            offset[i] = at + _LOCAL.size + name_bytes + extra_bytes
            if images[name].file_size >= 1 << 62:
                reasons[i] = f"the zip's directory claims {images[name].file_size:,} bytes; fetch it again"
    length = np.array([0 if i in reasons else images[name].file_size for i, name in enumerate(names)], np.int64)
    left_out = [(kind_of(end), first, count) for end, (count, first) in others.items()]
    left_out += [(AGAIN, again[0], len(again))] if again else []
    found = Members(names, offset, length, reasons, left_out=left_out)
    paths = [_path(images[name]) for name in names]
    wrapped = _wrapped(paths)
    tops = [path[len(wrapped) :].partition("/") for path in paths]
    found.classes = sorted({top for top, slash, _ in tops if slash}, key=str.encode)
    numbers = {top: i for i, top in enumerate(found.classes)}
    found.labels = [numbers[top] if slash else -1 for top, slash, _ in tops]
    unread = next((first for _, first in others.values() if posixpath.basename(first).startswith("metadata.")), None)
    if unread:
        found.notes.append(f"'{path}': '{unread}' in it is not read; unpack the zip, and give the folder, to use it")
    if wrapped:
        found.notes.append(f"'{path}': all images lie beneath '{wrapped}', so its folders are the classes")
    return found


def _refuse(path: str, images: dict[str, zipfile.ZipInfo], others: dict[bytes, tuple[int, str]]) -> None:
    """Refuses images that do not lie in the zip as they are."""
    unpack = f"unzip -q '{path}' -d FOLDER"
    for name, entry in images.items():
        if entry.flag_bits & 1:
            raise IndexFileError(f"'{path}' is encrypted, such as '{name}'; unpack it with its password: {unpack}")
    packed = [name for name, entry in images.items() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise IndexFileError(
            f"'{path}': {len(packed):,} of {len(images):,} images are compressed, such as '{packed[0]}', and cannot be read in "
            f"place; unpack it: {unpack} (and, for one file again: cd FOLDER && zip -q -0 -r ../stored.zip .)"
        )
    inner = [first for end, (_, first) in others.items() if end.decode() in _ARCHIVES]
    if not images and inner:
        raise IndexFileError(f"'{path}' holds no images but archives, such as '{inner[0]}'; unpack it: {unpack}")


def _path(entry: zipfile.ZipInfo) -> str:
    """Where a member would be unpacked; some programs of Windows write its folders with backslashes."""
    name = entry.filename if entry.create_system else entry.filename.replace("\\", "/")
    return posixpath.normpath(name).lstrip("/")


def _end(path: str) -> bytes:
    """The lower-case end of a name; `.` where any part of it is hidden."""
    _, dot, end = path.rpartition("/")[2].rpartition(".")
    hidden = any(part.startswith(".") for part in path.split("/"))
    return b"." if hidden else end.lower().encode() if dot else b""


def _wrapped(paths: list[str]) -> str:
    """The folders that all lie in, beneath which there are more: whoever zips a folder wraps its classes in it."""
    folders = {path.rpartition("/")[0] for path in paths}
    common = os.path.commonpath([f"/{folder}" for folder in folders])[1:] if folders else ""
    # One folder alone is a class.
    return f"{common}/" if common and len(folders) > 1 else ""
