"""`navit-loader top HOST:PORT …`: what daemons and their trainers do, over the last minutes.

In: the addresses given to `serve --metrics`. Out: on a terminal a table that is drawn again every second, with a line for each
daemon and each of its trainers; elsewhere lines of text, or of JSON. Rates are differences between two readings. It knows
nothing but the metrics.
"""

from __future__ import annotations

import argparse
import itertools
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import ServiceError
from ..shown import answer, say, shown
from . import add_output

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, Labels], float]
Line = dict[str, Any]

WINDOW_S = 120.0
"""How far back a line of the past goes."""

QUIET_S = 10.0
"""Between lines that nobody watches."""

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.:-=+*#"
"""Eight heights, where the output has such characters and where it has not."""

STARVED = (0.05, 0.2)
"""Shares of the time: below the first all is well, above the second somebody should look."""


def add(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "top",
        examples=(
            "top 127.0.0.1:9100",
            "top 10.0.0.1:9100 10.0.0.2:9100 --once",
        ),
        help="watch daemons and their trainers",
        description="Draws the rates of daemons and of each of their trainers every second, with starvation (the share of its "
        "time that a trainer waits for batches) and padding over the last two minutes. Where nobody watches it prints a line "
        "for each every ten seconds.",
    )
    parser.add_argument("address", nargs="+", metavar="HOST:PORT", help="what was given to serve --metrics")
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
        raise ServiceError(
            f"no metrics at '{_without_secrets(url)}': {e}; start the daemon with --metrics HOST:PORT"
        ) from None


def run(args: argparse.Namespace) -> int:
    """Draws until an interrupt.

    Raises:
        ServiceError: nobody answers at one of the addresses when it starts.
    """
    from rich.console import Console
    from rich.live import Live

    console, watch = Console(), Watch(args.address)
    watched = console.is_terminal and not args.json
    plain = not console.encoding.lower().startswith("utf")
    if not watched or args.once:
        time.sleep(1)
        for lines in watch.readings(QUIET_S):
            if watched:
                console.print(watch.table(console.width, plain))
            for line in () if watched else lines:
                answer(line)
                say(in_words(line))
            if args.once:
                break
        return 0
    with Live(watch.table(console.width, plain), console=console, auto_refresh=False) as live:
        for _ in watch.readings(1.0):
            live.update(watch.table(console.width, plain), refresh=True)
    return 0


