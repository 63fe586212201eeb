"""Measures the float and the calibrated model, fine-tunes, and chooses what is exported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tfqat.metric_names import guessing
from tfqat.models import graph as model_graph
from tfqat.stages.together import Training, trained
from tfqat.stages.under_way import CHECKPOINT, CONTROL_CHECKPOINT, Run
from tfqat.training.fit import QatResult


def evaluate_float(run: Run) -> None:
    """Measure the float model on the test data."""
    run.measure("float", run.evaluate("float", "Evaluate float", run.inputs.float_model, run.inputs.test))
    _warn_of_guessing(run)


def _warn_of_guessing(run: Run) -> None:
    """A float model that does no better than chance has the wrong data or weights, and nothing that follows would say so."""
    name, shape, examples = run.first_metric, run.inputs.float_model.outputs[0].shape, run.inputs.test.examples
    chance = guessing(name, shape[-1] or 0) if len(shape) > 1 else None
    if chance is None or not examples or run.measured["float"][name] > chance + 3 * math.sqrt(chance * (1 - chance) / examples):
        return
    found = f"its {name} on {run.inputs.test.name} is {run.measured['float'][name]:.4g}, and guessing gives {chance:.4g}"
    run.warn(
        f"the float model is no better than guessing: {found}. Check that the model has its trained weights, and that the data are "
        "scaled and labelled as they were for its training; figures of a quantized form say little here"
    )


def measure(run: Run, qmodel: Any) -> None:
    """Measure the calibrated model on the test data, and save it."""
    run.measure("ptq", run.evaluate("ptq", "Evaluate PTQ", qmodel, run.inputs.test))
    run.save_model(qmodel, "quantized.keras")


def fine_tune_model(run: Run, qmodel: Any) -> QatResult | None:
    """Fine-tune the calibrated model in place, measure and save it; None if the recipe is `ptq_only`."""
    schedule = run.inputs.schedule
    if schedule is None:
        run.say("ptq_only: no fine-tuning")
        return None
    if "qat" in run.done:
        qmodel.set_weights(run.load_model("qat.keras").get_weights())
        return QatResult(**run.done["qat"])
    for text in schedule.warnings:
        run.warn(text)
    baseline = _on_validation(run, qmodel)[run.first_metric]
    teacher = run.inputs.model if schedule.distill else None
    result = _train(run, qmodel, "qat", "Fine-tune", baseline, history="history.csv", checkpoint=CHECKPOINT, teacher=teacher)
    run.save_model(qmodel, "qat.keras")
    run.measure("qat", run.evaluate("qat", "Evaluate QAT", qmodel, run.inputs.test))
    run.finish("qat", **asdict(result))
    return result


def train_control(run: Run) -> None:
    """Train the float model on the same schedule, if the recipe asks for it, and measure it: what training longer gains by itself."""
    if run.inputs.schedule is None or not run.inputs.recipe.qat.control or "control" in run.done:
        return
    model = model_graph.rebuild(run.inputs.model, keep_class=True)
    model_graph.copy_weights(run.inputs.model, model)
    name = run.first_metric
    baseline = run.evaluate("control", "Evaluate float on validation", model, run.inputs.validation)
    result = _train(
        run, model, "control", "Train the control", baseline[name], history="history-control.csv", checkpoint=CONTROL_CHECKPOINT
    )
    if not result.beat_ptq:
        model_graph.copy_weights(run.inputs.model, model)
    run.measure("control", run.evaluate("control", "Evaluate control", model, run.inputs.test))
    run.finish("control")


def _train(
    run: Run, model: Any, stage: str, verb: str, baseline: float, *, history: str, checkpoint: str, teacher: Any = None
) -> QatResult:
    """Train on the schedule."""
    schedule = run.inputs.schedule
    assert schedule is not None  # the callers looked
    training = Training(monitor=f"val_{run.first_metric}", baseline=baseline, history=history, checkpoint=checkpoint)
    title = f"{verb} {schedule.epochs} epochs of {schedule.steps_per_epoch} steps"
    with run.stage(stage, title, schedule.total_steps) as advance:
        return trained(run, model, training, teacher=teacher, advance=advance)


def choose(run: Run, qmodel: Any, qat: QatResult | None, calibrated: Sequence[Any]) -> tuple[str, Any]:
    """What is exported: the fine-tuned model if it beat the calibrated one on the validation data, else the calibrated one.

    `calibrated` are the weights of the calibrated model, which `qmodel` gets back in that case.
    """
    exported = "qat" if qat is not None and qat.beat_ptq else "ptq"
    run.metrics["exported"] = exported
    if qat is None:
        return exported, qmodel
    verdict = "beat" if qat.beat_ptq else "did not beat"
    run.say(
        f"exporting {exported.upper()}: fine-tuning {verdict} the calibrated model ({qat.monitor} {qat.best:.4f} in epoch "
        f"{qat.best_epoch + 1})"
    )
    if not qat.beat_ptq:
        qmodel.set_weights(calibrated)
    return exported, qmodel


def _on_validation(run: Run, qmodel: Any) -> dict[str, float]:
    """The calibrated model on the validation data, unrounded: what fine-tuning has to beat is compared with values as computed."""
    if run.inputs.test is run.inputs.validation:
        return run.measured["ptq"]
    return run.evaluate("ptq", "Evaluate PTQ on validation", qmodel, run.inputs.validation)
