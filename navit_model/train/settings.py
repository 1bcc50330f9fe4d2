"""The settings of a run: `[train]`, and the whole TOML file with `key=value` changes from the command line.

In: a TOML file and overrides such as `train.steps=500`. Out: a frozen `RunConfig`. Apart from the loop, so that
evaluation, reports and checkpoints read the same words. Every key is checked where it is read, in the loader's own words.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from navit_loader.bounds import AT_LEAST_0, AT_LEAST_1, FINITE, RATE, Bound
from navit_loader.config import LoaderConfig
from navit_loader.errors import ConfigError
from navit_loader.schema import check_part, check_types, parse, read_toml, require

from ..config import (
    AugmentConfig,
    ContrastiveConfig,
    DetectionConfig,
    DistillationConfig,
    MixConfig,
    NaViTConfig,
    PanopticConfig,
    RegressionConfig,
    SegmentationConfig,
    TextConfig,
)

_CLASS_WEIGHT = Bound(above=0, finite=True, words="above 0 and finite")
_BETA = Bound(0, below=1, words="two values, at least 0 and below 1", whole=True)
_BUDGET = Bound(1, words="a list of budgets >= 1", whole=True)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """`[train]`: how the model learns.

    Attributes:
        task: what is learnt; see `navit_model/train/tasks`.
        out: folder of the run: log, checkpoints, report.
        steps: optimiser steps in all.
        accumulate: batches of one rank per step.
        loss: `softmax` or `sigmoid` (the paper uses sigmoid on JFT), of classes or, if contrastive, of pairs (CLIP, SigLIP).
        label_smoothing: share of the target spread over all classes.
        class_weights: what an image of a class counts in the loss (of sigmoids, what the decision for its class does), by class
            name; others 1. `balanced`: as much as makes all classes count the same, and 1 in the mean over the images.
            `plan.class_weights` shows images more often instead.
        learning_rate: peak of the schedule.
        optimiser: `adamw`, or `muon`: Muon for the matrices of the blocks, AdamW for all else, at the same rate and decay.
        schedule: `cosine`, `rsqrt` (reciprocal square root, as the paper) or `constant`, after a linear warm-up.
        warmup: steps of the warm-up.
        timescale: steps behind the warm-up in which `rsqrt` falls by √2; 0 takes the warm-up's (big_vision: 10,000).
        cooldown: steps of the linear descent to 0 at the end of `rsqrt` and `constant`.
        weight_decay: of the body's matrices. As in torch, a step shrinks them by learning rate × decay.
        layer_decay: the rate of each layer is this times that of the layer above; 1 makes them equal. Layers are the
            embedding, each block, and all behind the blocks, which learns at the full rate (arXiv 2106.08254, appendix).
        freeze: layers of the image model, from the embedding on, that stay as they are; depth + 1 leaves what is behind
            the blocks.
        head_weight_decay: of the classifier's matrix (the paper: 3.0, and 0.03 for the body).
        betas: of AdamW.
        clip: largest norm of the gradient; 0 leaves it alone.
        ema: decay of the weights' moving average per step; 0 keeps none. Where kept, it is what is evaluated.
        precision: `fp32`, or autocast in `bf16` or, on a GPU, in `fp16` with the loss scaled: for those before Ampere.
        compile: compile the image tower (`NaViT.compile`).
        parallel: how several ranks share the model: `ddp` keeps all of it on each, `fsdp` spreads weights, gradients and
            moments over them (FSDP2, `fully_shard`).
        device: `auto` takes CUDA where there is one.
        decode: who makes the pixels of the training batches: `cpu`, the loader's engine, here or at the daemons; `dali`
            or `nvjpeg`, NVIDIA's on `device`, from encoded files (docs/rooms/dali.md); `auto`, the faster of `cpu` and `dali`,
            measured at the start.
        threads: torch's CPU threads; 0 leaves torch's choice.
        seed: of the weights and of dropout, which is keyed by (seed, step, rank). The data has its own, `plan.seed`.
        augment: colour operations and random erasing on the device; see `AugmentConfig`.
        mix: mixup and cutmix between the images of a sequence; see `MixConfig`.
        log_every: steps between lines of the log.
        tensorboard: write TensorBoard's event files to `OUT/tensorboard` too (extra `tensorboard`).
        wandb: show the log's scalars at Weights & Biases too (extra `wandb`); its environment variables say where.
        mlflow: the same in MLflow (extra `mlflow`).
        peak_tflops: what one device could do at most, for MFU; 0 takes the known bfloat16 peak of its GPU, or shows no MFU.
        eval_every: steps between evaluations; 0 evaluates at the end alone.
        eval_tokens: token budgets at which the held-out index is evaluated; empty takes `plan.max_tokens`.
        checkpoint_every: steps between checkpoints; 0 saves at the end alone.
        keep: checkpoints to keep.
        best: keep the checkpoint of the best evaluation too, in `checkpoints/best-*`: of the highest accuracy (contrastive:
            mean recall at 1 of both ways; regression: R²; detection: AP; segmentation: mIoU; panoptic: PQ) at the largest of
            `eval_tokens`. It is what is used of the run later.
        patience: evaluations without a better score after which the run ends; 0 runs to the last step.
        allow_render_change: take up a checkpoint although pixels are now made otherwise (another `render_id`), such as by
            another decoder.
    """

    task: Literal[
        "classification", "contrastive", "detection", "distillation", "panoptic", "regression", "segmentation"
    ] = "classification"
    out: Annotated[str, Bound(1, words="the path of a folder")] = "runs/navit"
    steps: Annotated[int, AT_LEAST_1] = 10_000
    accumulate: Annotated[int, AT_LEAST_1] = 1
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: Annotated[float, RATE] = 0.0
    class_weights: dict[str, Annotated[float, _CLASS_WEIGHT]] | Literal["balanced"] = field(default_factory=dict)
    learning_rate: Annotated[float, Bound(above=0, finite=True)] = 1e-3
    optimiser: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "rsqrt", "constant"] = "cosine"
    warmup: Annotated[int, AT_LEAST_0] = 500
    timescale: Annotated[int, AT_LEAST_0] = 0
    cooldown: Annotated[int, AT_LEAST_0] = 0
    layer_decay: Annotated[float, Bound(above=0, most=1)] = 1.0
    freeze: Annotated[int, AT_LEAST_0] = 0
    weight_decay: Annotated[float, FINITE] = 0.03
    head_weight_decay: Annotated[float, FINITE] = 3.0
    betas: tuple[Annotated[float, _BETA], Annotated[float, _BETA]] = (0.9, 0.999)
    clip: Annotated[float, FINITE] = 1.0
    ema: Annotated[float, RATE] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    decode: Literal["auto", "cpu", "dali", "nvjpeg"] = "cpu"
    threads: Annotated[int, AT_LEAST_0] = 0
    seed: Annotated[int, AT_LEAST_0] = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    log_every: Annotated[int, AT_LEAST_1] = 20
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    peak_tflops: Annotated[float, FINITE] = 0.0
    eval_every: Annotated[int, AT_LEAST_0] = 0
    eval_tokens: tuple[Annotated[int, _BUDGET], ...] = ()
    checkpoint_every: Annotated[int, AT_LEAST_0] = 1000
    keep: Annotated[int, AT_LEAST_1] = 2
    best: bool = False
    patience: Annotated[int, AT_LEAST_0] = 0
    allow_render_change: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        able = not self.patience or (self.best and self.eval_every > 0)
        require(able, "patience", self.patience, "0 without train.best = true and train.eval_every, which it counts by")
        mixes = self.task in ("classification", "regression")
        require(mixes or not self.mix.on, "mix", self.mix, f"left out: {self.task} mixes no images")
        learns_classes = self.task in ("classification", "distillation")
        weights = self.class_weights
        require(learns_classes or not weights, "class_weights", weights, f"left out: {self.task} learns no classes")
        if self.task == "regression":
            require(self.loss == "softmax", "loss", self.loss, "left out: numbers have a loss of their own")
            require(not self.label_smoothing, "label_smoothing", self.label_smoothing, "0: numbers are not smoothed")

    @property
    def boards(self) -> list[str]:
        """The boards that take the log's scalars."""
        return [kind for kind in ("tensorboard", "wandb", "mlflow") if getattr(self, kind)]


