"""From the model to a proven graph: export, run in ONNX Runtime both ways, time, prove."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat import files
from tfqat.engines import onnxruntime as runtime
from tfqat.errors import DataError
from tfqat.export.onnx import ExportReport, export_float_onnx, export_onnx
from tfqat.form import Form
from tfqat.progress import counted
from tfqat.proof.parity import ParityReport
from tfqat.proof.verify import verify
from tfqat.recipe.load import recipe_hash
from tfqat.stages.under_way import Run
from tfqat.training.evaluate import evaluate_outputs

PARITY_EXAMPLES = 1000
# Fused and literal execution of one graph that differ by more than this in the first metric are worth a warning.
DEPLOYED_TOLERANCE = 0.001
_LITERAL = {"onnx": True, "onnx_deployed": False}


def export(run: Run, model: Any) -> ExportReport:
    """Export the chosen model, and the float one for comparison."""
    settings = run.inputs.recipe.export
    with run.stage("export", "Export ONNX"):
        metadata = {"tfqat.recipe_hash": recipe_hash(run.inputs.recipe)}
        report = export_onnx(
            model,
            run.directory / "model.onnx",
            opset=settings.opset,
            fold_batchnorm=settings.fold_batchnorm,
            form=run.inputs.recipe.form,
            metadata=metadata,
            external_data=settings.external_data,
        )
        float_size = export_float_onnx(run.inputs.float_model, run.directory / "float.onnx", opset=settings.opset)
    run.metrics["size_bytes"] = {"float_onnx": float_size, "model_onnx": report.size_bytes}
    if report.saturating:
        run.warn(f"ONNX Runtime's kernels for CPUs without VNNI compute {', '.join(report.saturating[:5])} wrong: 16-bit sums saturate")
    for result in report.kept_batch_norms if settings.fold_batchnorm else ():
        run.say(f"{result.node} stays: {result.reason}")
    return report


def run_onnx(run: Run, model: Any, export: ExportReport) -> None:
    """Measure the graph literally and as ONNX Runtime's fused kernels compute it, from the same batches, and time it."""
    data, metrics = run.inputs.test, run.inputs.recipe.training.metrics
    sessions = {name: runtime.session(export.path, literal=literal) for name, literal in _LITERAL.items()}
    with run.stage("onnx", "Run ONNX, literal and fused", data.batches) as advance:
        outputs, targets = outputs_and_targets(sessions, counted(data, advance), name=data.name, form=run.inputs.recipe.form)
        for name, arrays in outputs.items():
            run.measure(name, evaluate_outputs(arrays, targets, loss=run.inputs.loss, metrics=metrics, names=model.output_names))
    _compare(run)
    with run.stage("latency", "Time ONNX Runtime"):
        paths = {"onnx_float": run.directory / "float.onnx", "onnx_int8": export.path}
        run.metrics["latency_ms"] = runtime.latency_ms(paths, batch=run.inputs.recipe.export.batch or 1)


def prove(run: Run, model: Any, export: ExportReport) -> ParityReport:
    """Compare the graph with the model, code for code."""
    with run.stage("verify", f"Prove parity on {PARITY_EXAMPLES} examples"):
        parity = verify(model, export.path, run.inputs.test, examples=PARITY_EXAMPLES)
    files.write_json(run.directory / "parity.json", parity.to_dict())
    for failure in parity.failures:
        run.warn(f"parity: {failure}")
    return parity


def outputs_and_targets(
    sessions: Mapping[str, Any], batches: Iterable[Any], *, name: str, form: Form | None = None
) -> tuple[dict[str, list[np.ndarray]], tuple[Any, ...]]:
    """What each session makes of the batches, and their (labels,) or (labels, sample weights).

    One pass: a data set that reshuffles gives every pass another order, and then outputs and labels of two passes do not belong together.

    Raises:
        DataError: batches of different shapes, which cannot be joined.
    """
    outputs: dict[str, list[list[np.ndarray]]] = {session: [] for session in sessions}
    targets: list[tuple[Any, ...]] = []
    for inputs, *rest in batches:
        for key, session in sessions.items():
            found = runtime.run_batches(session, [_as_taken(session, inputs, form)])
            outputs[key].append(list(found) if isinstance(found, tuple) else [found])
        targets.append(tuple(rest))
    try:
        joined = {key: [np.concatenate(parts) for parts in zip(*found, strict=True)] for key, found in outputs.items()}
        labels: tuple[Any, ...] = tf.nest.map_structure(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *targets)
        return joined, labels
    except ValueError as error:
        raise DataError(f"{name}: outputs or labels of different shapes cannot be joined to measure the ONNX graph: {error}") from error


def _as_taken(session: Any, inputs: Any, form: Form | None) -> Any:
    """A batch of Keras's as the graph takes it."""
    if form is None or (form.layout == "nhwc" and form.pixels is None):
        return inputs
    names = [one.name for one in session.get_inputs()]
    values = inputs if isinstance(inputs, Mapping) else dict(zip(names, tf.nest.flatten(inputs), strict=True))
    return form.feed({name: np.asarray(values[name]) for name in names})


def _compare(run: Run) -> None:
    literal, deployed = (run.measured[name][run.first_metric] for name in _LITERAL)
    if abs(literal - deployed) <= DEPLOYED_TOLERANCE:
        return
    for_tensorrt = run.inputs.recipe.target == "tensorrt"
    saturates = for_tensorrt and not runtime.cpu_has_vnni()
    cause = ": this CPU has no VNNI, so its int8 kernels saturate 16-bit sums" if saturates else ""
    after = "TensorRT is not affected" if for_tensorrt else "it rounds biases to int32"
    run.warn(
        f"ONNX Runtime's fused kernels give {run.first_metric} {deployed:.4f}, the graph as it is written {literal:.4f}{cause}. {after}"
    )
