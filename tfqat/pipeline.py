"""The main job: the stages in their order, each of which writes its result to the run directory before the next one starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tf_keras

from tfqat import files
from tfqat.calibration.calibrate import calibrate
from tfqat.datasets import count_examples, inputs_only, load_dataset
from tfqat.engines import onnxruntime as runtime
from tfqat.engines.compile import compile_engine
from tfqat.engines.report import EngineReport
from tfqat.errors import EngineError, TfqatError
from tfqat.export.onnx import ExportReport, export_float_onnx, export_onnx
from tfqat.export.parity import ParityReport
from tfqat.export.verify import verify
from tfqat.models.load import load_model
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan
from tfqat.progress import Advance, Progress, Silent, counted
from tfqat.quantize.apply import quantize_model
from tfqat.recipe.load import dump_recipe, load_recipe, recipe_hash
from tfqat.recipe.modifiers import QatPlan, qat_plan
from tfqat.recipe.references import load_reference, resolve_path
from tfqat.recipe.schema import Recipe
from tfqat.report.html import write_report
from tfqat.run_directory import RunDirectory, versions
from tfqat.training.callbacks import Ticker
from tfqat.training.evaluate import check_metrics, evaluate, evaluate_outputs, make_loss
from tfqat.training.fit import QatResult, fine_tune

PARITY_EXAMPLES = 1000
# Fused and literal execution of one graph that differ by more than this in the first metric are worth a warning.
DEPLOYED_TOLERANCE = 0.001


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
class Inputs:
    """Everything a recipe names, loaded and checked: nothing has been written yet."""

    recipe: Recipe
    model: Any
    placement: Placement
    train: Any
    validation: Any
    calibration: Any
    test: Any
    loss: Any
    schedule: QatPlan | None


@dataclass
class _Run:
    """A run under way: where it writes, what it has measured, and whom it tells."""

    directory: RunDirectory
    inputs: Inputs
    progress: Progress
    write_log: Callable[[str], None]
    metrics: dict[str, Any] = field(default_factory=dict)
    stage_name: str = "load"

    def stage(self, name: str, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        self.stage_name = name
        self.directory.mark("running", stage=name)
        self.write_log(title)
        return _Timed(self, name, self.progress.stage(title, total))

    def say(self, text: str) -> None:
        self.write_log(text)
        self.progress.message(text)

    def warn(self, text: str) -> None:
        self.metrics["warnings"].append(text)
        self.say(f"warning: {text}")

    def measure(self, name: str, values: dict[str, float]) -> None:
        self.metrics[name] = {metric: round(value, 6) for metric, value in values.items()}
        self.write_log(f"{name}: {self.metrics[name]}")
        self.save_metrics()

    def save_metrics(self) -> None:
        files.write_json(self.directory / "metrics.json", self.metrics)

    @property
    def first_metric(self) -> str:
        return next((name for name in self.metrics["float"] if name != "loss"), "loss")


def run(
    recipe: str | Path | Recipe,
    *,
    overrides: Sequence[str] = (),
    out: str | Path = "runs",
    progress: Progress | None = None,
    on_placement: Callable[[Placement], None] = lambda placement: None,
) -> RunResult:
    """Take a trained model to an INT8 ONNX graph and a TensorRT engine, as a recipe says, and prove the result.

    Args:
        recipe: the path of a recipe, or a Recipe (its paths are then relative to the working directory).
        overrides: such as `quantization.activations.percentile=99.9`, for a path.
        out: the folder that gets the run directory.
        progress: who is told; None tells nobody.
        on_placement: called with the placement before anything is computed with it.

    Raises:
        TfqatError: whatever is wrong with the recipe, the model or the data. Nothing has been written if it is found before calibration
            is done; later the run directory is kept, its manifest marked `incomplete`.
        KeyboardInterrupt: the run directory is kept, marked `incomplete`.
    """
    progress = progress or Silent()
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    base, name = (Path.cwd(), "run") if isinstance(recipe, Recipe) else (Path(recipe).parent, Path(recipe).stem)
    tf_keras.utils.set_random_seed(loaded.seed)
    with progress.stage("Load model and data"):
        inputs = load_inputs(loaded, base)
    on_placement(inputs.placement)
    directory = RunDirectory.create(Path(out), name, recipe_hash=recipe_hash(loaded), seed=loaded.seed)
    with directory.log() as write_log:
        current = _Run(directory=directory, inputs=inputs, progress=progress, write_log=write_log)
        try:
            result = _stages(current)
        except BaseException as error:
            _give_up(current, error)
            raise
    return result


def load_inputs(recipe: Recipe, base: Path) -> Inputs:
    """Load and check what a recipe names.

    Raises:
        TfqatError: something is missing, corrupt or does not fit.
    """
    loss = make_loss(recipe.training.loss)
    check_metrics(recipe.training.metrics)
    model = load_model(resolve_path(recipe.model.source, base))
    placement = plan(model, recipe.quantization)

    def data(reference: str) -> Any:
        load = load_reference(reference, base=base)
        return load_dataset(load, reference=reference, batch_size=recipe.training.batch_size, model=model)

    validation, calibration = data(recipe.data.validation), data(recipe.data.calibration_reference)
    train = None if recipe.ptq_only else data(recipe.data.train)
    schedule = None if train is None else qat_plan(recipe.training, recipe.qat, examples=count_examples(train))
    test = validation if recipe.data.test_reference == recipe.data.validation else data(recipe.data.test_reference)
    return Inputs(
        recipe=recipe,
        model=model,
        placement=placement,
        train=train,
        validation=validation,
        calibration=calibration,
        test=test,
        loss=loss,
        schedule=schedule,
    )


def _stages(run: _Run) -> RunResult:
    files.write_text(run.directory / "recipe.yaml", dump_recipe(run.inputs.recipe))
    files.write_json(run.directory / "placement.json", run.inputs.placement.to_dict())
    examples = count_examples(run.inputs.test)
    run.metrics.update(examples=examples, parameters=run.inputs.model.count_params(), warnings=[], versions=versions(), seconds={})
    run.measure("float", _evaluate(run, "float", "Evaluate float", run.inputs.model))
    qmodel = _quantize(run)
    run.measure("ptq", _evaluate(run, "ptq", "Evaluate PTQ", qmodel))
    _save_model(run, qmodel, "quantized.keras")
    qat = _fine_tune(run, qmodel)
    exported, model = _best(run, qmodel, qat)
    export = _export(run, model)
    _run_onnx(run, export)
    parity = _verify(run, model, export)
    engine = _compile(run, export)
    _report(run)
    return RunResult(
        directory=run.directory.path,
        metrics=run.metrics,
        placement=run.inputs.placement,
        exported=exported,
        export=export,
        parity=parity,
        engine=engine,
        qat=qat,
    )


def _quantize(run: _Run) -> Any:
    batches = run.inputs.recipe.calibration.batches
    qmodel = quantize_model(run.inputs.model, run.inputs.placement)
    with run.stage("calibrate", f"Calibrate {batches} batches", batches) as advance:
        calibration = calibrate(qmodel, counted(run.inputs.calibration, advance), batches)
    files.write_json(run.directory / "calibration.json", calibration.to_dict())
    for point, channels in calibration.dead_channels.items():
        run.warn(f"{point}: {channels} channels are all zero; their codes are 0")
    return qmodel


def _fine_tune(run: _Run, qmodel: Any) -> QatResult | None:
    inputs, schedule = run.inputs, run.inputs.schedule
    if schedule is None:
        run.say("ptq_only: no fine-tuning")
        return None
    metric = run.first_metric
    baseline = (
        run.metrics["ptq"][metric]
        if inputs.test is inputs.validation
        else _evaluate(run, "ptq", "Evaluate PTQ on validation", qmodel)[metric]
    )
    title = f"Fine-tune {schedule.epochs} epochs of {schedule.steps_per_epoch} steps"
    with run.stage("qat", title, schedule.total_steps) as advance:
        result = fine_tune(
            qmodel,
            schedule,
            inputs.train,
            inputs.validation,
            loss=inputs.loss,
            metrics=inputs.recipe.training.metrics,
            monitor=f"val_{metric}",
            baseline=baseline,
            history=run.directory / "history.csv",
            callbacks=[Ticker(on_train=advance)],
        )
    _save_model(run, qmodel, "qat.keras")
    run.measure("qat", _evaluate(run, "qat", "Evaluate QAT", qmodel))
    return result


def _best(run: _Run, qmodel: Any, qat: QatResult | None) -> tuple[str, Any]:
    """What is exported: the fine-tuned model if it beat the calibrated one on the validation data, else the calibrated one."""
    exported = "qat" if qat is not None and qat.beat_ptq else "ptq"
    run.metrics["exported"] = exported
    if qat is not None:
        comparison = f"{qat.monitor} {qat.best:.4f} in epoch {qat.best_epoch + 1}"
        run.say(
            f"exporting {exported.upper()}: fine-tuning {'beat' if qat.beat_ptq else 'did not beat'} the calibrated model ({comparison})"
        )
    if exported == "ptq" and qat is not None:
        return exported, load_model(run.directory / "quantized.keras")
    return exported, qmodel


def _export(run: _Run, model: Any) -> ExportReport:
    settings = run.inputs.recipe.export
    with run.stage("export", "Export ONNX"):
        metadata = {"tfqat.recipe_hash": recipe_hash(run.inputs.recipe)}
        report = export_onnx(
            model, run.directory / "model.onnx", opset=settings.opset, fold_batchnorm=settings.fold_batchnorm, metadata=metadata
        )
        float_size = export_float_onnx(run.inputs.model, run.directory / "float.onnx", opset=settings.opset)
    run.metrics["size_bytes"] = {"float_onnx": float_size, "model_onnx": report.size_bytes}
    for result in report.kept_batch_norms if settings.fold_batchnorm else ():
        run.say(f"{result.node} stays: {result.reason}")
    return report


def _run_onnx(run: _Run, export: ExportReport) -> None:
    """Evaluate the graph literally and as ONNX Runtime's fused kernels compute it, and time it."""
    for name, title, literal in (("onnx", "Run ONNX literally", True), ("onnx_deployed", "Run ONNX as deployed", False)):
        with run.stage(name, title, len(run.inputs.test)) as advance:
            outputs = runtime.run_batches(runtime.session(export.path, literal=literal), counted(inputs_only(run.inputs.test), advance))
            listed = list(outputs) if isinstance(outputs, tuple) else [outputs]
            run.measure(name, evaluate_outputs(listed, run.inputs.test, loss=run.inputs.loss, metrics=run.inputs.recipe.training.metrics))
    literal_value, deployed = (run.metrics[name][run.first_metric] for name in ("onnx", "onnx_deployed"))
    if abs(literal_value - deployed) > DEPLOYED_TOLERANCE:
        cause = "" if runtime.cpu_has_vnni() else ": this CPU has no VNNI, so its int8 kernels saturate 16-bit sums"
        run.warn(
            f"ONNX Runtime's fused kernels give {run.first_metric} {deployed:.4f}, the graph as it is written {literal_value:.4f}{cause}. "
            "TensorRT is not affected"
        )
    with run.stage("latency", "Time ONNX Runtime"):
        run.metrics["latency_ms"] = runtime.latency_ms({"onnx_float": run.directory / "float.onnx", "onnx_int8": export.path})


