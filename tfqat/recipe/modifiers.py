"""The QAT schedule: how long, how large and how fast to fine-tune, derived from the float recipe. A pure function.

With E epochs, batch size B, learning rate lr and weight decay wd of the float training:

    batch_size    = max(1, B // batch_size_divisor)
    epochs        = max(1, E // max_epochs_divisor)
    learning_rate = lr * lr_decay_factor                        (lr0, the peak)
    weight_decay  = wd * lr_decay_factor                        (it shrinks weights in step with the updates)
    total_steps   = epochs * steps_per_epoch
    warmup_steps  = min(round(epochs / warmup_epochs_divisor * steps_per_epoch), total_steps // 10)

and per optimizer step s, counted from 0:

    lr(s) = lr0 * (s + 1) / warmup_steps                                  for s < warmup_steps
    lr(s) = end + (lr0 - end) * (1 + cos(pi * t)) / 2                     for the rest, where
            end = lr0 * cosine_final_lr_ratio,  t = (s - warmup_steps) / (total_steps - 1 - warmup_steps)

so that the last warm-up step and the first step of the cosine have lr0, and the last step has `end`. The cap on the warm-up
is for short schedules: SuperGradients divides whole epochs, and a one-epoch schedule there is all warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tfqat.errors import DataError, RecipeError, TrainingError
from tfqat.recipe.problems import sentence, validate
from tfqat.recipe.qat import QatConfig
from tfqat.recipe.schema import FloatSchedule

MAX_WARMUP_SHARE = 10  # the warm-up takes at most one step in ten
_PHASE_CALLBACKS = ("EMA of the weights", "model averaging", "phase callbacks of the float recipe")


@dataclass(frozen=True, kw_only=True)
class QatOptimizer:
    """The optimizer that fine-tunes; `momentum` is for sgd and rmsprop, `nesterov` for sgd."""

    name: str
    momentum: float
    nesterov: bool


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Training towards the float model's outputs: loss = (1 - weight) * loss + weight * distillation (see `training/distill.py`)."""

    temperature: float
    weight: float
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class QatPlan:
    """A resolved QAT schedule. Learning rates and weight decay are per step; steps are None until `with_steps`.

    Attributes:
        freeze_batchnorm: the share of the steps after which BatchNorm is frozen; None: it trains to the end.
        weights_amax: `frozen`, `dynamic` or `learned`.
        activations_amax: `frozen`, `learned` or `pact`.
        gradient: of what a frozen range clips: `clipped` or `pass_through`.
        clip_norm: what the gradients' common norm is scaled down to.
        precision: what layers compute in while training.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    warmup_epochs: float
    steps_per_epoch: int | None
    optimizer: QatOptimizer
    ema: bool
    disabled: tuple[str, ...]
    clip_norm: float | None
    weights_amax: Literal["frozen", "dynamic", "learned"]
    activations_amax: Literal["frozen", "learned", "pact"]
    gradient: Literal["clipped", "pass_through"]
    freeze_batchnorm: float | None
    distill: Distill | None
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is taken, but not advised, and why."""
        if self.optimizer.name == "sgd":
            return ()
        return (
            f"qat.optimizer: {self.optimizer.name} divides each step by the size of the gradient, so that weights which need no "
            "change move as far as others, off the values that calibration rounded well; sgd with momentum moves them in proportion",
        )

    @property
    def freeze_batchnorm_step(self) -> int | None:
        """The optimizer step from which on BatchNorm is frozen; None: never, or the steps are not known.

        With `ema` the end of an epoch: there the averages are put in place, but only of what is still trained.
        """
        if self.freeze_batchnorm is None or self.steps_per_epoch is None:
            return None
        if self.ema:
            return math.ceil(self.freeze_batchnorm * self.epochs) * self.steps_per_epoch
        return round(self.freeze_batchnorm * self.epochs * self.steps_per_epoch)

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole fine-tuning."""
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int | None:
        """Optimizer steps of the linear warm-up, at most 10% of all."""
        if self.steps_per_epoch is None:
            return None
        return min(round(self.warmup_epochs * self.steps_per_epoch), self.epochs * self.steps_per_epoch // MAX_WARMUP_SHARE)

    def with_steps(self, steps_per_epoch: int) -> QatPlan:
        """The same schedule for data of `steps_per_epoch` batches.

        Raises:
            DataError: there is no batch.
        """
        if steps_per_epoch < 1:
            raise DataError(f"the training data must yield at least 1 batch per epoch; got {steps_per_epoch}")
        return replace(self, steps_per_epoch=steps_per_epoch)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0; after the last step it stays at the final one.

        Raises:
            TrainingError: the steps per epoch are not known yet.
        """
        total, warmup = self.total_steps, self.warmup_steps
        if total is None or warmup is None:
            raise TrainingError("the learning rate per step needs the steps per epoch: call plan.with_steps(steps_per_epoch) first")
        if step < 0:
            raise TrainingError(f"a step is counted from 0; got {step}")
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        # A schedule of one step has no way down: it trains at the peak.
        progress = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
        share = (1 + math.cos(math.pi * progress)) / 2
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * share

    def to_dict(self) -> dict[str, Any]:
        """A JSON object, with the derived steps."""
        return {**asdict(self), "total_steps": self.total_steps, "warmup_steps": self.warmup_steps}


