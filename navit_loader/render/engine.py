"""`Engine`: one plan and one renderer over opened indexes. `PackedLoader` and the daemon are built on it.

In: a configuration and its indexes. Out: batches by name, `(epoch, first sequence, batch size)`, and the two
identities:
`plan_id` covers everything that decides what goes where, `render_id` everything that decides the pixels.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from .. import _packer
from ..config import LoaderConfig, Source, deciding
from ..errors import ConfigError, IndexFileError, RenderError
from ..foreign import helpers, revisions
from ..index import Index, open_index
from ..plan import identity
from ..plan.layouts import Layouts
from ..plan.selection import streams_of
from .encoded import PendingEncoded
from .pending import Pending

SPAN_BYTES = 2 << 20
"""What is fetched at once of a remote container in block order."""


FORESEEN = 2048
"""Images ahead of those submitted for which remote storage is asked: a window of the block order."""

Step = tuple[int, int]
"""First sequence of a batch, and what belongs to it."""


class Engine:
    """One plan and one renderer.

    Attributes:
        config: the configuration.
        indexes: the opened indexes, in the order of `source_ids`.
        plan_id: covers plan version, the columns that planning reads, and `[plan]`; never batch size, ranks or paths.
        render_id: covers the other columns, the decoder and the settings that change pixels.
        classes: class names by label.
        render: the keys of `[render]` that decide pixels.
        label_width: K.
        vocabulary: caption token ids are below this; 0 without captions.
        plan: the planner of the extension.
        layouts: how epochs fall into batches.
    """

    def __init__(
        self,
        config: LoaderConfig,
        index: str | os.PathLike[str] | Index | Sequence[Index] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Opens the indexes and plans nothing yet.

        Args:
            config: what to plan and how to render.
            index: an index or its path, or all opened indexes of `data.mixture`; None takes `data.index` or
                `data.mixture`.
            shared: render into memory that other processes of this host can map.

        Raises:
            IndexFileError: an index that cannot be opened.
            ConfigError: no index at all, indexes with different class tables or tokenizers, or no captions to plan.
            PlanError: the configuration cannot be planned with these indexes.
        """
        config = LoaderConfig.checked(config)
        self._given, self._shared = config, shared
        self.indexes, weights = _open(config, index)
        first = self.indexes[0]
        for other in self.indexes[1:]:
            if other.classes != first.classes or other.label_width != first.label_width:
                raise ConfigError(
                    f"the indexes {first.path} and {other.path} have different class tables; "
                    f"write one with `navit-loader index --classes {first.path}`"
                )
        captioned = [index for index in self.indexes if index.tokens.hash]
        for other in captioned[1:]:
            if other.tokens != captioned[0].tokens:
                raise ConfigError(
                    f"the captions of {captioned[0].path} and {other.path} have different tokenizers; "
                    "write both indexes with the same --tokenizer"
                )
        self.vocabulary: int = captioned[0].tokens.vocabulary if captioned else 0
        if config.plan.text_tokens and not self.vocabulary:
            raise ConfigError(
                f"plan.text_tokens = {config.plan.text_tokens}, but no image of {first.path} has a caption; set it to 0, or "
                "index a source with captions"
            )
        _check_targets(config, self.indexes)
        self.classes: list[str] = first.classes
        self.label_width: int = first.label_width
        order = config.plan.order.settled(remote=any(index.remote for index in self.indexes))
        self.config = config = replace(config, plan=replace(config.plan, order=order))
        # In block order neighbours are wanted soon after one another, so remote containers are read in spans.
        spans = 0 if order.kind == "permutation" else SPAN_BYTES
        columns = [index.columns() | {"span_bytes": spans, "fingerprint": index.contents} for index in self.indexes]
        streams = streams_of(config.plan, self.indexes, weights)
        self.plan = _packer.Plan(config.plan.to_json(), columns, streams)
        fingerprints = [index.plan_fingerprint for index in self.indexes]
        self.plan_id = identity.plan_id(fingerprints, json.loads(config.plan.to_json()), weights)
        self.render = deciding(config.render)
        # Where Pillow makes the pixels, another version of it may make others; libwebp and dav1d are named, since other
        # decoders were here before.
        formats = {name for index in self.indexes for name in index.formats}
        through_pillow = revisions(formats, config.render.profiles == "convert")
        named = {"webp": "libwebp", "avif": "dav1d"}
        decoder = "-".join(["rust", *(name for kind, name in named.items() if kind in formats)])
        self.render_id = identity.render_id(
            [index.render_fingerprint for index in self.indexes],
            f"{decoder}-pillow-{identity.digest(*through_pillow)}" if through_pillow else decoder,
            self.render,
        )
        self.layouts = Layouts(self.plan, self.plan_id)
        limits = self.plan.limits(self.label_width)
        self._renderer = _packer.Renderer(config.render.to_json(), limits, columns, helpers(), shared, self.plan)

    def layout(self, epoch: int) -> _packer.Layout:
        """How the sequences of `epoch` fall into batches.

        Counts of a whole epoch are kept on disk by `(plan_id, epoch)`, so that opening in its middle is quick.

        Raises:
            IndexFileError: as `check_unchanged`.
            StateError: an epoch out of range.
        """
        self.check_unchanged()
        return self.layouts.get(epoch)

    def check_unchanged(self) -> None:
        """Refuses to read on in an index that was written over in place since it was opened. Quick.

        Raises:
            IndexFileError: names the index.
        """
        for index in self.indexes:
            index.check_unchanged()

    def submit(self, epoch: int, first: int, batch_size: int) -> Pending:
        """Asks for a batch: sequences from `first` to the end of its run, the rest masked. Does not wait for pixels."""
        return Pending(self._renderer.submit(self.layout(epoch).batch(first, batch_size)))

    def foreseen(self, steps: Iterable[Step], epoch: int, batch_size: int) -> Iterator[Step]:
        """The same steps, while what the following ones need of remote storage is on its way.

        In block order the images that follow one another come from all over a window, so a window's first batches need
        nearly all of its bytes: they are asked for while the window before is rendered.

        Args:
            steps: first sequences of batches, in order, with whatever belongs to them.
            epoch: of which they are.
            batch_size: B.
        """
        remote = any(index.remote for index in self.indexes)
        if not remote or self.config.plan.order.kind == "permutation":
            yield from steps
            return
        rest, layout = iter(steps), self.layout(epoch)
        coming: deque[tuple[Step, _packer.PlannedBatch, _packer.Ahead]] = deque()
        while True:
            # Strictly in order: what is wanted later takes no room from what is wanted sooner.
            if coming and not coming[-1][2].complete:
                step, planned, _ = coming.pop()
                coming.append((step, planned, self._renderer.foresee(planned)))
            while (
                (not coming or coming[-1][2].complete)
                and sum(ahead.images for *_, ahead in coming) < FORESEEN
                and (following := next(rest, None)) is not None
            ):
                planned = layout.batch(following[0], batch_size)
                coming.append((following, planned, self._renderer.foresee(planned)))
            if not coming:
                return
            now = coming.popleft()
            yield now[0]
            # Submitted: the batch holds on to what it needs.
            del now

    def submit_encoded(self, epoch: int, first: int, batch_size: int) -> PendingEncoded:
        """Asks for the same batch with its encoded files in place of pixels.

        Raises:
            RenderError: its files have more bytes than `render.memory_mb` allows, the largest is named; or its images are
                warped or have masks, which this engine alone does.
        """
        self._check_encoded()
        return PendingEncoded(self._renderer.submit(self.layout(epoch).batch(first, batch_size), True), self.render)

    def submit_planned(self, planned: _packer.PlannedBatch, encoded: bool = False) -> Pending | PendingEncoded:
        """Asks for a batch that is planned already, with pixels or with its encoded files. Does not wait.

        Raises:
            IndexFileError: as `check_unchanged`.
            RenderError: as `submit_encoded`.
        """
        self.check_unchanged()
        if encoded:
            self._check_encoded()
        pending = self._renderer.submit(planned, encoded)
        return PendingEncoded(pending, self.render) if encoded else Pending(pending)

    def _check_encoded(self) -> None:
        if self.config.plan.warp is not None:
            raise RenderError(
                "encoded batches cannot be had with [plan.warp], since no decoder but the engine's warps images; ask for "
                "pixels (decode = 'cpu'), or leave [plan.warp] out"
            )
        if self.config.plan.targets is not None and self.config.plan.targets.masks:
            raise RenderError(
                "encoded batches cannot be had with plan.targets.masks, which are made with the pixels; ask for pixels "
                "(decode = 'cpu'), or set plan.targets.masks = 0"
            )

    def encoded_bytes(self, planned: _packer.PlannedBatch) -> int:
        """Bytes that a planned batch takes in memory with its encoded files.

        Raises:
            RenderError: as `submit_encoded`.
        """
        return int(self._renderer.encoded_bytes(planned))

    def fileno(self) -> int:
        """A descriptor that becomes readable when some pending batch is ready."""
        return int(self._renderer.fd)

    def renewed(self) -> list[Index]:
        """The indexes as they stand at their paths now: the same objects where no file was replaced.

        Raises:
            IndexFileError: one that cannot be opened.
        """
        return [index.reopened() for index in self.indexes]

    def serves(self, indexes: Sequence[Index]) -> bool:
        """Whether a plan over these indexes would be this one, rendered the same."""
        return fingerprints(indexes) == fingerprints(self.indexes)

    def successor(self, indexes: Sequence[Index]) -> Engine:
        """The engine of the same configuration over indexes that took the place of its own. This one stays open.

        Raises:
            IndexFileError: one has another class table, number of labels or tokenizer, for which batches would differ in more
                than their images.
            PlanError: as at the start.
        """
        for old, new in zip(self.indexes, indexes, strict=True):
            for what, before, now in (
                ("class table", old.classes, new.classes),
                ("number of labels per image", old.label_width, new.label_width),
                ("tokenizer", old.tokens, new.tokens),
            ):
                if before != now:
                    raise IndexFileError(
                        f"'{new.path}' was replaced by an index with another {what}, and data.refresh cannot take it up; "
                        "write it with the old one's (--classes FROM, --tokenizer), or start anew"
                    )
        return Engine(self._given, indexes, shared=self._shared)

    def stats(self) -> dict[str, Any]:
        """Counts and seconds per stage since the start."""
        return dict(self._renderer.stats())

    def profiles(self) -> list[tuple[str, int, str]]:
        """Colour profiles other than sRGB that were not applied: their kind, how many images, and one of them."""
        return self._renderer.profiles()

    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger so far: one entry per (epoch, image)."""
        return list(self._renderer.failures())

    def failure_counts(self) -> list[tuple[str, str, int]]:
        """Stage, reason and number of failed images so far; it goes on where the ledger is full."""
        return list(self._renderer.failure_counts())

    def close(self) -> None:
        """Stops the threads; pending batches fail. Safe to call twice."""
        self.layouts.close()
        self._renderer.close()

    def __enter__(self) -> Engine:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()


def _check_targets(config: LoaderConfig, indexes: Sequence[Index]) -> None:
    """Refuses boxes and masks that no index has.

    Raises:
        ConfigError: names the key and how to index.
    """
    targets = config.plan.targets
    if targets is None:
        return
    path = indexes[0].path
    if targets.boxes and not any(index.boxed for index in indexes):
        raise ConfigError(f"plan.targets.boxes is set, but {path} has no boxes; index with --boxes, or leave it out")
    kinds = {index.masks for index in indexes} - {""}
    if targets.masks and not kinds:
        raise ConfigError(
            f"plan.targets.masks = {targets.masks}, but {path} has no masks; index with --masks, or set it to 0"
        )
    if targets.kind == "regions" and "classes" in kinds:
        raise ConfigError(
            "plan.targets.kind = 'regions', but a mask of classes does not tell regions; index with --masks coco:… or "
            "panoptic:…, or take 'semantic'"
        )


def fingerprints(indexes: Sequence[Index]) -> list[tuple[str, str]]:
    """All that indexes have to do with a plan and its pixels."""
    return [(index.plan_fingerprint, index.render_fingerprint) for index in indexes]


def _open(
    config: LoaderConfig, index: str | os.PathLike[str] | Index | Sequence[Index] | None
) -> tuple[list[Index], list[float]]:
    mixture: Sequence[Source] = config.data.mixture
    if isinstance(index, Index):
        index = [index]
    if isinstance(index, Sequence) and not isinstance(index, str):
        if not all(isinstance(one, Index) for one in index):
            raise ConfigError(
                f"index = {index!r} is a list; give one path, and several with their weights as [[data.mixture]]"
            )
        return list(index), [entry.weight for entry in mixture] if len(index) == len(mixture) else [1.0]
    if index is not None:
        return [open_index(index)], [1.0]
    if config.data.index:
        return [open_index(config.data.index)], [1.0]
    if not mixture:
        raise ConfigError("no index: set data.index or [[data.mixture]], or pass index=")
    return [open_index(entry.index) for entry in mixture], [entry.weight for entry in mixture]
