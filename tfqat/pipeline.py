"""The main job: the stages in their order, each of which writes its result to the run directory before the next one starts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat import files
from tfqat.analysis.result import Sensitivity
from tfqat.calibration.result import Calibration
from tfqat.engines.report import EngineReport
from tfqat.errors import WorkerError
from tfqat.export.onnx import ExportReport
from tfqat.inputs import Inputs, Origin, load_inputs
from tfqat.placement.plan import Placement
from tfqat.progress import Progress, Silent
from tfqat.proof.parity import ParityReport
from tfqat.recipe.load import dump_recipe, load_recipe, recipe_hash
from tfqat.recipe.schema import Recipe, SensitivityConfig
from tfqat.report.html import write_report
from tfqat.run_directory import RunDirectory, versions
from tfqat.stages import calibration, engine, graph, quantized_model, sensitivity
from tfqat.stages.together import serve
from tfqat.stages.under_way import Run, keep, out_of_memory
from tfqat.training.fit import QatResult
from tfqat.training.replicas import check_split
from tfqat.workers import Workers, join, processes_of_tf_config


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run made: its directory, the contents of `metrics.json`, and the reports of its stages."""

    directory: Path
    metrics: dict[str, Any]
    placement: Placement
    exported: str
    export: ExportReport
    parity: ParityReport
    engine: EngineReport
    qat: QatResult | None


@dataclass(frozen=True, kw_only=True)
class AnalysisResult:
    """What `calibrate_recipe` and `analyse_recipe` made: the run directory, the contents of `metrics.json`, and what was found."""

    directory: Path
    metrics: dict[str, Any]
    placement: Placement
    calibration: Calibration
    sensitivity: Sensitivity | None


def run(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    unsafe: bool = False,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    on_placement: Callable[[Placement], None] = lambda placement: None,
) -> RunResult | None:
    """Take a trained model to an INT8 ONNX graph and a TensorRT engine, as a recipe says, and prove the result.

    Args:
        recipe: the path of a recipe, or a Recipe (its paths are then relative to the working directory).
        overrides: such as `quantization.activations.percentile=99.9`, for a path.
        out: the folder that gets the run directory.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.
        resume: the directory of a run of the same recipe that was cut off; it goes on from its last complete stage and epoch.
        progress: who is told; None tells nobody.
        on_placement: called with the placement before anything is computed with it.

    Returns:
        The result, also of a graph that is not proven: `parity.passed` says so. None in a process that is not the chief of those which
        `distribution: {strategy: multi_worker}` has work together.

    Raises:
        WorkerError: another process of a distributed run was lost; what the chief had written is kept, and can be resumed.
        TfqatError: whatever is wrong with the recipe, the model or the data. Nothing has been written if it is found before calibration
            is done; later the run directory is kept, its manifest marked `incomplete`, and a note of the exception names it.
        KeyboardInterrupt: the run directory is kept, as above.
    """
    with _opened(recipe, overrides, out=out, unsafe=unsafe, resume=resume, progress=progress, on_placement=on_placement) as current:
        if current.workers.is_chief:
            return _stages(current)
        serve(current)
        return None


def calibrate_recipe(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    unsafe: bool = False,
    progress: Progress | None = None,
) -> AnalysisResult | None:
    """The first part of a run: calibrate as the recipe says, measure, and stop. Arguments and errors as for `run`."""
    with _opened(recipe, overrides, out=out, unsafe=unsafe, progress=progress, ptq_only=True) as current:
        if not current.workers.is_chief:
            serve(current)
            return None
        _begin(current)
        quantized_model.evaluate_float(current)
        qmodel, ranges = _calibrated(current)
        quantized_model.measure(current, qmodel)
        return _ended(current, ranges, None)


