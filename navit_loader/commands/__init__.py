"""The subcommands of `navit-loader`, one module each, and the arguments that several of them share.

Takes: arguments. Gives: a status, and what a person reads. May not know: how anything is done; a command asks other
rooms, and prints. Modules are imported when their command is called, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import LoaderConfig
from ..errors import ConfigError
from ..shown import tell

if TYPE_CHECKING:
    from ..fleet.jobs import OnRay


def add_output(parser: argparse.ArgumentParser, *, prints: bool = False, json: bool = True) -> None:
    """`--json` and `--quiet`.

    Args:
        parser: of a command.
        prints: the command is called for what it prints, which `--quiet` leaves: it takes away progress alone.
        json: whether `--json` is wanted here; else the command has its own.
    """
    if json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    quiet = "no progress" if prints else "no progress, and no word where all went well"
    parser.add_argument("--quiet", action="store_true", help=f"{quiet}; errors are told")
    parser.set_defaults(prints=prints)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """`--image-column`, `--label-column`, `--caption-column`, `--target-column`, `--weight-column`."""
    usual = {"image": "path, or the images", "label": "label", "caption": "caption, or text"}
    more = {"target": "a number to predict, in the place of labels", "weight": "what an image counts in the loss"}
    for kind, what in {**usual, **more}.items():
        parser.add_argument(
            f"--{kind}-column", default="", metavar="NAME", help=f"in manifests and other tables, for: {what}"
        )


def add_configs(parser: argparse.ArgumentParser, nargs: str) -> None:
    """The plans that daemons serve."""
    parser.add_argument(
        "config",
        nargs=nargs,
        type=Path,
        metavar="CONFIG.toml",
        help="a plan to serve, named after its file; clients that name none get the first, whose [serve] counts",
    )


def configs_of(paths: Sequence[Path]) -> dict[str, LoaderConfig]:
    """Configurations by the names of their files.

    Raises:
        ConfigError: a bad configuration, or two of one name.
    """
    configs: dict[str, LoaderConfig] = {}
    for path in paths:
        if path.stem in configs:
            raise ConfigError(f"two plans are named '{path.stem}'; rename one of the files")
        configs[path.stem] = LoaderConfig.from_toml(path)
    return configs


def add_ray(parser: argparse.ArgumentParser) -> None:
    """`--ray`."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Ray cluster whose machines see the same files: HOST:PORT, or without an address that of RAY_ADDRESS, "
        "or of this host (extra ray)",
    )


def threads_of(args: argparse.Namespace) -> int:
    """Threads of one part, by `--threads` and `--ray`: 0 is one per core; on a cluster, which others use too, one at least."""
    threads: int = args.threads
    return max(0 if args.ray is None else 1, threads)


@contextmanager
def spread_of(ray: str | None, cpus: int) -> Iterator[OnRay | None]:
    """Who does the parts of a command's work: the cluster of `--ray`, or None, this process.

    Args:
        ray: what was given.
        cpus: of one part.
    """
    if ray is None:
        yield None
        return
    from ..fleet.jobs import OnRay

    with OnRay(ray, cpus=cpus) as spread:
        tell(spread)
        yield spread


def listed(profiles: Sequence[tuple[str, int, str]]) -> str:
    """Kinds of colour profiles on one line, with an example of each."""
    return ", ".join(f"{kind} {images:,} ({uri.rsplit('/', 2)[-1]}, say)" for kind, images, uri in profiles)
