"""`report.html`: a run on one page that needs nothing beside it.

In: a run's folder (`log.jsonl`, `packed.svg`, perhaps `fit.toml`). Out: one HTML file: what the scores mean and what to do
next, figures, loss, accuracy against tokens, how well the model was fed, what was chosen, and real packed sequences. It reads
files alone, so it can be made again at any time.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from navit_loader import page
from navit_loader.errors import ExtraError, ModelError
from navit_loader.page import BLUE, GREY, card, table, text
from navit_loader.picture import packed_card
from navit_loader.shown import counted
from navit_loader.suggest import Choice

from ..evaluate.chart import Chart
from ..evaluate.drawn import PICTURES
from ..evaluate.page import MAIN, evaluations, read_scores
from ..evaluate.targets import NAMES
from ..evaluate.words import meaning, next_images
from .choices import chosen_in, longer
from .log import read_log

PLAIN = ("R²", "AP", "mIoU", "PQ")
"""Figures that are shown as they are, not in per cent."""


def write(
    out: Path,
    *,
    baselines: Mapping[str, float] | None = None,
    scores: Sequence[Mapping[str, Any]] | None = None,
    evaluated: Sequence[Path] = (),
) -> Path:
    """Writes `out/report.html`.

    Args:
        out: a run's folder.
        baselines: accuracies of other methods on the same held-out images, by name.
        scores: rows of `Score.to_dict`, in place of the last evaluation in the log.
        evaluated: files of `navit-model eval --json`, to be drawn too; several stand side by side.

    Returns:
        The path of the page.

    Raises:
        ModelError: the folder holds no log of a run, or a file no scores.
    """
    entries = list(read_log(out))
    steps = [e for e in entries if e["kind"] == "train"]
    if not steps:
        raise ModelError(f"'{out / 'log.jsonl'}' is missing or empty; give the folder of a run (its train.out)")
    evals = [e for e in entries if e["kind"] == "eval"]
    # Of a run that keeps its best checkpoint, that one's: it is what is used.
    chosen = [e for e in entries if e["kind"] == "best"] or evals
    # A step that was scored twice, since the run went on from there, counts once.
    latest = {(e["tokens"], e.get("patch_size")): e for e in evals if e["step"] == chosen[-1]["step"]}
    last = scores or [*latest.values()]
    name, best = _best(last)
    # Words may be of another budget than the best.
    at = f" at {max(last, key=_share)['tokens']:,} tokens" if len(last) > 1 else ""
    feed = _weighted(steps)
    evaluation_cards = evaluations(evaluated)
    choices = chosen_in(out)
    said = _said(out, entries, last, evaluated, choices)
    several = _several(evaluated)
    tiles = [
        several or (f"held-out {name}{at}", "–" if best is None else f"{best:.4f}" if name in PLAIN else f"{best:.2%}"),
        ("images seen", f"{steps[-1]['images_seen']:,}"),
        ("images/s", f"{feed['images_per_s']:,.0f}"),
        ("tokens/s", f"{feed['tokens_per_s']:,.0f}"),
        ("padding", f"{feed['padding']:.2%}"),
        ("starved share", f"{feed['starved']:.1%}"),
    ]
    charts = card("Loss", _loss_chart(steps))
    if last:
        curve = [{"tokens": e["tokens"], "share": _share(e)} for e in last]
        charts += card(f"Held-out {name} against tokens of one image", _accuracy_chart(curve, name, baselines or {}))
    charts += card("Share of the time in which a step waits for data", _starved_chart(steps))
    if last:
        charts += card("Scores", _table(last, baselines or {}))
    packed = out / "packed.svg"
    picture = packed_card(packed.read_text(encoding="utf-8"), "The first training batch") if packed.exists() else ""
    lead = f"step {steps[-1]['step']:,} · native-resolution vision transformer on packed sequences"
    pictures = f"{_pictures(out)}{_chosen(choices)}{picture}"
    body = f'{page.tiles(tiles)}{said}<div class="two">{charts}</div>{evaluation_cards}{pictures}'
    path = out / "report.html"
    page.write(path, page.page(out, lead, body))
    return path


def check_drawing() -> None:
    """Whether `write` will find what it draws with.

    Raises:
        ExtraError: it is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ExtraError.of(ImportError(name="matplotlib")) or AssertionError