def analyse_recipe(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    unsafe: bool = False,
    progress: Progress | None = None,
) -> AnalysisResult | None:
    """Calibrate as the recipe says, measure the sensitivity of its layers, and stop. Arguments and errors as for `run`.

    A recipe without a `sensitivity` block gets the block's defaults.
    """
    with _opened(recipe, overrides, out=out, unsafe=unsafe, progress=progress, ptq_only=True, sensitivity=True) as current:
        if not current.workers.is_chief:
            serve(current)
            return None
        _begin(current)
        quantized_model.evaluate_float(current)
        qmodel, ranges, found = _placed(current)
        quantized_model.measure(current, qmodel)
        return _ended(current, ranges, found)


@contextmanager
def _opened(
    recipe: str | Path | Recipe,
    overrides: Sequence[str],
    *,
    out: str | Path,
    unsafe: bool,
    progress: Progress | None,
    resume: str | Path | None = None,
    on_placement: Callable[[Placement], None] = lambda placement: None,
    ptq_only: bool = False,
    sensitivity: bool = False,
) -> Iterator[Run]:
    """A run under way in its new directory, with all that its recipe names."""
    progress = progress or Silent()
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    origin = (
        Origin(file="", folder=Path.cwd(), unsafe=unsafe)
        if isinstance(recipe, Recipe)
        else Origin.of(Path(recipe), overrides, unsafe=unsafe)
    )
    if ptq_only:
        loaded = loaded.model_copy(update={"ptq_only": True})
    if sensitivity and loaded.sensitivity is None:
        loaded = loaded.model_copy(update={"sensitivity": SensitivityConfig()})
    tf_keras.utils.set_random_seed(loaded.seed)
    if loaded.deterministic:
        tf.config.experimental.enable_op_determinism()
    workers = _joined(loaded, origin, progress)
    with workers.released(), contextlib.ExitStack() as left:
        resumes = resume is not None and workers.is_chief  # the others get from the chief what it goes on from
        earlier = RunDirectory.reopen(Path(resume or ""), recipe_hash=recipe_hash(loaded)) if resumes else None
        write_log = left.enter_context(earlier.held()) if earlier is not None else None
        with _kept_if_interrupted(earlier), progress.stage("Load model and data") as advance:
            inputs = load_inputs(loaded, origin, advance)
        _check_together(workers, inputs)
        on_placement(inputs.placement)
        if not workers.is_chief:
            out = left.enter_context(tempfile.TemporaryDirectory())
        directory = earlier or RunDirectory.create(
            Path(out), Path(origin.file).stem or "run", recipe_hash=recipe_hash(loaded), seed=loaded.seed, recipe_folder=origin.folder
        )
        write_log = write_log or left.enter_context(directory.held())
        current = Run(directory=directory, inputs=inputs, origin=origin, progress=progress, write_log=write_log, workers=workers)
        try:
            with out_of_memory(lambda: current.stage_name):
                if earlier is not None:
                    current.restore()
                    current.say(f"resuming behind: {', '.join(current.done) or 'nothing yet'}")
                yield current
        except BaseException as error:
            current.give_up(error)
            raise


