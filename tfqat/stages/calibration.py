"""From the float model to the calibrated one: equalize, place quantizers, measure ranges, search for the calibrator, correct."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from tfqat import files
from tfqat.calibration.calibrate import apply, choose_best, recalibrate, transferred
from tfqat.calibration.equalize import equalize
from tfqat.calibration.result import Calibration
from tfqat.calibration.sequential import correct
from tfqat.metric_names import higher_is_better
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan
from tfqat.progress import counted
from tfqat.quantize import state
from tfqat.quantize.apply import quantize_model
from tfqat.run_directory import read_result
from tfqat.spec import Calibrator
from tfqat.stages.together import calibrated, first_examples
from tfqat.stages.under_way import CALIBRATED, CALIBRATION, EQUALIZED, Run


def equalize_model(run: Run) -> None:
    """Go on with the equalized model if the recipe asks for it; `equalization.json` holds the factors."""
    settings = run.inputs.recipe.calibration
    if not settings.equalization:
        return
    with run.stage("equalize", f"Equalize channels on {settings.batches} batches", settings.batches) as advance:
        found = equalize(run.inputs.model, counted(run.inputs.calibration, advance), batches=settings.batches)
    files.write_json(run.directory / "equalization.json", found.to_dict())
    with files.replacing(run.directory / EQUALIZED) as temporary:
        found.model.save(temporary)
    placement = plan(found.model, run.inputs.recipe.placement_config)
    run.inputs = replace(run.inputs, model=found.model, placement=placement)
    files.write_json(run.directory / "placement.json", placement.to_dict())
    run.say(f"equalized the outputs of {len(found.factors)} layers; {len(found.left)} stay as they are")


def calibrate_model(run: Run) -> tuple[Any, Calibration]:
    """The quantized model with the ranges that the recipe asks for; `calibration.json` holds them with their histograms."""
    settings = run.inputs.recipe.calibration
    qmodel = quantize_model(run.inputs.model, run.inputs.placement)
    with run.stage("calibrate", f"Calibrate {settings.batches} batches", settings.batches) as advance:
        calibration = calibrated(run, qmodel, advance)
    if calibration.at_once is not None:
        run.warn(f"a batch of calibration data does not fit into memory: computed {calibration.at_once} examples at once, same ranges")
    if settings.search:
        calibration = _best_of(run, qmodel, calibration)
    _write(run, calibration)
    for point, channels in calibration.dead_channels.items():
        run.warn(f"{point}: {channels} channels are all zero; their codes are 0")
    return qmodel, calibration


def replace_placement(run: Run, calibration: Calibration, placement: Placement) -> tuple[Any, Calibration]:
    """The calibrated model of another placement, with the ranges that were measured for the one before; the run goes on with it."""
    before = run.inputs.placement
    run.inputs = replace(run.inputs, placement=placement)
    files.write_json(run.directory / "placement.json", placement.to_dict())
    qmodel = quantize_model(run.inputs.model, placement)
    moved = transferred(calibration, before.points, qmodel)
    apply(qmodel, moved)
    _write(run, moved)
    return qmodel, moved


def restore_placement(run: Run, stage: str) -> None:
    """Go on with the placement that the run had at the end of a stage, and with the equalized model."""
    placement = Placement.from_dict(run.done[stage]["placement"])
    model = run.load_model(EQUALIZED) if run.inputs.recipe.calibration.equalization else run.inputs.model
    run.inputs = replace(run.inputs, model=model, placement=placement)
    files.write_json(run.directory / "placement.json", placement.to_dict())


def keep_calibrated(run: Run, qmodel: Any, calibration: Calibration) -> None:
    """Note the calibrated model, in files that no later stage writes, before sensitivity analysis takes its time."""
    files.write_json(run.directory / CALIBRATION, calibration.to_dict())
    with files.replacing(run.directory / CALIBRATED) as temporary:
        qmodel.save(temporary)
    run.finish("calibrated", placement=run.inputs.placement.to_dict())


def restore_calibrated(run: Run) -> tuple[Any, Calibration]:
    """What `keep_calibrated` noted."""
    restore_placement(run, "calibrated")
    calibration = read_result(run.directory.path, CALIBRATION, Calibration.from_dict)
    _write(run, calibration)
    return run.load_model(CALIBRATED), calibration


def correct_model(run: Run, qmodel: Any) -> None:
    """Correct rounding and biases of the calibrated model, as far as the recipe asks for it."""
    settings = run.inputs.recipe.calibration
    preset = run.inputs.recipe.quantization.preset
    rounding, bias = settings.rounds_compensated(preset), settings.corrects_bias(preset)
    if not (rounding or bias):
        return
    what = " and ".join([*(["rounding"] if rounding else []), *(["biases"] if bias else [])])
    products = sum(handle.weight is not None for handle in state.handles(qmodel).values())
    with run.stage("correct", f"Correct {what} of {products} layers", products) as advance:
        batches = itertools.islice(run.inputs.calibration, settings.batches)
        correction = correct(qmodel, batches, rounding=rounding, bias=bias, advance=advance)
    run.write_log(f"corrected with {correction.examples} examples")
    for layer, reason in correction.left.items():
        run.write_log(f"{layer}: not corrected: {reason}")


def _best_of(run: Run, qmodel: Any, calibration: Calibration) -> Calibration:
    """The ranges of the calibrator, of those to try, whose calibrated model is best on the validation data."""
    found: dict[str, dict[str, float]] = {}
    tried: dict[str, Calibration] = {}
    for text in run.inputs.recipe.calibration.search:
        calibrator = Calibrator.parse(text)
        name = calibrator.describe()
        tried[name] = _with_calibrator(run, qmodel, calibration, calibrator)
        apply(qmodel, tried[name])
        found[name] = run.evaluate("search", f"Evaluate PTQ with {name}", qmodel, run.inputs.validation)
    metric = run.first_metric
    best = (max if higher_is_better(metric) else min)(found, key=lambda name: found[name][metric])
    run.metrics["calibration_search"] = {name: run.rounded(values) for name, values in found.items()}
    run.metrics["calibrator"] = best
    run.say(f"calibrator {best}: the best of {', '.join(found)} by {metric} on the validation data ({found[best][metric]:.4f})")
    apply(qmodel, tried[best])
    return tried[best]


def _with_calibrator(run: Run, qmodel: Any, calibration: Calibration, calibrator: Calibrator) -> Calibration:
    """The ranges by a calibrator, but for points whose calibrator an override of the recipe names."""
    settings = run.inputs.recipe.quantization.activations
    default = Calibrator(method=settings.calibrator, percentile=settings.percentile)
    free = [point for point in run.inputs.placement.activations if point.calibrator == default]
    if calibrator.method != "best":
        return recalibrate(calibration, free, calibrator)
    return choose_best(qmodel, calibration, [point.id for point in free], first_examples(run))


def _write(run: Run, calibration: Calibration) -> None:
    files.write_json(run.directory / "calibration.json", calibration.to_dict())
