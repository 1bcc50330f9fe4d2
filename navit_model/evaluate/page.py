"""Evaluations on a page: what `navit-model eval --json` found, as sections of a run's report.

In: such files. Out: HTML, each section a card, of the setting with the highest accuracy where only one can be shown; several
files stand side by side first. Whatever the files hold is escaped. Apart from the report, which knows a run's log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navit_loader.errors import ModelError, reason
from navit_loader.page import BLUE, COLOURS, GREEN, GREY, RED, card, figure, paragraph, table, text
from navit_loader.shown import shown

from .chart import Chart
from .confusion import MOST_CLASSES, PAIRS, WRITTEN, Pair, confusion_svg, pairs_of
from .interval import FEW, of_share

CLASSES = 20
"""Rows of the table by class: those that are served worst."""

MAIN = {"accuracy": "accuracy", "r2": "R²", "ap": "AP", "miou": "mIoU", "pq": "PQ"}
"""What one setting is better in than another, and how it is shown."""


def read_scores(path: Path) -> dict[str, Any]:
    """What `eval --json` wrote.

    Raises:
        ModelError: the file cannot be read, or holds neither accuracies nor R².
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ModelError(f"'{path}' cannot be read: {reason(e)}") from None
    except ValueError:
        found = None
    scores = found.get("scores") if isinstance(found, dict) else None
    rows: list[Any] = scores if isinstance(scores, list) else []
    named = [set(s) if isinstance(s, dict) else set() for s in rows]
    if rows and any(all(key in keys for keys in named) for key in MAIN):
        return {"index": path.stem, **found}
    raise ModelError(
        f"'{path}' holds no accuracies, R², AP, mIoU or PQ; give a file that navit-model eval wrote by --json"
    )


def evaluations(paths: Sequence[Path]) -> str:
    """The sections of all files.

    Raises:
        ModelError: names the file that cannot be read, or is not as it was written.
    """
    found = [read_scores(path) for path in paths]
    for path, one in zip(paths, found, strict=True):
        if main_of(one["scores"][0]) != main_of(found[0]["scores"][0]):
            raise ModelError(
                f"'{path}' and '{paths[0]}': one is of {MAIN[main_of(one['scores'][0])]}, the other of "
                f"{MAIN[main_of(found[0]['scores'][0])]}; give those of one kind"
            )
    names = [Path(str(one["index"])).name for one in found]
    names = [name if names.count(name) == 1 else path.stem for name, path in zip(names, paths, strict=True)]
    page = []
    for path, name, one in zip(paths, names, found, strict=True):
        try:
            page.append(_sections(name, one))
        except (LookupError, TypeError, ValueError, AttributeError) as e:
            raise ModelError(f"'{path}' is not as navit-model eval --json wrote it ({e!r}); evaluate anew") from None
    return "".join(([_side_by_side(names, found)] if len(found) > 1 else []) + page)


def main_of(score: Mapping[str, Any]) -> str:
    """What one setting is better in than another."""
    return next((key for key in MAIN if key in score), "r2")


def caution(found: Mapping[str, Any], chose: bool) -> str:
    """A sentence for those who scored few images; empty where they are many.

    Args:
        found: as `eval --json` writes it, whose `details` may be missing.
        chose: whether the same images chose the step.
    """
    scores = found["scores"]
    best = max(range(len(scores)), key=lambda n: float(scores[n][main_of(scores[n])]))
    score, images = scores[best], scores[best]["images"]
    if images >= FEW:
        return ""
    one = found["details"][best] if "details" in found else {}
    key = "map" if "map" in one else main_of(score)
    ends = one.get(f"{key}_95") or (of_share(score["accuracy"], images) if key == "accuracy" else None)
    said = f"Only {images} images were scored"
    if chose:
        said += ", and the same ones chose the best step, so that others will score rather lower"
    if ends is None:
        return f"{said}."
    low, high = (f"{end:.2f}" if key == "r2" else f"{end:.1%}" for end in ends)
    width = f"{ends[1] - ends[0]:.2f}" if key == "r2" else f"{100 * (ends[1] - ends[0]):.0f} points"
    return f"{said}; the interval of 95 % of {'R²' if key == 'r2' else LABELS[key]}, {low} to {high}, is {width} wide."


def _plain(value: object) -> str:
    """Text of a chart, of which matplotlib would else set what stands between dollars as a formula."""
    return shown(value).replace("$", r"\$")


