"""Shapes of models, and what a run adds: `[model] [text] [contrastive] [distillation] [regression]
[detection] [segmentation] [panoptic]` and `[train.augment]`.

In: TOML keys or keyword arguments. Out: frozen dataclasses that have checked themselves. Presets name the usual sizes.
Apart, so that a configuration can be read, checked and converted without torch, and without building a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from navit_loader.bounds import AT_LEAST_0, AT_LEAST_1, FINITE, PATCH, RATE, SHARE, Bound
from navit_loader.errors import ConfigError
from navit_loader.schema import check_types, require

PRESETS: dict[str, tuple[int, int, int]] = {
    "Mu": (32, 3, 2),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
"""Width, depth and heads by name (ViT: arXiv 2010.11929, Table 1; Ti and S: DeiT, arXiv 2012.12877)."""

_ABOVE_0 = Bound(above=0)
_HEADS = Bound(1, words="a divisor of width = {width}")
_PATCHES = Bound(1, 512, "pixels", whole=True)
_COUNTS = Bound(1, words="two counts of at least 1", whole=True)
_CHANNEL = Bound(above=0, words="above 0 in each channel", whole=True)
_BLOCK = Bound(0, words="numbers of the {depth} blocks, from 0", whole=True)


@dataclass(frozen=True, slots=True)
class NaViTConfig:
    """The shape of a NaViT. Defaults follow the paper where it speaks (arXiv 2307.06304, sections 2.1 and 3).

    Attributes:
        width: D.
        depth: blocks.
        heads: H; D divides by it.
        mlp_ratio: hidden width of the MLP over D.
        patch_size: P of the base patch embedding (FlexiViT: 32).
        patch_sizes: every P that the model takes, each resized from the base; empty means `patch_size` alone.
        patch_filter: filter of that resize: `bilinear` without antialias (big_vision), `bicubic` with it (timm).
        mean: mean of each channel in 0..1, subtracted on the device.
        std: standard deviation of each channel in 0..1.
        positions: position embedding: the ten rows of the paper's Table 3, FlexiViT's `resized_grid`, NaFlexViT's
            `resized_axes`, or `none`; see `navit_model.model.positions`.
        max_grid: rows of each position table: patches per side at most (NaViT, section 2.1).
        position_grid: rows and columns of the base table of `resized_grid` and `resized_axes`.
        position_filter: filter of its resize: `bilinear` (big_vision, SigLIP 2) or `bicubic` (timm).
        position_antialias: whether that filter widens where the table shrinks; transformers' ViT and DINOv2 do not.
        position_corners: that resize puts the table's first and last rows onto the image's, not their outer edges (Qwen3-VL).
        patch_norm: a norm between patch embedding and positions (AIMv2, arXiv 2411.14402).
        fraction: what fractional and resized positions are divided by: `each` axis by its own count, or both by the
            `longer` one, which keeps the aspect ratio (Figure 16).
        rope: rotate queries and keys by their (y, x), beside any position embedding.
        rope_base: base of the rotation's wavelengths.
        rope_places: what a patch turns by: its `index`; its index where the image is `scaled` to `rope_grid` (EVA-02, arXiv
            2303.11331); or its centre in an image from −1 to 1, times 2π, `centred` (DINOv3, arXiv 2508.10104).
        rope_grid: rows and columns of the grid of `scaled`.
        rope_offset: added to every index: prefix tokens do not turn, so it is not nothing.
        rope_speeds: `axial`: both axes turn alike; `alternating`: x takes the wavelengths between those of y (Pixtral, arXiv
            2410.07073); `learned`: each head of each block has its own two for every pair of channels (arXiv 2403.13298).
        embed_norm: a norm between embedding and first block (CLIP, arXiv 2103.00020).
        window: patches on a side of the windows within which most blocks attend (Qwen2.5-VL, arXiv 2502.13923); 0 leaves
            every block the whole image.
        window_free: numbers of the blocks that attend to whole images all the same.
        norm: `layer`, or `rms`, which takes off no mean and has no bias (arXiv 1910.07467).
        norm_place: of a block's two norms: `before` attention and MLP, `after` them (arXiv 2111.09883), or `both`.
        last_norm: a norm behind the last block, on tokens or on the pooled image.
        parallel: attention and MLP read the same norm and are added at once (ViT-22B).
        qk_norm: normalise queries and keys per head (ViT-22B, arXiv 2302.05442).
        v_norm: normalise values per head too (Gemma 4).
        differential: each head takes a second attention, of half of its channels, from the first (arXiv 2410.05258).
        qkv_bias: biases in the query, key and value projections; the paper has none.
        norm_bias: biases in LayerNorm; the paper has none.
        norm_pooled: apply the last norm to the pooled image in place of its tokens (timm's `fc_norm`).
        out_bias: bias of the attention's output projection.
        mlp_bias: biases of the MLP, which ViT-22B keeps.
        mlp_gate: the MLP's first layer has a second half, multiplied by the activation of the first (arXiv 2002.05202).
        attn_norm: a norm between attention and its output projection (EVA-02).
        mlp_norm: a norm before the MLP's last layer (EVA-02).
        norm_eps: ε of every norm.
        activation: `gelu`, or one of its approximations: `gelu_tanh`, `quick_gelu` (x·σ(1.702x), CLIP's); or `silu`.
        layer_scale: first value of a learned scale of each branch (CaiT, arXiv 2103.17239); 0 leaves it out.
        drop_path: rate of stochastic depth at the last block, rising linearly from 0; drawn per image.
        dropout: rate of dropout after the embedding and at the end of each branch.
        class_token: a learned prefix token for `pool = "class"`.
        distill_token: a learned prefix token with a classifier of its own (DeiT).
        registers: learned prefix tokens that nothing reads (arXiv 2309.16588).
        prompts: learned prefix tokens for tuning a frozen model (VPT, shallow: arXiv 2203.12119).
        pool: `map`: attention pooling; `mean` of the patches; the `class` token.
        pool_prefix: `map` and `mean` read prefix tokens as well.
        pool_heads: queries of attention pooling; 0 takes H.
        pool_mlp: an MLP behind attention pooling.
        pool_mlp_ratio: hidden width of its MLP over D; 0 takes `mlp_ratio`.
        merge: patches on a side of the blocks that `NaViT.forward_merged` makes one token of; 0 has none.
        merge_kind: how: two linear layers over the block, `mlp` (Qwen-VL); its `mean` (Gemma 4), or `convolved` (GLM-4V).
        merge_width: width of those tokens.
        merge_hidden: hidden width of `convolved`.
        merge_taps: numbers of the blocks whose tokens it merges too, each with weights of its own (DeepStack, 2406.04334).
        classes: outputs of the classifier; 0 where the loader's index says, or where the pooled features are wanted.
        checkpointing: recompute each block in the backward pass, for less memory.
        attention: backend: `auto`, or one of `attention.BACKENDS` by name.
    """

    width: Annotated[int, AT_LEAST_1] = 192
    depth: Annotated[int, AT_LEAST_1] = 12
    heads: Annotated[int, _HEADS] = 3
    mlp_ratio: Annotated[float, _ABOVE_0] = 4.0
    patch_size: Annotated[int, PATCH] = 16
    patch_sizes: tuple[Annotated[int, _PATCHES], ...] = ()
    patch_filter: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Annotated[float, _CHANNEL], Annotated[float, _CHANNEL], Annotated[float, _CHANNEL]] = (0.5, 0.5, 0.5)
    positions: Literal[
        "factorised",
        "factorised_stacked",
        "factorised_multiplied",
        "learned_1d",
        "learned_2d",
        "sinusoidal",
        "sinusoidal_xy",
        "fourier",
        "fractional_fourier",
        "fractional_learned",
        "fractional_sinusoidal",
        "resized_grid",
        "resized_axes",
        "none",
    ] = "factorised"
    max_grid: Annotated[int, Bound(1, 32767, "patches")] = 64
    position_grid: tuple[Annotated[int, _COUNTS], Annotated[int, _COUNTS]] = (7, 7)
    position_filter: Literal["bilinear", "bicubic"] = "bilinear"
    position_antialias: bool = True
    position_corners: bool = False
    patch_norm: bool = False
    fraction: Literal["each", "longer"] = "each"
    rope: bool = False
    rope_base: Annotated[float, Bound(above=1)] = 100.0
    rope_places: Literal["index", "scaled", "centred"] = "index"
    rope_grid: tuple[Annotated[int, _COUNTS], Annotated[int, _COUNTS]] = (16, 16)
    rope_offset: float = 0.0
    rope_speeds: Literal["axial", "alternating", "learned"] = "axial"
    embed_norm: bool = False
    window: Annotated[int, AT_LEAST_0] = 0
    window_free: tuple[Annotated[int, _BLOCK], ...] = ()
    norm: Literal["layer", "rms"] = "layer"
    norm_place: Literal["before", "after", "both"] = "before"
    last_norm: bool = True
    parallel: bool = False
    qk_norm: bool = True
    v_norm: bool = False
    differential: bool = False
    qkv_bias: bool = False
    norm_bias: bool = False
    norm_pooled: bool = False
    out_bias: bool = True
    mlp_bias: bool = True
    mlp_gate: bool = False
    attn_norm: bool = False
    mlp_norm: bool = False
    norm_eps: Annotated[float, _ABOVE_0] = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "gelu"
    layer_scale: Annotated[float, AT_LEAST_0] = 0.0
    drop_path: Annotated[float, RATE] = 0.0
    dropout: Annotated[float, RATE] = 0.0
    class_token: bool = False
    distill_token: bool = False
    registers: Annotated[int, AT_LEAST_0] = 0
    prompts: Annotated[int, AT_LEAST_0] = 0
    pool: Literal["map", "mean", "class"] = "map"
    pool_prefix: bool = False
    pool_heads: Annotated[int, AT_LEAST_0] = 0
    pool_mlp: bool = True
    pool_mlp_ratio: Annotated[float, AT_LEAST_0] = 0.0
    merge: Annotated[int, AT_LEAST_0] = 0
    merge_kind: Literal["mlp", "mean", "convolved"] = "mlp"
    merge_width: int = 0
    merge_hidden: int = 0
    merge_taps: tuple[Annotated[int, _BLOCK], ...] = ()
    classes: Annotated[int, AT_LEAST_0] = 0
    checkpointing: bool = False
    attention: Literal["auto", "dense", "segments", "torch_varlen", "flash_attn", "triton"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width = {self.width}")
        parts = {"factorised_stacked": 2, "fourier": 2, "fractional_fourier": 2}.get(self.positions, 1)
        parts = 4 if "sinusoidal" in self.positions else parts
        require(self.width % parts == 0, "width", self.width, f"a multiple of {parts} for positions '{self.positions}'")
        require(self.rope or self.rope_speeds != "learned", "rope_speeds", "learned", "possible with rope = true alone")
        require(bool(self.merge) or not self.merge_taps, "merge_taps", self.merge_taps, "empty where merge = 0")
        if self.rope:
            require(self.width // self.heads % 4 == 0, "heads", self.heads, "such that width/heads is a multiple of 4")
        require(
            self.width % (self.pool_heads or self.heads) == 0,
            "pool_heads",
            self.pool_heads,
            f"a divisor of width = {self.width}",
        )
        pairs = not self.rope and not self.v_norm and self.width // self.heads % 2 == 0
        require(pairs or not self.differential, "differential", True, "false with rope or v_norm, and with odd heads")
        for key in ("window_free", "merge_taps"):
            numbers = getattr(self, key)
            require(all(n < self.depth for n in numbers), key, numbers, f"numbers of the {self.depth} blocks, from 0")
        require(not self.window or not self.prefix_tokens, "window", self.window, "0 where there are prefix tokens")
        wide = self.merge_width == self.width if self.merge_kind == "mean" else self.merge_width >= 1
        require(not self.merge or wide, "merge_width", self.merge_width, "at least 1, or width for merge_kind = 'mean'")
        hidden = self.merge_kind != "convolved" or self.merge_hidden >= 1
        require(hidden, "merge_hidden", self.merge_hidden, "at least 1 for merge_kind = 'convolved'")
        require(
            not self.parallel or self.norm_place == "before", "parallel", True, "false, or norm_place must be 'before'"
        )
        require(self.pool != "class" or self.class_token, "pool", self.pool, "'map' or 'mean', or set class_token")

    @property
    def prefix_tokens(self) -> int:
        """Slots that the model needs at the start of each image: `[plan] prefix_tokens` must be this number."""
        return self.class_token + self.distill_token + self.registers + self.prompts

    @classmethod
    def preset(cls, name: str, **changes: Any) -> NaViTConfig:
        """A usual size with its patch size, such as `B/16`, with keys changed as wanted.

        Raises:
            ConfigError: names the preset and those there are.
        """
        size, _, patch = name.partition("/")
        if size not in PRESETS or not patch.isdigit():
            raise ConfigError(
                f"preset {name!r} is not known; take {', '.join(PRESETS)} with a patch size, as in 'B/16'"
            )
        width, depth, heads = PRESETS[size]
        return replace(cls(width=width, depth=depth, heads=heads, patch_size=int(patch)), **changes)


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The shape of a text tower, section `[text]` of a configuration; what it shares with `NaViTConfig` means the same.

    Attributes:
        vocabulary: token ids are below this; 0 takes the index's.
        tokenizer: what names the tokenizer in the index; empty takes the index's.
        max_tokens: rows of the position table: tokens of a caption at most (NaViT: 24 of a 32 k vocabulary; bytes need
            more); 0 takes the plan's.
        pad: zero-shot texts are filled up to `max_tokens` with this id, which the tower reads (SigLIP); −1 leaves them.
        causal: each token sees those before it alone (CLIP, arXiv 2103.00020, section 2.4); else all of its caption (LiT,
            SigLIP).
        pool: the `last` token (CLIP, LiT, SigLIP), or attention pooling, `map`.
    """

    # What a tower of images may be besides; one of text is plain.
    norm: ClassVar[str] = "layer"
    norm_place: ClassVar[str] = "before"
    parallel: ClassVar[bool] = False
    attn_norm: ClassVar[bool] = False
    mlp_gate: ClassVar[bool] = False
    mlp_norm: ClassVar[bool] = False
    rope_speeds: ClassVar[str] = "axial"
    pool_heads: ClassVar[int] = 0
    v_norm: ClassVar[bool] = False
    differential: ClassVar[bool] = False
    pool_mlp: ClassVar[bool] = True
    pool_mlp_ratio: ClassVar[float] = 0.0

    width: Annotated[int, AT_LEAST_1] = 192
    depth: Annotated[int, AT_LEAST_1] = 12
    heads: Annotated[int, AT_LEAST_1] = 3
    mlp_ratio: Annotated[float, _ABOVE_0] = 4.0
    vocabulary: Annotated[int, AT_LEAST_0] = 0
    tokenizer: str = ""
    max_tokens: Annotated[int, AT_LEAST_0] = 0
    pad: Annotated[int, Bound(-1, words="a token, or -1 for none")] = -1
    causal: bool = False
    pool: Literal["last", "map"] = "last"
    qk_norm: bool = True
    qkv_bias: bool = False
    norm_bias: bool = False
    out_bias: bool = True
    mlp_bias: bool = True
    norm_eps: Annotated[float, _ABOVE_0] = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "gelu"
    layer_scale: Annotated[float, AT_LEAST_0] = 0.0
    drop_path: Annotated[float, RATE] = 0.0
    dropout: Annotated[float, RATE] = 0.0
    checkpointing: bool = False
    attention: Literal["auto", "dense", "segments", "torch_varlen", "flash_attn", "triton"] = "auto"

    def __post_init__(self) -> None:
        check_types(self)
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of width = {self.width}")


@dataclass(frozen=True, slots=True)
class ContrastiveConfig:
    """What joins the two towers, section `[contrastive]` of a configuration.

    Attributes:
        width: of the joint embedding, D.
        text_bias: a bias in the text's projection (SigLIP).
        image_from: a run's folder or checkpoint whose image model the image tower starts from; empty starts afresh.
        locked: leave that image tower as it is: only its projection and the text learn (LiT, arXiv 2111.07991).
    """

    width: Annotated[int, AT_LEAST_1] = 512
    text_bias: bool = False
    image_from: str = ""
    locked: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(
            bool(self.image_from) or not self.locked,
            "locked",
            self.locked,
            "possible with contrastive.image_from alone",
        )


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """Who teaches and how, section `[distillation]` of a configuration.

    Attributes:
        teacher: a run's folder or checkpoint; its images are the view that `[plan.teacher]` plans.
        kind: `soft` or `hard`; see `distillation_loss`.
        temperature: τ of `soft`.
        weight: share of this loss; the rest is that against labels. FlexiViT: 1; DeiT, with `model.distill_token`: ½.
        from_teacher: the student starts from the teacher's weights, its patch embedding resized to its own base
            (FlexiViT).
    """

    teacher: str = ""
    kind: Literal["soft", "hard"] = "soft"
    temperature: Annotated[float, Bound(above=0, finite=True, words="above 0 and finite")] = 1.0
    weight: Annotated[float, Bound(above=0, most=1, words="above 0, at most 1")] = 1.0
    from_teacher: bool = False

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class RegressionConfig:
    """What a model's numbers mean, section `[regression]` of a configuration: it learns (number − mean) / std.

    Attributes:
        mean: subtracted of each number.
        std: what the rest is divided by; 0 takes mean and standard deviation of the index's numbers.
    """

    mean: Annotated[float, Bound(finite=True, words="finite")] = 0.0
    std: Annotated[float, Bound(0, finite=True, words="finite and at least 0")] = 0.0

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class DetectionConfig:
    """How boxes are learnt, section `[detection]` of a configuration. Defaults are those of OWL-ViT (arXiv 2205.06230).

    Attributes:
        classes: of the boxes, each a query; 0 takes the index's.
        box: weight of the distance of boxes, as shares of the image; DETR has 5.
        overlap: weight of 1 − GIoU; DETR has 2.
        named: weight of the focal loss; deformable DETR has 2.
        prior: chance of each query at each patch before anything is learnt.
    """

    classes: Annotated[int, AT_LEAST_0] = 0
    box: Annotated[float, FINITE] = 1.0
    overlap: Annotated[float, FINITE] = 1.0
    named: Annotated[float, FINITE] = 1.0
    prior: Annotated[float, Bound(above=0, below=1)] = 0.01

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class SegmentationConfig:
    """How maps of classes are learnt, section `[segmentation]` of a configuration (Segmenter, arXiv 2105.05633).

    Attributes:
        classes: of the pixels; 0 takes the index's.
        head: `mask`, a mask transformer, or one `linear` layer.
        depth: blocks of the mask transformer.
    """

    classes: Annotated[int, AT_LEAST_0] = 0
    head: Literal["mask", "linear"] = "mask"
    depth: Annotated[int, AT_LEAST_1] = 2

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class PanopticConfig:
    """How segments of things and stuff are learnt, section `[panoptic]` of a configuration.

    Attributes:
        classes: of the segments; 0 takes the index's.
        stuff: names of the classes that are not counted, such as sky; the others are things.
        queries: segments of an image at most.
        depth: blocks of the mask transformer.
        least_share: of a segment's pixels that others may leave it, below which it is dropped (arXiv 1801.00868, section 6).
        least_stuff: share of the image below which what is left of stuff is dropped.
    """

    classes: Annotated[int, AT_LEAST_0] = 0
    stuff: tuple[str, ...] = ()
    queries: Annotated[int, AT_LEAST_1] = 100
    depth: Annotated[int, AT_LEAST_1] = 2
    least_share: Annotated[float, SHARE] = 0.5
    least_stuff: Annotated[float, SHARE] = 0.01

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """`[train.augment]`: colour operations and random erasing, on the device.

    Attributes:
        layers: operations for each image, one after the other; 0 leaves the pixels alone. AugReg: 0 or 2. With
            `plan.warp.kind = "randaugment"` those that it has done count among them.
        magnitude: their strength, up to 30; what would leave nothing of a picture stays where it is at 10. AugReg: 10, 15 or
            20, where solarise and posterise grow weaker with it.
        erase: probability of an image to lose a rectangle of 2 to 33 % of its area to noise (random erasing); timm's
            recipes: 0.25.
    """

    layers: Annotated[int, Bound(0, 16)] = 0
    magnitude: Annotated[float, Bound(0, 30)] = 5.0
    erase: Annotated[float, SHARE] = 0.0

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def on(self) -> bool:
        """Whether anything is done."""
        return self.layers > 0 or self.erase > 0


@dataclass(frozen=True, slots=True)
class MixConfig:
    """`[train.mix]`: images of one sequence mixed with each other, and their labels with them.

    Attributes:
        mixup: α of mixup's Beta(α, α); 0 is without. 0.2 is usual for fine-tuning, 0.8 for training from nothing.
        cutmix: α of cutmix's; 0 is without, 1 is usual. With both, each image draws one of them.
        probability: of an image to be mixed.
    """

    mixup: Annotated[float, Bound(0, 100)] = 0.0
    cutmix: Annotated[float, Bound(0, 100)] = 0.0
    probability: Annotated[float, SHARE] = 1.0

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.probability > 0
