"""The QAT schedule: exact numbers for the derived values and for the learning rate of each step."""

from __future__ import annotations

import itertools
import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from tfqat.errors import DataError, RecipeError, TrainingError
from tfqat.recipe.modifiers import QatOptimizer, qat_plan
from tfqat.recipe.qat import QatConfig
from tfqat.recipe.schema import TrainingConfig

FLOAT = {"epochs": 30, "batch_size": 128, "learning_rate": 0.1}

# training, qat -> epochs, batch, lr0, final lr, weight decay, total steps, warm-up steps
SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Any, ...]]] = {
    "defaults": ({"steps_per_epoch": 100, "weight_decay": 1e-4}, {}, (3, 64, 1e-3, 1e-5, 1e-6, 300, 30)),
    "floor division": ({"epochs": 29, "batch_size": 7, "steps_per_epoch": 100}, {}, (2, 3, 1e-3, 1e-5, 0.0, 200, 20)),
    "never below one": ({"epochs": 1, "batch_size": 1, "steps_per_epoch": 100}, {}, (1, 1, 1e-3, 1e-5, 0.0, 100, 10)),
    "one epoch is not all warm-up": (
        {"steps_per_epoch": 100},
        {"max_epochs_divisor": 30, "warmup_epochs_divisor": 1},
        (1, 64, 1e-3, 1e-5, 0.0, 100, 10),
    ),
    "the cap rounds down": ({"steps_per_epoch": 33}, {"warmup_epochs_divisor": 1}, (3, 64, 1e-3, 1e-5, 0.0, 99, 9)),
    "a shorter warm-up": ({"steps_per_epoch": 100}, {"warmup_epochs_divisor": 40}, (3, 64, 1e-3, 1e-5, 0.0, 300, 8)),
    "fewer than ten steps": ({"steps_per_epoch": 3}, {}, (3, 64, 1e-3, 1e-5, 0.0, 9, 0)),
    "every divisor": (
        {"steps_per_epoch": 10, "weight_decay": 0.5},
        {
            "batch_size_divisor": 4,
            "max_epochs_divisor": 3,
            "lr_decay_factor": 0.5,
            "warmup_epochs_divisor": 20,
            "cosine_final_lr_ratio": 0.2,
        },
        (10, 32, 0.05, 0.01, 0.25, 100, 5),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name: str) -> None:
    training, qat, expected = SCHEDULES[name]
    plan = qat_plan(FLOAT | training, qat)
    found = (
        plan.epochs,
        plan.batch_size,
        plan.learning_rate,
        plan.final_learning_rate,
        plan.weight_decay,
        plan.total_steps,
        plan.warmup_steps,
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_learning_rate_of_every_step() -> None:
    plan = qat_plan({"epochs": 10, "batch_size": 2, "learning_rate": 100.0, "steps_per_epoch": 25}, {"cosine_final_lr_ratio": 0.2})
    assert (plan.total_steps, plan.warmup_steps, plan.learning_rate, plan.final_learning_rate) == (25, 2, 1.0, 0.2)
    rates = [plan.learning_rate_at(step) for step in range(25)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0], abs=1e-15)  # warm-up is steps 0 and 1, the cosine starts at step 2
    assert rates[13] == pytest.approx(0.6, abs=1e-15)  # half way from step 2 to step 24
    assert rates[24] == pytest.approx(0.2, abs=1e-15)
    assert rates[8] == pytest.approx(0.2 + 0.8 * (1 + 0.6548607339452851) / 2, abs=1e-15)  # cos(pi * 6 / 22)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert plan.learning_rate_at(1000) == pytest.approx(0.2, abs=1e-15)


def test_learning_rate_without_warmup_starts_at_the_peak_and_one_step_trains_at_it() -> None:
    three = qat_plan(FLOAT | {"epochs": 1, "steps_per_epoch": 3})
    assert [three.learning_rate_at(step) for step in range(3)] == pytest.approx([1e-3, (1e-3 + 1e-5) / 2, 1e-5], rel=1e-12)
    one = qat_plan(FLOAT | {"epochs": 1, "steps_per_epoch": 1})
    assert one.learning_rate_at(0) == pytest.approx(1e-3, rel=1e-12)


STEPS = {
    "examples, a last batch that is not full": ({}, 1000, 16),
    "examples, full batches": ({}, 64 * 5, 5),
    "fewer examples than a batch": ({}, 3, 1),
    "steps given beat examples": ({"steps_per_epoch": 7}, 1000, 7),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_per_epoch(name: str) -> None:
    training, examples, expected = STEPS[name]
    assert qat_plan(FLOAT | training, examples=examples).steps_per_epoch == expected


def test_steps_can_be_resolved_later() -> None:
    plan = qat_plan(FLOAT)
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (None, None, None)
    with pytest.raises(TrainingError, match=r"needs the steps per epoch: call plan.with_steps\(steps_per_epoch\) first"):
        plan.learning_rate_at(0)
    resolved = plan.with_steps(100)
    assert resolved == qat_plan(FLOAT | {"steps_per_epoch": 100})
    assert plan.steps_per_epoch is None
    with pytest.raises(DataError, match="at least 1 batch per epoch; got 0"):
        plan.with_steps(0)
    with pytest.raises(DataError, match="at least 1 batch per epoch; got 0"):
        qat_plan(FLOAT, examples=0)
    with pytest.raises(TrainingError, match="counted from 0; got -1"):
        resolved.learning_rate_at(-1)


def test_optimizer_is_sgd_with_momentum_whatever_the_float_one_was() -> None:
    assert qat_plan(FLOAT | {"optimizer": "adam"}).optimizer == QatOptimizer(name="sgd", momentum=0.9, nesterov=False)
    asked = qat_plan(FLOAT, {"optimizer": {"name": "adamw", "momentum": 0.5}}).optimizer
    assert asked == QatOptimizer(name="adamw", momentum=0.5, nesterov=False)
    assert qat_plan(FLOAT, {"optimizer": {"nesterov": True}}).optimizer.nesterov is True


PHASE = {
    "default": ({}, False, 3),
    "ema asked for, but disabled": ({"ema": True}, False, 3),
    "ema allowed": ({"ema": True, "disable_phase_callbacks": False}, True, 0),
    "allowed, not asked for": ({"disable_phase_callbacks": False}, False, 0),
}


@pytest.mark.parametrize("name", PHASE)
def test_phase_callbacks(name: str) -> None:
    qat, ema, disabled = PHASE[name]
    plan = qat_plan(FLOAT, qat)
    assert (plan.ema, len(plan.disabled)) == (ema, disabled)


def test_disabled_says_what_and_why() -> None:
    assert qat_plan(FLOAT, {"ema": True}).disabled == (
        "EMA of the weights: qat.disable_phase_callbacks is true, although qat.ema is true",
        "model averaging: qat.disable_phase_callbacks is true",
        "phase callbacks of the float recipe: qat.disable_phase_callbacks is true",
    )


def test_keys_of_a_recipe_and_its_blocks_are_taken() -> None:
    training = FLOAT | {"optimizer": "adam", "loss": {"name": "X", "from_logits": True}, "metrics": ["accuracy"]}
    assert qat_plan(training) == qat_plan(FLOAT)
    assert qat_plan(TrainingConfig.model_validate(training), QatConfig()) == qat_plan(FLOAT)


BATCHNORM = "qat.batchnorm: expected train, freeze, or {freeze_after: 0.5}, a share of the steps from 0 to 1; got "
PROBLEMS = {
    "both blocks at once": (
        {"epochs": 0, "batch_size": 128, "learning_rates": 0.1},
        {"ema": 1, "batch_divisor": 2},
        [
            "training.epochs: expected at least 1; got 0",
            "training.learning_rate: missing; expected: Peak learning rate of the float training.",
            "training.learning_rates: unknown key; did you mean 'learning_rate'?",
            "qat.ema: expected true or false; got 1",
            "qat.batch_divisor: unknown key; did you mean 'batch_size_divisor'?",
        ],
    ),
    "nested": (FLOAT, {"optimizer": {"momentun": 0.9}}, ["qat.optimizer.momentun: unknown key; did you mean 'momentum'?"]),
    "batchnorm": (FLOAT, {"batchnorm": {"freeze_after": 2}}, [BATCHNORM + '{"freeze_after": 2}']),
    "batchnorm word": (FLOAT, {"batchnorm": "frozen"}, [BATCHNORM + "'frozen'"]),
    "amax": (
        FLOAT,
        {"amax": {"weights": "pact"}},
        ["qat.amax.weights: expected 'frozen', 'dynamic' or 'learned'; got 'pact'"],
    ),
    "distill": (FLOAT, {"distill": {"weight": 0.0}}, ["qat.distill.weight: expected more than 0.0; got 0.0"]),
    "optimizer": (
        FLOAT,
        {"optimizer": {"name": "adan"}},
        ["qat.optimizer.name: expected 'sgd', 'adam', 'adamw' or 'rmsprop'; got 'adan'; did you mean 'adam'?"],
    ),
    "divisor": (FLOAT, {"max_epochs_divisor": 0}, ["qat.max_epochs_divisor: expected at least 1; got 0"]),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(name: str) -> None:
    training, qat, expected = PROBLEMS[name]
    with pytest.raises(RecipeError) as caught:
        qat_plan(training, qat)
    assert list(caught.value.problems) == expected


def test_plan_is_frozen_pure_and_serializable() -> None:
    training, qat = FLOAT | {"steps_per_epoch": 10}, {"optimizer": {"momentum": 0.5}}
    before = json.dumps([training, qat])
    plan = qat_plan(training, qat)
    assert json.dumps([training, qat]) == before
    with pytest.raises(FrozenInstanceError):
        plan.epochs = 1  # type: ignore[misc]
    written = json.loads(json.dumps(plan.to_dict()))
    assert (written["total_steps"], written["warmup_steps"], written["optimizer"]["momentum"]) == (30, 3, 0.5)
