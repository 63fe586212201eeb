"""From the graph to an engine, if the recipe wants one and a backend is there; a failed build costs the run only if it is strict."""

from __future__ import annotations

from tfqat import files
from tfqat.engines.compile import compile_engine
from tfqat.engines.report import EngineReport
from tfqat.errors import EngineError
from tfqat.export.onnx import ExportReport
from tfqat.stages.under_way import Run


def build(run: Run, export: ExportReport) -> EngineReport:
    """Build the engines, or say why there are none, and warn of each quantized layer that does not run Int8 x Int8."""
    with run.stage("compile", "Build engines"):
        obstacle = _obstacle(run)
        report = _no_engine(obstacle) if obstacle else _compile(run, export)
    files.write_json(run.directory / "engine.json", report.to_dict())
    for target in report.targets:
        run.metrics["size_bytes"][f"engine_{target.target.lower()}"] = target.size_bytes
    for target_name, layer in report.float_layers([point.given_source for point in run.inputs.placement.weights]):
        run.warn(f"engine {target_name}: layer {layer} does not run Int8 x Int8")
    if report.status == "not_run":
        run.say(f"no engine: {report.message}")
    return report


def _obstacle(run: Run) -> str:
    """Why no engine is to be built; empty if one is."""
    recipe = run.inputs.recipe
    if not recipe.compile.enabled or recipe.compile.backend == "none":
        return "the recipe switches the engine stage off"
    return "the graph is for ONNX Runtime: TensorRT has no uint8 codes" if recipe.target == "onnxruntime" else ""


def _compile(run: Run, export: ExportReport) -> EngineReport:
    settings = run.inputs.recipe.compile
    try:
        return compile_engine(
            export.path,
            run.directory / "model.plan",
            settings.backend,
            compute_capabilities=settings.compute_capabilities,
            batch=settings.batch,
            shapes=settings.shapes,
            strict=settings.strict,
            timeout_s=settings.timeout_s,
        )
    except EngineError as error:  # the graph is good and proven; a failed build must not cost the user the run
        if settings.strict:
            raise
        run.warn(f"the engine could not be built: {error}")
        return _no_engine(str(error))


def _no_engine(message: str) -> EngineReport:
    return EngineReport(backend="none", version="", status="not_run", message=message, targets=())
