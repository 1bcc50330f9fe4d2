"""The command line `navit-model`: one module of `navit_model.commands` for each subcommand.

In: arguments. Out: what the command says, and status 0; 1 where a command found some of its input to be bad; 2 with one
line for an error that navit raises on purpose, or a file that cannot be read or written; 128 + its number after a signal that
ended a run (130 SIGINT, 143 SIGTERM, 129 SIGHUP). The subcommands load torch when they run, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from navit_loader.errors import ExtraError, NavitError

from .console import hush, prepare, tell
from .train.stop import Stopped

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
    args, rest = parser.parse_known_args(argv)
    if rest:
        # argparse takes changes in one row alone; `train run.toml --resume train.steps=500` is as clear.
        if not hasattr(args, "changes") or any(text.startswith("-") for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.changes += rest
    # Torch's idle threads spin by default and take the cores from decoding threads, ours or a daemon's on this host.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare()
    name = f"navit-model {args.command}"
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except NavitError as e:
        tell(f"{name}: {' '.join(str(e).split())}")
        return 2
    except ModuleNotFoundError as e:
        if (error := ExtraError.of(e)) is None:
            raise
        tell(f"{name}: {error}")
        return 2
    except BrokenPipeError:
        # The reader has gone, as `head` does; what is left to flush has nowhere to go.
        hush(sys.stdout)
        return 0
    except OSError as e:
        if e.filename is None and e.errno is None:
            raise
        # A file that the caller named, or a disk: without a name where a file was open already.
        place = f"'{e.filename}': " if e.filename else ""
        tell(f"{name}: {place}{e.strerror or e}")
        return 2
    except Stopped as e:
        tell(f"{name}: {e}")
        return 128 + e.number
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
