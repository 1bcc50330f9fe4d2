"""The Rust engine. One section for each room: probe, pack, plan, render.

Arrays are numpy; every function that works for long releases the interpreter's lock.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, final, type_check_only

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BUILD_PROFILE",
    "FORMAT_BROKEN",
    "FORMAT_NAMES",
    "FORMAT_UNCHANGED",
    "Ahead",
    "Buffer",
    "Floats",
    "Helpers",
    "Layout",
    "Pending",
    "Plan",
    "PlannedBatch",
    "Renderer",
    "SlotRenderer",
    "__version__",
    "batch_fields",
    "pack",
    "probe_bytes",
    "probe_files",
    "probe_members",
    "probe_objects",
    "probe_parquet",
    "probe_tar",
    "region_of_counts",
    "region_of_polygons",
    "region_of_text",
    "remote_list",
    "remote_meta",
    "remote_read",
    "render_images",
    "smart_sizes",
    "spread",
    "storage",
    "storage_news",
    "without_secrets",
]

__version__: str
BUILD_PROFILE: str
"""`release` or `debug`; benchmarks refuse a debug build."""

@final
class Helpers:
    """Processes that read what the engine does not, started when the first image needs one; they end with this object.

    Args:
        command: starts one; see `navit_loader.foreign`.
    """

    def __new__(cls, command: list[str]) -> Helpers: ...

# probe: bytes of a container -> size after orientation, format, or the reason why there is none

FORMAT_NAMES: list[str]
"""Formats by code."""
FORMAT_BROKEN: int
"""Format code of an image that cannot be used."""
FORMAT_UNCHANGED: int
"""Format code of a file that still has the known length and modification time, so it was not opened."""

@type_check_only
class _Headers(TypedDict):
    """Columns, one value an image, and the broken ones.

    width, height: i32, pixels after orientation; 0 where broken or unchanged. orientation: u8, EXIF, 1 to 8.
    format: u8, see `FORMAT_NAMES`. length: i64, bytes; -1 where the file is gone. errors: (image, reason).
    """

    width: NDArray[np.int32]
    height: NDArray[np.int32]
    orientation: NDArray[np.uint8]
    format: NDArray[np.uint8]
    length: NDArray[np.int64]
    errors: list[tuple[int, str]]

@type_check_only
class ProbedFiles(_Headers):
    """What `probe_files` found; mtime_ns: i64, nanoseconds since 1970, -1 where the file is gone."""

    mtime_ns: NDArray[np.int64]

@type_check_only
class ProbedTar(_Headers):
    """What `probe_tar` found, in the order of the tar.

    names, offset: of each image member, raw and i64. texts: (raw name, content, or None with the reason) of label and
    caption members. others: (lower-case end of the name, `.` for hidden ones; how many; one of them) of other members.
    container_length: bytes of the tar. check: what each is known again by, u32. fault: what ended the scan early, or is
    missing.
    """

    names: list[bytes]
    offset: NDArray[np.int64]
    texts: list[tuple[bytes, bytes | None, str | None]]
    others: list[tuple[bytes, int, bytes]]
    container_length: int
    check: NDArray[np.uint32]
    fault: str | None

def probe_files(
    root: bytes,
    names: bytes,
    threads: int,
    known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    helpers: Helpers | None = None,
) -> ProbedFiles:
    """Reads the headers of the files `root/name` for NUL-separated `names`.

    Args:
        root: folder; empty where names are absolute.
        names: raw names joined by NUL.
        threads: threads to use.
        known: length and modification time for each name, -1 where unknown.
        helpers: read what the engine does not; without them such files are broken.

    Raises:
        IndexFileError: `known` is not as long as `names`.
    """

def probe_tar(path: bytes, images: list[str], texts: list[str], helpers: Helpers | None = None) -> ProbedTar:
    """Scans one plain tar in place. What is wrong with it is part of the result.

    Args:
        path: raw path of the tar.
        images: lower-case extensions of the members to probe.
        texts: lower-case extensions of the members to return whole.
        helpers: see `probe_files`.
    """

@type_check_only
class ProbedMembers(_Headers):
    """What `probe_members` found; check: what each is known again by, u32. container_length: bytes of the file."""

    check: NDArray[np.uint32]
    container_length: int

def probe_members(
    path: bytes, offset: NDArray[np.uint64], length: NDArray[np.uint64], threads: int, helpers: Helpers | None = None
) -> ProbedMembers:
    """Reads the headers of the members of one container, at known places.

    Args:
        path: raw path of the container.
        offset: first byte of each.
        length: bytes of each.
        threads: threads to use.
        helpers: see `probe_files`.

    Raises:
        IndexFileError: the container cannot be read.
    """

@type_check_only
class ProbedColumn(_Headers):
    """What `probe_parquet` found, row by row; offset: i64, -1 where the value does not lie in the file as it is.

    check: what each is known again by, u32. container_length: bytes of the file.
    """

    offset: NDArray[np.int64]
    check: NDArray[np.uint32]
    container_length: int

def probe_parquet(path: bytes, column: str, helpers: Helpers | None = None) -> ProbedColumn:
    """Reads the images in one binary column of a Parquet file, page by page.

    Args:
        path: raw path of the file.
        column: dotted name of the leaf column, such as `image.bytes`.
        helpers: see `probe_files`.

    Raises:
        IndexFileError: the file is broken, or the column does not hold one binary value a row.
    """

def probe_objects(root: str, objects: list[tuple[str, int]], helpers: Helpers | None = None) -> _Headers:
    """Reads the headers of the remote objects `root` + key, of known lengths; many requests at once."""

def remote_list(url: str) -> tuple[list[tuple[str, int, int]], list[str]]:
    """Key (relative to the URL, which ends in `/`), length and modification time in ns of each object beneath it; and the
    keys there that are no paths, so that nothing can be asked for by them.

    Raises:
        IndexFileError: the bucket refuses, or the server has no listing.
    """

def remote_meta(url: str) -> tuple[int, int]:
    """Length and modification time in ns of an object. Raises IndexFileError."""

def remote_read(url: str, offset: int, length: int) -> bytes:
    """A range of an object, tried again after faults that may pass. Raises IndexFileError."""

def region_of_polygons(polygons: list[list[float]], width: int, height: int) -> bytes:
    """The pixels in any of some polygons, as pycocotools finds them, as COCO's text of runs.

    Args:
        polygons: x and y of each corner in pixels, one after another; three corners at least.
        width: of the image.
        height: of the image.

    Raises:
        ValueError: a corner that is no number, or an image too large to have runs.
    """

def region_of_counts(counts: list[int], width: int, height: int) -> bytes:
    """The same of runs, "not" and "of" the region in turns, down the columns. Raises ValueError where they do not fill the
    image."""

def region_of_text(text: bytes, width: int, height: int) -> bytes:
    """The same text, checked. Raises ValueError where it is none, or its runs do not fill the image."""

def without_secrets(text: str) -> str:
    """A text as it may be shown: of each URL in it, without user and password and without its query."""

def storage() -> dict[str, int]:
    """Of this process: `retries`, reads tried again so far after a fault; `waiting`, reads that wait for storage now."""

def storage_news() -> None:
    """Logs (`navit_loader.storage`) what storage is waited for, now and again, for whoever waits in a loop of its own."""

def probe_bytes(data: bytes, helpers: Helpers | None = None) -> tuple[int, int] | None:
    """Height and width after orientation of an encoded image in memory; None where the bytes are no image."""

# pack and plan: integers in, integers out; see `navit_loader.plan.packing`, `navit_loader.render.engine`, `navit_loader.config`

def pack(
    lengths: NDArray[np.uint32],
    capacity: int,
    algorithm: str,
    lookahead: int,
    max_items: int,
    text_lengths: NDArray[np.uint32] | None,
    text_capacity: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequence and offset of each item; `navit_loader.pack` checks the arguments. Raises PackError."""

