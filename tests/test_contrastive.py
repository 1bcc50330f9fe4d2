"""Losses of pairs against their plain forms: value and gradient, on one rank and on several with unequal counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from navit_loader.errors import ModelError
from navit_model.losses import contrastive
from navit_model.losses.contrastive import sigmoid_contrastive, softmax_contrastive


def plain(kind: str, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The loss of each pair from the whole matrix of logits, in float64."""
    z = scale * x @ y.T
    target = torch.arange(len(x))
    if kind == "softmax":
        return (F.cross_entropy(z, target, reduction="none") + F.cross_entropy(z.T, target, reduction="none")) / 2
    sign = 2 * torch.eye(len(x), dtype=z.dtype) - 1
    return -F.logsigmoid(sign * (z + bias)).sum(1)


def drawn(slots: tuple[int, ...], width: int, share: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(*slots, width, generator=generator), dim=-1) for _ in range(2))
    valid = torch.rand(*slots, generator=generator) < share
    return {"x": x, "y": y, "valid": valid, "scale": torch.tensor(9.0), "bias": torch.tensor(-4.0)}


def reference(kind: str, pairs: dict[str, Tensor], weights: Tensor | None = None) -> dict[str, Tensor]:
    """Sums by rank and gradients over the pairs of all ranks; `weights` multiply the sum of each rank."""
    valid = pairs["valid"]
    leaves = {name: pairs[name].double().requires_grad_() for name in ("x", "y", "scale", "bias")}
    each = torch.zeros(valid.shape, dtype=torch.float64)
    if valid.any():
        each[valid] = plain(kind, leaves["x"][valid], leaves["y"][valid], leaves["scale"], leaves["bias"])
    sums = each.flatten(1).sum(1) if valid.ndim > 1 else each.sum()
    if valid.any():
        (sums * (1.0 if weights is None else weights)).sum().backward()
    grads = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return {"sum": sums.detach(), **grads}


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found.double() - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max())))


def loss(kind: str, x: Tensor, y: Tensor, valid: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    if kind == "softmax":
        return softmax_contrastive(x, y, valid, scale)
    return sigmoid_contrastive(x, y, valid, scale, bias)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["softmax", "sigmoid"]),
    pairs=st.integers(1, 23),
    block=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    seed=st.integers(0, 999),
)
def test_blocks_equal_the_whole_matrix(kind: str, pairs: int, block: int, share: float, seed: int) -> None:
    given_ = drawn((pairs,), 6, share, seed)
    x, y = (given_[name].masked_fill(~given_["valid"][:, None], torch.nan).requires_grad_() for name in ("x", "y"))
    scale, bias = (given_[name].clone().requires_grad_() for name in ("scale", "bias"))
    before, contrastive.BLOCK = contrastive.BLOCK, block
    try:
        total, count = loss(kind, x, y, given_["valid"], scale, bias)
        total.backward()
    finally:
        contrastive.BLOCK = before
    wanted = reference(kind, given_)
    assert int(count) == int(given_["valid"].sum())
    assert close(total.detach(), wanted["sum"])
    for name, leaf in {"x": x, "y": y, "scale": scale, **({"bias": bias} if kind == "sigmoid" else {})}.items():
        assert close(leaf.grad, wanted[name]), name


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_those_of_finite_differences(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every input, where each pair has a weight of its own."""
    monkeypatch.setattr(contrastive, "BLOCK", 3)
    given_ = drawn((7,), 4, 0.8, 5)
    leaves = [given_[name].clone().requires_grad_() for name in ("x", "y", "scale", "bias")]
    total, _ = loss(kind, leaves[0], leaves[1], given_["valid"], leaves[2], leaves[3])
    total.backward()
    generator = torch.Generator().manual_seed(1)
    for leaf, name in zip(leaves, ("x", "y", "scale", "bias"), strict=True):
        if leaf.grad is None:
            assert (kind, name) == ("softmax", "bias")
            continue
        way, step = torch.randn(leaf.shape, generator=generator).double(), 1e-5
        ends = []
        for sign in (1, -1):
            moved = {**given_, name: given_[name].double() + sign * step * way}
            ends.append(float(reference(kind, moved)["sum"]))
        assert float((leaf.grad.double() * way).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


def test_ranks_with_unequal_counts_equal_one_process(tmp_path: Path) -> None:
    """Three ranks, and two of them as a group of their own, where the next rank is the one before."""
    pairs = drawn((3, 11), 8, 0.6, 0)
    pairs["valid"][0, :] = True
    pairs["valid"][1, 2:] = False
    counts = pairs["valid"].sum(1).tolist()
    assert len(set(counts)) == 3
    torch.save(pairs, tmp_path / "pairs.pt")
    script = Path(__file__).parent / "contrastive_rank.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path / "pairs.pt"), str(tmp_path), "4"],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(3)]
    for (kind, ranks), of_first in found[0].items():
        mine = {name: value[:ranks] if value.ndim else value for name, value in pairs.items()}
        wanted = reference(kind, mine, torch.arange(1.0, ranks + 1))
        of = [of_first, *(rank[kind, ranks] for rank in found[1:ranks])]
        for rank in range(ranks):
            assert int(of[rank]["count"]) == counts[rank]
            for name in ("sum", "x", "y"):
                assert close(of[rank][name], wanted[name][rank]), (kind, ranks, name, rank)
        for name in ("scale", "bias") if kind == "sigmoid" else ("scale",):
            assert close(sum(each[name] for each in of), wanted[name]), (kind, ranks, name)
    assert len(found[0]) == 4


class Largest(TorchDispatchMode):
    """Notes the most values that any result of any operation has."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.values = max(self.values, each.numel())
        return found


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_nothing_grows_with_the_square_of_the_pairs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "BLOCK", 16)
    most = []
    for pairs in (64, 512):
        given_ = drawn((pairs,), 8, 1.0, 0)
        leaves = [given_[name].clone().requires_grad_() for name in ("x", "y", "scale", "bias")]
        with Largest() as seen:
            loss(kind, leaves[0], leaves[1], given_["valid"], leaves[2], leaves[3])[0].backward()
        most.append(seen.values / pairs)
    assert most[0] == most[1] <= 2 * 8 + 3


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_under_autocast_the_loss_is_still_exact(kind: str) -> None:
    given_ = drawn((40,), 32, 1.0, 0)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = loss(kind, given_["x"], given_["y"], given_["valid"], given_["scale"], given_["bias"])
    assert close(total, reference(kind, given_)["sum"])


def test_what_is_no_pair_is_refused() -> None:
    given_: Any = drawn((4,), 8, 1.0, 0)
    with pytest.raises(ModelError, match=r"images \(4, 8\), texts \(3, 8\) and valid \(4,\) are no pairs"):
        softmax_contrastive(given_["x"], given_["y"][:3], given_["valid"], given_["scale"])
