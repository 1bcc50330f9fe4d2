"""`navit-loader keys FOLDER --client NAME …`: CURVE keys for a daemon that listens beyond this host.

In: a folder and names. Out: one folder to copy to the daemon's host and one for each client's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..shown import answer, say
from . import add_output


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "keys",
        examples=("keys keys --client trainer-a --client trainer-b",),
        help="make keys for serving beyond this host",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to make them")
    parser.add_argument(
        "--client", action="append", required=True, metavar="NAME", help="a client to allow; may be given again"
    )
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Makes the keys and says where they belong.

    Raises:
        ServiceError: a client of that name has keys already, or a name that is not allowed.
    """
    from ..service.security import make_keys

    server, *clients = make_keys(args.folder, args.client)
    answer({"server": str(server), "clients": {client.name: str(client) for client in clients}})
    say(f"for the daemon:  {server}  (navit-loader serve CONFIG --bind tcp://HOST:PORT --keys {server})")
    for client in clients:
        say(f"for '{client.name}':  {client}  (RemoteLoader([...], keys='{client}'))")
    return 0
