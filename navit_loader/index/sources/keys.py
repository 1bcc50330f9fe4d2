"""Which members of a tar belong together: an image and its label and caption files.

In: names of images and of texts, in the order of the tar. Out: for each image where its texts stand, or why they cannot be
told, and what no row stands for. Apart from `tars`, which reads what stands there.

The key of a member is all of its name before the first dot of its base name, as in WebDataset: `0.jpg` and `0.cls` belong
together. An image whose name has further dots (`IMG_2.5.jpg`, `0.image.png`) belongs to the texts of its whole stem where there
are any (`IMG_2.5.cls`), else to those of its key (`0.cls`), if no other image does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TEXTS = ("cls", "txt", "json")
"""Ends of label and caption files."""

AGAIN = "that stand again behind themselves in the tar, where the last counts"
FURTHER = "of a key that has an image whose name has fewer dots"
ALONE = "that are label or caption files without an image"
"""Reasons for `Job.leave_out`."""


@dataclass
class Grouped:
    """What belongs together.

    Attributes:
        rows: numbers of the images that have a row.
        stems: for each of them what its texts are called, without their end.
        reasons: image → why it cannot be used.
        left_out: names that no row stands for, by reason.
    """

    rows: list[int] = field(default_factory=list)
    stems: list[bytes] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    left_out: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))


def group(images: Sequence[bytes], texts: Mapping[bytes, object]) -> Grouped:
    """Groups the images of a tar.

    Args:
        images: their names, in the order of the tar.
        texts: label and caption files by name, their ends in lower case.
    """
    found = Grouped()
    last = {name: i for i, name in enumerate(images)}
    plain: dict[bytes, int] = {}
    dotted: dict[bytes, list[int]] = defaultdict(list)
    for i, name in enumerate(images):
        if last[name] != i:
            found.left_out[AGAIN].append(name)
            continue
        key, stem = key_of(name), _stem(name)
        if key != stem:
            dotted[key].append(i)
            continue
        _add(found, i, key)
        first = plain.setdefault(key, i)
        if first != i:
            found.reasons[i] = f"its key has the image '{_shown(images[first])}' already, which is used"
    for key, numbers in dotted.items():
        shared = [i for i in numbers if not _has(texts, _stem(images[i]))]
        for i in numbers:
            if i not in shared:
                _add(found, i, _stem(images[i]))
                if key not in plain and len(numbers) == 1 and _has(texts, key):
                    found.reasons[i] = (
                        f"both its own label or caption files and those of its key '{_shown(key)}' may be meant; keep one kind"
                    )
            elif key in plain:
                found.left_out[FURTHER].append(images[i])
            elif not _has(texts, key):
                _add(found, i, _stem(images[i]))
            else:
                _add(found, i, key)
                if len(shared) > 1:
                    one, two = (_shown(images[j]) for j in shared[:2])
                    found.reasons[i] = (
                        f"'{one}' and '{two}' are of one key, '{_shown(key)}' (all before the first dot), so its label and "
                        "caption files cannot be given to one of them; rename them"
                    )
    order = sorted(range(len(found.rows)), key=found.rows.__getitem__)
    found.rows, found.stems = [found.rows[k] for k in order], [found.stems[k] for k in order]
    used = {stem + b"." + end.encode() for stem in found.stems for end in TEXTS}
    found.left_out[ALONE] = [name for name in texts if name not in used]
    return found


def key_of(name: bytes) -> bytes:
    """All of a name before the first dot of its base name."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _stem(name: bytes) -> bytes:
    """All of a name before its last dot."""
    return name.rpartition(b".")[0]


def _add(found: Grouped, image: int, stem: bytes) -> None:
    found.rows.append(image)
    found.stems.append(stem)


def _has(texts: Mapping[bytes, object], stem: bytes) -> bool:
    return any(stem + b"." + end.encode() in texts for end in TEXTS)


def _shown(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