SECTIONS: dict[str, type[Any]] = {
    "model": NaViTConfig,
    "text": TextConfig,
    "contrastive": ContrastiveConfig,
    "distillation": DistillationConfig,
    "regression": RegressionConfig,
    "detection": DetectionConfig,
    "segmentation": SegmentationConfig,
    "panoptic": PanopticConfig,
    "train": TrainConfig,
}
"""The sections beside the loader's."""

READ_BY = {
    "model": "navit_model.model",
    "text": "navit_model.model",
    "contrastive": "navit_model.model",
    "distillation": "navit_model.train",
    "regression": "navit_model.train",
    "detection": "navit_model.train",
    "segmentation": "navit_model.train",
    "panoptic": "navit_model.train",
    "train": "navit_model.train",
    "train.eval_tokens": "navit_model.evaluate",
}
"""The room that reads a section, and those of its keys that another one reads."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """A whole run: the loader's sections and those of `SECTIONS`."""

    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: NaViTConfig = field(default_factory=NaViTConfig)
    text: TextConfig = field(default_factory=TextConfig)
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    panoptic: PanopticConfig = field(default_factory=PanopticConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        scored = self.loader.data.eval_index or not self.train.best
        require(bool(scored), "train.best", True, "false where data.eval_index is left out, since nothing is scored")
        warp, colours = self.loader.plan.warp, self.train.augment
        if warp is not None and warp.kind == "randaugment":
            same = f"{warp.layers}, plan.warp.layers: RandAugment has that many operations, those of colours among them"
            require(colours.layers == warp.layers, "train.augment.layers", colours.layers, same)
            same = f"{warp.magnitude}, plan.warp.magnitude: RandAugment has one strength"
            require(colours.magnitude == warp.magnitude, "train.augment.magnitude", colours.magnitude, same)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> RunConfig:
        """From nested mappings, as TOML gives them.

        Raises:
            ConfigError: an unknown section or key, or a bad value.
        """
        for name in SECTIONS:
            require(isinstance(table.get(name, {}), Mapping), name, table.get(name), "a table of keys")
        found = {name: parse(section, table.get(name, {}), name) for name, section in SECTIONS.items()}
        return cls(loader=LoaderConfig.from_dict(table), **found)

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
        """From a TOML file, changed by `section.key=value` texts whose values are TOML, or plain words.

        Raises:
            ConfigError: the file, a key or a value is not allowed.
        """
        return cls.from_dict(read_changed(path, overrides))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: what a checkpoint stores and `from_dict` reads."""
        return {**asdict(self.loader), **{name: asdict(getattr(self, name)) for name in SECTIONS}}


def read_changed(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The tables of a TOML file after `section.key=value` changes; see `RunConfig.from_toml`."""
    table = read_toml(path)
    for text in overrides:
        set_key(table, text)
    return table


def check_changes(changed: Mapping[str, Any]) -> None:
    """Refuses what no configuration can have, before there is a whole one: unknown sections and keys, and wrong types.

    Raises:
        ConfigError: names the key, its value, and what is allowed.
    """
    loader = get_type_hints(LoaderConfig)
    for name, section in changed.items():
        if name not in (*SECTIONS, *loader):
            raise ConfigError(f"unknown section '{name}'; allowed: {', '.join((*loader, *SECTIONS))}")
        check_part(SECTIONS.get(name) or loader[name], section, name)


def set_key(table: dict[str, Any], text: str) -> None:
    """Applies one `section.key=value` to nested tables."""
    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    require(
        bool(equals) and len(path) >= 2 and all(path), "override", text, "section.key=value, such as train.steps=500"
    )
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word or path needs no quotes on a command line
    for part in path[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override = {text!r} is not allowed; '{part}' is a value, not a table")
    table[path[-1]] = parsed
