"""Runs the fine-tuning of a compiled model through `model.fit`; one that was cut off goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import TrainingError
from tfqat.quantize import state
from tfqat.recipe.modifiers import QatPlan
from tfqat.training.callbacks import BestWeights, EpochHistory, step_callbacks
from tfqat.training.checkpoint import Checkpoints, Position
from tfqat.training.compile import compile_float, compile_quantized, end_learning
from tfqat.training.replicas import split


@dataclass(frozen=True, kw_only=True)
class QatResult:
    """What fine-tuning reached: the best value of the monitored metric, its epoch (from 0), and whether it beat the calibrated model."""

    monitor: str
    best: float
    best_epoch: int
    beat_ptq: bool


def fine_tune(
    qmodel: Any,
    plan: QatPlan,
    train: Callable[[], Any],
    validation: Any,
    *,
    loss: Any,
    metrics: Sequence[Any],
    monitor: str,
    baseline: float,
    history: Path,
    teacher: Any = None,
    checkpoint: Path | None = None,
    checkpoint_steps: int | None = None,
    seed: int = 0,
    callbacks: Sequence[Any] = (),
) -> QatResult:
    """Fine-tune a model; afterwards it holds the weights of its best epoch, and its ranges are not trained any more.

    Within the scope of a `tf.distribute` strategy, in which the model was made, all replicas train together. With several workers each
    calls this with the same arguments, but for its own files.

    Args:
        qmodel: a calibrated quantized model, or a float one as the control of it; it is trained in place.
        plan: the schedule, its steps per epoch known.
        train: gives a tf.data.Dataset of (inputs, labels) in batches, which are re-batched to the plan's batch size. It is called again
            for the data of a run that goes on; they have to come in the same order each time.
        validation: a tf.data.Dataset that is evaluated after each epoch.
        loss: a Keras loss.
        metrics: Keras metrics.
        monitor: what chooses the best epoch, such as `val_accuracy`.
        baseline: the value of `monitor` before training.
        history: the CSV file of the epochs.
        teacher: the float model, for a plan that distills.
        checkpoint: a file that is kept up to date; if it is there, fine-tuning goes on from it, and ends with the weights that it would
            have ended with. Not with Dropout and its like within an epoch: what they draw begins anew there.
        checkpoint_steps: optimizer steps between two saves within an epoch; None: after each epoch only.
        seed: of what layers such as Dropout draw.
        callbacks: further Keras callbacks.

    Raises:
        TrainingError: the loss is NaN, or the data pipeline raises in the middle of an epoch.
        RunDirectoryError: the checkpoint is corrupt, or of another model.
    """
    quantized = state.is_quantized(qmodel)
    if quantized:
        compile_quantized(qmodel, plan, loss, metrics, teacher=teacher)
    else:
        compile_float(qmodel, plan, loss, metrics)
    # With the variables that a freeze will leave out: a checkpoint holds the same ones at any step.
    qmodel.optimizer.build(qmodel.trainable_variables)
    best, rows = BestWeights(monitor=monitor, baseline=baseline, restores_at_end=False), EpochHistory(history)
    saves = Checkpoints(checkpoint, best, rows, checkpoint_steps) if checkpoint else None
    position = (saves.restore(qmodel) if saves else None) or Position(epoch=0, step=0)
    own = [*([_SeedOfEpoch(seed)] if any(_draws(layer) for layer in qmodel.layers) else []), *step_callbacks(plan), best, rows]
    try:
        _fit(qmodel, plan, train, validation, position, [*own, *([saves] if saves else []), *callbacks])
    except tf.errors.OpError as error:
        raise TrainingError(f"fine-tuning stopped, the training or the validation data raised: {error.message}") from error
    finally:
        best.restore(qmodel)
        if quantized:
            end_learning(qmodel)
    if best.best is None or best.best_epoch is None:
        raise TrainingError("fine-tuning ended without a complete epoch: the training data is empty")
    return QatResult(monitor=monitor, best=best.best, best_epoch=best.best_epoch, beat_ptq=best.beat_baseline)


def _fit(model: Any, plan: QatPlan, train: Callable[[], Any], validation: Any, position: Position, callbacks: Sequence[Any]) -> None:
    """`model.fit` from a position on; the rest of an epoch that has begun is a `fit` of its own, as Keras cannot begin within one."""
    settings = {"validation_data": _validation(validation), "callbacks": list(callbacks), "verbose": 0}
    steps, epoch = plan.steps_per_epoch, position.epoch
    if steps is None:
        model.fit(train().rebatch(plan.batch_size), epochs=plan.epochs, **settings)
        return

    def data(step: int) -> Any:
        # Loaded anew, as data that are shuffled come in another order each time the same object is read. Without an end: where Keras runs
        # into it, the optimizer has already counted the step that then has none (tf-keras 2.21).
        def load() -> Any:
            return train().rebatch(plan.batch_size).repeat().skip(step)

        return split(load, plan.batch_size) if tf.distribute.has_strategy() else load()

    begun = position.step - epoch * steps
    if begun:
        model.fit(data(position.step), initial_epoch=epoch, epochs=epoch + 1, steps_per_epoch=steps - begun, **settings)
        epoch += 1
    if epoch < plan.epochs:
        model.fit(data(epoch * steps), initial_epoch=epoch, epochs=plan.epochs, steps_per_epoch=steps, **settings)


def _validation(data: Any) -> Any:
    """The data as they are read for validation: by examples, where several workers share them, and not by files."""
    if not tf.distribute.has_strategy():
        return data
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers, as Dropout does."""
    return hasattr(getattr(layer, "layer", layer), "_random_generator")


class _SeedOfEpoch(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Gives each epoch random numbers of its own seed, whether the epochs before it ran in this process or not.

    The generators of Keras's layers cannot be set to a position; the step is traced again, which makes new ones.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Trace the step with the epoch's seed."""
        tf.random.set_seed(self._seed + epoch)
        self.model.make_train_function(force=True)
