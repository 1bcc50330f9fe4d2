"""How many of timm's published transformers are taken, and why are the others refused?

In: names of timm that have weights. Out: for each reason how many names, of how many architectures. Every architecture is laid
out on the meta device and taken over there, name by name and shape by shape: nothing is downloaded, and no number is computed.
That outputs are equal, `tests/test_model_families.py` says of each kind.

    .venv/bin/python bench/weights.py                      # all families, some five minutes of one core
    .venv/bin/python bench/weights.py 'vit_pe_*' 'eva02_*'
"""

from __future__ import annotations

import argparse
import collections
import warnings

import timm
import torch

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
    counts = names(parser.parse_args().patterns)
    warnings.simplefilter("ignore")
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    for architecture in sorted(counts):
        reasons[verdict(architecture)].append(architecture)
    print(f"timm {timm.__version__}: {sum(counts.values())} sets of weights of {len(counts)} architectures\n")
    print("| sets | architectures | |\n|---|---|---|")
    for reason, those in sorted(reasons.items(), key=lambda item: -sum(counts[name] for name in item[1])):
        which = "" if reason == "taken" else f": {', '.join(those[:3])}{', …' if len(those) > 3 else ''}"
        print(f"| {sum(counts[name] for name in those)} | {len(those)} | {reason}{which} |")


if __name__ == "__main__":
    main()
