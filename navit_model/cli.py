"""The command line `navit-model`: one module of `navit_model.commands` for each subcommand.

In: arguments. Out: what the command says, and status 0; 1 where a command found some of its input to be bad; 2 with one
line for an error that navit raises on purpose, or a file that cannot be read or written; 128 + its number after a signal that
ended a run (130 SIGINT, 143 SIGTERM, 129 SIGHUP). The subcommands load torch when they run, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from navit_loader.shown import Arguments, command_line, escape_outputs, speak_as, status_of, tell

from .train.stop import Stopped

COMMANDS = (
    "fit",
    "train",
    "finetune",
    "eval",
    "probe",
    "embed",
    "predict",
    "export",
    "report",
    "init",
    "schema",
    "doctor",
    "completion",
)
"""Modules of `navit_model.commands`, in the order of the help. Each has `add(subparsers)` and `run(args) -> int`."""


def parser() -> Arguments:
    """All of its arguments."""
    return command_line(
        "navit-model",
        "Train and use native-resolution vision transformers.",
        f"{__package__}.commands",
        COMMANDS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; see `shown.EXITS`."""
    escape_outputs()
    top = parser()
    args, rest = top.parse_known_args(argv)
    if rest:
        # argparse takes changes in one row alone; `train run.toml --resume train.steps=500` is as clear.
        if not hasattr(args, "changes"):
            top.error(f"unrecognized arguments: {' '.join(rest)}")
        args.changes += rest
    speak_as(args)
    # Torch's idle threads spin by default and take the cores from decoding threads, ours or a daemon's on this host.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name = f"navit-model {args.command}"

    def run() -> int:
        try:
            status: int = args.run(args)
            return status
        except Stopped as e:
            tell(f"{name}: {e}")
            return 128 + e.number

    return status_of(run, name)


if __name__ == "__main__":
    sys.exit(main())