def _share(score: Mapping[str, Any]) -> float:
    """What is drawn of a score: accuracy, R², AP, mIoU or PQ, or the mean of both recalls at 1."""
    if key := next((key for key in MAIN if key in score), None):
        return float(score[key] or 0)
    return float(score["image_to_text"]["1"] + score["text_to_image"]["1"]) / 2


def _best(scores: Sequence[Mapping[str, Any]]) -> tuple[str, float | None]:
    """The name of what `_share` draws, and the best of it."""
    first = scores[0] if scores else {"accuracy": 0}
    name = next((shown for key, shown in MAIN.items() if key in first), "R@1, mean of both ways")
    return name, max(map(_share, scores), default=None)


def _several(evaluated: Sequence[Path]) -> tuple[str, str] | None:
    """The tile of a model by which an image may have several labels, where it was evaluated: accuracy says little."""
    for found in map(read_scores, evaluated):
        if maps := [one["map"] for one in found.get("details", ()) if "map" in one]:
            return f"mAP on {Path(str(found['index'])).name}", f"{max(maps):.2%}"
    return None


def _said(
    out: Path,
    entries: Sequence[Mapping[str, Any]],
    last: Sequence[Mapping[str, Any]],
    evaluated: Sequence[Path],
    choices: Sequence[Choice],
) -> str:
    """In sentences: what the run's own scores mean, with the details of the first file that holds these scores; which step they
    are of; what to do next."""
    if not last or not {"accuracy", "r2"} & last[0].keys():
        return ""
    own = {(e["images"], round(_share(e), 6)) for e in last}
    for found in map(read_scores, evaluated):
        if own & {(e["images"], round(_share(e), 6)) for e in found["scores"]}:
            break
    else:
        found = {"scores": last}
    lines = [*meaning(found), _step(entries, choices)]
    here = shlex.quote(str(out))
    lines += [f"Next: {more}" if (more := next_images(found)) else ""]
    tokens = max(e["tokens"] for e in last)
    commands = {
        "Answers for other images:": f"navit-model predict {here} IMAGE … --tokens {tokens}",
        "The model for other programs:": f"navit-model export {here} -o model.onnx",
    }
    if more := longer(out):
        commands["More steps from these weights, on the same split:"] = more
    items = [text(line) for line in lines if line]
    items += [f"{what} <code>{text(command)}</code>" for what, command in commands.items()]
    return card("In words", f'<ul class="said">{"".join(f"<li>{item}</li>" for item in items)}</ul>')


def _step(entries: Sequence[Mapping[str, Any]], choices: Sequence[Choice]) -> str:
    """Which step's weights are used, and why."""
    evals = [e for e in entries if e["kind"] == "eval"]
    best = [e for e in entries if e["kind"] == "best"]
    if not best:
        why = next((f": {choice.why}" for choice in choices if choice.key == "train.best"), "")
        return f"Used are the weights of the last step, {evals[-1]['step']:,}{why}." if evals else ""
    step, tokens = best[-1]["step"], best[-1]["tokens"]
    scored = {e["step"]: e for e in evals if e["tokens"] == tokens}
    name, _ = _best([scored[step]])
    had, end = (f"{_share(e):.4f}" if "r2" in e else f"{_share(e):.2%}" for e in (scored[step], [*scored.values()][-1]))
    last = evals[-1]["step"]
    said = f"Used are the weights of step {step:,}, the best of {counted(len(scored), 'evaluation')} by {name}, {had}"
    said += ", which is the last." if last == step else f"; the last, step {last:,}, had {end}."
    wanted = next((choice.value for choice in choices if choice.key == "train.steps"), str(last))
    if wanted != str(last):
        said += f" The run ended before its {wanted} steps, since none after the best was better."
    return said + " Images that choose a step flatter it a little."


def _chosen(choices: Sequence[Choice]) -> str:
    if not choices:
        return ""
    rows = [[choice.key, choice.value, choice.why] for choice in choices]
    body = table(["key of fit.toml", "value", "why"], rows, left=True)
    return f"<section><details><summary>What fit chose, and why</summary>{body}</details></section>"


