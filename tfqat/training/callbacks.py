"""The Keras callbacks of quantization-aware training: the schedule per step, the best weights, the history file, a stop on NaN."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from tfqat import files
from tfqat.errors import TrainingError
from tfqat.metric_names import higher_is_better
from tfqat.quantize import state
from tfqat.recipe.modifiers import QatPlan
from tfqat.training.tensorboard import QuantizationLog


def qat_callbacks(
    plan: QatPlan,
    *,
    monitor: str | None = None,
    baseline: float | None = None,
    history: str | Path | None = None,
    tensorboard: str | Path | None = None,
    tensorboard_batch: Any = None,
) -> list[Any]:
    """The callbacks for `model.fit` of a quantized model.

    Args:
        plan: the schedule; its steps per epoch are taken from `fit` where they are not set.
        monitor: what chooses the best epoch, such as `val_accuracy`; None takes the first validation metric that `fit` reports.
        baseline: the value of `monitor` before training.
        history: a CSV file that gets a row per epoch; it is written whole after each.
        tensorboard: a log folder for TensorBoard: scalars of `fit`, and of each quantizer its amax and how its codes are used.
        tensorboard_batch: a batch of inputs to compute the codes of activations with; None: those of weights only.

    Returns:
        StepSchedule, BatchNormFreeze, RangesInStep, StopOnNaN, BestWeights, and EpochHistory and QuantizationLog where asked for.
    """
    callbacks: list[Any] = [*step_callbacks(plan), BestWeights(monitor=monitor, baseline=baseline)]
    if history is not None:
        callbacks.append(EpochHistory(Path(history)))
    if tensorboard is not None:
        callbacks += [tf_keras.callbacks.TensorBoard(str(tensorboard)), QuantizationLog(tensorboard, tensorboard_batch)]
    return callbacks


def step_callbacks(plan: QatPlan) -> list[Any]:
    """Those that every fine-tuning needs: the schedule, and what looks after weights and ranges."""
    return [StepSchedule(plan), BatchNormFreeze(plan), RangesInStep(), StopOnNaN()]


class StepSchedule(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the learning rate of each step to `plan.learning_rate_at(step)`; the step is the optimizer's own count.

    Raises:
        TrainingError: at the start, if neither the plan nor `fit` knows the number of steps per epoch, or if the plan averages weights
            (EMA) and `fit` runs another number of steps: the averages are put in place after the plan's, so others would be validated.
    """

    def __init__(self, plan: QatPlan) -> None:
        super().__init__()
        self.plan = plan

    def on_train_begin(self, logs: Any = None) -> None:
        """Resolve the steps per epoch."""
        steps = self.params.get("steps")
        done = int(self.model.optimizer.iterations.numpy()) % (self.plan.steps_per_epoch or 1)
        if self.plan.ema and self.plan.steps_per_epoch not in (None, done + (steps or 0)):
            raise TrainingError(
                f"qat.ema averages over epochs of {self.plan.steps_per_epoch} steps, but fit runs {steps or 'an unknown number of'} steps: "
                f"give fit steps_per_epoch={self.plan.steps_per_epoch} and data that repeats"
            )
        if self.plan.steps_per_epoch is None:
            if not steps:
                raise TrainingError(
                    "the number of steps per epoch is not known: give qat_plan the number of examples, or training.steps_per_epoch, "
                    "or fit data of a known length"
                )
            self.plan = self.plan.with_steps(int(steps))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the rate of the step that comes."""
        optimizer = self.model.optimizer
        optimizer.learning_rate.assign(self.plan.learning_rate_at(int(optimizer.iterations.numpy())))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the last rate of the epoch."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate.numpy())


class BatchNormFreeze(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Freezes BatchNorm, statistics and weights, when the plan's share of the steps is done; the step is traced again then.

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference".
    """

    def __init__(self, plan: QatPlan) -> None:
        super().__init__()
        self.plan = plan
        self._frozen: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Resolve the steps per epoch."""
        if self.plan.steps_per_epoch is None and self.params.get("steps"):
            self.plan = self.plan.with_steps(int(self.params["steps"]))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Freeze before the first step that is to run without."""
        at = self.plan.freeze_batchnorm_step
        if at is None or self._frozen or int(self.model.optimizer.iterations.numpy()) < at:
            return
        batch_norm = tf_keras.layers.BatchNormalization
        self._frozen = [layer for layer in self.model.layers if isinstance(layer, batch_norm) and layer.trainable]
        for layer in self._frozen:
            layer.trainable = False
        if self._frozen:
            self.model.make_train_function(force=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Leave the layers as trainable as they were."""
        for layer in self._frozen:
            layer.trainable = True
        self._frozen = []


class RangesInStep(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the ranges that are saved, exported and reported those that training computes with: dynamic ones follow the weights."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Set them.

        Raises:
            TrainingError: a trained range has become negative: names the quantizer.
        """
        if not state.is_quantized(self.model):
            return
        state.refresh_dynamic(self.model)
        for name, handle in state.handles(self.model).items():
            if handle.quantizer.learning.amax in ("lsq", "pact") and np.any(handle.amax.numpy() < 0):  # 0: a dead channel's
                raise TrainingError(
                    f"the trained range of {name!r} is {float(np.min(handle.amax.numpy())):.3g} after epoch {epoch + 1}: lower "
                    "qat.lr_decay_factor, or keep qat.amax frozen; the best weights so far are kept"
                )


class EpochHistory(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Writes a CSV file with a row per epoch, whole after each of them.

    Attributes:
        rows: what it holds; may be set before training goes on.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Add the epoch."""
        self.rows.append({"epoch": epoch, **{name: float(value) for name, value in (logs or {}).items()}})
        self.write()

    def write(self) -> None:
        """Write the rows."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        files.write_text(self.path, stream.getvalue())


class StopOnNaN(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Stops training with an error as soon as the loss, or at the end of an epoch a weight, is not finite.

    The loss alone does not tell: TensorFlow fuses MatMul, BiasAdd and Relu into one kernel that turns NaN into 0 (checked on 2.21, CPU).
    """

    def __init__(self) -> None:
        super().__init__()
        self._saturated = ""

    def on_train_begin(self, logs: Any = None) -> None:
        """Note which weight saturates most: once the loss is NaN all of them are, and it cannot be told any more."""
        self._saturated = _most_clipped(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the loss, and at the distillation beside it.

        Raises:
            TrainingError: it is NaN or Inf.
        """
        loss = sum((logs or {}).get(name, 0.0) for name in ("loss", "distillation"))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {batch} of an epoch: lower qat.lr_decay_factor, and look for NaN in the training data; "
                f"{self._saturated}the best weights so far are kept"
            )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Look at the weights.

        Raises:
            TrainingError: one of them is NaN or Inf.
        """
        for weight in self.model.trainable_weights:
            if not np.all(np.isfinite(weight.numpy())):
                raise TrainingError(
                    f"weight {weight.name!r} holds NaN or Inf after epoch {epoch + 1}: look for NaN in the training data, or lower "
                    f"qat.lr_decay_factor; {self._saturated}the best weights so far are kept"
                )
        self._saturated = _most_clipped(self.model)


def _most_clipped(model: Any) -> str:
    """Of which weight the range clips the largest share, for a message; empty if none is clipped."""
    weights = [handle for handle in state.handles(model).values() if handle.weight is not None] if state.is_quantized(model) else []
    shares = {handle.point.id: _clipped_share(handle) for handle in weights}
    worst = max(shares, key=shares.__getitem__, default="")
    return f"{worst!r} saturated most before, in {shares[worst]:.1%} of its values; " if shares.get(worst) else ""


def _clipped_share(handle: state.Handle) -> float:
    """The share of a weight's values that lie beyond the grid by half a step or more."""
    spec = handle.point.spec
    sizes = [size if axis in spec.axes else 1 for axis, size in enumerate(handle.weight.shape)]
    limit = np.reshape(handle.amax, sizes) * (1 + 0.5 / spec.hi)
    return float(np.mean(np.abs(handle.weight) > limit))


class BestWeights(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the weights of the best epoch and puts them back when training ends; without validation data those of the last one.

    With `baseline`, `beat_baseline` says whether any epoch was better than the model was before training.
    """

    def __init__(self, *, monitor: str | None = None, baseline: float | None = None, restores_at_end: bool = True) -> None:
        super().__init__()
        self.monitor = monitor
        self.baseline = baseline
        self.restores_at_end = restores_at_end
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.weights: list[Any] | None = None

    @property
    def beat_baseline(self) -> bool:
        """Whether the best epoch is better than the baseline; True without one."""
        if self.best is None or self.baseline is None:
            return self.best is not None
        return self._is_better(self.best, self.baseline)

    def on_train_begin(self, logs: Any = None) -> None:
        """Keep the weights that training starts from: they are the best until an epoch has ended."""
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the weights if this epoch is the best so far."""
        logs = logs or {}
        self.monitor = self.monitor or _first_validation_metric(logs)
        if self.monitor is None:  # no validation data: the last epoch counts
            self.weights = self.model.get_weights()
            return
        if self.monitor not in logs:
            raise TrainingError(
                f"training reports no {self.monitor!r}; it reports {', '.join(sorted(logs))}: give validation data, or monitor one of these"
            )
        value = float(logs[self.monitor])
        if self.best is None or math.isnan(self.best) or self._is_better(value, self.best):
            self.best, self.best_epoch, self.weights = value, epoch, self.model.get_weights()

    def on_train_end(self, logs: Any = None) -> None:
        """Put the best weights back, unless `restores_at_end` is off."""
        if self.restores_at_end:
            self.restore(self.model)

    def state(self) -> dict[str, Any]:
        """What is known of the best epoch, as a JSON object; the weights are `weights`."""
        return {"monitor": self.monitor, "best": self.best, "epoch": self.best_epoch}

    def set_state(self, known: Mapping[str, Any], weights: Sequence[Any]) -> None:
        """The inverse of `state`."""
        self.monitor, self.best, self.best_epoch = known["monitor"], known["best"], known["epoch"]
        self.weights = list(weights) or None

    def restore(self, model: Any) -> None:
        """Set the best weights on `model`: those from before training if no epoch has ended."""
        if self.weights is not None:
            model.set_weights(self.weights)

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if higher_is_better(self.monitor or "") else value < than


def _first_validation_metric(logs: dict[str, Any]) -> str | None:
    names = [name for name in logs if name.startswith("val_")]
    return next((name for name in names if name != "val_loss"), names[0] if names else None)


class Ticker(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Calls a function after each training step, or after each evaluation step, for a progress display."""

    def __init__(self, *, on_train: Callable[[], None] | None = None, on_test: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._on_train, self._on_test = on_train, on_test

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count a training step."""
        if self._on_train:
            self._on_train()

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count an evaluation step."""
        if self._on_test:
            self._on_test()
