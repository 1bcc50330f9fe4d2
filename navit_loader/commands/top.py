"""`navit-loader top HOST:PORT`: a daemon's metrics, live in the terminal.

In: the address given to `serve --metrics`. Out: a table that is drawn again every second; rates are differences between
two readings. It knows nothing but the metrics.
"""

from __future__ import annotations

import argparse
import time
import urllib.request
from typing import Any

from ..errors import ServiceError
from ..schema import require
from ..shown import answer, hushed, shown
from . import add_output

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "top",
        examples=(
            "top 127.0.0.1:9100",
            "top 127.0.0.1:9100 --once",
        ),
        help="watch a daemon's metrics",
    )
    parser.add_argument("address", metavar="HOST:PORT", help="what was given to serve --metrics")
    parser.add_argument("--once", action="store_true", help="print the rates of one second and end")
    add_output(parser, prints=True)
    parser.set_defaults(run=run)


def read(address: str) -> Values:
    """One reading.

    Raises:
        ServiceError: nobody answers there, or not with metrics.
    """
    from prometheus_client.parser import text_string_to_metric_families

    url = address if address.startswith("http") else f"http://{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read(2**24).decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except (OSError, ValueError) as e:
        from .. import _packer

        raise ServiceError(
            f"no metrics at '{_packer.without_secrets(url)}': {e}; start the daemon with --metrics HOST:PORT"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Draws until an interrupt.

    Raises:
        ServiceError: nobody answers at the address.
    """
    from rich.console import Console
    from rich.live import Live

    require(args.once or not args.json, "--json", True, "given with --once: what is drawn again and again is for eyes")
    values, before = read(args.address), time.monotonic()
    if args.once:
        time.sleep(1)
        last, values = values, read(args.address)
        seconds = time.monotonic() - before
        answer([{"name": name, **dict(labels), "value": value} for (name, labels), value in values.items()])
        if not hushed("lines"):
            Console().print(_table(values, last, seconds))
        return 0
    with Live(_table(values, values, 1.0), auto_refresh=False) as live:
        while True:
            time.sleep(1)
            last, values = values, read(args.address)
            now = time.monotonic()
            live.update(_table(values, last, now - before), refresh=True)
            before = now


def _table(values: Values, last: Values, seconds: float) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def total(name: str) -> float:
        return sum(v for (n, _), v in values.items() if n == name)

    def rate(name: str, labels: tuple[tuple[str, str], ...] = ()) -> float:
        key = (name, labels)
        return (values.get(key, 0.0) - last.get(key, 0.0)) / seconds

    slots, tokens = total("navit_slots_total"), total("navit_tokens_total")
    padding = 100 * (1 - tokens / slots) if slots else 0.0
    used, bound = total("navit_memory_used_bytes") / 2**20, total("navit_memory_bound_bytes") / 2**20
    batches = total("navit_batches_total")
    reused = 100 * total("navit_batches_reused_total") / batches if batches else 0.0
    head = Text(
        f"{rate('navit_images_total'):,.0f} images/s   {rate('navit_tokens_total'):,.0f} tokens/s   "
        f"padding {padding:.2f} %   reused {reused:.0f} %   memory {used:,.0f} of {bound:,.0f} MiB   "
        f"quarantined {total('navit_quarantined_total'):,.0f}   refused {total('navit_refused_total'):,.0f}"
    )
    table = Table("client", "plan", "images/s", "tokens/s", "outstanding", "held MiB", "starved s", expand=False)
    for (name, labels), starved in sorted(values.items()):
        if name == "navit_starved_seconds_total":
            named = dict(labels)
            table.add_row(
                Text(shown(named["client"])),
                Text(shown(named["plan"])),
                f"{rate('navit_client_images_total', labels):,.0f}",
                f"{rate('navit_client_tokens_total', labels):,.0f}",
                f"{values.get(('navit_client_outstanding', labels), 0):.0f}",
                f"{values.get(('navit_client_held_bytes', labels), 0) / 2**20:,.1f}",
                f"{starved:,.1f}",
            )
    return Group(head, table)
