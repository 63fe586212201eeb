"""Compiles a quantized model for fine-tuning and runs it through `model.fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import TrainingError
from tfqat.quantize import state
from tfqat.recipe.modifiers import QatPlan
from tfqat.training.callbacks import BestWeights, qat_callbacks


@dataclass(frozen=True, kw_only=True)
class QatResult:
    """What fine-tuning reached: the best value of the monitored metric, its epoch (from 0), and whether it beat the calibrated model."""

    monitor: str
    best: float
    best_epoch: int
    beat_ptq: bool


def qat_compile(qmodel: Any, plan: QatPlan, loss: Any, metrics: Sequence[Any]) -> Any:
    """Compile a calibrated quantized model with the plan's optimizer.

    Args:
        qmodel: a calibrated quantized model; it is compiled in place.
        plan: from `tfqat.qat_plan`.
        loss: a Keras loss, or what `compile` takes for several outputs.
        metrics: Keras metrics.

    Returns:
        `qmodel`.

    Raises:
        NotCalibratedError: a quantizer has no range, so that training would not see its rounding.
        TrainingError: the plan averages weights and does not know the steps per epoch.
    """
    state.ranges(qmodel)
    qmodel.compile(optimizer=_optimizer(plan), loss=loss, metrics=list(metrics))
    return qmodel


def fine_tune(
    qmodel: Any,
    plan: QatPlan,
    train: Any,
    validation: Any,
    *,
    loss: Any,
    metrics: Sequence[Any],
    monitor: str,
    baseline: float,
    history: Path,
    callbacks: Sequence[Any] = (),
) -> QatResult:
    """Fine-tune a calibrated quantized model; afterwards it holds the weights of its best epoch.

    Args:
        qmodel: a calibrated quantized model; it is trained in place.
        plan: the schedule, its steps per epoch known.
        train: a tf.data.Dataset of (inputs, labels) in batches; re-batched to the plan's batch size.
        validation: a tf.data.Dataset that is evaluated after each epoch.
        loss: a Keras loss.
        metrics: Keras metrics.
        monitor: what chooses the best epoch, such as `val_accuracy`.
        baseline: the value of `monitor` before training.
        history: the CSV file of the epochs.
        callbacks: further Keras callbacks.

    Raises:
        TrainingError: the loss is NaN, or the data pipeline raises in the middle of an epoch.
    """
    qat_compile(qmodel, plan, loss, metrics)
    own = qat_callbacks(plan, monitor=monitor, baseline=baseline, history=history)
    batches = train.rebatch(plan.batch_size)
    if plan.steps_per_epoch is not None:
        # Where Keras runs into the end of the data, the optimizer has already counted the step that then has none (tf-keras 2.21).
        batches = batches.repeat()
    best = next(callback for callback in own if isinstance(callback, BestWeights))
    try:
        qmodel.fit(
            batches,
            steps_per_epoch=plan.steps_per_epoch,
            validation_data=validation,
            epochs=plan.epochs,
            callbacks=[*own, *callbacks],
            verbose=0,
        )
    except TrainingError:
        best.restore(qmodel)
        raise
    except tf.errors.OpError as error:
        best.restore(qmodel)
        raise TrainingError(f"fine-tuning stopped, the training or the validation data raised: {error.message}") from error
    if best.best is None or best.best_epoch is None:
        raise TrainingError("fine-tuning ended without a complete epoch: the training data is empty")
    return QatResult(monitor=monitor, best=best.best, best_epoch=best.best_epoch, beat_ptq=best.beat_baseline)


def _optimizer(plan: QatPlan) -> Any:
    settings: dict[str, Any] = {"learning_rate": plan.learning_rate, "weight_decay": plan.weight_decay or None}
    if plan.ema:
        if plan.steps_per_epoch is None:
            raise TrainingError("qat.ema needs the steps per epoch: call plan.with_steps(steps_per_epoch) before qat_compile")
        # Keras puts the averages in place of the weights after the last step of each epoch, so that they are what is validated and kept.
        settings |= {"use_ema": True, "ema_overwrite_frequency": plan.steps_per_epoch}
    if plan.optimizer.name == "adamw":  # Keras's AdamW takes 0, but not None
        return tf_keras.optimizers.AdamW(**settings | {"weight_decay": plan.weight_decay})
    if plan.optimizer.name == "sgd":
        return tf_keras.optimizers.SGD(momentum=plan.optimizer.momentum, nesterov=plan.optimizer.nesterov, **settings)
    return tf_keras.optimizers.Adam(**settings)
