"""`navit-loader suggest INDEX`: patch size, lengths, sides and batch for a data set, and why."""

from __future__ import annotations

import argparse
from typing import Any

from ..shown import answer, say
from . import add_output


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "suggest",
        examples=(
            "suggest train.arrow",
            "suggest train.arrow --tokens 256 --toml > config.toml",
        ),
        help="propose sizes for a data set",
        description="Proposes patch size, lengths, sides and batch from the sizes of an index's images and the memory of this "
        "machine, with a reason for each. No image is read.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument(
        "--tokens", type=int, default=0, metavar="M", help="tokens of one image at most (default: chosen)"
    )
    parser.add_argument(
        "--patch-size", type=int, default=0, metavar="P", help="of a model that is there (default: chosen)"
    )
    parser.add_argument(
        "--memory-mb",
        type=int,
        default=0,
        metavar="MB",
        help="of the device that trains (default: free on this machine)",
    )
    parser.add_argument("--toml", action="store_true", help="print a configuration, for plan and navit-model train")
    add_output(parser, prints=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the keys and their reasons."""
    from ..errors import ConfigError
    from ..schema import toml_value
    from ..suggest import Choice, suggest, toml

    for option, given, most in (("--patch-size", args.patch_size, 512), ("--memory-mb", args.memory_mb, 2**30)):
        if not 0 <= given <= most:
            raise ConfigError(f"{option} = {given} is not allowed; it must be between 1 and {most}")
    found = suggest(args.index, tokens=args.tokens, patch_size=args.patch_size, memory_mb=args.memory_mb)
    answer([{"key": choice.key, "value": choice.value, "why": choice.why} for choice in found])
    if not args.toml:
        for choice in found:
            say(f"{choice.key + ' = ' + toml_value(choice.value):<36} {choice.why}")
        return 0
    keys = {choice.key: choice.value for choice in found}
    model = [
        Choice("model.patch_size", keys["plan.patch_sizes"][0], "that of the plan"),
        Choice("model.max_grid", keys["plan.max_grid"], "that of the plan"),
    ]
    for line in toml([*found, *model], f"Proposed for {args.index}").splitlines():
        say(line)
    return 0