def _setting(score: Mapping[str, Any]) -> str:
    return f"{score['tokens']} tokens, patch {score['patch_size']}"


def _ends(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} – {100 * ends[1]:.1f}"


def _side_by_side(names: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    """The main figure of each file at each setting that the first has, and how far it lies from the first's."""
    rows = []
    key = main_of(found[0]["scores"][0])
    scale, label = (100, "accuracy, %") if key == "accuracy" else (1, MAIN[key])
    with Chart("tokens of one image at most", label) as chart:
        for name, one, colour in zip(names, found, COLOURS * len(names), strict=False):
            scores = sorted(one["scores"], key=lambda s: float(s["tokens"]))
            x, y = [s["tokens"] for s in scores], [scale * (s[key] or 0) for s in scores]
            chart.axes.plot(x, y, color=colour, marker="o", linewidth=1.6, label=_plain(name))
        chart.legend()
    for score in found[0]["scores"]:
        own = score[key] or 0
        cells = [_setting(score), f"{own:.2%}" if key == "accuracy" else f"{own:.4f}"]
        for other in found[1:]:
            same = [s[key] or 0 for s in other["scores"] if _setting(s) == _setting(score)]
            if not same:
                cells.append("–")
            elif key == "accuracy":
                cells.append(f"{same[0]:.2%} ({100 * (same[0] - own):+.2f})")
            else:
                cells.append(f"{same[0]:.4f} ({same[0] - own:+.4f})")
        rows.append(cells)
    body = f'<div class="two"><div>{chart.svg}</div><div>{table(["", *names], rows)}</div></div>'
    return card(f"Evaluations side by side ({'in points' if key == 'accuracy' else MAIN[key]} from the first)", body)


def _sections(name: str, found: Mapping[str, Any]) -> str:
    scores = found["scores"]
    if main_of(scores[0]) not in ("accuracy", "r2"):
        return ""
    best = max(range(len(scores)), key=lambda n: float(scores[n][main_of(scores[n])]))
    at = f"{name}, {_setting(scores[best])}"
    page = []
    if main_of(scores[0]) == "r2":
        return _of_numbers(name, at, scores, found["details"], best) if "details" in found else ""
    if "details" in found:
        page.append(card(f"Scores and intervals of 95 %: {name}", _overview(scores, found["details"])))
        closer = found["details"][best]
        if closer.get("confusion") or "confused" in closer:
            names = [row["class"] for row in closer["classes"]]
            confused = closer["confused"] if "confused" in closer else pairs_of(names, closer["confusion"])
            page.append(card(f"What is taken for what: {at}", _confusion(names, closer.get("confusion", ()), confused)))
        pair = card(f"Calibration: {at}", _reliability(closer["reliability"], scores[best]["ece"]))
        if closer["classes"]:
            pair += card(f"Classes served worst: {at}", _classes(closer["classes"]))
        page.append(f'<div class="two">{pair}</div>')
    for grouped in found.get("groups", [[]] * len(scores))[best]:
        page.append(card(f"By {grouped['column']}: {at}", _groups(grouped)))
    if "corruptions" in found:
        page.append(card(f"Under corruption: {name}", _corruptions(found["corruptions"], best)))
    if "details" in found and found["details"][best].get("mistakes"):
        page.append(card(f"Worst mistakes: {at}", _mistakes(found["details"][best]["mistakes"])))
    return "".join(page)


def _of_numbers(
    name: str, at: str, scores: Sequence[Mapping[str, Any]], closer: Sequence[Mapping[str, Any]], best: int
) -> str:
    """The sections of a regression."""
    keys = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}
    rows = [
        [_setting(score), *(f"{one[key]:.4g} ({one[f'{key}_95'][0]:.4g} – {one[f'{key}_95'][1]:.4g})" for key in keys)]
        for score, one in zip(scores, closer, strict=True)
    ]
    one = closer[best]
    note = paragraph(
        f"Always answering the mean of the training's numbers, {one['baseline']:.6g}, has a mean absolute error of "
        f"{one['baseline_mae']:.4g}. The true numbers go from {one['low']:.6g} to {one['high']:.6g}."
    )
    page = card(f"Scores and intervals of 95 %: {name}", table(["", *keys.values()], rows) + note)
    with Chart("true number", "predicted", height=4.4) as chart:
        truth, told = zip(*one["points"], strict=True)
        ends = [one["low"], one["high"]]
        chart.axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (5, 4)))
        chart.axes.plot(truth, told, color=BLUE, marker="o", markersize=4, alpha=0.5, linewidth=0, markeredgewidth=0)
    drawn = "" if len(truth) == scores[best]["images"] else f" {len(truth):,} of {scores[best]['images']:,} are drawn."
    note = paragraph(f"Each point is an image; on the broken line the answer is the true number.{drawn}")
    page += card(f"Predicted against true: {at}", f'{note}<div class="narrow">{chart.svg}</div>')
    if one["mistakes"]:
        page += card(f"Worst mistakes: {at}", _far_off(one["mistakes"]))
    return page


