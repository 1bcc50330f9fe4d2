"""Muon beside AdamW: what it makes of a gradient, whose parameters it takes, and that a run with it is a run as any other.

In: small matrices, a small model, shapes. Out: real runs, also under torchrun; torch's own Muon as the peer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from navit_loader.errors import ModelError
from navit_model import NaViT
from navit_model.config import NaViTConfig
from navit_model.train import checkpoint
from navit_model.train.log import read_log
from navit_model.train.muon import Muon, orthogonal
from navit_model.train.optim import optimiser
from navit_model.train.run import train
from navit_model.train.settings import RunConfig, TrainConfig

from .ranks import stopped, work
from .shapes import table, write_index
from .test_train_ranks import torchrun

MUON = {"optimiser": "muon", "augment": {"layers": 1, "erase": 0.5}, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_index(tmp_path_factory.mktemp("shapes"))


def losses(out: Path) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_log(out) if e["kind"] == "train"}


def stepped(shape: tuple[int, int], parts: int, gradients: list[Tensor], decay: float = 0.0) -> Tensor:
    """What steps at a rate of 1 add to a parameter of ones."""
    parameter = nn.Parameter(torch.ones(shape))
    muon = Muon([{"params": [parameter], "weight_decay": decay, "parts": parts}], lr=1.0, betas=(0.9, 0.999))
    for gradient in gradients:
        parameter.grad = gradient
        muon.step()
    return parameter.detach() - 1


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_an_update_has_the_singular_vectors_of_the_momentum_and_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    update = -stepped(shape, 1, [gradient]) / (0.2 * max(shape) ** 0.5)
    u, s, v = torch.linalg.svd(gradient, full_matrices=False)
    inner = u.T @ update @ v.T
    assert (inner.diagonal() > 0.6).all() and (inner.diagonal() < 1.3).all()
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4
    assert s.max() / s.min() > 1.5
    # The root mean square is AdamW's, of some 0.2.
    assert float(update.square().mean().sqrt() * 0.2 * max(shape) ** 0.5) == pytest.approx(0.2, rel=0.2)


def test_torch_s_own_muon_does_the_same_to_a_matrix() -> None:
    torch.manual_seed(1)
    for shape in ((16, 16), (64, 16), (16, 64)):
        gradients = [torch.randn(shape) for _ in range(4)]
        peer = nn.Parameter(torch.ones(shape))
        theirs = torch.optim.Muon([peer], lr=1.0, weight_decay=0.3, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            peer.grad = gradient
            theirs.step()
        ours = stepped(shape, 1, gradients, decay=0.3)
        # Torch computes in bfloat16 on every device.
        assert (ours - (peer.detach() - 1)).norm() < 0.02 * ours.norm()


def test_matrices_in_one_weight_do_not_see_one_another() -> None:
    torch.manual_seed(2)
    gradient = torch.randn(48, 16)
    apart = stepped((48, 16), 3, [gradient])
    alone = torch.cat([stepped((16, 16), 1, [part]) for part in gradient.chunk(3)])
    torch.testing.assert_close(apart, alone, rtol=1e-4, atol=1e-6)
    small = gradient.clone()
    small[:16] *= 1e-3
    torch.testing.assert_close(stepped((48, 16), 3, [small]), apart, rtol=1e-3, atol=1e-4)
    # As one matrix, the queries would hardly learn.
    together = stepped((48, 16), 1, [small])
    assert together[:16].norm() < 0.05 * together[16:32].norm()


def test_shapes_that_are_done_together_are_done_as_by_themselves() -> None:
    torch.manual_seed(3)
    gradients = [torch.randn(shape) for shape in ((48, 16), (16, 16), (64, 16), (16, 64), (16, 16))]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    groups = [{"params": parameters[:1], "weight_decay": 0.0, "parts": 3}]
    groups.append({"params": parameters[1:], "weight_decay": 0.0, "parts": 1})
    Muon(groups, lr=1.0, betas=(0.9, 0.999)).step()
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        alone = stepped(tuple(gradient.shape), 1 if i else 3, [gradient])
        torch.testing.assert_close(parameter.detach(), alone, rtol=1e-4, atol=1e-6)
    assert orthogonal(torch.zeros(2, 4, 8)).isfinite().all()


def test_the_blocks_matrices_are_muon_s_and_all_else_is_where_it_was() -> None:
    config = NaViTConfig(
        width=16, depth=2, heads=2, patch_size=4, classes=3, registers=1, mlp_gate=True, layer_scale=0.1
    )
    net = NaViT(config)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    run = TrainConfig(weight_decay=0.25, head_weight_decay=0.5, layer_decay=0.5)

    def told(config: TrainConfig) -> dict[str, dict[str, Any]]:
        return {names[id(p)]: g for g in optimiser(net, config).param_groups for p in g["params"]}

    plain, muon = told(run), told(replace(run, optimiser="muon"))
    assert plain.keys() == muon.keys() == set(names.values())
    taken = {name: group["parts"] for name, group in muon.items() if group["parts"]}
    kinds = {"qkv": 3, "out": 1, "mlp.up": 2, "mlp.down": 1}
    assert taken == {f"blocks.{i}.{kind}.weight": parts for i in range(2) for kind, parts in kinds.items()}
    for name, group in plain.items():
        assert not group["parts"]
        for key in ("weight_decay", "scale"):
            assert muon[name][key] == group[key], name
    # Without Muon's groups the rest moves as by AdamW alone.
    other = NaViT(config)
    other.load_state_dict(net.state_dict())
    for model, kind in ((net, "muon"), (other, "adamw")):
        optimizer = optimiser(model, replace(run, optimiser=kind))  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
    after = dict(other.named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, after[name]) == (name not in taken), name


def test_a_step_whose_gradient_overflows_is_left_out_whole() -> None:
    matrix, vector = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    groups = [{"params": [matrix], "parts": 1}, {"params": [vector], "parts": 0}]
    muon = Muon(groups, lr=0.1, betas=(0.9, 0.999))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, moved in ((float("inf"), False), (1.0, True)):
        before = [p.detach().clone() for p in (matrix, vector)]
        scaler.scale((matrix.sum() + vector.sum()) * factor).backward()
        scaler.unscale_(muon)
        scaler.step(muon)
        scaler.update()
        muon.zero_grad()
        assert [not torch.equal(p, b) for p, b in zip((matrix, vector), before, strict=True)] == [moved] * 2
    assert scaler.get_scale() == 4.0


def test_a_run_learns_goes_on_bit_for_bit_and_keeps_its_optimiser(index: str, tmp_path: Path) -> None:
    changes = {**MUON, "layer_decay": 0.75, "ema": 0.9, "accumulate": 2, "freeze": 1}
    whole, halves = (RunConfig.from_dict(table(index, tmp_path / name, **changes)) for name in ("whole", "halves"))
    train(whole)
    stopped(halves, 7)
    train(halves, resume=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "halves")
    ends = [checkpoint.open_checkpoint(tmp_path / name) for name in ("whole", "halves")]
    for name in ("model", "average", "optimizer"):
        first, second = (end.read(name) for end in ends)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first), name
    kept = {name.rpartition("/") for name in ends[0].read("optimizer")}
    assert {key for name, _, key in kept if name == "blocks.0.qkv.weight"} == {"momentum_buffer"}
    assert {key for name, _, key in kept if name == "norm.weight"} == {"step", "exp_avg", "exp_avg_sq"}
    other = replace(halves, train=replace(halves.train, optimiser="adamw"))
    with pytest.raises(ModelError, match=r"train\.optimiser = 'muon', the run now says 'adamw'"):
        train(other, resume=True)
    long = table(index, tmp_path / "long", steps=60, optimiser="muon")
    long["data"]["eval_index"] = index
    (score,) = train(RunConfig.from_dict(long))
    assert score.accuracy > 0.9  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one_with_the_doubled_batch(index: str, tmp_path: Path) -> None:
    def run(name: str, batch: int, **changes: Any) -> dict[str, Any]:
        return table(index, tmp_path / name, batch, steps=30, warmup=5, learning_rate=3e-3, ema=0.9, **MUON, **changes)

    work(run("one", 4))
    torchrun(2, [{"table": run("ddp", 2)}, {"table": run("fsdp", 2, parallel="fsdp")}], tmp_path)
    one = losses(tmp_path / "one")
    assert one[30] < 0.9 * one[1]
    first = checkpoint.open_checkpoint(tmp_path / "one")
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-3), name
        other = checkpoint.open_checkpoint(tmp_path / name)
        for file in ("model", "average", "optimizer"):
            ours, theirs = first.read(file), other.read(file)
            assert ours.keys() == theirs.keys()
            assert all(ours[k].shape == theirs[k].shape for k in ours)
            assert all(torch.allclose(ours[k], theirs[k], atol=5e-3) for k in ours), (name, file)
