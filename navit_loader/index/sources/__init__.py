"""The places where people's images are: folders, manifests, tars, tables, archives. Each is a file here, and a row in one of
the tables below; all have the same three methods.

In: what the user names on the command line. Out: `rows.ROWS` batches in key order, which `navit_loader.index` turns
into an index file. A source only finds images and their labels; probing headers is the engine's work.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable

from ...errors import IndexFileError
from . import arrows, coco, imagefolder, litdata, mds, zips
from .columns import USUAL, Columns
from .folder import FolderSource
from .manifest import ManifestSource
from .parquet import ParquetSource, holds_images
from .remote import SCHEMES, BucketSource, is_remote, refuse_secrets
from .rows import Source
from .tars import TarSource

__all__ = ["ENDS", "expand_braces", "open_sources"]

_Open = Callable[[str, Columns], list[Source] | None]

_FOLDERS: tuple[_Open, ...] = (
    arrows.open_folder,
    mds.open_folder,
    litdata.open_folder,
    coco.open_folder,
    imagefolder.open_folder,
    lambda path, columns: [FolderSource(path)],
)
"""What a folder may be, each None where it is not: the first that is."""

_FILES: dict[str, _Open] = {
    ".tar": lambda path, columns: [TarSource(path)],
    ".zip": zips.open_file,
    ".arrow": arrows.open_file,
    ".json": coco.open_file,
    ".csv": lambda path, columns: [ManifestSource.read(path, columns)],
    ".jsonl": lambda path, columns: [ManifestSource.read(path, columns)],
    ".parquet": lambda path, columns: [
        ParquetSource(path, columns) if holds_images(path, columns) else ManifestSource.read(path, columns)
    ],
}
"""What a file is, by the end of its name in lower case."""

ENDS = frozenset(_FILES) - {".arrow"}
"""Of files that are sources and no index."""

_REFUSED = {
    (
        ".tgz",
        ".tar.gz",
        ".tar.bz2",
        ".tar.xz",
        ".tar.zst",
    ): "is a compressed tar, whose members cannot be read in place; decompress it first, as with gunzip",
    (
        ".lance",
    ): 'is a Lance data set, which does not say where its bytes lie; write Parquet in its place: python -c "import '
    "lance, pyarrow.parquet as pq; pq.write_table(lance.dataset('{path}').to_table(), 'x.parquet')\"",
    (".7z", ".rar"): "is an archive whose members cannot be read in place; unpack it: 7z x '{path}' -oFOLDER",
}
"""What cannot be read in place, and what to do."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def open_sources(specs: Iterable[str | os.PathLike[str]], columns: Columns = USUAL) -> list[Source]:
    """The sources that the user named, in the order of their shards' paths.

    Args:
        specs: folders (of classes, of Hugging Face's, MDS or LitData), manifests (`.csv`, `.jsonl`, `.parquet`; several over
            one folder become one source), COCO JSON, tars, zips, Parquet and Arrow files with images; many at once by a brace
            pattern such as `shard-{000..127}.tar`. URLs (`s3://`, `gs://`, `az://`, `http(s)://`) name tars, Parquet files,
            or all images beneath a prefix that ends in `/`.
        columns: what the columns of tables are called.

    Raises:
        IndexFileError: a path that is missing, of an unknown kind, or given twice; a column that is not there.
    """
    sources: list[Source] = []
    for spec in specs:
        refuse_secrets(os.fspath(spec))
        for path in expand_braces(os.fspath(spec)):
            sources += [_open_remote(path, columns)] if is_remote(path) else _open(os.path.abspath(path), columns)
    if not sources:
        raise IndexFileError("no source given; name a folder, a manifest, or tars")
    if columns and not any(source.table for source in sources):
        option, name = columns.given[0]
        raise IndexFileError(
            f"{option} = '{name}', but no source is a table; give a manifest (.csv, .jsonl, .parquet), or leave it out"
        )
    manifests = ManifestSource.merged([source for source in sources if isinstance(source, ManifestSource)])
    others = sorted((source for source in sources if not isinstance(source, ManifestSource)), key=lambda s: s.shard)
    for before, after in itertools.pairwise(others):
        inside = isinstance(after, FolderSource | BucketSource) and after.shard.startswith(before.shard)
        if before.shard == after.shard or inside:
            raise IndexFileError(f"'{after.shard}' is covered twice, by itself and by '{before.shard}'; name it once")
    for manifest, folder in itertools.product(manifests, others):
        if isinstance(folder, FolderSource) and (twice := manifest.first_beneath(folder.shard)) is not None:
            raise IndexFileError(f"'{twice}' is covered twice, by a manifest and by '{folder.shard}'; name it once")
    return sorted([*manifests, *others], key=lambda source: source.shard)


def _open(path: str, columns: Columns) -> list[Source]:
    if not os.path.exists(path):
        hint = (
            "; leave the quotes away, or write a range as in 'shard-{000..127}.tar'" if set(path) & set("*?[") else ""
        )
        raise IndexFileError(f"no such file or folder: '{path}'{hint}")
    for ends, why in _REFUSED.items():
        if path.lower().endswith(ends):
            raise IndexFileError(f"'{path}' {why.format(path=path)}")
    suffix = os.path.splitext(path)[1].lower()
    kinds = _FOLDERS if os.path.isdir(path) else (_FILES.get(suffix, lambda path, columns: None),)
    for kind in kinds:
        if (found := kind(path, columns)) is not None:
            return found
    raise IndexFileError(f"'{path}' is no source; give a folder, or a file of {', '.join(sorted(_FILES))}")


def _open_remote(url: str, columns: Columns) -> Source:
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES:
        raise IndexFileError(f"'{url}': the scheme '{scheme}' is not known; allowed: {', '.join(SCHEMES)}")
    if url.endswith("/"):
        return BucketSource(url)
    if url.endswith(".tar"):
        return TarSource(url)
    if url.endswith(".parquet") and holds_images(url, columns):
        return ParquetSource(url, columns)
    raise IndexFileError(
        f"'{url}' is no source; give a prefix that ends in '/', a plain .tar, or Parquet that holds the images"
    )


def expand_braces(pattern: str) -> list[str]:
    """All paths of a pattern with numeric ranges, such as `train-{000..127}.tar`; leading zeros set the width.

    Raises:
        IndexFileError: a range that runs backwards or is larger than a million.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MOST_SHARDS:
        raise IndexFileError(f"'{pattern}': the range {found[0]} must run upwards over at most {_MOST_SHARDS} shards")
    width = len(found[1]) if found[1].startswith("0") else 0
    head, tail = pattern[: found.start()], expand_braces(pattern[found.end() :])
    return [f"{head}{n:0{width}d}{rest}" for n in range(first, last + 1) for rest in tail]