def _verify(run: _Run, model: Any, export: ExportReport) -> ParityReport:
    with run.stage("verify", f"Prove parity on {PARITY_EXAMPLES} examples"):
        parity = verify(model, export.path, run.inputs.test, examples=PARITY_EXAMPLES)
    files.write_json(run.directory / "parity.json", parity.to_dict())
    for failure in parity.failures:
        run.warn(f"parity: {failure}")
    return parity


def _compile(run: _Run, export: ExportReport) -> EngineReport:
    settings = run.inputs.recipe.compile
    with run.stage("compile", "Build engines"):
        report = (
            _engine(run, export)
            if settings.enabled and settings.backend != "none"
            else _no_engine("the recipe switches the engine stage off")
        )
    files.write_json(run.directory / "engine.json", report.to_dict())
    for target in report.targets:
        run.metrics["size_bytes"][f"engine_{target.target.lower()}"] = target.size_bytes
    float_layers = report.float_layers([point.source for point in run.inputs.placement.weights])
    for target_name, layer in float_layers:
        run.warn(f"engine {target_name}: layer {layer} does not run Int8 x Int8")
    if report.status == "not_run":
        run.say(f"no engine: {report.message}")
    return report


def _engine(run: _Run, export: ExportReport) -> EngineReport:
    settings = run.inputs.recipe.compile
    try:
        return compile_engine(
            export.path,
            run.directory / "model.plan",
            settings.backend,
            compute_capabilities=settings.compute_capabilities,
            batch=settings.batch,
        )
    except EngineError as error:  # the graph is good and proven; a failed build must not cost the user the run
        run.warn(f"the engine could not be built: {error}")
        return _no_engine(str(error))


