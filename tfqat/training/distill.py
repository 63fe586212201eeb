"""Distillation: the quantized model learns the float model's outputs beside the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import TrainingError, nearest
from tfqat.models.depth import functional_model
from tfqat.quantize.quantizers import quantizers
from tfqat.recipe.modifiers import Distill
from tfqat.training.replicas import mean_over_replicas

_LEAST = 1e-7  # probabilities below it count as this, as in Keras's crossentropies


class Distillation:
    """The training step with a teacher, which is evaluated once for each batch.

        loss         = (1 - weight) * loss of the labels, with the layers' own losses + weight * distillation
        distillation = mean distance of the outputs + mean distance of the features

    The distance of two outputs is T^2 * KL(softmax(teacher / T) || softmax(student / T)) where the output's loss is a crossentropy, the
    mean over the examples (Hinton et al. 2015, section 2); of others, and of features, the squared difference over the teacher's variance.

    Args:
        qmodel: the student.
        teacher: the float model.
        config: weight, temperature and features.
        loss: as for `compile`.

    Raises:
        TrainingError: the teacher has other outputs; a feature that one of them does not have.
    """

    def __init__(self, qmodel: Any, teacher: Any, config: Distill, loss: Any) -> None:
        shapes = [[tuple(output.shape[1:]) for output in model.outputs] for model in (teacher, qmodel)]
        if shapes[0] != shapes[1]:
            raise TrainingError(
                f"the teacher's outputs have the shapes {shapes[0]}, those of the quantized model {shapes[1]}: give its own float model"
            )
        self._config = config
        self._kinds = [_kind(one) for one in _losses(loss, qmodel.output_names)]
        self._student = _with_features(qmodel, config.features, "the quantized model")
        self._teacher = _with_features(teacher, config.features, "the teacher")
        self._structure = qmodel.output

    def train_step(self, model: Any, data: Any) -> dict[str, Any]:
        """What Keras's `train_step` does, with the distillation in the loss."""
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        with quantizers(on=False):
            wanted = [tf.stop_gradient(value) for value in tf.nest.flatten(self._teacher(x, training=False))]
        with tf.GradientTape() as tape:
            found = tf.nest.flatten(self._student(x, training=True))
            outputs = tf.nest.pack_sequence_as(self._structure, found[: len(self._kinds)])
            task = model.compute_loss(x, y, outputs, sample_weight)
            distance = self._distance(wanted, found)
            # The optimizer adds up the replicas' gradients; `task` is divided by their number already.
            share = self._config.weight / tf.distribute.get_strategy().num_replicas_in_sync
            loss = (1.0 - self._config.weight) * task + share * tf.cast(distance, task.dtype)
        model._validate_target_and_loss(y, loss)
        model.optimizer.minimize(loss, model.trainable_variables, tape=tape)
        return {**model.compute_metrics(x, y, outputs, sample_weight), "distillation": mean_over_replicas(distance)}

    def _distance(self, wanted: Sequence[tf.Tensor], found: Sequence[tf.Tensor]) -> tf.Tensor:
        wanted, found = ([tf.cast(value, tf.float32) for value in values] for values in (wanted, found))
        outputs = len(self._kinds)
        distances = [
            _squared(one, other) if kind is None else _divergence(one, other, kind, self._config.temperature)
            for kind, one, other in zip(self._kinds, wanted[:outputs], found[:outputs], strict=True)
        ]
        features = [_squared(one, other) for one, other in zip(wanted[outputs:], found[outputs:], strict=True)]
        return tf.add_n(distances) / outputs + (tf.add_n(features) / len(features) if features else 0.0)


def _divergence(wanted: tf.Tensor, found: tf.Tensor, kind: str, temperature: float) -> tf.Tensor:
    logits = [value if kind.endswith("logits") else _logits(value, kind) for value in (wanted, found)]
    if kind.startswith("binary"):
        logits = [tf.stack([value, tf.zeros_like(value)], axis=-1) for value in logits]
    teacher, student = (tf.nn.log_softmax(value / temperature) for value in logits)
    return temperature**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=-1))


def _logits(probabilities: tf.Tensor, kind: str) -> tf.Tensor:
    bounded = tf.clip_by_value(probabilities, _LEAST, 1.0 - _LEAST)
    return tf.math.log(bounded) - tf.math.log1p(-bounded) if kind.startswith("binary") else tf.math.log(bounded)


def _squared(wanted: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    mean = mean_over_replicas(tf.reduce_mean(wanted))
    variance = mean_over_replicas(tf.reduce_mean((wanted - mean) ** 2))
    return tf.reduce_mean((wanted - found) ** 2) / (variance + _LEAST)


def _with_features(model: Any, features: Sequence[str], whose: str) -> Any:
    known = [layer.name for layer in model.layers]
    missing = [name for name in features if name not in known]
    if missing:
        raise TrainingError(f"qat.distill.features: {whose} has no layer {missing[0]!r}{nearest(missing[0], known)}")
    return functional_model(model.inputs, [*model.outputs, *(model.get_layer(name).output for name in features)])


def _losses(loss: Any, names: Sequence[str]) -> list[Any]:
    """The loss of each output."""
    if isinstance(loss, Mapping):
        return [loss.get(name) for name in names]
    return list(loss) if isinstance(loss, list | tuple) else [loss] * len(names)


def _kind(loss: Any) -> str | None:
    """`categorical` or `binary` if a loss is a crossentropy, with `_logits` if it takes logits; None for other losses."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name.lower().replace("_", "")
    if "crossentropy" not in name:
        return None
    config = loss.get_config() if isinstance(loss, tf_keras.losses.Loss) else {}
    return ("binary" if "binary" in name else "categorical") + ("_logits" if config.get("from_logits") else "")
