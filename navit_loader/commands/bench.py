"""`navit-loader bench INDEX CONFIG`: how fast this machine renders these images, and where the time goes.

In: an index and a configuration. Out: images/s, tokens/s, padding, and seconds per stage, from whole batches rendered as
training would render them. Apart from `plan`, which decodes nothing.
"""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..shown import answer
from . import add_output

if TYPE_CHECKING:
    from ..render.engine import Engine
    from ..render.pending import Pending

STAGES = {
    "fetch": "reading files",
    "decode": "files to pixels",
    "resize": "pixels to the target size",
    "patches": "kept patches into their slots",
    "wait": "decoding threads without work",
}
"""What the threads do, in the order of the pipeline."""


def add(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "bench",
        examples=("bench train.arrow config.toml --batches 200",),
        help="measure this machine with an index and a configuration",
        description="Renders batches as fast as this machine can: images/s, tokens/s, padding, seconds per stage. Run it "
        "twice: the first run also measures how fast the storage fills the page cache.",
    )
    parser.add_argument("index", metavar="INDEX")
    parser.add_argument("config", metavar="CONFIG", help="a TOML file; its [render] says how many threads")
    parser.add_argument("--batches", type=int, default=100, metavar="N", help="batches to measure (default 100)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_output(parser, prints=True, json=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    from ..config import LoaderConfig
    from ..errors import ConfigError
    from ..render.engine import Engine

    if args.batches < 1:
        raise ConfigError(f"--batches {args.batches}: at least 1")
    with Engine(LoaderConfig.from_toml(args.config), args.index) as engine:
        found = measure(engine, args.batches)
    if args.json:
        answer(found)
    else:
        _table(found)
    return 0


def measure(engine: Engine, batches: int) -> dict[str, Any]:
    """Renders one batch to warm up and then `batches` more, `render.prefetch` of them ahead, going on from epoch to epoch.

    Args:
        engine: an opened `Engine`, which nobody else uses meanwhile.
        batches: batches to measure.

    Returns:
        Counts of the measured batches (`images` and `tokens` rendered, `failed`, `profiles`, `sequences`), `seconds` of
        wall time, rates a second, mean `padding` (`PackedBatch.padding`), and `stages`: seconds summed
        over all threads.

    Raises:
        RenderError: a file stayed out of reach after its retries, or too many images failed.
    """
    ahead: deque[Pending] = deque()
    steps = _steps(engine)

    def take() -> tuple[int, float]:
        batch = ahead.popleft().wait()
        assert batch is not None, "a wait without a limit ends with a batch"
        return int((batch.status > 0).any(1).sum()), batch.padding

    ahead.append(engine.submit(*next(steps)))
    take()
    before, start = engine.stats(), perf_counter()
    sequences, padding, submitted = 0, 0.0, 0
    while submitted < batches or ahead:
        while submitted < batches and len(ahead) < engine.config.render.prefetch:
            ahead.append(engine.submit(*next(steps)))
            submitted += 1
        filled, empty = take()
        sequences, padding = sequences + filled, padding + empty / batches
    seconds, after = perf_counter() - start, engine.stats()
    done = {name: after[name] - before[name] for name in ("images", "tokens", "failed", "profiles", *STAGES)}
    return {
        "batches": batches,
        "sequences": sequences,
        **{name: done[name] for name in ("images", "tokens", "failed", "profiles")},
        "seconds": seconds,
        "images_per_second": done["images"] / seconds,
        "tokens_per_second": done["tokens"] / seconds,
        "padding": padding,
        "stages": {name: done[name] for name in STAGES},
    }


def _steps(engine: Engine) -> Iterator[tuple[int, int, int]]:
    """Names of batches in the order of training: epoch, first sequence, batch size."""
    size, epoch = engine.config.data.batch_size, 0
    while True:
        layout, first = engine.layout(epoch), 0
        # Planned block by block as it is needed: of a large index nobody waits for the whole epoch.
        while (following := layout.next(first, size)) is not None:
            total = layout.num_sequences
            if total is not None and first >= total:
                break
            yield epoch, first, size
            first = following
        epoch += 1


def _table(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    rates = Table(box=None, show_header=False)
    for name, value in (
        ("images/s", f"{found['images_per_second']:,.1f}"),
        ("tokens/s", f"{found['tokens_per_second']:,.0f}"),
        ("padding", f"{found['padding']:.2%}"),
        ("rendered", f"{found['images']:,} images, {found['batches']:,} batches, {found['seconds']:.2f} s"),
        ("failed", f"{found['failed']:,}"),
        ("profiles other than sRGB", f"{found['profiles']:,}"),
    ):
        rates.add_row(name, value)
    stages = Table("stage", "what", box=None)
    for title in ("seconds, all threads", "ms an image", "share"):
        stages.add_column(title, justify="right")
    total = sum(found["stages"].values()) or 1.0
    for name, what in STAGES.items():
        spent = found["stages"][name]
        stages.add_row(
            name, what, f"{spent:.3f}", f"{1e3 * spent / max(1, found['images']):.3f}", f"{spent / total:.1%}"
        )
    console = Console()
    console.print(rates)
    console.print()
    console.print(stages)
