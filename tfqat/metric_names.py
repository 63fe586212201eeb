"""Which way a metric is better, told from its Keras name."""

from __future__ import annotations

_HIGHER = ("acc", "auc", "precision", "recall", "iou", "f1", "fbeta", "dice", "top", "map", "r2", "cosine_similarity")
_LOWER = ("loss", "mape", "error")


def higher_is_better(name: str) -> bool:
    """Whether a larger value of the metric is better: accuracy, AUC and the like are; losses and errors are not."""
    lowered = name.lower().removeprefix("val_")
    return not any(part in lowered for part in _LOWER) and any(part in lowered for part in _HIGHER)
