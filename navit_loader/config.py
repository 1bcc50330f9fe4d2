"""Configuration: the sections `[data] [plan] [render] [serve]`, in TOML and Python alike.

In: a TOML file, a mapping, or keyword arguments. Out: frozen dataclasses that check themselves (`__post_init__`), so that
Python callers get the same words as TOML's. `[plan]` is a room of its own, `plan/config.py`, whose names are here too;
the other sections belong to `navit_model`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError
from .plan.config import Crop, Drop, Order, PlanConfig, Resolution, Schedule, Targets, Teacher, Warp
from .schema import check_types, convert, read_toml, require

__all__ = [
    "Crop",
    "DataConfig",
    "Drop",
    "LoaderConfig",
    "Order",
    "PlanConfig",
    "Remote",
    "RenderConfig",
    "Resolution",
    "Schedule",
    "ServeConfig",
    "Source",
    "Targets",
    "Teacher",
    "Warp",
]

OTHER_SECTIONS = (
    "model",
    "text",
    "contrastive",
    "distillation",
    "regression",
    "detection",
    "segmentation",
    "panoptic",
    "train",
)


@dataclass(frozen=True, slots=True)
class Source:
    """One index of `[[data.mixture]]`.

    Attributes:
        index: path of the index file.
        weight: its share of the images, relative to the others.
    """

    index: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        require(self.index != "", "index", self.index, "the path of an index")
        require(0 < self.weight < float("inf"), "weight", self.weight, "finite and above 0")


@dataclass(frozen=True, slots=True)
class Remote:
    """`[data.remote]`: how the daemons of `data.endpoints` are asked; keys are arguments of `RemoteLoader`.

    Attributes:
        keys: folder with `client.key_secret` and `server.key`, made by `navit-loader keys`; needed beyond this host.
        plan: name of the plan, where a daemon serves several; empty for its first.
        memory_mb: bytes of batches in advance at most, in MiB.
        connect_timeout_s: seconds until the first daemon must have answered.
        deadline_s: seconds after which a batch is asked for at another daemon too.
        timeout_s: seconds without an answer from any daemon after which the run saves and ends.
        heartbeat_s: seconds between heartbeats; after three missed ones a connection counts as broken.
        shared: take batches of a daemon on this host through shared memory.
    """

    keys: str = ""
    plan: str = ""
    memory_mb: int = 1024
    connect_timeout_s: float = 10.0
    deadline_s: float = 10.0
    timeout_s: float = 120.0
    heartbeat_s: float = 1.0
    shared: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        require(self.memory_mb >= 16, "memory_mb", self.memory_mb, "at least 16 MiB")
        for key in ("connect_timeout_s", "deadline_s", "timeout_s"):
            require(0 < getattr(self, key) < 1e6, key, getattr(self, key), "above 0 and below 1,000,000 seconds")
        require(0.05 <= self.heartbeat_s <= 60, "heartbeat_s", self.heartbeat_s, "between 0.05 and 60 seconds")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """`[data]`: which images, and how they are dealt out. Not part of `plan_id`.

    Attributes:
        index: path of the training index, or empty where `mixture` or `endpoints` is given.
        mixture: several indexes with weights.
        eval_index: path of the held-out index.
        endpoints: daemons to ask in place of rendering in this process; or `ray://NAME`, a fleet.
        remote: how they are asked; see `Remote`.
        batch_size: B, sequences per batch.
        remainder: at an epoch's end, `fill` the last batches with masked sequences or `drop` what fills no whole step.
        refresh: look at each epoch's start whether an index was replaced, and read the epoch from the new one.
    """

    index: str = ""
    mixture: tuple[Source, ...] = ()
    eval_index: str = ""
    endpoints: tuple[str, ...] = ()
    remote: Remote = field(default_factory=Remote)
    batch_size: int = 8
    remainder: Literal["fill", "drop"] = "fill"
    refresh: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        require(1 <= self.batch_size <= 65536, "batch_size", self.batch_size, "between 1 and 65536 sequences")
        require(not (self.index and self.mixture), "mixture", self.mixture, "empty where data.index is given")


@dataclass(frozen=True, slots=True)
class RenderConfig:
    """`[render]`: how planned slots become pixels. Keys marked * are part of `render_id`.

    Attributes:
        threads: decoding threads; 0 means one per core that this process may use.
        fetch_threads: threads that read ahead; 0 lets the decoding threads read by themselves.
        prefetch: batches rendered ahead.
        memory_mb: bound of all batch and file buffers, in MiB.
        filter: * `bicubic`, `bilinear`, `area` or `lanczos`, all antialiased.
        dct_scaling: * decode JPEG at the largest DCT scale that stays at or above the target.
        background: * RGB under transparent pixels.
        max_pixels: * images that claim more pixels are quarantined undecoded.
        depth: * which value is white in samples of 16 bits: `full` (65,535), `largest` (the image's own), or that of as
            many bits, `9` to `15`. Part of `render_id` where it is not `full`.
        profiles: * `ignore` colour profiles other than sRGB, which are counted, or `convert` them. Part of `render_id`
            where it is not `ignore`.
        damaged: * `mask` JPEG files that libjpeg warns of, or `keep` those of which nothing is missing. Part of
            `render_id` where it is not `mask`.
        retries: attempts after a fault that may pass (timeout, server or I/O error) before the request fails; by default as
            many as a minute allows.
        ledger: path of the quarantine ledger (JSON lines); empty keeps it in memory alone.
        failure_limit: share of failed images in a window of 10,000 above which rendering stops with an error.
        cache_dir: folder on a disk of this machine in which data of buckets and web servers is kept; empty for none.
        cache_gb: how much it may hold, in 10⁹ bytes; all processes that share the folder together.
    """

    threads: int = 0
    fetch_threads: int = 1
    prefetch: int = 4
    memory_mb: int = 1024
    filter: Literal["bicubic", "bilinear", "area", "lanczos"] = "bicubic"
    dct_scaling: bool = True
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 178_956_970
    depth: Literal["full", "largest", "9", "10", "11", "12", "13", "14", "15"] = "full"
    profiles: Literal["ignore", "convert"] = "ignore"
    damaged: Literal["mask", "keep"] = "mask"
    retries: int | None = None
    ledger: str = ""
    failure_limit: float = 0.2
    cache_dir: str = ""
    cache_gb: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.threads <= 1024, "threads", self.threads, "between 0 and 1024")
        require(0 <= self.fetch_threads <= 1024, "fetch_threads", self.fetch_threads, "between 0 and 1024")
        require(1 <= self.prefetch <= 1024, "prefetch", self.prefetch, "between 1 and 1024 batches")
        require(self.memory_mb >= 16, "memory_mb", self.memory_mb, "at least 16 MiB")
        require(all(0 <= v <= 255 for v in self.background), "background", self.background, "three values in 0..255")
        require(1 <= self.max_pixels <= 2**31, "max_pixels", self.max_pixels, "between 1 and 2**31")
        require(0 <= (self.retries or 0) <= 100, "retries", self.retries, "between 0 and 100")
        require(0 < self.failure_limit <= 1, "failure_limit", self.failure_limit, "above 0 and at most 1")
        require(0 <= self.cache_gb < 1e9, "cache_gb", self.cache_gb, "at least 0 and below 10**9")
        if self.cache_dir:
            require(self.cache_gb > 0, "cache_gb", self.cache_gb, "above 0 beside cache_dir: how much it may hold")
        else:
            require(self.cache_gb == 0, "cache_dir", self.cache_dir, f"a folder beside cache_gb = {self.cache_gb}")

    def to_json(self) -> str:
        """Canonical JSON, read by the Rust renderer."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


RENDER_KEYS = ("filter", "dct_scaling", "background", "max_pixels")
"""Keys of `[render]` that decide pixels, and so are part of `render_id`."""

LATER_RENDER_KEYS = ("depth", "profiles", "damaged")
"""The same of those that came later: they are part of it only where they are set, so that what is not set has its old name."""


def deciding(render: RenderConfig) -> dict[str, Any]:
    """What of `[render]` decides pixels."""
    set_later = (key for key in LATER_RENDER_KEYS if getattr(render, key) != getattr(RenderConfig(), key))
    return {key: getattr(render, key) for key in (*RENDER_KEYS, *set_later)}


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`[serve]`: the daemon.

    Attributes:
        bind: where to listen: `tcp://127.0.0.1:PORT` (port 0 picks one) or `ipc://PATH`.
        memory_mb: bound of all batches of the process, in MiB.
        heartbeat_s: seconds between heartbeats.
        keys: folder with the daemon's keys, made by `navit-loader keys`; needed to listen beyond this host.
        metrics: HOST:PORT of the Prometheus endpoint, or a port of loopback; empty for none.
    """

    bind: str = "tcp://127.0.0.1:5780"
    memory_mb: int = 1024
    heartbeat_s: float = 1.0
    keys: str = ""
    metrics: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.bind.startswith(("tcp://", "ipc://")), "bind", self.bind, "tcp://HOST:PORT or ipc://PATH")
        require(self.memory_mb >= 16, "memory_mb", self.memory_mb, "at least 16 MiB")
        require(0.05 <= self.heartbeat_s <= 60, "heartbeat_s", self.heartbeat_s, "between 0.05 and 60 seconds")


@dataclass(frozen=True, slots=True)
class LoaderConfig:
    """The loader's whole configuration: sections `[data] [plan] [render] [serve]`."""

    data: DataConfig = field(default_factory=DataConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    render: RenderConfig = field(default_factory=RenderConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> LoaderConfig:
        """From nested mappings. Those of `OTHER_SECTIONS` are left to `navit_model`.

        Raises:
            ConfigError: an unknown section or key, or a bad value.
        """
        if not isinstance(table, Mapping):
            raise ConfigError(f"{table!r} is of type {type(table).__name__}; give a dict of sections")
        sections = {f.name: f.default_factory for f in fields(cls)}
        values = {}
        for name, section in table.items():
            if name in OTHER_SECTIONS:
                continue
            if name not in sections:
                allowed = ", ".join(f"[{s}]" for s in (*sections, *OTHER_SECTIONS))
                raise ConfigError(f"unknown section '[{name}]'; allowed: {allowed}")
            values[name] = convert(sections[name], section, name)
        return cls(**values)

    @classmethod
    def checked(cls, config: LoaderConfig | None) -> LoaderConfig:
        """A configuration as callers give it; None is the default one.

        Raises:
            ConfigError: it is something else, such as a path or a dict.
        """
        if config is None or isinstance(config, cls):
            return config or cls()
        how = "from_dict(…)" if isinstance(config, Mapping) else "from_toml(…)"
        raise ConfigError(f"config = {config!r} is of type {type(config).__name__}; give LoaderConfig.{how} of it")

    @classmethod
    def from_toml(cls, path: str | Path) -> LoaderConfig:
        """From a TOML file; see `read_toml` for errors."""
        return cls.from_dict(read_toml(path))

    def for_evaluation(self, max_tokens: int | None = None, patch_size: int | None = None) -> LoaderConfig:
        """The same configuration with nothing random: all images in order, one patch size and view, no crop, flip,
        warp or drop; and no boxes or masks in the batches, since what is true of an image is read of its index.

        `plan.filter` chooses what is learnt; what is evaluated is what the index holds.

        Args:
            max_tokens: tokens of one image at most; the images are scaled to the most patches that fit this budget,
                up or down. None keeps the training cap and never scales up.
            patch_size: P; None takes the first of `plan.patch_sizes`.
        """
        plan = self.plan
        cap = plan.max_tokens if max_tokens is None else max_tokens + plan.prefix_tokens
        resolution = Resolution(kind="budget", upscale=True)
        if max_tokens is None:
            resolution = plan.resolution if plan.resolution.kind == "smart" else Resolution(kind="native")
        return replace(
            self,
            data=replace(self.data, remainder="fill", refresh=False),
            plan=replace(
                plan,
                order=Order(kind="sequential"),
                drop=Drop(),
                crop=Crop(),
                warp=None,
                fit="none",
                teacher=None,
                targets=None,
                filter="",
                class_weights={},
                virtual_epoch=0,
                passes=1,
                balance=0,
                patch_sizes=(plan.patch_sizes[0] if patch_size is None else patch_size,),
                patch_weights=(),
                max_tokens=cap,
                sequence_length=max(plan.sequence_length, cap),
                resolution=resolution,
            ),
        )
