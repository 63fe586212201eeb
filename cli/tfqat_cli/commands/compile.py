"""`tfqat compile model.onnx`: TensorRT engines from a Q/DQ graph or a SavedModel, and the precision of every kernel."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
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
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="An input with other free axes: NAME=MIN:OPT:MAX, each like 1x32x32x3; repeatable.", metavar="TEXT"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An error if a product with Q/DQ does not run Int8 x Int8.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="The most seconds for each engine.")] = 600.0,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="A file to keep TensorRT's timings in; TensorRT for RTX has none.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Let TensorRT 8 run what is float in half precision.")] = False,
    unsafe: Unsafe = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a Q/DQ graph and report for every convolution and matrix product whether it runs Int8 x Int8."""
    from rich.console import Console

    from tfqat.engines.compile import compile_engine
    from tfqat_cli import display

    shapes, temporary = _shapes(shape or ()), onnx.is_dir()
    with tempfile.TemporaryDirectory() as folder:
        if temporary:  # by way of its graph
            from tfqat.export_run import graph_of

            source = onnx.resolve()
            onnx = graph_of(source, Path(folder), unsafe=unsafe)
            out = out or (onnx.with_suffix(".plan") if onnx.parent == source else source.with_name(f"{source.name}.plan"))
        if not as_json:
            _lint(onnx)
        report = compile_engine(
            onnx,
            out,
            backend,
            compute_capabilities=target or ("SM86", "SM89"),
            batch=batch,
            shapes=shapes,
            strict=strict,
            timeout_s=timeout,
            timing_cache=timing_cache,
            fp16=fp16,
        )
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
    if report.commands and not temporary:
        console.print("The same by NVIDIA's own tools:", highlight=False)
        for command in report.commands:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
    console.print(report.message or report.status, markup=False, highlight=False, soft_wrap=True)


def _lint(onnx: Path) -> None:
    """Say before the build what TensorRT will not parse or run in INT8; what is no Q/DQ graph is left to the build."""
    from rich.console import Console

    from tfqat.errors import PlacementError
    from tfqat.placement.lint import lint_onnx

    try:
        found = [finding for finding in lint_onnx(onnx) if finding.severity == "finding" and finding.rule != "dynamic-axes"]
    except PlacementError:
        return
    for finding in found:
        text = f"lint: {finding.layer} ({finding.rule}): {finding.message}; {finding.fix}"
        Console(stderr=True).print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _shapes(options: Sequence[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The shapes of all `--shape` options; an error if an input has two."""
    from tfqat.engines.profile import parse_shape
    from tfqat.errors import EngineError

    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for option in options:
        name, given = parse_shape(option)
        if name in shapes:
            raise EngineError(f"--shape is given twice for {name!r}: an engine has one profile; leave one of them out")
        shapes[name] = given
    return shapes
