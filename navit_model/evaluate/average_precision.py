"""Average precision of boxes as COCO defines it, by pycocotools.

In: what is to be found, and what a detector found, in COCO's own words. Out: its figures. Apart from the pass that asks a model
(`detection`), since results of any detector may be scored so.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from navit_loader.errors import ModelError

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
"""In the order of pycocotools."""


def average_precision(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """COCO's figures of boxes; None where there is nothing that one could be of, such as no small object.

    Args:
        truth: `images`, `annotations` (`bbox` as (left, top, width, height), `area`, `iscrowd`, `category_id`, `image_id`, `id`
            of 1 or more) and `categories`.
        results: `image_id`, `category_id`, `bbox`, `score`.

    Raises:
        ModelError: pycocotools is not installed.
    """
    check_pycocotools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # It prints as it goes.
    with redirect_stdout(io.StringIO()):
        wanted = COCO()
        wanted.dataset = dict(truth)
        wanted.createIndex()
        if results:
            # It writes into what it is given.
            found = wanted.loadRes([dict(each) for each in results])
        else:
            found = COCO()
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        scored = COCOeval(wanted, found, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return {name: None if value < 0 else float(value) for name, value in zip(FIGURES, scored.stats, strict=False)}


def check_pycocotools() -> None:
    """Raises a `ModelError` where pycocotools is not installed."""
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        raise ModelError("boxes are scored by pycocotools: pip install 'packed-navit[detection]'") from None
