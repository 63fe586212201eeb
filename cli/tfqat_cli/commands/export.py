"""`tfqat export SOURCE -o model.onnx`: the ONNX graph of a quantized model, in the form that its reader wants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Unsafe


def export(
    source: Annotated[Path, typer.Argument(help="A run directory, a quantized model's file, or a SavedModel that tfqat wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file.")] = Path("model.onnx"),
    opset: Annotated[int | None, typer.Option("--opset", help="13 to 23; default: the run's, or 17.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="tensorrt or onnxruntime; default: the run's, or tensorrt.")] = None,
    remainder: Annotated[str, typer.Option("--remainder", help="Type of what is not quantized: float32 or float16.")] = "float32",
    weights: Annotated[str, typer.Option("--weights", help="int8 codes, or float with Q and DQ behind them.")] = "int8",
    mean: Annotated[str | None, typer.Option("--mean", help="Take uint8 pixels, less this: one number, or one per channel.")] = None,
    std: Annotated[str | None, typer.Option("--std", help="Take uint8 pixels, divided by this, likewise.")] = None,
    external_data: Annotated[bool | None, typer.Option(help="Weights in a file of their own; default: above 1.5 GB.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="A fixed batch size; default: free.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="Fixed sizes of free axes of images, such as 224,224.")] = None,
    layout: Annotated[str, typer.Option("--layout", help="Of the inputs: nhwc as Keras has it, or nchw.")] = "nhwc",
    output: Annotated[list[str] | None, typer.Option("--output", help="New names of the outputs, one each; repeatable.")] = None,
    fold_batchnorm: Annotated[bool, typer.Option(help="Fold BatchNorm into the scales of weights.")] = True,
    unsafe: Unsafe = False,
) -> None:
    """Write the ONNX graph of a quantized model, with Q/DQ that TensorRT compiles."""
    from rich.console import Console

    from tfqat.recipe.export import ExportConfig
    from tfqat.recipe.problems import sentence, validate

    given = {
        "opset": 17 if opset is None else opset,
        "target": target,
        "remainder": remainder,
        "weights": weights,
        "batch": batch,
        "size": _numbers(size),
        "layout": layout,
        "pixels": {key: _numbers(text) for key, text in (("mean", mean), ("std", std)) if text is not None} or None,
        "outputs": output or [],
    }
    config, wrong = validate(ExportConfig, given)
    if config is None:
        raise typer.BadParameter("; ".join(sentence(path, text) for path, text in wrong))
    from tfqat.export_run import export_source

    report = export_source(
        source,
        out,
        opset=opset,
        target=config.target,
        fold_batchnorm=fold_batchnorm,
        form=config.form,
        external_data=external_data,
        unsafe=unsafe,
    )
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


def _numbers(text: str | None) -> list[float | str] | None:
    """`224,224` as numbers; what is none stays for the recipe's rules to refuse."""
    return None if text is None else [_number(part.strip()) for part in text.split(",")]


def _number(part: str) -> float | str:
    try:
        return int(part) if part.lstrip("-").isdigit() else float(part)
    except ValueError:
        return part