class Watch:
    """Daemons that are read again and again, and what was seen of each line in the last minutes.

    Args:
        addresses: of metrics.

    Raises:
        ServiceError: nobody answers at one of them.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._before = {address: (time.monotonic(), read(address)) for address in addresses}
        self._past: dict[tuple[str, ...], deque[tuple[float, Line]]] = {}
        self._lines: list[Line] = []

    def readings(self, every: float) -> Iterator[list[Line]]:
        """The lines of now, and again after `every` seconds, for ever."""
        for number in itertools.count():
            if number:
                time.sleep(every)
            yield self.look()

    def look(self) -> list[Line]:
        """Reads all daemons once: a line of each, and one of each of its trainers."""
        self._lines = []
        for address, (then, before) in self._before.items():
            name = _without_secrets(address)
            try:
                values, now = read(address), time.monotonic()
            except ServiceError as e:
                self._lines.append({"kind": "daemon", "daemon": name, "error": str(e)})
                continue
            self._before[address] = now, values
            for line in rates(name, values, before, max(now - then, 1e-3)):
                self._lines.append(line)
                past = self._past.setdefault(_key(line), deque())
                past.append((now, line))
                while now - past[0][0] > WINDOW_S + 5:
                    past.popleft()
        seen = set(map(_key, self._lines))
        self._past = {key: past for key, past in self._past.items() if key in seen}
        return self._lines

    def table(self, width: int, plain: bool = False) -> Any:
        """What is known, for a terminal of so many columns; `plain` draws in ASCII alone."""
        from rich.table import Table
        from rich.text import Text

        cells = max(8, min(40, (width - 76) // 2))
        table = Table("", "images/s", "tokens/s", "starved", "", "padding", "", "MiB", box=None, padding=(0, 1, 0, 0))
        for column in table.columns[1:]:
            column.justify = "right"
        table.columns[4].justify = table.columns[6].justify = "left"
        for column in table.columns:
            column.no_wrap = True
        for line in self._lines:
            first, name = line["kind"] == "daemon", shown(line["daemon"])
            if "error" in line:
                table.add_row(Text(f"{name}: no answer", "bold red"))
                continue
            if not first:
                name = f"  {shown(line['client'])}" + (f" · {shown(line['plan'])}" if line["plan"] else "")
            past = self._past[_key(line)]
            starved = line.get("starved")
            colour = "" if starved is None else ("green", "yellow", "red")[sum(starved >= edge for edge in STARVED)]
            memory = f"{line['held_bytes'] / 2**20:,.0f}" + (f" of {line['bound_bytes'] / 2**20:,.0f}" if first else "")
            row: list[str | Text] = [
                Text(name, "bold" if first else ""),
                f"{line['images_per_s']:,.0f}",
                f"{line['tokens_per_s']:,.0f}",
                Text("" if starved is None else f"{starved:.0%}", colour),
                Text("" if starved is None else spark(past, "starved", 1.0, cells, plain), colour),
                "–" if line["padding"] is None else f"{line['padding']:.1%}",
                Text(spark(past, "padding", 0.1, cells, plain), "cyan"),
                memory,
            ]
            table.add_row(*row)
            if first and (said := _trouble(line)):
                table.add_row(Text(f"  {said}", "yellow"))
        if not any(line["kind"] == "trainer" for line in self._lines):
            table.add_row(Text("  no trainer", "dim"))
        return table


def rates(daemon: str, values: Values, before: Values, seconds: float) -> list[Line]:
    """What two readings of a daemon come to, as plain values: a line of the daemon, then one of each trainer."""

    def grown(name: str, labels: Labels | None = None) -> float:
        # A trainer that came back counts from 0 again.
        total = 0.0
        for (known, own), value in values.items():
            if known == name and labels in (None, own):
                total += max(0.0, value - before.get((known, own), 0.0))
        return total

    def total(name: str) -> float:
        return sum(value for (known, _), value in values.items() if known == name)

    def padding(prefix: str, labels: Labels | None) -> float | None:
        slots = grown(f"navit_{prefix}slots_total", labels)
        return max(0.0, 1 - grown(f"navit_{prefix}tokens_total", labels) / slots) if slots else None

    lines: list[Line] = [
        {
            "kind": "daemon",
            "time": time.time(),
            "daemon": daemon,
            "images_per_s": grown("navit_images_total") / seconds,
            "tokens_per_s": grown("navit_tokens_total") / seconds,
            "padding": padding("", None),
            "held_bytes": total("navit_memory_used_bytes"),
            "bound_bytes": total("navit_memory_bound_bytes"),
            "reused": total("navit_batches_reused_total") / max(1.0, total("navit_batches_total")),
            "quarantined": total("navit_quarantined_total"),
            "refused": total("navit_refused_total"),
            "ready": bool(total("navit_ready")),
        }
    ]
    for (name, labels), starved in sorted(values.items()):
        if name != "navit_starved_seconds_total":
            continue
        named = dict(labels)
        lines.append(
            {
                "kind": "trainer",
                "time": lines[0]["time"],
                "daemon": daemon,
                "client": named["client"],
                "plan": named["plan"],
                "images_per_s": grown("navit_client_images_total", labels) / seconds,
                "tokens_per_s": grown("navit_client_tokens_total", labels) / seconds,
                "padding": padding("client_", labels),
                "starved": min(1.0, grown(name, labels) / seconds),
                "starved_s": starved,
                "outstanding": values.get(("navit_client_outstanding", labels), 0.0),
                "held_bytes": values.get(("navit_client_held_bytes", labels), 0.0),
            }
        )
    return lines


def spark(past: Sequence[tuple[float, Line]], key: str, top: float, cells: int, plain: bool = False) -> str:
    """A value over the last `WINDOW_S` in so many characters, the newest to the right; a space where nothing is known.

    Args:
        past: times, rising, and lines.
        key: of the value.
        top: what the full height is at least.
        cells: characters.
        plain: ASCII alone.
    """
    each = WINDOW_S / cells
    sums: dict[int, list[float]] = {}
    for when, line in past:
        if line[key] is not None:
            sums.setdefault(int(when / each), []).append(line[key])
    means = {cell: sum(values) / len(values) for cell, values in sums.items()}
    top, last = max([top, *means.values()]), int(past[-1][0] / each) if past else 0
    heights = PLAIN if plain else BLOCKS
    return "".join(
        heights[min(len(heights) - 1, int(means[cell] / top * len(heights)))] if cell in means else " "
        for cell in range(last - cells + 1, last + 1)
    )


def in_words(line: Line) -> str:
    """A line of text."""
    if "error" in line:
        return f"daemon {line['daemon']}: no answer: {line['error']}"
    padding = "–" if line["padding"] is None else f"{line['padding']:.2%}"
    said = f"{line['images_per_s']:,.0f} images/s, {line['tokens_per_s']:,.0f} tokens/s, padding {padding}"
    held = f"{line['held_bytes'] / 2**20:,.1f}"
    clock = time.strftime("%H:%M:%S", time.localtime(line["time"]))
    if line["kind"] == "daemon":
        return (
            f"{clock} daemon {line['daemon']}: {said}, memory {held} of {line['bound_bytes'] / 2**20:,.0f} MiB, "
            f"reused {line['reused']:.0%}, quarantined {line['quarantined']:.0f}, refused {line['refused']:.0f}"
        )
    return (
        f"{clock} trainer {line['client']} of {line['plan']}: {said}, starved {line['starved']:.0%} "
        f"({line['starved_s']:,.1f} s in all), outstanding {line['outstanding']:.0f}, held {held} MiB"
    )


def _without_secrets(address: str) -> str:
    from .. import _packer

    return _packer.without_secrets(address)


def _key(line: Line) -> tuple[str, ...]:
    return line["daemon"], line.get("client", ""), line.get("plan", "")


def _trouble(line: Line) -> str:
    counts = [
        f"{line[key]:,.0f} {what}"
        for key, what in (("quarantined", "quarantined"), ("refused", "refused"))
        if line[key]
    ]
    return " · ".join([*counts, *(() if line["ready"] else ("its images are out of reach",))])
