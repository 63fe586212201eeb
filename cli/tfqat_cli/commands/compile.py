"""`tfqat compile model.onnx`: TensorRT engines from a Q/DQ graph or a SavedModel, and the precision of every kernel."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Unsafe


def compile_model(
    onnx: Annotated[Path, typer.Argument(help="The Q/DQ graph, an ONNX file; or a SavedModel of tfqat.export_saved_model, or a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The engine; TensorRT for RTX puts the target before the suffix.")] = None,
    backend: Annotated[str, typer.Option("--backend", help="auto, tensorrt or tensorrt_rtx.")] = "auto",
    target: Annotated[
        list[str] | None, typer.Option("--target", help="A compute capability, such as SM86; repeatable. Default: SM86, SM89.")
    ] = None,
    batch: Annotated[tuple[int, int, int], typer.Option("--batch", help="Smallest, optimal and largest batch size.")] = (1, 8, 32),
    unsafe: Unsafe = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a Q/DQ graph and report for every convolution and matrix product whether it runs Int8 x Int8."""
    from rich.console import Console

    from tfqat.engines.compile import compile_engine
    from tfqat_cli import display

    with tempfile.TemporaryDirectory() as folder:
        if onnx.is_dir():  # by way of its graph
            from tfqat.export_run import export_source

            out = out or onnx.with_suffix(".plan")
            onnx = export_source(onnx, Path(folder) / "model.onnx", unsafe=unsafe).path
        report = compile_engine(onnx, out, backend, compute_capabilities=target or ("SM86", "SM89"), batch=batch)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
        return
    console = Console()
    if report.targets:
        console.print(display.engine_table(report))
    for built in report.targets:
        console.print(
            f"{built.target}: {built.engine_path} ({built.size_bytes:,} bytes, {built.seconds:.1f} s)", highlight=False, soft_wrap=True
        )
    console.print(report.message or report.status, markup=False, highlight=False)
