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

    sizes = None if size is None else [int(part) if part.strip().isdigit() else part for part in size.split(",")]
    given = {"opset": 17 if opset is None else opset, "batch": batch, "size": sizes, "layout": layout, "outputs": output or []}
    config, wrong = validate(ExportConfig, given)
    if config is None:
        raise typer.BadParameter("; ".join(sentence(path, text) for path, text in wrong))
    from tfqat.export_run import export_source

    report = export_source(source, out, opset=opset, fold_batchnorm=fold_batchnorm, form=config.form, unsafe=unsafe)
    console = Console()
    console.print(
        f"{report.path}: {report.size_bytes:,} bytes, opset {report.opset}, {report.weights} weights and {report.activations} activations "
        "in INT8",
        highlight=False,
        soft_wrap=True,
    )
    for kept in report.kept_batch_norms if fold_batchnorm else ():
        console.print(f"{kept.node} stays: {kept.reason}", markup=False, highlight=False, soft_wrap=True)
