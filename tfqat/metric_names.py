"""What a metric's Keras name tells: which way it is better, and what guessing gives."""

from __future__ import annotations

_HIGHER = (
    *("acc", "auc", "precision", "recall", "iou", "io_u", "f1", "fbeta", "dice", "top", "map", "r2", "cosine_similarity"),
    *("true_positives", "true_negatives", "sensitivity", "specificity"),
)
_LOWER = ("loss", "error", "mape", "mae", "mse", "msle", "crossentropy", "hinge", "divergence", "kld", "poisson", "cosh", "false_")


def higher_is_better(name: str) -> bool:
    """Whether a larger value of the metric is better: accuracy, AUC and the like are; losses and errors are not.

    The word that ends last decides, as Keras puts the name of an output before that of the metric: `error_map_accuracy` is an accuracy.
    """
    return _end(name, _HIGHER) > _end(name, _LOWER)


def guessing(name: str, classes: int) -> float | None:
    """The value that a classifier gets by guessing with equal odds; None for metrics that are no plain accuracy.

    Args:
        name: of the metric, such as `sparse_categorical_accuracy`, with the name of an output before it or not.
        classes: the size of the output's last dimension; 1 is the probability of one class of two.
    """
    is_accuracy = name.endswith(("accuracy", "acc")) and "top" not in name.lower()
    return 1 / max(classes, 2) if is_accuracy and classes else None


def _end(name: str, words: tuple[str, ...]) -> int:
    """Where the last of `words` ends in `name`; 0 if it has none of them."""
    return max(name.lower().rfind(word) + len(word) if word in name.lower() else 0 for word in words)
