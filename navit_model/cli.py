"""The command line `navit-model`: one module of `navit_model.commands` for each subcommand.

In: arguments. Out: what the command says, and status 0; 1 where a command found some of its input to be bad; 2 with one
line for an error that navit raises on purpose; 130 after an interrupt. The subcommands load torch when they run, so that
`--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from navit_loader.errors import NavitError

COMMANDS = ("train", "finetune", "eval", "probe", "embed", "predict", "report")
"""Modules of `navit_model.commands`, in the order of the help. Each has `add(subparsers)` and `run(args) -> int`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="navit-model", description="Train and use native-resolution vision transformers."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f".commands.{name}", __package__).add(subparsers)
    args = parser.parse_args(argv)
    # Torch's idle threads spin by default and take the cores from decoding threads, ours or a daemon's on this host.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        status: int = args.run(args)
        return status
    except NavitError as e:
        print(f"navit-model {args.command}: {' '.join(str(e).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
