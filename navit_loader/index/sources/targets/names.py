"""Names of files by which annotations and images find each other.

In: a folder; a path of an image. Out: what its files are called without their end; the names by which the image may go. Apart,
since all formats with a file for each image go by it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator


def files_beneath(folder: str, end: str) -> Iterator[tuple[str, str]]:
    """Each file of a kind beneath a folder: its path there without its end, and its whole path; sorted, without hidden ones."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(end) and not name.startswith("."):
                path = os.path.join(at, name)
                yield os.path.splitext(os.path.relpath(path, folder))[0], path


def suffixes(path: str) -> Iterator[str]:
    """The ends of a path, whole names at a time, the longest first."""
    parts = [part for part in path.split("/") if part]
    return ("/".join(parts[n:]) for n in range(len(parts)))