def smart_sizes(
    resolution_json: str, patch_size: int, height: NDArray[np.uint32], width: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], list[tuple[int, str]]]:
    """Height and width in pixels to resize to, rows and columns of patches, `[N, 4]`, all 0 where the family refuses the image;
    which those are, and why. See `navit_loader.plan.sizing`. Raises PlanError."""

@final
class PlannedBatch:
    """The planned images of one batch, as handed to `Renderer.submit`."""

    def __new__(
        cls, epoch: int, first: int, patch_size: int, batch_size: int, sequences: list[list[dict[str, Any]]]
    ) -> PlannedBatch: ...
    @property
    def epoch(self) -> int:
        """Epoch of the plan."""
    @property
    def first(self) -> int:
        """Number of the first sequence in its epoch."""
    @property
    def patch_size(self) -> int:
        """P of all its sequences."""
    @property
    def batch_size(self) -> int:
        """B; sequences beyond `sequences` are masked."""
    @property
    def sequences(self) -> list[list[dict[str, Any]]]:
        """For each sequence its images: row, key, crop, offset, kept, grid, flip, source and the second view's; `warp` (9
        floats) and `warp_layers` where the plan warps."""

@final
class Plan:
    """A plan over the size columns of its indexes.

    Args:
        plan_json: `PlanConfig.to_json()`.
        sources: for each index its `width`, `height` and `caption_tokens` as lists of i32 arrays.
        streams: (index, selected rows u64 or None for all, weight). Raises PlanError or IndexFileError.
    """

    def __new__(
        cls,
        plan_json: str,
        sources: list[dict[str, Any]],
        streams: Sequence[tuple[int, NDArray[np.uint64] | None, float]],
    ) -> Plan: ...
    @property
    def epoch_images(self) -> int:
        """Images of one epoch."""
    @property
    def num_blocks(self) -> int:
        """Independently planned blocks of one epoch."""
    def limits(self, label_width: int) -> dict[str, Any]:
        """The limits that fix a batch's shapes, as `Renderer` takes them; `boxes` (O), `clip`, `masks` (S) and `regions` say
        what it has of targets."""
    def layout(self, epoch: int, block: int = 0, before: int = 0) -> Layout:
        """How an epoch's sequences fall into batches. Raises StateError for an epoch or block out of range.

        Args:
            epoch: epoch.
            block: the first block that is known; what lies before it is not.
            before: sequences before that block.
        """

