"""`tfqat export SOURCE -o model.onnx`: the ONNX graph of a quantized model, in the form that its reader wants; or a Triton repository."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfqat_cli.options import Unsafe

if TYPE_CHECKING:
    from tfqat.export.onnx import ExportReport


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run directory, a quantized model's file, or a SavedModel that tfqat wrote; with --triton a graph or plan too."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The ONNX file; default: model.onnx, none with --triton.")] = None,
    opset: Annotated[int | None, typer.Option("--opset", help="13 to 23; default: the run's, or 17.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="tensorrt or onnxruntime; default: the run's, or tensorrt.")] = None,
    remainder: Annotated[str | None, typer.Option("--remainder", help="Type of what is not quantized: float32 or float16.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="int8 codes, or float with Q and DQ behind them.")] = None,
    mean: Annotated[str | None, typer.Option("--mean", help="Take uint8 pixels, less this: one number, or one per channel.")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Take uint8 pixels, divided by this, likewise.")] = None,
    external_data: Annotated[bool | None, typer.Option(help="Weights in a file of their own; default: above 1.5 GB.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="A fixed batch size; default: free.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Fixed sizes of free axes of images, such as 224,224.")] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="Of images at the inputs: nhwc as Keras has it, or nchw.")] = None,
    output: Annotated[list[str] | None, typer.Option("--output", help="New names of the outputs, one each; repeatable.")] = None,
    fold_batchnorm: Annotated[bool | None, typer.Option(help="Fold BatchNorm into the scales of weights.")] = None,
    triton: Annotated[Path | None, typer.Option("--triton", help="Put it into this Triton model repository, as the next version.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="The model's name in Triton; default: that of SOURCE.")] = None,
    max_batch: Annotated[
        int | None, typer.Option("--max-batch", min=1, help="Triton's max_batch_size; default: the plan's, or 32.")
    ] = None,
    unsafe: Unsafe = False,
) -> None:
    """Write the ONNX graph of a quantized model, with Q/DQ that TensorRT compiles; --triton puts it into a model repository.

    Of a run, what no option says is as in its recipe; --triton without options serves the graph that the run proved.
    """
    from tfqat.recipe.export import ExportConfig
    from tfqat.recipe.problems import sentence, validate

    options = {
        "opset": opset,
        "target": target,
        "remainder": remainder,
        "weights": weights,
        "external_data": external_data,
        "batch": batch,
        "size": _numbers(size),
        "layout": layout,
        "pixels": {key: _numbers(text) for key, text in (("mean", mean), ("std", std)) if text is not None} or None,
        "outputs": output or None,
        "fold_batchnorm": fold_batchnorm,
    }
    given = {key: value for key, value in options.items() if value is not None}
    config, wrong = validate(ExportConfig, given)
    if config is None:
        raise typer.BadParameter("; ".join(sentence(path, text) for path, text in wrong))
    if triton is None and (name is not None or max_batch is not None):
        raise typer.BadParameter("--name and --max-batch are for --triton")
    if triton is not None and source.suffix in SERVED:
        if given or out is not None:
            raise typer.BadParameter(f"{source} is served as it is: leave the options of the graph and --out out, or give the run")
        _serve(source, triton, name, max_batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        from tfqat.export_run import export_source, graph_of

        if triton is not None and not given and out is None:
            graph = graph_of(source, Path(folder), unsafe=unsafe)
        else:
            path = out or (Path("model.onnx") if triton is None else Path(folder) / "model.onnx")
            report = export_source(source, path, given, unsafe=unsafe)
            _say(report, fold_batchnorm is not False)
            graph = report.path
        if triton is not None:
            _serve(graph, triton, name or _name_of(source), max_batch)


SERVED = (".onnx", ".plan", ".engine", ".trt")


def _say(report: ExportReport, fold_batchnorm: bool) -> None:
    from rich.console import Console

    console = Console()
    console.print(
        f"{report.path}: {report.size_bytes:,} bytes, opset {report.opset}, {report.weights} weights and {report.activations} activations "
        "in INT8",
        highlight=False,
        soft_wrap=True,
    )
    for kept in report.kept_batch_norms if fold_batchnorm else ():
        console.print(f"{kept.node} stays: {kept.reason}", markup=False, highlight=False, soft_wrap=True)
    if report.saturating:
        console.print(
            f"{len(report.saturating)} layers, {report.saturating[0]} the first, are wrong on CPUs without VNNI (16-bit sums saturate): "
            "run the recipe with export.target: onnxruntime, which keeps their weights in 7 bits",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _serve(model: Path, repository: Path, name: str | None, max_batch: int | None) -> None:
    from rich.console import Console

    from tfqat.engines.triton import export_triton

    made = export_triton(model, repository, name=name, max_batch_size=max_batch)
    batching = f"batches of up to {made.max_batch_size}" if made.max_batch_size else "no batching, as its batch is fixed"
    kept = "; its config.pbtxt was there and is left as it was" if made.kept_config else ""
    text = f"{made.path}: version {made.version} of {made.name}, {batching}{kept}"
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def _name_of(source: Path) -> str:
    """`net` for `net.keras` and for the run `net-20260102T030405Z`."""
    return re.sub(r"-\d{8}T\d{6}Z.*", "", source.resolve().name).split(".")[0]


def _numbers(text: str | None) -> list[float | str] | None:
    """`224,224` as numbers; what is none stays for the recipe's rules to refuse."""
    return None if text is None else [_number(part.strip()) for part in text.split(",")]


def _number(part: str) -> float | str:
    try:
        return int(part) if part.lstrip("-").isdigit() else float(part)
    except ValueError:
        return part
