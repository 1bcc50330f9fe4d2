"""`navit-loader fleet --ray [ADDRESS] --daemons N CONFIG`: daemons on a cluster.

In: one TOML file per plan, and a Ray cluster. Out: one line on stdout when the first daemon serves, logs on stderr of who
comes, who goes and what is decided, until a signal; then all daemons drain. Exit statuses are those of `serve`.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from typing import Any

from ..errors import ConfigError
from ..shown import answer, log_to_stderr, say
from . import add_configs, add_output, configs_of


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "fleet",
        examples=("fleet config.toml --ray --daemons 2:16",),
        help="daemons on a Ray cluster, as many as trainers need",
    )
    add_configs(parser, "*")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        required=True,
        metavar="ADDRESS",
        help="HOST:PORT of the cluster; by default RAY_ADDRESS, or the cluster that this host is in",
    )
    parser.add_argument(
        "--daemons", default="1", metavar="N|MIN:MAX", help="how many; a range lets the starved share decide"
    )
    parser.add_argument("--name", default="navit", help="trainers find the fleet as ray://NAME; by default navit")
    parser.add_argument(
        "--per-node", type=int, default=1, metavar="N", help="daemons on one node at most; by default 1"
    )
    parser.add_argument(
        "--starved",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="of their time trainers may wait for batches; above it there are more daemons; by default 0.02",
    )
    parser.add_argument(
        "--cool",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="of idleness before there are fewer; of starving a quarter before there are more; by default 60",
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks after a fleet until a signal.

    Raises:
        NavitError: a bad configuration or index, no cluster, a name that is taken, no daemon that can serve.
    """
    from ..fleet import launch

    log_to_stderr()
    if not args.config:
        raise ConfigError("no CONFIG.toml is given; it stands before --ray, or behind --ray=auto")
    fleet = launch(
        configs_of(args.config),
        name=args.name,
        daemons=_range(args.daemons),
        per_node=args.per_node,
        address=args.ray,
        starved=args.starved,
        cool_s=args.cool,
    )
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    with fleet:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)
        answer({"fleet": fleet.address, "daemons": list(fleet.daemons)})
        say(f"navit-loader: fleet {fleet.address} serves on {', '.join(fleet.daemons)}")
        stop.wait()
    return 0


def _range(words: str) -> int | tuple[int, int]:
    least, colon, most = words.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise ConfigError(f"--daemons '{words}' is not allowed; give a number, or MIN:MAX")
    return (int(least), int(most)) if colon else int(least)
