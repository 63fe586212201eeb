"""Which way each metric is better and what guessing gives, by the names that Keras gives it."""

from __future__ import annotations

import pytest
import tf_keras

from tfqat.metric_names import guessing, higher_is_better

HIGHER = [
    *("accuracy", "val_accuracy", "acc", "binary_accuracy", "sparse_top_k_categorical_accuracy", "val_logits_accuracy"),
    *("auc", "auc_1", "precision", "recall", "f1_score", "fbeta_score", "r2_score", "cosine_similarity", "dice"),
    *("mean_io_u", "binary_io_u", "one_hot_mean_io_u", "true_positives", "sensitivity_at_specificity", "specificity_at_sensitivity"),
    *("precision_at_recall", "mAP", "error_map_accuracy", "loss_head_accuracy"),
]
LOWER = [
    *("loss", "val_loss", "accuracy_loss", "mse", "mae", "mape", "val_mape", "mean_absolute_error", "root_mean_squared_error"),
    *("mean_absolute_percentage_error", "kl_divergence", "hinge", "poisson", "logcosh", "sparse_categorical_crossentropy"),
    *("map_mae", "top_mse", "val_accuracy_head_loss", "map_binary_crossentropy", "false_positives", "anything_else", ""),
]


@pytest.mark.parametrize("name", HIGHER)
def test_higher(name: str) -> None:
    assert higher_is_better(name)


@pytest.mark.parametrize("name", LOWER)
def test_lower(name: str) -> None:
    assert not higher_is_better(name)


UP = {"AUC", "Accuracy", "BinaryAccuracy", "BinaryIoU", "CategoricalAccuracy", "CosineSimilarity", "F1Score", "FBetaScore", "Precision"}
UP |= {"R2Score", "Recall", "SparseCategoricalAccuracy", "SparseTopKCategoricalAccuracy", "TopKCategoricalAccuracy", "TrueNegatives"}
UP |= {"TruePositives"}
DOWN = {"BinaryCrossentropy", "CategoricalCrossentropy", "CategoricalHinge", "FalseNegatives", "FalsePositives", "Hinge", "KLDivergence"}
DOWN |= {"LogCoshError", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson"}
DOWN |= {"RootMeanSquaredError", "SparseCategoricalCrossentropy", "SquaredHinge"}


@pytest.mark.parametrize("kind", sorted(UP | DOWN))
def test_the_own_name_of_each_keras_metric(kind: str) -> None:
    assert higher_is_better(getattr(tf_keras.metrics, kind)().name) is (kind in UP)


GUESSES = [
    *(("accuracy", 10, 0.1), ("sparse_categorical_accuracy", 4, 0.25), ("kind_accuracy", 2, 0.5), ("binary_accuracy", 1, 0.5)),
    *(("acc", 5, 0.2), ("sparse_top_k_categorical_accuracy", 10, None), ("loss", 10, None), ("auc", 1, None), ("accuracy", 0, None)),
]


@pytest.mark.parametrize(("name", "classes", "value"), GUESSES)
def test_guessing(name: str, classes: int, value: float | None) -> None:
    assert guessing(name, classes) == value
