"""The claims: each is a function that trains what it needs, and says what the paper found, what we found, and if it holds.

In: a `Kit`. Out: `Line`s of the table. The scale is tiny (8 × 8 digits, a model of 0.2 million weights, minutes of one
CPU), so a claim that does not hold here says little about the paper; it is printed as such all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from claims_compute import packing
from claims_kit import PATCH, Figure, Kit, Line
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from navit_loader import PackedLoader
from navit_loader.batch import PackedBatch
from navit_loader.config import LoaderConfig
from navit_model import NaViT, NaViTConfig
from navit_model.evaluate.cascade import cascade
from navit_model.evaluate.classification import judge
from navit_model.train import checkpoint

STEPS = 2400
"""Steps of one sequence."""


def digits_(kit: Kit) -> list[Line]:
    """Held-out digits, the demo's own recipe, beside three classical methods on the 8 × 8 values."""
    if kit.given:
        return []
    import digits
    from sklearn.datasets import load_digits

    figure = Figure(tuple(kit.score(kit.run("demo", s, 1500), kit.data(s)).accuracy for s in kit.seeds))
    raw = load_digits()
    methods = {
        "3 nearest neighbours": KNeighborsClassifier(3),
        "logistic regression": LogisticRegression(max_iter=5000),
        "SVC": SVC(gamma=0.5, C=10),
    }
    beside = []
    for name, method in methods.items():
        scores = []
        for s in kit.seeds:
            train, test = digits.split(s)
            scores.append(
                method.fit(raw.data[train] / 16, raw.target[train]).score(raw.data[test] / 16, raw.target[test])
            )
        beside.append(f"{name} {np.mean(scores):.2%}")
    return [
        Line(
            "held-out digits, 1,500 steps",
            "goal ≥ 98.5 %",
            f"{figure.percent()}; {', '.join(beside)}",
            figure.mean >= 0.985,
        )
    ]


def drops(kit: Kit) -> list[Line]:
    """Kinds of token drop after equal steps of equal length, so nearly equal compute."""
    total = kit.steps(STEPS) * 512 // 12  # images of the run, about: the schedule's scale
    slow = {"kind": "sigmoid", "midpoint": total / 2, "width": total / 8}
    kinds: dict[str, dict[str, Any]] = {
        "none": {"kind": "none"},
        "constant 0.5": {"kind": "constant", "rate": 0.5},
        "Beta, mean 0.5": {"kind": "beta", "rate": 0.5, "max_rate": 0.8},
        "by resolution 0.2 to 0.8": {"kind": "resolution_dependent", "min_rate": 0.2, "max_rate": 0.8},
        "rising 0.2 to 0.8": {"kind": "constant", "schedule": {**slow, "start": 0.2, "end": 0.8}},
        "falling 0.8 to 0.2": {"kind": "constant", "schedule": {**slow, "start": 0.8, "end": 0.2}},
    }
    found = _each(kit, "drop", {name: {"plan": {"drop": drop}} for name, drop in kinds.items()})
    return [
        Line("token drop against none, same compute", "better", _all(found), _beats(found, "constant 0.5", "none")),
        Line(
            "drop by resolution against Beta",
            "better",
            "as above",
            _beats(found, "by resolution 0.2 to 0.8", "Beta, mean 0.5"),
        ),
        Line(
            "drop falling against rising",
            "76.5 / 72.2",
            "as above",
            _beats(found, "falling 0.8 to 0.2", "rising 0.2 to 0.8"),
        ),
    ]


def sizes(kit: Kit) -> list[Line]:
    """Distributions of the side, after equal steps of equal length."""
    kinds: dict[str, dict[str, Any]] = {}
    for unit in ("side", "area"):
        for mean in (-0.5, 0.0, 0.5):
            kinds[f"{unit} N({mean:+g})"] = {"kind": "truncated_normal", "mean": mean, "unit": unit}
        kinds[f"{unit} uniform"] = {"kind": "uniform", "unit": unit}
    plans = {name: {"plan": {"resolution": {"low": 12, "high": 32, **kind}}} for name, kind in kinds.items()}
    found = _each(kit, "size", plans)
    side = np.mean([found[n].mean for n in found if n.startswith("side")])
    area = np.mean([found[n].mean for n in found if n.startswith("area")])
    low = _beats(found, "side N(-0.5)", "side N(+0.5)")
    return [
        Line("sides drawn low, N(−0.5) against N(+0.5)", "64.3 / 63.8", _all(found), low),
        Line("drawing the side against the area", "63.9 / 63.2", f"{side:.2%} / {area:.2%}", bool(side > area)),
    ]


