"""Measures the float and the calibrated model, fine-tunes, and chooses what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfqat.stages.under_way import Run
from tfqat.training.callbacks import Ticker
from tfqat.training.fit import QatResult, fine_tune


def evaluate_float(run: Run) -> None:
    """Measure the float model on the test data."""
    run.measure("float", run.evaluate("float", "Evaluate float", run.inputs.float_model, run.inputs.test))


def measure(run: Run, qmodel: Any) -> None:
    """Measure the calibrated model on the test data, and save it."""
    run.measure("ptq", run.evaluate("ptq", "Evaluate PTQ", qmodel, run.inputs.test))
    run.save_model(qmodel, "quantized.keras")


def fine_tune_model(run: Run, qmodel: Any) -> QatResult | None:
    """Fine-tune the calibrated model in place, measure and save it; None if the recipe is `ptq_only`."""
    inputs, schedule = run.inputs, run.inputs.schedule
    if schedule is None or inputs.train is None:
        run.say("ptq_only: no fine-tuning")
        return None
    baseline = _on_validation(run, qmodel)[run.first_metric]
    title = f"Fine-tune {schedule.epochs} epochs of {schedule.steps_per_epoch} steps"
    with run.stage("qat", title, schedule.total_steps) as advance:
        result = fine_tune(
            qmodel,
            schedule,
            inputs.train.dataset,
            inputs.validation.dataset,
            loss=inputs.loss,
            metrics=inputs.recipe.training.metrics,
            monitor=f"val_{run.first_metric}",
            baseline=baseline,
            history=run.directory / "history.csv",
            callbacks=[Ticker(on_train=advance)],
        )
    run.save_model(qmodel, "qat.keras")
    run.measure("qat", run.evaluate("qat", "Evaluate QAT", qmodel, inputs.test))
    return result


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
