"""The mean average precision of a detector's outputs, by COCO's own evaluation (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.errors import DataError
from tfqat.recipe.references import load_reference

decode = load_reference(f"{Path(__file__).resolve().with_name('data.py')}:decode", base=Path(__file__).parent)

LEAST_SCORE, MOST_OVERLAP, MOST_BOXES = 0.02, 0.6, 20  # of a box that is reported; what suppresses one of the same class; in an image


def mean_average_precision(outputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """COCO's mAP: the mean over the classes and over the IoU thresholds 0.50, 0.55, ..., 0.95.

    Args:
        outputs: classes (images, 12, 12, 10) and boxes (images, 12, 12, 4), as the network answers.
        labels: the same as the data have them (data.py: `encode`).
    """
    return average_precisions(outputs, labels)["mAP"]


def average_precisions(outputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """`mAP` as above, and at single IoU thresholds `mAP50` and `mAP75`."""
    found, wanted = detections(*outputs), garments(*labels)
    values = (0.0, 0.0, 0.0) if not found else _coco(found, wanted, images=len(labels[0]), classes=labels[0].shape[-1])
    return dict(zip(("mAP", "mAP50", "mAP75"), map(float, values), strict=True))


def detections(classes: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """What the network found, in COCO's form, after non-maximum suppression within each class."""
    count = len(classes)
    corners = np.reshape(decode(boxes), (count, -1, 1, 4))[..., [1, 0, 3, 2]]  # TensorFlow: (top, left, bottom, right)
    scores = np.reshape(classes, (count, -1, classes.shape[-1]))
    suppressed = tf.image.combined_non_max_suppression(corners, scores, MOST_BOXES, MOST_BOXES, MOST_OVERLAP, LEAST_SCORE, clip_boxes=False)
    kept, scores, numbers, valid = (part.numpy() for part in suppressed)
    return [
        _entry(image, kept[image, place, [1, 0, 3, 2]], numbers[image, place]) | {"score": float(scores[image, place])}
        for image in range(count)
        for place in range(valid[image])
    ]


def garments(classes: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    """What there is, in COCO's form. All cells that see a garment say the same box, so each different one is a garment."""
    image, row, column, number = np.nonzero(classes)
    different = np.unique(np.column_stack([image, number, decode(boxes)[image, row, column]]), axis=0)
    found = [_entry(int(entry[0]), entry[2:], entry[1]) for entry in different]
    return [entry | {"id": identity, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0} for identity, entry in enumerate(found, 1)]


def _entry(image: int, box: np.ndarray, number: Any) -> dict[str, Any]:
    left, top, right, bottom = (float(side) for side in box)
    return {"image_id": image, "category_id": int(number), "bbox": [left, top, right - left, bottom - top]}


def _coco(found: list[dict[str, Any]], wanted: list[dict[str, Any]], *, images: int, classes: int) -> np.ndarray:
    """COCO's first three figures: the mean over all IoU thresholds, at 0.5 and at 0.75.

    Raises:
        DataError: pycocotools is not installed; says how to install it.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise DataError(f"pycocotools, which measures the mAP, is not installed ({error}): pip install 'tfqat[examples]'") from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(images)],
            "categories": [{"id": number} for number in range(classes)],
            "annotations": wanted,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]