LABELS = {
    "accuracy": "accuracy",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "F1, mean of classes",
    "roc_auc": "ROC AUC",
    "map": "mAP",
}


def _overview(scores: Sequence[Mapping[str, Any]], closer: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in LABELS if any(key in one for one in closer)]
    rows = []
    for score, one in zip(scores, closer, strict=True):
        cells = [_setting(score)]
        for key in keys:
            ends = f" ({_ends(one[f'{key}_95'])})" if f"{key}_95" in one else ""
            cells.append(f"{one[key]:.2%}{ends}" if key in one else "–")
        rows.append([*cells, f"{score['ece']:.3f}"])
    return table(["", *(LABELS[key] for key in keys), "ECE"], rows)


def _confusion(names: Sequence[str], counts: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> str:
    rows = [[f"{own} → {said}", f"{n:,}", f"{share:.1%}"] for own, said, n, share in pairs[:PAIRS]]
    said = (
        table(["label → answer", "images", "of the label's"], rows) if rows else "<p>No image is taken for another.</p>"
    )
    if len(names) > MOST_CLASSES:
        return f"<p>The most confused pairs of {len(names):,} classes.</p>{said}"
    note = "<p>Rows are labels, columns answers, as shares of a row; classes that are taken for each other stand together.</p>"
    matrix = confusion_svg(names, counts)
    if len(names) > WRITTEN:
        return f"{note}{matrix}{said}"
    return f'{note}<div class="two"><div>{matrix}</div><div>{said}</div></div>'


def _reliability(bins: Sequence[Mapping[str, Any]], ece: float) -> str:
    with Chart("confidence of the likeliest class", "right, %", below="images") as chart:
        sure, right = [b["confidence"] for b in bins], [100 * b["accuracy"] for b in bins]
        width = 0.8 / 30
        chart.axes.plot([0, 1], [0, 100], color=GREY, linewidth=1, linestyle=(0, (5, 4)))
        chart.axes.bar(sure, right, width, color=BLUE, alpha=0.35, linewidth=0)
        chart.axes.plot(sure, right, color=BLUE, marker="o", markersize=4, linewidth=0)
        chart.axes.set_ylim(0, 102)
        chart.below.bar(sure, [b["images"] for b in bins], width, color=GREY, linewidth=0)
        chart.below.set_yscale("symlog", linthresh=1)
        # Powers of ten are formulas, which matplotlib is long about.
        chart.below.yaxis.set_major_formatter("{x:,.0f}")
        chart.below.set_xlim(0, 1.02)
    note = (
        f"<p>Above the broken line the model is right more often than it says, below it less often; ECE {ece:.3f}.</p>"
    )
    return note + chart.svg


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    ranked = "ap" in rows[0]
    keys = ("ap", "roc_auc") if ranked else ("precision", "recall", "f1")
    worst = sorted((r for r in rows if r["images"]), key=lambda r: (r["ap" if ranked else "f1"], -r["images"]))
    head = {"ap": "average precision", "roc_auc": "ROC AUC", "f1": "F1"}
    cells = [[r["class"], f"{r['images']:,}", *(f"{r[key]:.1%}" for key in keys)] for r in worst[:CLASSES]]
    return table(["class", "images", *(head.get(key, key) for key in keys)], cells)


def _groups(found: Mapping[str, Any]) -> str:
    rows = sorted(found["groups"], key=lambda row: -float(row["accuracy"]))
    with Chart("accuracy, %", "", height=1.1 + 0.32 * len(rows)) as chart:
        for n, row in enumerate(rows):
            share, (low, high) = 100 * row["accuracy"], row["accuracy_95"]
            colour = {found["worst"]: RED, found["best"]: GREEN}.get(row["group"], BLUE)
            spread = [[max(share - 100 * low, 0)], [max(100 * high - share, 0)]]
            chart.axes.barh(n, share, 0.62, color=colour, alpha=0.45, linewidth=0)
            chart.axes.errorbar(share, n, xerr=spread, color=colour, capsize=3, linewidth=1.4)
        chart.axes.set_yticks(range(len(rows)), [f"{_plain(row['group'][:32])} ({row['images']:,})" for row in rows])
        chart.axes.grid(axis="y", visible=False)
        chart.axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.8)
        chart.axes.set_xlim(0, 100)
    gap = f"{100 * found['gap']:.1f} points, 95 %: {_ends(found['gap_95'])}"
    note = f"<p>Worst is {text(found['worst'])}, best {text(found['best'])}; gap {gap}."
    if found["without"]:
        note += f" {found['without']:,} labelled images have no group."
    if found.get("several"):
        note += f" {found['several']:,} images are in several groups, and count in each."
    keys = [key for key in LABELS if key in rows[0]]
    cells = [[row["group"], f"{row['images']:,}", *(_with_ends(row, key) for key in keys)] for row in reversed(rows)]
    head = [found["column"], "images", *(LABELS[key] for key in keys)]
    return f'{note}</p><div class="narrow">{chart.svg}</div>{table(head, cells)}'


