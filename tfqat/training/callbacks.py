"""The Keras callbacks of quantization-aware training: the schedule per step, the best weights, the history file, a stop on NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from tfqat.errors import TrainingError
from tfqat.metric_names import higher_is_better
from tfqat.recipe.modifiers import QatPlan


def qat_callbacks(
    plan: QatPlan, *, monitor: str | None = None, baseline: float | None = None, history: str | Path | None = None
) -> list[Any]:
    """The callbacks for `model.fit` of a quantized model.

    Args:
        plan: the schedule; its steps per epoch are taken from `fit` where they are not set.
        monitor: what chooses the best epoch, such as `val_accuracy`; None takes the first validation metric that `fit` reports.
        baseline: the value of `monitor` before training.
        history: a CSV file that gets a row per epoch.

    Returns:
        StepSchedule, StopOnNaN, BestWeights and, with `history`, Keras's CSVLogger.
    """
    callbacks: list[Any] = [StepSchedule(plan), StopOnNaN(), BestWeights(monitor=monitor, baseline=baseline)]
    return callbacks + ([tf_keras.callbacks.CSVLogger(str(history))] if history else [])


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
        if self.plan.ema and self.plan.steps_per_epoch not in (None, steps):
            raise TrainingError(
                f"qat.ema averages over epochs of {self.plan.steps_per_epoch} steps, but fit runs {steps or 'an unknown number of'} steps: "
                f"give fit steps_per_epoch={self.plan.steps_per_epoch} and data that repeats"
            )
        if self.plan.steps_per_epoch is None:
            if not steps:
                raise TrainingError("the number of steps per epoch is not known: give training.steps_per_epoch, or data of a known length")
            self.plan = self.plan.with_steps(int(steps))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the rate of the step that comes."""
        optimizer = self.model.optimizer
        optimizer.learning_rate.assign(self.plan.learning_rate_at(int(optimizer.iterations.numpy())))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Report the last rate of the epoch."""
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate.numpy())


class StopOnNaN(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Stops training with an error as soon as the loss, or at the end of an epoch a weight, is not finite.

    The loss alone does not tell: TensorFlow fuses MatMul, BiasAdd and Relu into one kernel that turns NaN into 0 (checked on 2.21, CPU).
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the loss.

        Raises:
            TrainingError: it is NaN or Inf.
        """
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {batch} of an epoch: lower qat.lr_decay_factor, and look for NaN in the training data; "
                "the best weights so far are kept"
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
                    "qat.lr_decay_factor; the best weights so far are kept"
                )


class BestWeights(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the weights of the best epoch and puts them back when training ends.

    With `baseline`, `beat_baseline` says whether any epoch was better than the model was before training.
    """

    def __init__(self, *, monitor: str | None = None, baseline: float | None = None) -> None:
        super().__init__()
        self.monitor = monitor
        self.baseline = baseline
        self.best: float | None = None
        self.best_epoch: int | None = None
        self._weights: list[Any] | None = None

    @property
    def beat_baseline(self) -> bool:
        """Whether the best epoch is better than the baseline; True without one."""
        if self.best is None or self.baseline is None:
            return self.best is not None
        return self._is_better(self.best, self.baseline)

    def on_train_begin(self, logs: Any = None) -> None:
        """Keep the weights that training starts from: they are the best until an epoch has ended."""
        if self._weights is None:
            self._weights = self.model.get_weights()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keep the weights if this epoch is the best so far."""
        logs = logs or {}
        self.monitor = self.monitor or _first_validation_metric(logs)
        if self.monitor is None:
            return
        if self.monitor not in logs:
            raise TrainingError(
                f"training reports no {self.monitor!r}; it reports {', '.join(sorted(logs))}: give validation data, or monitor one of these"
            )
        value = float(logs[self.monitor])
        if self.best is None or math.isnan(self.best) or self._is_better(value, self.best):
            self.best, self.best_epoch, self._weights = value, epoch, self.model.get_weights()

    def on_train_end(self, logs: Any = None) -> None:
        """Put the best weights back."""
        self.restore(self.model)

    def restore(self, model: Any) -> None:
        """Set the best weights on `model`: those from before training if no epoch has ended."""
        if self._weights is not None:
            model.set_weights(self._weights)

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