def _weighted(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over the log: steady against the first lines, when threads and caches are cold."""
    return {
        key: sorted(e[key] for e in steps)[len(steps) // 2]
        for key in ("images_per_s", "tokens_per_s", "padding", "starved")
    }


def _table(scores: Sequence[Mapping[str, Any]], baselines: Mapping[str, float]) -> str:
    rows: list[list[str]]
    if "r2" in scores[0]:
        head = ["", "R²", "mean absolute error"]
        rows = [[_at(e), f"{e['r2']:.4f}", f"{e['mae']:.4g}", *_counts(e)] for e in scores]
    elif {"ap", "miou", "pq"} & scores[0].keys():
        return _target_table(scores)
    elif "accuracy" in scores[0]:
        head = ["", "accuracy", "calibration error"]
        own = "navit, " if baselines else ""
        rows = [[own + _at(e), f"{e['accuracy']:.2%}", f"{e['ece']:.3f}", *_counts(e)] for e in scores]
        rows += [[name, f"{accuracy:.2%}", "", "", ""] for name, accuracy in baselines.items()]
    else:
        # A row for each way: six recalls side by side are wider than half a page.
        ways = {"image_to_text": "image → text", "text_to_image": "text → image"}
        head = ["", *(f"R@{k}" for k in scores[0]["image_to_text"])]
        rows = [
            [f"{_at(e)}, {name}", *(f"{share:.2%}" for share in e[way].values()), *_counts(e)]
            for e in scores
            for way, name in ways.items()
        ]
    return table([*head, "images", "failed"], rows)


def _at(score: Mapping[str, Any]) -> str:
    return f"{score['tokens']} tokens{' (outside training)' if score['outside'] else ''}"


def _counts(score: Mapping[str, Any]) -> tuple[str, str]:
    return f"{score['images']:,}", f"{score['failed']:,}"


def _target_table(scores: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in NAMES if key in scores[0]]
    head = ["", *(NAMES[key] for key in keys), "images", "failed"]
    rows = [
        [
            _at(e),
            *("–" if e[key] is None else f"{e[key]:.4f}" for key in keys),
            *_counts(e),
        ]
        for e in scores
    ]
    return table(head, rows)


def _pictures(out: Path) -> str:
    """What was found in the first held-out images, drawn in."""
    every = (base64.b64encode(file.read_bytes()).decode() for file in sorted((out / PICTURES).glob("*.jpg")))
    found = "".join(f'<figure><img alt="" src="data:image/jpeg;base64,{one}"></figure>' for one in every)
    return card("Found in held-out images", f'<div class="pictures">{found}</div>') if found else ""


def _loss_chart(steps: Sequence[Mapping[str, Any]]) -> str:
    with Chart("step", "loss") as chart:
        chart.axes.plot([e["step"] for e in steps], [e["loss"] for e in steps], color=BLUE, linewidth=1.6)
        chart.axes.set_ylim(bottom=0)
        chart.axes.xaxis.get_major_locator().set_params(integer=True)
    return chart.svg


def _starved_chart(steps: Sequence[Mapping[str, Any]]) -> str:
    with Chart("step", "starved share, %") as chart:
        shares = [100 * e["starved"] for e in steps]
        chart.axes.fill_between([e["step"] for e in steps], shares, color=BLUE, alpha=0.25, linewidth=0)
        chart.axes.plot([e["step"] for e in steps], shares, color=BLUE, linewidth=1.2)
        chart.axes.set_ylim(0, max(5.0, *shares) * 1.05)
        chart.axes.xaxis.get_major_locator().set_params(integer=True)
    return chart.svg


def _accuracy_chart(scores: Sequence[Mapping[str, Any]], name: str, baselines: Mapping[str, float]) -> str:
    scores = sorted(scores, key=lambda e: e["tokens"])
    tokens = [e["tokens"] for e in scores]
    scale, digits, unit = (1, 4, "") if name in PLAIN else (100, 1, ", %")
    with Chart("tokens of one image at most", f"{name}{unit}") as chart:
        axes = chart.axes
        axes.plot(tokens, [scale * e["share"] for e in scores], color=BLUE, linewidth=1.8, marker="o", markersize=6)
        for e in scores:
            axes.annotate(
                f"{scale * e['share']:.{digits}f}",
                (e["tokens"], scale * e["share"]),
                textcoords="offset points",
                xytext=(0, 9),
                ha="center",
                color=BLUE,
                fontsize=11,
            )
        for name, accuracy in baselines.items():
            axes.axhline(100 * accuracy, color=GREY, linewidth=1, linestyle=(0, (5, 4)))
            axes.annotate(
                name,
                (0.99, 100 * accuracy),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                xytext=(0, -12),
                ha="right",
                color=GREY,
                fontsize=10,
            )
        axes.set_xticks(tokens, [str(t) for t in tokens])
        axes.margins(x=0.08, y=0.18)
    return chart.svg
