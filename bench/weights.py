"""How many of timm's published transformers are taken, and why are the others refused?

In: names of timm that have weights. Out: for each reason how many names, of how many architectures. Every architecture is
laid out on the meta device and taken over there, name by name and shape by shape: nothing is downloaded, and no number is
computed. That outputs are equal, `tests/test_model_families.py` says of each kind.

    .venv/bin/python bench/weights.py                      # all families, some five minutes of one core
    .venv/bin/python bench/weights.py 'vit_pe_*' 'eva02_*'
"""

from __future__ import annotations

import argparse
import collections
import warnings

import timm
import torch
from kit import Report, parse

from navit_loader.errors import ModelError
from navit_model import NaViT

FAMILIES = ("vit_*", "test_vit*", "deit*", "flexivit*", "naflexvit*", "eva*", "beit*", "aimv2*")


def names(patterns: list[str]) -> collections.Counter[str]:
    """Architectures, and how many sets of weights each has."""
    found = {name for pattern in patterns for name in timm.list_models(pattern, pretrained=True)}
    return collections.Counter(name.split(".")[0] for name in found)


def verdict(architecture: str) -> str:
    """`taken`, or why not."""
    with torch.device("meta"):
        try:
            NaViT.from_timm(timm.create_model(architecture))
        except ModelError as e:
            return str(e)
    return "taken"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=FAMILIES, help="names of timm (all families)")
    args = parse(parser, {"patterns": ["deit_*", "beit_*"]})
    report = Report("weights", __doc__, args)
    counts = names(args.patterns)
    warnings.simplefilter("ignore")
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for architecture in sorted(counts):
        reasons[verdict(architecture)].append(architecture)
    table = "sets of weights on timm's shelf"
    report.row("there are", counts.total(), "sets", table=table, architectures=len(counts))
    for reason, those in sorted(reasons.items(), key=lambda item: -sum(counts[name] for name in item[1])):
        what = "taken" if reason == "taken" else f"refused: {reason}"
        better = "higher" if reason == "taken" else "lower"
        examples = {} if reason == "taken" else {"such_as": ", ".join(those[:3])}
        sets = sum(counts[name] for name in those)
        report.row(what, sets, "sets", better=better, table=table, architectures=len(those), **examples)
    report.finish()


if __name__ == "__main__":
    main()