@contextmanager
def _kept_if_interrupted(earlier: RunDirectory | None) -> Iterator[None]:
    """A run that is to go on, and is interrupted before it does, says where it lies."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if earlier is not None:
            keep(earlier, interrupt, stage=earlier.stage)
        raise


def _joined(recipe: Recipe, origin: Origin, progress: Progress) -> Workers:
    """This process among those that the recipe has work together."""
    if recipe.distribution is None:
        if (others := processes_of_tf_config()) > 1:
            progress.message(
                f"warning: TF_CONFIG names {others} processes, but this run works alone: the recipe has no distribution.strategy"
            )
        return Workers()
    several = recipe.distribution.strategy == "multi_worker"
    with progress.stage("Wait for the other processes" if several else "Connect devices"):
        workers = join(recipe.distribution, key=origin.cite("distribution.strategy"))
    progress.message(f"process {workers.index} of {workers.count}; {workers.replicas} devices in all")
    return workers


def _check_together(workers: Workers, inputs: Inputs) -> None:
    """Make sure that the work can be split between the devices, and that all processes mean the same by it."""
    if inputs.schedule is not None:
        check_split(inputs.schedule.batch_size, workers.replicas)
    fixed = [given for given in inputs.model.inputs if given.shape[0] is not None]
    if fixed and workers.replicas > 1:
        raise WorkerError(
            f"input {fixed[0].name!r} takes batches of exactly {fixed[0].shape[0]}, which cannot be split between {workers.replicas} "
            "devices: build the model with a free batch size"
        )
    facts = {
        "recipe": recipe_hash(inputs.recipe),
        "QAT schedule": inputs.schedule.to_dict() if inputs.schedule else None,
        "number of validation examples": inputs.validation.examples,
        "placement": inputs.placement.to_dict(),
    }
    workers.check_agreement(facts)


def _stages(run: Run) -> RunResult:
    if not run.done:
        _begin(run)
    qmodel = _ptq(run)
    calibrated = qmodel.get_weights()
    qat = quantized_model.fine_tune_model(run, qmodel)
    quantized_model.train_control(run)
    exported, model = quantized_model.choose(run, qmodel, qat, calibrated)
    export = graph.export(run, model)
    graph.run_onnx(run, model, export)
    parity = graph.prove(run, model, export)
    built = engine.build(run, export)
    _end(run)
    return RunResult(
        directory=run.directory.path,
        metrics=run.metrics,
        placement=run.inputs.placement,
        exported=exported,
        export=export,
        parity=parity,
        engine=built,
        qat=qat,
    )


def _ptq(run: Run) -> Any:
    """The calibrated model, measured and saved; of a run that goes on, as it was saved."""
    if "ptq" in run.done:
        calibration.restore_placement(run, "ptq")
        return run.load_model("quantized.keras")
    if "float" not in run.done:
        quantized_model.evaluate_float(run)
        run.finish("float")
    qmodel, _, _ = _placed(run)
    quantized_model.measure(run, qmodel)
    run.finish("ptq", placement=run.inputs.placement.to_dict())
    return qmodel


def _calibrated(run: Run) -> tuple[Any, Calibration]:
    """The calibrated and corrected model of the placement as planned."""
    calibration.equalize_model(run)
    qmodel, ranges = calibration.calibrate_model(run)
    calibration.correct_model(run, qmodel)
    return qmodel, ranges


def _placed(run: Run) -> tuple[Any, Calibration, Sensitivity | None]:
    """The calibrated and corrected model, of the placement that sensitivity analysis leads to if the recipe asks for it."""
    qmodel, ranges = calibration.restore_calibrated(run) if "calibrated" in run.done else _calibrated(run)
    if run.inputs.recipe.sensitivity is None:
        return qmodel, ranges, None
    calibration.keep_calibrated(run, qmodel, ranges)
    found = sensitivity.analyse(run, qmodel)
    if found.placement is not None and found.lines:
        qmodel, ranges = calibration.replace_placement(run, ranges, found.placement)
        calibration.correct_model(run, qmodel)
    return qmodel, ranges, found


def _begin(run: Run) -> None:
    files.write_text(run.directory / "recipe.yaml", dump_recipe(run.inputs.recipe))
    files.write_json(run.directory / "placement.json", run.inputs.placement.to_dict())
    examples, parameters = run.inputs.test.examples, run.inputs.model.count_params()
    run.metrics.update(examples=examples, parameters=parameters, warnings=[], versions=versions(), seconds={})


def _ended(run: Run, ranges: Calibration, found: Sensitivity | None) -> AnalysisResult:
    _end(run)
    return AnalysisResult(
        directory=run.directory.path, metrics=run.metrics, placement=run.inputs.placement, calibration=ranges, sensitivity=found
    )


def _end(run: Run) -> None:
    run.save_metrics()
    with run.stage("report", "Write report"):
        write_report(run.directory.path)
    run.save_metrics()
    run.end()