@final
class Layout:
    """How an epoch's sequences fall into batches: planned here, or from the counts that a daemon sent."""

    @staticmethod
    def remote(run: int, num_blocks: int) -> Layout:
        """A layout whose counts come from elsewhere, by `extend`."""
    @property
    def run(self) -> int:
        """Sequences that share a patch size inside a block; 0 with one patch size."""
    @property
    def num_blocks(self) -> int:
        """Blocks of the epoch."""
    @property
    def known(self) -> int:
        """Leading blocks whose count of sequences is known, those before the layout's first block included."""
    @property
    def num_sequences(self) -> int | None:
        """Sequences of the epoch; None while blocks are unknown."""
    def extend(self, counts: Sequence[int] | NDArray[np.uint32]) -> None:
        """Adds the counts of the next blocks (remote), or restores all from the first on (local)."""
    def counts(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Sequences of the blocks `start..stop`, planning what is missing with the lock released."""
    def count_on(self, stop: int) -> bool:
        """Counts the next blocks, no more than takes some tens of milliseconds. Whether those before `stop` are known. Local
        layouts alone."""
    def place(self, first: int) -> tuple[int, int] | None:
        """The known block that holds sequence `first`, or the last one beyond the epoch's end, and the sequences before it."""
    def next(self, first: int, batch_size: int) -> int | None:
        """Where the batch after the one at `first` starts; None where a remote layout needs more counts."""
    def steps(self, first: int, batch_size: int, world_size: int, drop: bool) -> int:
        """Steps of every rank from `first` on; a local layout plans what is unknown."""
    def batch(self, first: int, batch_size: int) -> PlannedBatch:
        """The batch at `first`: up to `batch_size` sequences, to the end of the run. Local layouts alone."""
    def batch_at_hand(self, first: int, batch_size: int) -> PlannedBatch | None:
        """The same where nothing has to be planned for it, else None. Quick."""
    def reaches(self, first: int, batch_size: int) -> bool:
        """Whether the counts that are known reach to the end of the batch at `first`."""
    def squares(self, start: int, stop: int) -> NDArray[np.uint64]:
        """What attention takes for each sequence of the blocks `start..stop`: the sum of its images' squared segments, in both
        views. Local layouts alone."""
    def report(self, start: int, stop: int) -> dict[str, int]:
        """What happened while the blocks `start..stop` were planned, summed up; `lateness` is the largest."""

# render: planned batches -> the fields of `PackedBatch`; see `navit_loader.render.engine`

def batch_fields(
    limits: dict[str, Any], patch_size: int, count: int, encoded: bool
) -> tuple[list[tuple[str, str, list[int], int]], int]:
    """What a batch looks like: the one definition of its shape.

    Args:
        limits: as for `Renderer`.
        patch_size: P.
        count: B.
        encoded: with files in place of pixels; their `data` is given 0 bytes.

    Returns:
        Name as in `PackedBatch.arrays()`, dtype, shape and first byte of each field, in the order of the wire; and the
        bytes of the block that holds them.
    """

@final
class Buffer:
    """A batch's memory: the base of all its arrays. It is used again when the last of them is gone."""

    @property
    def shared(self) -> tuple[int, int] | None:
        """Its number, which no other memory of this process ever has, and its sealed memfd; None on the heap."""
    @property
    def nbytes(self) -> int:
        """Bytes; the fields lie in it in the order of the wire, each at a multiple of 64."""
    def bytes(self) -> NDArray[np.uint8]:
        """All of it as it lies there, u8 `[nbytes]`."""
    @property
    def bound(self) -> bool:
        """Whether `bind` was called for this memory, with this batch or with an earlier one that lay in it."""
    def bind(self, release: Callable[[], object]) -> bool:
        """Binds this memory to something, for all batches that will lie in it; `release` is called once before it goes.

        Returns:
            False where it was bound before.
        """
    def abandon(self) -> None:
        """Never uses it again: some other process may go on reading it."""

@final
class Renderer:
    """Threads that fill planned slots with pixels, within a bound of bytes.

    Args:
        render_json: `RenderConfig.to_json()`.
        limits: from `Plan.limits`.
        sources: for each index its columns, from `Index.columns`; `caption_ids` count before `caption`; boxes and masks where
            there are any; `span_bytes` is what is fetched at once of remote containers, 0 for just the image; `fingerprint`
            names its contents, which spans in `cache_dir` are kept by.
        helpers: read what the engine does not; without them such images are `unsupported`.
        shared: render into memfds that other processes of this host can map read-only.
        plan: knows when a span in `cache_dir` is wanted next; without it the cache keeps what it has.

    Raises:
        RenderError: `cache_dir` cannot be used.
    """

    def __new__(
        cls,
        render_json: str,
        limits: dict[str, Any],
        sources: list[dict[str, Any]],
        helpers: Helpers | None = None,
        shared: bool = False,
        plan: Plan | None = None,
    ) -> Renderer: ...
    def submit(self, batch: PlannedBatch, encoded: bool = False) -> Pending:
        """Asks for a batch and returns at once. Raises RenderError after `close` or in a forked child.

        Args:
            batch: what to render.
            encoded: deliver the files in place of pixels; see `navit_loader.render.encoded`.
        """
    def foresee(self, batch: PlannedBatch) -> Ahead:
        """Starts to fetch from remote storage what a batch will need that is to be submitted later, as far as there is room.

        Raises:
            RenderError: in a forked child.
        """
    def encoded_bytes(self, batch: PlannedBatch) -> int:
        """Bytes that the batch takes in memory as an encoded one. Raises RenderError where that is too much."""
    @property
    def fd(self) -> int:
        """An eventfd that becomes readable when some pending batch is ready."""
    def stats(self) -> dict[str, Any]:
        """Counts, and seconds per stage over all threads, since the start. With `cache_dir`, and anything remote, what the
        cache has done stands under `cache`: `bytes_read`, `bytes_evicted`, `spans_damaged`, `spans_unwritten`."""
    def profiles(self) -> list[tuple[str, int, str]]:
        """Colour profiles other than sRGB that were not applied: their kind, how many images, and one of them."""
    def failures(self) -> list[dict[str, Any]]:
        """The quarantine ledger so far."""
    def failure_counts(self) -> list[tuple[str, str, int]]:
        """Stage, reason and number of failed images so far, also of those for which the ledger has no room."""
    def close(self) -> None:
        """Stops the threads; pending batches fail. Safe to call twice."""

@final
class Ahead:
    """What a later batch needs of remote storage, on its way or at hand while this is held."""

    @property
    def images(self) -> int:
        """Images of the batch."""
    @property
    def complete(self) -> bool:
        """Whether nothing is left to be started: there was room, and it was known where everything lies."""

@final
class Pending:
    """A batch on its way."""

    @property
    def ready(self) -> bool:
        """Whether `wait` would return at once."""
    def wait(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The fields of `PackedBatch`; None on timeout. Raises RenderError."""
    def cancel(self) -> None:
        """Gives the batch up."""

@final
class SlotRenderer:
    """The CPU renderer for images of encoded batches, and the ledger of those that could not be decoded.

    Images are given by `data` (u8, the batch's) and one value each of `spans` i64 `[n, 2]`, `sizes` i32 `[n, 2]` (height,
    width), `orientations` u8 `[n]`, `crops` i32 `[n, 4]`, `flips` u8 `[n]`.

    Args:
        render_json: `RenderConfig.to_json()`; its ledger and failure limit count here.
        helpers: as for `Renderer`.
    """

    def __new__(cls, render_json: str, helpers: Helpers | None = None) -> SlotRenderer: ...
    def prepare(
        self,
        data: NDArray[np.uint8],
        spans: NDArray[np.int64],
        sizes: NDArray[np.int32],
        orientations: NDArray[np.uint8],
        crops: NDArray[np.int32],
        flips: NDArray[np.uint8],
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint8]]:
        """How each image lies in its file.

        Returns:
            1 where the file is a whole JPEG that other decoders read as the one here does, u8; crops in the stored frame,
            i32 `[4 n]`; how the oriented and flipped image lies in the stored one, u8: 1 swapped, 2 mirrored across,
            4 mirrored down.

        Raises:
            RenderError: a span outside `data` or a crop outside its image.
        """
    def render(
        self,
        data: NDArray[np.uint8],
        spans: NDArray[np.int64],
        sizes: NDArray[np.int32],
        orientations: NDArray[np.uint8],
        who: list[tuple[int, int, int, str]],
        batch: PlannedBatch,
        limits: dict[str, Any],
    ) -> dict[str, Any]:
        """Renders a planned batch whose rows are these images: the fields of `PackedBatch`.

        Args:
            data, spans, sizes, orientations: the images.
            who: for each image source, row, offset and uri, by which a failure is entered in the ledger.
            batch: the plan.
            limits: as for `Renderer`.

        Raises:
            RenderError: too many images failed, or the plan does not fit.
        """
    def passed(self, count: int) -> None:
        """Counts images that another decoder has rendered."""
    def failures(self) -> list[dict[str, Any]]:
        """The ledger so far."""

def render_images(
    images: list[Any],
    batch: PlannedBatch,
    limits: dict[str, Any],
    render_json: str,
    helpers: Helpers | None = None,
) -> dict[str, Any]:
    """Renders one planned batch from bytes or u8 `[H, W, 3]` arrays; row r of the plan is image r."""

_Shape = tuple[int, int, int, int, int]
"""Of patches in a tensor: P, floats from one colour to the next (1 where a pixel's stand together) and from one line to the
next, how often a patch stands there, and floats from one time to the next."""

_Scale = tuple[tuple[float, float, float], tuple[float, float, float], float]
"""(less, over, times): a sample v of each colour becomes (v − less) ÷ over × times."""

def spread(
    patches: NDArray[np.uint8],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    shape: _Shape,
    scale: _Scale,
    out: NDArray[np.float32],
) -> None:
    """Writes patches that are rendered already into a tensor of floats.

    Args:
        patches: P·P·3 bytes each, one after the other.
        rows: which of them.
        places: where in `out` each begins.
        shape: see `_Shape`.
        scale: see `_Scale`.
        out: flat.

    Raises:
        RenderError: a row or a place outside.
    """

@final
class Floats:
    """Renders whole images into tensors of floats, and keeps its buffers from call to call.

    Args:
        helpers: see `probe_files`.
        exact: decode JPEG to RGB at its full size before it is resized, and round between the passes, as Pillow and
            torchvision do.
    """

    def __new__(cls, helpers: Helpers | None = None, exact: bool = False) -> Floats: ...
    def render(
        self,
        images: list[Any],
        targets: list[tuple[int, int]],
        columns: list[int],
        starts: list[int],
        places: list[NDArray[np.int64]],
        shape: _Shape,
        scale: _Scale,
        render_json: str,
        out: NDArray[np.float32],
    ) -> list[tuple[int, str]]:
        """Renders images into `out`.

        Args:
            images: bytes, or u8 `[H, W, 3]` arrays.
            targets: (height, width) of each; what its patches hold beyond is black.
            columns: patches across.
            starts: where the part of each image in `out` begins, and where the last ends.
            places: where in that part each patch begins, row by row.
            shape, scale: as for `spread`.
            render_json: `RenderConfig.to_json()`.
            out: flat.

        Returns:
            The number of each image that has no pixels, and why.

        Raises:
            RenderError: what is asked for does not fit.
        """