def positions(kit: Kit) -> list[Line]:
    """Position embeddings, trained on sides of 12 to 24 pixels, seen at up to 64 tokens."""
    kinds = ("learned_1d", "learned_2d", "factorised", "sinusoidal", "fourier", "fractional_fourier")
    budgets = (9, 16, 25, 36, 49, 64)
    means, best = {}, {}
    for kind in kinds:
        scores = []
        for s in kit.seeds:
            run = kit.quick(
                f"position-{kind}",
                s,
                STEPS,
                plan={"resolution": {"kind": "uniform", "low": 12, "high": 24}, "max_tokens": 64},
                model={"positions": kind},
            )
            scores.append([kit.score(run, kit.data(s), tokens).accuracy for tokens in budgets])
        means[kind] = Figure(tuple(float(np.mean(row)) for row in scores))
        best[kind] = Figure(tuple(float(np.max(row)) for row in scores))
    ours = ", ".join(f"{kind} {means[kind].percent()} / {best[kind].percent()}" for kind in kinds)
    return [
        Line(
            "factorised positions against 1D over seen and unseen sizes (mean / best)",
            "64.9 / 71.5 against 53.8 / 69.3",
            ours,
            means["factorised"].mean > means["learned_1d"].mean,
        )
    ]


def patches(kit: Kit) -> list[Line]:
    """One FlexiViT against models of one patch size, each seen at every patch size that it takes."""
    flexible, fixed = [], []
    base = {"patch_size": 8, "patch_sizes": [4, 6, 8]}
    sizes_ = {"resolution": {"kind": "uniform", "low": 16, "high": 32}}
    for s in kit.seeds:
        flexi = kit.quick("flexi", s, STEPS * 2, plan={"patch_sizes": [4, 6, 8], "patch_run": 8, **sizes_}, model=base)
        flexible.append([kit.score(flexi, kit.data(s), 64, P).accuracy for P in (4, 6, 8)])
        rows = []
        for P in (4, 6, 8):
            run = kit.quick(f"patch-{P}", s, STEPS * 2, plan={"patch_sizes": [P], **sizes_}, model={"patch_size": P})
            rows.append(kit.score(run, kit.data(s), 64).accuracy)
        fixed.append(rows)
    a, b = np.mean(flexible, 0), np.mean(fixed, 0)
    columns = zip((4, 6, 8), zip(*flexible, strict=True), zip(*fixed, strict=True), strict=True)
    ours = ", ".join(f"P {P}: {Figure(x).percent()} / {Figure(y).percent()}" for P, x, y in columns)
    return [Line("one FlexiViT / one model for each patch size", "nearly equal", ours, bool((a > b - 0.01).all()))]


def inference(kit: Kit) -> list[Line]:
    """Accuracy and calibration over budgets, and a cascade, of the models with half of the tokens dropped."""
    budgets = (9, 16, 25, 36, 49, 64)
    accuracies, errors, gains = [], [], []
    for s in kit.seeds:
        run = kit.quick("drop-constant_0.5", s, STEPS, plan={"drop": {"kind": "constant", "rate": 0.5}})
        scores = [kit.score(run, kit.data(s), tokens) for tokens in budgets]
        accuracies.append([score.accuracy for score in scores])
        errors.append([score.ece for score in scores])
        saved = checkpoint.open_checkpoint(run)
        told = [judge(saved.model(), kit.data(s).test, saved.config.loader, tokens=t)[1] for t in (16, 64)]
        whole = scores[-1]
        enough = [p.tokens for p in cascade(told) if p.accuracy >= whole.accuracy - 0.002]
        gains.append(min(enough) / whole.mean_tokens)
    mean, ece = np.mean(accuracies, 0), np.mean(errors, 0)
    seen = ece[1:]
    calibration = (
        f"{t}: {e.mean:.3f} ± {e.spread:.3f}"
        for t, e in zip(budgets, map(Figure, zip(*errors, strict=True)), strict=True)
    )
    gain = Figure(tuple(gains))
    return [
        Line(
            "half of the tokens at inference",
            "within 1 %",
            _curve(budgets, accuracies),
            bool(mean[3] > mean[-1] - 0.01),
        ),
        Line(
            "calibration steady over budgets (ECE)",
            "0.045–0.048",
            ", ".join(calibration),
            bool(seen.max() - seen.min() < 0.02),
        ),
        Line(
            "cascade 16 → 64 tokens, tokens for 64's accuracy less 0.2 %",
            "Pareto-optimal",
            f"{gain.mean:.2f} ± {gain.spread:.2f} of the tokens",
            gain.mean < 1,
        ),
    ]


