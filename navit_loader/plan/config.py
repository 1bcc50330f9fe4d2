"""Configuration of the plan: the section `[plan]` and its tables.

In: keyword arguments, or what `navit_loader.config` read of a TOML file. Out: frozen dataclasses that check themselves, and
the JSON that the engine plans by. Apart from the other sections, since these keys alone decide what goes where: all of them
count in `plan_id`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from ..bounds import AT_LEAST_1, PATCH, RATE, SHARE, Bound
from ..schema import bound_of, check_types, require

MAX_LENGTH = 2**20
"""Tokens of a sequence at most, and so of an image."""

_LENGTH = Bound(1, MAX_LENGTH, "tokens")
_TOKENS = Bound(1, MAX_LENGTH, words="between 1 and sequence_length = {sequence_length}: an image is never split")
_PREFIX = Bound(0, 32767, words="at least 0, below max_tokens = {max_tokens}, and at most 32767")
_AREA = Bound(above=0, most=1, words="[low, high] with 0 < low <= high <= 1", whole=True)
_ASPECT = Bound(above=0, words="[low, high] with 0 < low <= high", whole=True)
_WEIGHT = Bound(0, finite=True, words="finite and not negative", later=True)


@dataclass(frozen=True, slots=True)
class Order:
    """`[plan.order]`: in which order an epoch visits the images.

    Attributes:
        kind: `permutation` (seeded, computed, O(1) memory), `blocks` (blocks of neighbours in seeded order, shuffled
            within a window of blocks: for slow storage), or `sequential`. `auto` is `permutation`, and where an index
            has images in buckets or on web servers `blocks` of 256 in windows of 8.
        block: images per block, for `blocks`.
        window: blocks shuffled together, for `blocks`.
    """

    kind: Literal["auto", "permutation", "blocks", "sequential"] = "auto"
    block: Annotated[int, AT_LEAST_1] = 1024
    window: Annotated[int, AT_LEAST_1] = 16

    def __post_init__(self) -> None:
        check_types(self)
        require(self.window * self.block <= 2**31, "window", self.window, "at least 1")

    def settled(self, remote: bool) -> Order:
        """Without `auto`: for images in buckets or on web servers, or for such as are here."""
        if self.kind != "auto":
            return self
        return Order(kind="blocks", block=256, window=8) if remote else replace(self, kind="permutation")


@dataclass(frozen=True, slots=True)
class Resolution:
    """`[plan.resolution]`: the size at which an image is seen (NaViT, sections 2.2 and 3.2).

    Attributes:
        kind: `truncated_normal` and `uniform` draw from [low, high]; `fixed` takes `high`; `native` keeps the image's
            own size; `budget` scales, up or down, to the most patches that fit `max_tokens`, aspect ratio kept
            (Pix2Struct), and needs `upscale`; `smart` follows the processor of a vision-language family, named by
            `rule`.
        unit: draw the `side` (square root of the area) or the `area` (its square).
        low: smallest side in pixels.
        high: largest side in pixels.
        mean: mean of the truncated normal on [−1, 1], mapped to [low, high]; the paper's best is −0.5.
        std: its standard deviation before truncation.
        upscale: allow sizes above the image's own; `smart` does as its rule does.
        rule: whose arithmetic `smart` follows; see `packer_rs/src/plan/sizing.rs` for the table of rules.
        merge: side of the blocks that both sides are whole numbers of, in patches.
        min_pixels: area below which an image is enlarged.
        max_pixels: area above which it is scaled down; a budget of patches times P².
        max_side: side in pixels above which it is scaled down.
    """

    kind: Literal["truncated_normal", "uniform", "fixed", "native", "budget", "smart"] = "truncated_normal"
    unit: Literal["side", "area"] = "side"
    low: Annotated[int, Bound(1, 16384, "pixels")] = 64
    high: Annotated[int, Bound(1, 16384, words="between low = {low} and 16384 pixels")] = 256
    mean: Annotated[float, Bound(-4, 4)] = -0.5
    std: Annotated[float, Bound(0.01, 100)] = 1.0
    upscale: bool = False
    rule: Literal["qwen", "glm", "paddleocr", "lfm2", "siglip2", "pixtral", "kimi", "gemma4"] = "qwen"
    merge: Annotated[int, Bound(1, 16, later=True)] = 1
    min_pixels: Annotated[int, Bound(0, 2**32, later=True)] = 0
    max_pixels: Annotated[int, Bound(0, 2**32, later=True)] = 0
    max_side: Annotated[int, Bound(0, 2**24, later=True)] = 0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.low <= self.high, "high", self.high, f"between low = {self.low} and 16384 pixels")
        require(
            self.kind != "budget" or self.upscale,
            "upscale",
            self.upscale,
            "true for kind = 'budget'; images that are scaled down only are kind = 'native'",
        )
        if self.kind == "smart":
            self._check_rule()
        else:
            for key, unset in UNSET.items():
                require(getattr(self, key) == unset, key, getattr(self, key), "left out but for kind = 'smart'")

    def _check_rule(self) -> None:
        keys = RULES[self.rule]
        for key in ("merge", "min_pixels", "max_pixels", "max_side"):
            value, said, most = getattr(self, key), f"for rule = {self.rule!r}", bound_of(Resolution, key).most
            if key in keys:
                assert most is not None
                require(1 <= value <= most, key, value, f"between 1 and {most} {said}")
            else:
                require(value == UNSET[key], key, value, f"left out {said}")
        if "min_pixels" in keys:
            require(self.min_pixels <= self.max_pixels, "min_pixels", self.min_pixels, f"at most {self.max_pixels}")

    def to_table(self) -> dict[str, Any]:
        """The keys that count: without those of `smart` where it is another kind, so that names given before stay."""
        return {k: v for k, v in asdict(self).items() if self.kind == "smart" or k not in UNSET}


RULES = {
    "qwen": ("merge", "min_pixels", "max_pixels"),
    "glm": ("merge", "min_pixels", "max_pixels"),
    "paddleocr": ("merge", "min_pixels", "max_pixels"),
    "lfm2": ("merge", "min_pixels", "max_pixels"),
    "siglip2": ("max_pixels",),
    "pixtral": ("merge", "max_side"),
    "kimi": ("merge", "max_pixels", "max_side"),
    "gemma4": ("merge", "max_pixels"),
}
"""Which keys of `[plan.resolution]` each rule reads."""

UNSET: dict[str, Any] = {"rule": "qwen", "merge": 1, "min_pixels": 0, "max_pixels": 0, "max_side": 0}
"""The keys that only `smart` reads, as they are where nobody sets them."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """`[plan.drop.schedule]`: the mean drop rate as a function of n, the images planned since the first step.

    Attributes:
        kind: `constant` leaves `plan.drop.rate` alone; `linear` goes from `start` to `end` over `images`; `sigmoid` is
            ρ(n) = low + (high − low)·σ((n − midpoint)/width) (NaViT, appendix A.5) between `start` and `end`,
            decreasing where end < start.
        start: mean rate at n = 0 (linear) or n → −∞ (sigmoid).
        end: mean rate at and after n = `images` (linear) or n → ∞ (sigmoid).
        images: length of the linear schedule, in images.
        midpoint: μ of the sigmoid, in images.
        width: τ of the sigmoid, in images.
    """

    kind: Literal["constant", "linear", "sigmoid"] = "constant"
    start: Annotated[float, RATE] = 0.8
    end: Annotated[float, RATE] = 0.2
    images: Annotated[int, AT_LEAST_1] = 1_000_000
    midpoint: float = 500_000.0
    width: Annotated[float, Bound(above=0)] = 100_000.0

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class Drop:
    """`[plan.drop]`: which share of an image's tokens is dropped (NaViT, section 2.2, appendices A.4 and A.5).

    Attributes:
        kind: `none`; `constant` (PatchDropout); `beta`: d = u·max_rate with u ~ Beta of mean rate/max_rate and variance
            0.3·m·(1 − m); `resolution_dependent`: N(μ, std) cut at two standard deviations, μ linear in the tokens
            before drop, from `min_rate` at the smallest to `max_rate` at the largest configured size.
        rate: mean drop rate, for `constant` and `beta`.
        min_rate: rate at the smallest size, for `resolution_dependent`.
        max_rate: rate at the largest size, or the bound of `beta`.
        std: standard deviation of `resolution_dependent`.
        keep_whole: share of the images from which nothing is dropped.
        schedule: sets the mean rate over the run.
    """

    kind: Literal["none", "constant", "beta", "resolution_dependent"] = "none"
    rate: Annotated[float, RATE] = 0.5
    min_rate: Annotated[float, RATE] = 0.2
    max_rate: Annotated[float, RATE] = 0.8
    std: Annotated[float, SHARE] = 0.02
    keep_whole: Annotated[float, SHARE] = 0.0
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        check_types(self)
        require(self.min_rate <= self.max_rate, "min_rate", self.min_rate, f"at most max_rate = {self.max_rate}")
        if self.kind == "beta":
            rates = [self.rate] if self.schedule.kind == "constant" else [self.schedule.start, self.schedule.end]
            for rate in rates:
                require(rate < self.max_rate, "max_rate", self.max_rate, f"above the mean rate {rate} for kind 'beta'")


@dataclass(frozen=True, slots=True)
class Crop:
    """`[plan.crop]`: augmentation geometry, in integer pixels of the oriented image.

    Attributes:
        kind: `none`, or `random_resized`: area share from `scale`, aspect ratio (w/h) log-uniform from `ratio`.
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect ratio.
        flip: probability of a left-right mirror.
    """

    kind: Literal["none", "random_resized"] = "none"
    scale: tuple[Annotated[float, _AREA], Annotated[float, _AREA]] = (0.08, 1.0)
    ratio: tuple[Annotated[float, _ASPECT], Annotated[float, _ASPECT]] = (0.75, 4 / 3)
    flip: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.scale[0] <= self.scale[1], "scale", self.scale, _AREA.words)
        require(self.ratio[0] <= self.ratio[1], "ratio", self.ratio, _ASPECT.words)


@dataclass(frozen=True, slots=True)
class Warp:
    """`[plan.warp]`: pictures turned, sheared, moved and tilted, after crop and flip; see docs/rooms/plan.md.

    Attributes:
        kind: `random`, torchvision's RandomAffine and RandomPerspective in one; or `randaugment`, the operations of
            RandAugment that move pixels, while `[train.augment]` does those that change colours.
        rotation: largest angle, in degrees either way, for `random`.
        shear: largest angle of shear along each axis, in degrees either way, for `random`.
        translation: farthest move along each axis, as a share of the side, for `random`.
        perspective: twice the share of a side by which each corner moves inwards at most, for `random`.
        probability: of an image to be warped, for `random`.
        layers: operations for each image, those of colours included, for `randaugment`.
        magnitude: their strength, for `randaugment`. AugReg: 10, 15 or 20.
    """

    kind: Literal["random", "randaugment"] = "random"
    rotation: Annotated[float, Bound(0, 180, "degrees")] = 0.0
    shear: Annotated[float, Bound(0, 60, "degrees")] = 0.0
    translation: Annotated[float, SHARE] = 0.0
    # Beyond it, the picture may reach behind the horizon, and the four corners be no convex figure.
    perspective: Annotated[float, Bound(0, 0.5)] = 0.0
    probability: Annotated[float, Bound(above=0, most=1)] = 1.0
    layers: Annotated[int, Bound(1, 16)] = 2
    magnitude: Annotated[float, Bound(0, 30)] = 10.0

    def __post_init__(self) -> None:
        check_types(self)
        moves = ("rotation", "shear", "translation", "perspective")
        for key in ("layers", "magnitude") if self.kind == "random" else (*moves, "probability"):
            unset = next(f.default for f in fields(self) if f.name == key)
            require(getattr(self, key) == unset, key, getattr(self, key), f"left out for kind = {self.kind!r}")
        anything = self.kind == "randaugment" or any(getattr(self, key) for key in moves)
        require(
            anything, "rotation", self.rotation, "above 0, or another key of [plan.warp] set: nothing would be warped"
        )


@dataclass(frozen=True, slots=True)
class Teacher:
    """`[plan.teacher]`: a second view of the same images for distillation: same crop, flip and warp, own patches, no drop.

    Attributes:
        patch_size: P of the view.
        sequence_length: L of the view.
        max_tokens: M of the view.
        prefix_tokens: learned tokens of each image in the view.
    """

    patch_size: Annotated[int, PATCH] = 16
    sequence_length: Annotated[int, _LENGTH] = 1024
    max_tokens: Annotated[int, _TOKENS] = 256
    prefix_tokens: Annotated[int, _PREFIX] = 0

    def __post_init__(self) -> None:
        check_types(self)
        _check_lengths(self)


@dataclass(frozen=True, slots=True)
class Targets:
    """`[plan.targets]`: boxes and masks of an image's objects, seen through its crop, mirror and warp; see docs/plan.md.

    Attributes:
        boxes: batches have the boxes that are seen.
        capacity: O, boxes of a sequence at most, counted before the crop: one more capacity of the packer. Images with more are
            not planned, and counted.
        clip: a box that the picture cuts is dropped where less than this share of its area is left.
        masks: S, cells of a mask along each side of a patch; 0 without masks.
        kind: what a cell tells: the class (`semantic`), or which of the image's boxes (`regions`).
    """

    boxes: bool = False
    capacity: Annotated[int, Bound(0, 32767, "boxes of a sequence")] = 0
    clip: Annotated[float, SHARE] = 0.0
    masks: Annotated[int, Bound(0, 64, "cells along a side of a patch")] = 0
    kind: Literal["semantic", "regions"] = "semantic"

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.boxes or self.masks > 0, "boxes", self.boxes, "true, or masks above 0: nothing would be in a batch"
        )
        if self.boxes:
            require(1 <= self.capacity <= 32767, "capacity", self.capacity, "between 1 and 32767 boxes of a sequence")
        else:
            require(self.capacity == 0, "capacity", self.capacity, "left out without boxes = true")
            require(self.clip == 0, "clip", self.clip, "left out without boxes = true")
        if self.kind == "regions":
            require(self.masks > 0, "masks", self.masks, "above 0 for kind = 'regions'")
            require(self.boxes, "boxes", self.boxes, "true for kind = 'regions': regions are numbered as boxes are")


def _check_lengths(view: PlanConfig | Teacher) -> None:
    of = asdict(view)
    require(view.max_tokens <= view.sequence_length, "max_tokens", view.max_tokens, _TOKENS.allowed(of))
    require(view.prefix_tokens < view.max_tokens, "prefix_tokens", view.prefix_tokens, _PREFIX.allowed(of))


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """`[plan]`: everything that decides what goes where. All of it is part of `plan_id`.

    Attributes:
        seed: seed of order and draws.
        sequence_length: L, tokens per sequence.
        max_images: E, images per sequence at most. The packer respects it: no image is dropped for it.
        max_tokens: M, tokens of one image at most, prefix tokens included.
        max_grid: patches per side at most.
        prefix_tokens: slots at the start of each image's segment for class, register, distillation or prompt tokens.
        patch_sizes: P, or several for FlexiViT: one is drawn for each run of sequences.
        patch_weights: weights of `patch_sizes`; empty means equal.
        patch_run: R, sequences that share one patch size.
        packing: `exact` (head-first exact fill), `first_fit` (the paper's), `best_fit`, `best_fit_decreasing`;
            `auto` is `exact`, or `best_fit_decreasing` where one image can fill most of a sequence.
        lookahead: candidates for closing a sequence in `exact`.
        fit: close each sequence exactly by adjusting its last image: `none`, `drop` (its kept tokens) or `resolution`
            (its grid, the rest by drop). What moved is reported by `navit-loader plan`.
        block_images: images planned as one independent block.
        virtual_epoch: images per epoch of a mixture or with class weights; 0 means the sum of the sources' sizes.
        passes: how often one epoch goes through the images, each once a pass. More than 1 is for small sets: an epoch's last
            batch is filled up with empty sequences, and so there are fewer of them.
        balance: S, sequences of a window within which they are reordered, so that any run of them costs attention alike
            (the sum of squared lengths); 0 leaves the order. Best are four steps of all ranks, or more.
        text_tokens: Lt, caption tokens per sequence; 0 without captions.
        max_text_tokens: tokens of one caption at most, longer ones are cut; 0 means `text_tokens`.
        filter: an expression over index columns that rows must satisfy, such as `width >= 64 and label != 3`. Whole numbers are
            computed in 64 bits, and what leaves those is an error.
        class_weights: relative weights by class name; classes not named weigh 1 where any is.
        order, resolution, drop, crop, warp, targets, teacher: see their classes.
    """

    seed: Annotated[int, Bound(0, 2**64 - 1, words="between 0 and 2**64 - 1")] = 0
    sequence_length: Annotated[int, _LENGTH] = 1024
    max_images: Annotated[int, Bound(1, 32767)] = 64
    max_tokens: Annotated[int, _TOKENS] = 256
    max_grid: Annotated[int, Bound(1, 32767)] = 256
    prefix_tokens: Annotated[int, _PREFIX] = 0
    patch_sizes: Annotated[tuple[Annotated[int, PATCH], ...], Bound(1, words="a list of at least one size")] = (16,)
    patch_weights: tuple[Annotated[float, _WEIGHT], ...] = ()
    patch_run: Annotated[int, AT_LEAST_1] = 256
    packing: Literal["auto", "exact", "first_fit", "best_fit", "best_fit_decreasing"] = "auto"
    lookahead: Annotated[int, Bound(1, 256)] = 32
    fit: Literal["none", "drop", "resolution"] = "none"
    block_images: Annotated[int, Bound(1, 2**22)] = 65536
    virtual_epoch: Annotated[int, Bound(0)] = 0
    passes: Annotated[int, Bound(1, 65536)] = 1
    balance: Annotated[int, Bound(8, 2**22, "sequences", also=0)] = 0
    text_tokens: Annotated[int, Bound(0, 32767)] = 0
    max_text_tokens: Annotated[int, Bound(0, 32767, words="between 0 and text_tokens = {text_tokens}")] = 0
    filter: str = ""
    class_weights: dict[str, Annotated[float, _WEIGHT]] = field(default_factory=dict)
    order: Order = field(default_factory=Order)
    resolution: Resolution = field(default_factory=Resolution)
    drop: Drop = field(default_factory=Drop)
    crop: Crop = field(default_factory=Crop)
    teacher: Teacher | None = None
    warp: Warp | None = None
    targets: Targets | None = None

    def __post_init__(self) -> None:
        check_types(self)
        _check_lengths(self)
        require(
            len(self.patch_weights) in (0, len(self.patch_sizes)),
            "patch_weights",
            self.patch_weights,
            f"empty or {len(self.patch_sizes)} values, one per patch size",
        )
        _check_weights("patch_weights", self.patch_weights)
        require(
            self.fit == "none" or self.packing in ("auto", "exact"),
            "fit",
            self.fit,
            f"'none' with packing = {self.packing!r}; only 'exact' (or 'auto') closes sequences exactly",
        )
        if self.resolution.kind == "smart":
            self._check_smart()
        require(
            self.passes == 1 or self.virtual_epoch == 0,
            "passes",
            self.passes,
            f"1 beside virtual_epoch = {self.virtual_epoch}: either says how long an epoch is",
        )
        require(
            self.max_text_tokens <= self.text_tokens,
            "max_text_tokens",
            self.max_text_tokens,
            f"between 0 and text_tokens = {self.text_tokens}",
        )
        require(
            self.targets is None or self.teacher is None,
            "targets",
            self.targets,
            "left out beside [plan.teacher]: a teacher's view has no boxes and masks",
        )
        _check_weights("class_weights", tuple(self.class_weights.values()))

    def _check_smart(self) -> None:
        """Blocks stay whole, and there is a budget of a patch at least."""
        r = self.resolution
        require(self.fit != "resolution", "fit", self.fit, "'none' or 'drop' with resolution.kind = 'smart'")
        if r.merge > 1:
            blocks = f"'none' with resolution.merge = {r.merge}: blocks of patches stay whole"
            require(self.drop.kind == "none", "drop.kind", self.drop.kind, blocks)
            require(self.fit == "none", "fit", self.fit, blocks)
        block = max((*self.patch_sizes, self.teacher.patch_size if self.teacher else 0)) * r.merge
        if "max_pixels" in RULES[r.rule]:
            require(
                r.max_pixels >= block**2,
                "resolution.max_pixels",
                r.max_pixels,
                f"a block of {block} × {block} at least",
            )
        if "max_side" in RULES[r.rule]:
            require(r.max_side >= block, "resolution.max_side", r.max_side, f"a block of {block} pixels at least")

    @property
    def caption_cap(self) -> int:
        """Tokens of one caption at most."""
        return self.max_text_tokens or self.text_tokens

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. Read by the Rust planner and hashed into `plan_id`.

        `passes` stands in it where it is not 1, `balance`, `warp` and `targets` where they are set, and what only `smart`
        reads with it alone, so that names given before there were such keys stay.
        """
        table = asdict(replace(self, order=self.order.settled(remote=False)))
        table["resolution"] = self.resolution.to_table()
        if self.passes == 1:
            del table["passes"]
        if self.balance == 0:
            del table["balance"]
        if self.warp is None:
            del table["warp"]
        if self.targets is None:
            del table["targets"]
        return json.dumps(table, sort_keys=True, separators=(",", ":"))


MASKED = 0.003
"""Share of slots in masked sequences, at an epoch's end, from which on more passes an epoch are advised."""


def passes_for(sequences: float, batch: int) -> int:
    """How many passes an epoch needs so that at most `MASKED` of its slots fill up its last batches.

    Args:
        sequences: of one pass.
        batch: sequences of a batch, all ranks together.
    """
    return min(65536, max(1, math.ceil(batch / (MASKED * max(1.0, sequences)))))


def _check_weights(key: str, weights: tuple[float, ...]) -> None:
    for weight in weights:
        require(_WEIGHT.holds(weight), key, weight, _WEIGHT.words)
    require(not weights or sum(weights) > 0, key, weights, "above 0 in sum")
