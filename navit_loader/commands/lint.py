"""`navit-loader lint INDEX`: checks every row, decodes every image as training would, and reports the broken ones."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..shown import say
from . import ProgressLine, listed


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "lint",
        help="decode every image and report the broken ones",
        description="Checks every row of an index, then decodes every image, as training does. Exit status 1 where any image "
        "is broken.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="decoding threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line for each broken image")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Renders one evaluation epoch, small, and prints its ledger.

    Raises:
        IndexFileError: no such index.
        RenderError: a fault that may pass, such as a refused permission, outlasted its retries.
    """
    from ..config import DataConfig, LoaderConfig, PlanConfig, RenderConfig
    from ..deliver.local import PackedLoader
    from ..index import open_index

    index = open_index(args.index)
    index.check()
    config = LoaderConfig(
        data=DataConfig(batch_size=1),
        plan=PlanConfig(sequence_length=512, max_images=64, max_tokens=64),
        # Scaled decoding would skip coefficients of the picture, so it is off here.
        render=RenderConfig(threads=max(0, args.threads), dct_scaling=False, failure_limit=1.0),
    ).for_evaluation()
    with ProgressLine("decoding") as line, PackedLoader(index, config, rank=0, world_size=1) as loader:
        seen = 0
        for batch in loader:
            seen += int((batch.status > 0).sum())
            line.update(seen / index.num_rows, f"{seen:,} images")
        dark = loader.stats()["dark"]
        profiles = loader.engine.profiles()
        failures = sorted(loader.failures(), key=lambda failure: str(failure["uri"]))
    for failure in failures:
        say(json.dumps(failure) if args.json else f"{failure['uri']}: {failure['reason']}: {failure['detail']}")
    if not args.json:
        say(f"{index.path}: {seen - len(failures):,} of {seen:,} images decode, {len(failures):,} are broken")
        if dark:
            say(
                f"  {dark:,.0f} images of 16 bits a sample are nearly black, since they use few of them; give [render] depth: "
                "'largest', or how many bits they use, such as '12'"
            )
        if profiles:
            count = sum(images for _, images, _ in profiles)
            say(
                f"  {count:,} have a colour profile other than sRGB, which is applied with [render] profiles: 'convert' alone: "
                f"{listed(profiles)}"
            )
    return 1 if failures else 0
