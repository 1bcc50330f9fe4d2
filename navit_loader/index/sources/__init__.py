"""The places where people's images are: folders, manifests, tars, Parquet. Each is one small class with the same three methods.

In: what the user names on the command line. Out: `rows.ROWS` batches in key order, which `navit_loader.index` turns
into an index file. A source only finds images and their labels; probing headers is the engine's work.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable

from ...errors import IndexFileError
from .columns import USUAL, Columns
from .folder import FolderSource
from .manifest import MANIFESTS, ManifestSource
from .parquet import ParquetSource, holds_images
from .remote import SCHEMES, BucketSource, is_remote, refuse_secrets
from .rows import Source
from .tars import TarSource

__all__ = ["open_sources"]

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def open_sources(specs: Iterable[str | os.PathLike[str]], columns: Columns = USUAL) -> list[Source]:
    """The sources that the user named, in the order of their shards' paths.

    Args:
        specs: folders, manifests (`.csv`, `.jsonl`, `.parquet`; several over one folder become one source), tars, Parquet
            files with images; many at once by a brace pattern such as `shard-{000..127}.tar`. URLs (`s3://`, `gs://`,
            `az://`, `http(s)://`) name tars, Parquet files, or all images beneath a prefix that ends in `/`.
        columns: what the columns of manifests and Parquet files are called.

    Raises:
        IndexFileError: a path that is missing, of an unknown kind, or given twice; a column that is not there.
    """
    sources: list[Source] = []
    for spec in specs:
        refuse_secrets(os.fspath(spec))
        for path in expand_braces(os.fspath(spec)):
            sources.append(_open_remote(path, columns) if is_remote(path) else _open(os.path.abspath(path), columns))
    if not sources:
        raise IndexFileError("no source given; name a folder, a manifest, or tars")
    if columns and not any(isinstance(source, ManifestSource | ParquetSource) for source in sources):
        option, name = columns.given[0]
        raise IndexFileError(
            f"{option} = '{name}', but no source is a table; give a manifest ({', '.join(sorted(MANIFESTS))}), or leave it out"
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


def _open(path: str, columns: Columns) -> Source:
    if os.path.isdir(path):
        if any(os.path.exists(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json")):
            raise IndexFileError(
                f"'{path}' was written by save_to_disk; write Parquet in its place: load_from_disk(…).to_parquet('x.parquet')"
            )
        return FolderSource(path)
    if not os.path.exists(path):
        hint = (
            "; leave the quotes away, or write a range as in 'shard-{000..127}.tar'" if set(path) & set("*?[") else ""
        )
        raise IndexFileError(f"no such file or folder: '{path}'{hint}")
    if path.lower().endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise IndexFileError(
            f"'{path}' is a compressed tar, whose members cannot be read in place; decompress it first, as with gunzip"
        )
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".tar":
        return TarSource(path)
    if suffix == ".parquet" and holds_images(path, columns):
        return ParquetSource(path, columns)
    if suffix in MANIFESTS:
        return ManifestSource.read(path, columns)
    raise IndexFileError(
        f"'{path}' is no source; give a folder, a plain .tar, Parquet, or a manifest ({', '.join(sorted(MANIFESTS))})"
    )


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