def qat_plan(
    training: Mapping[str, Any] | FloatSchedule, qat: Mapping[str, Any] | QatConfig | None = None, *, examples: int | None = None
) -> QatPlan:
    """The QAT schedule for a model that was trained as `training` says, by the equations at the top of this module.

    Args:
        training: the float recipe: epochs, batch_size and learning_rate at least, other keys of a recipe's `training` block
            if you like. Its `steps_per_epoch` is the number of optimizer steps per QAT epoch.
        qat: keys of a recipe's `qat` block that replace the defaults.
        examples: size of the training set, from which the steps per QAT epoch follow if `training` does not give them.

    Raises:
        RecipeError: a key is unknown, missing, or out of range; it holds every problem of both blocks.
        DataError: `examples` is below 1.
    """
    schedule, wrong_training = validate(FloatSchedule, training)
    rules, wrong_qat = validate(QatConfig, {} if qat is None else qat)
    if schedule is None or rules is None:
        blocks = (("training", wrong_training), ("qat", wrong_qat))
        raise RecipeError(sentence((name, *path), text) for name, wrong in blocks for path, text in wrong)
    epochs = max(1, schedule.epochs // rules.max_epochs_divisor)
    batch_size = max(1, schedule.batch_size // rules.batch_size_divisor)
    learning_rate = schedule.learning_rate * rules.lr_decay_factor
    plan = QatPlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        final_learning_rate=learning_rate * rules.cosine_final_lr_ratio,
        weight_decay=schedule.weight_decay * rules.lr_decay_factor if rules.weight_decay is None else rules.weight_decay,
        warmup_epochs=epochs / rules.warmup_epochs_divisor,
        steps_per_epoch=schedule.steps_per_epoch,
        optimizer=QatOptimizer(**rules.optimizer.model_dump()),
        ema=rules.ema and not rules.disable_phase_callbacks,
        disabled=_disabled(rules),
        clip_norm=rules.clip_norm,
        weights_amax=rules.amax.weights,
        activations_amax=rules.amax.activations,
        gradient=rules.gradient,
        freeze_batchnorm=_freeze_batchnorm(rules.batchnorm),
        distill=Distill(**rules.distill.model_dump()) if rules.distill else None,
        precision=rules.precision,
    )
    if schedule.steps_per_epoch is None and examples is not None:
        return plan.with_steps(math.ceil(examples / batch_size))
    return plan


def _freeze_batchnorm(value: str | Mapping[str, float]) -> float | None:
    """The share of the steps after which BatchNorm is frozen."""
    if isinstance(value, str):
        return 0.0 if value == "freeze" else None
    return value["freeze_after"]


def _disabled(rules: QatConfig) -> tuple[str, ...]:
    """What is switched off, each with the reason."""
    if not rules.disable_phase_callbacks:
        return ()
    asked = ", although qat.ema is true" if rules.ema else ""
    reason = "qat.disable_phase_callbacks is true"
    return tuple(f"{what}: {reason}{asked if what.startswith('EMA') else ''}" for what in _PHASE_CALLBACKS)