def few_to_many(kit: Kit) -> list[Line]:
    """Trained at few tokens an image, evaluated at more."""
    rows = []
    for s in kit.seeds:
        run = kit.quick(
            "few", s, STEPS, plan={"resolution": {"kind": "uniform", "low": 12, "high": 20}, "max_tokens": 25}
        )
        rows.append([kit.score(run, kit.data(s), tokens).accuracy for tokens in (16, 25, 36, 64)])
    mean = np.mean(rows, 0)
    claim, paper = "trained at ≤ 25 tokens, evaluated at 36", "81.8 → 85.3 (8 × 8 → 24 × 24)"
    return [Line(claim, paper, _curve((16, 25, 36, 64), rows), bool(mean[2] > mean[1]))]


def overhead(kit: Kit) -> list[Line]:
    """CPU time of a training step with attention over whole packed sequences (dense), against over images (varlen)."""
    batch = _batch(kit.data(0).train)
    shares = {}
    for width in (64, 192, 384, 768):
        models = {
            attention: NaViT(
                NaViTConfig(
                    width=width,
                    depth=2,
                    heads=width // 32,
                    patch_size=PATCH,
                    max_grid=32,
                    attention=attention,
                    classes=10,
                )
            )
            for attention in ("dense", "segments")
        }
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(8):
            for name, model in models.items():
                start = time.process_time()
                model(batch).square().mean().backward()
                times[name].append(time.process_time() - start)
        ratios = [a / b for a, b in zip(times["dense"][1:], times["segments"][1:], strict=True)]
        shares[width] = median(ratios) - 1
    return [
        Line(
            "overhead of attention over a packed sequence of 512 tokens, dense against varlen, by width",
            "shrinks with width",
            ", ".join(f"{width}: {share:+.0%}" for width, share in shares.items()),
            shares[768] < shares[64],
        )
    ]


def _batch(index: str) -> PackedBatch:
    """One sequence of 512 tokens of digits."""
    config = LoaderConfig.from_dict(
        {
            "data": {"batch_size": 1},
            "plan": {
                "sequence_length": 512,
                "max_images": 96,
                "max_tokens": 64,
                "max_grid": 32,
                "patch_sizes": [PATCH],
                "resolution": {"kind": "fixed", "low": 30, "high": 30},
            },
        }
    )
    with PackedLoader(index, config) as loader:
        return next(iter(loader)).to("cpu")


def _each(kit: Kit, group: str, variants: dict[str, dict[str, Any]]) -> dict[str, Figure]:
    """Accuracy at 64 tokens of each variant over the seeds."""
    return {
        name: Figure(
            tuple(
                kit.score(kit.quick(f"{group}-{name.replace(' ', '_')}", s, STEPS, **changes), kit.data(s)).accuracy
                for s in kit.seeds
            )
        )
        for name, changes in variants.items()
    }


def _curve(budgets: tuple[int, ...], rows: list[list[float]]) -> str:
    """Accuracy at each budget, of one row per seed."""
    figures = map(Figure, zip(*rows, strict=True))
    return ", ".join(f"{t}: {figure.percent()}" for t, figure in zip(budgets, figures, strict=True))


def _all(found: dict[str, Figure]) -> str:
    return ", ".join(f"{name} {figure.percent()}" for name, figure in found.items())


def _beats(found: dict[str, Figure], better: str, worse: str) -> bool:
    """Better in the mean by more than the standard error of the difference."""
    a, b = found[better], found[worse]
    error = ((a.spread**2 + b.spread**2) / len(a.values)) ** 0.5
    return a.mean - b.mean > error


CLAIMS: dict[str, Callable[[Kit], list[Line]]] = {
    "digits": digits_,
    "packing": packing,
    "drop": drops,
    "sizes": sizes,
    "positions": positions,
    "patches": patches,
    "inference": inference,
    "few": few_to_many,
    "overhead": overhead,
}