def _no_engine(message: str) -> EngineReport:
    return EngineReport(backend="none", version="", status="not_run", message=message, targets=())


def _report(run: _Run) -> None:
    run.save_metrics()
    with run.stage("report", "Write report"):
        write_report(run.directory.path)
    run.save_metrics()
    run.directory.mark("complete", stage="report")


def _evaluate(run: _Run, name: str, title: str, model: Any) -> dict[str, float]:
    data = run.inputs.validation if title.endswith("on validation") else run.inputs.test
    with run.stage(name, title, len(data)) as advance:
        metrics = run.inputs.recipe.training.metrics
        return evaluate(model, data, loss=run.inputs.loss, metrics=metrics, callbacks=[Ticker(on_test=advance)])


def _save_model(run: _Run, model: Any, name: str) -> None:
    with files.replacing(run.directory / name) as temporary:
        model.save(temporary)
    run.metrics.setdefault("files", []).append(name)


def _give_up(run: _Run, error: BaseException) -> None:
    """Leave nothing if there is no result yet; else keep what there is and mark it."""
    run.write_log(f"stopped in stage {run.stage_name}: {type(error).__name__}: {error}")
    if isinstance(error, TfqatError) and not (run.directory / "calibration.json").exists():
        run.directory.discard()
    else:
        run.directory.mark("incomplete", stage=run.stage_name)


class _Timed:
    """A stage of the progress display whose seconds go to `metrics.json`."""

    def __init__(self, run: _Run, name: str, stage: AbstractContextManager[Advance]) -> None:
        self._run, self._name, self._stage = run, name, stage

    def __enter__(self) -> Advance:
        self._started = time.perf_counter()
        return self._stage.__enter__()

    def __exit__(self, *details: Any) -> bool | None:
        seconds = self._run.metrics["seconds"]
        seconds[self._name] = round(seconds.get(self._name, 0.0) + time.perf_counter() - self._started, 2)
        return self._stage.__exit__(*details)