def _with_ends(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return "–"
    ends = f" ({_ends(row[f'{key}_95'])})" if f"{key}_95" in row else ""
    return f"{row[key]:.1%}{ends}"


def _corruptions(found: Sequence[Mapping[str, Any]], best: int) -> str:
    one = found[best]
    with Chart("strength (0 is clean)", "accuracy, %") as chart:
        for (kind, row), colour in zip(one["kinds"].items(), COLOURS, strict=False):
            shares = [100 * share for share in (one["clean"], *row["accuracy"])]
            chart.axes.plot(range(len(shares)), shares, color=colour, marker="o", markersize=4, label=_plain(kind))
        chart.axes.set_ylim(bottom=0)
        chart.legend()
    by_tokens = ""
    rising = sorted((o for o in found if o["patch_size"] == one["patch_size"]), key=lambda o: int(o["tokens"]))
    if len(rising) > 1:
        with Chart("tokens of one image at most", "accuracy, %") as budgets:
            x = [o["tokens"] for o in rising]
            budgets.axes.plot(x, [100 * o["clean"] for o in rising], color=GREY, marker="o", label="clean")
            for kind, colour in zip(one["kinds"], COLOURS, strict=False):
                y = [100 * o["kinds"][kind]["mean"] for o in rising]
                budgets.axes.plot(x, y, color=colour, marker="o", markersize=4, label=_plain(kind))
            budgets.axes.set_ylim(bottom=0)
        by_tokens = f"<div><p>Mean over the strengths, by budget</p>{budgets.svg}</div>"
    kinds = list(one["kinds"])
    rows = [
        [_setting(o), f"{o['clean']:.1%}", *(_kept(o["kinds"][kind]) for kind in kinds), _kept(o), _ends(o["mean_95"])]
        for o in found
    ]
    note = "<p>Means over the strengths; in brackets what is left of the clean accuracy.</p>"
    curves = f'<div class="two"><div><p>By strength: {text(_setting(one))}</p>{chart.svg}</div>{by_tokens}</div>'
    return f"{curves}{note}{table(['', 'clean', *kinds, 'mean', '95 %'], rows)}"


def _kept(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.1%}" + ("" if row["relative"] is None else f" ({row['relative']:.0%})")


def _mistakes(rows: Sequence[Mapping[str, Any]]) -> str:
    figures = [
        figure(
            row["picture"],
            row["image"],
            f"{text(row['predicted'])} <span>{row['confidence']:.1%}</span>",
            f"<span>is {text(', '.join(row['labels']) or 'of no class')}</span>",
        )
        for row in rows
    ]
    note = "<p>Wrong answers of which the model was surest: what it said, and what the image is.</p>"
    return f'{note}<div class="pictures">{"".join(figures)}</div>'


def _far_off(rows: Sequence[Mapping[str, Any]]) -> str:
    figures = [
        figure(
            row["picture"],
            row["image"],
            f"{row['predicted']:.6g} <span>{row['predicted'] - row['number']:+.4g}</span>",
            f"<span>is {row['number']:.6g}</span>",
        )
        for row in rows
    ]
    note = "<p>Answers that are farthest off: what the model said, by how much it is off, and what the image is.</p>"
    return f'{note}<div class="pictures">{"".join(figures)}</div>'
