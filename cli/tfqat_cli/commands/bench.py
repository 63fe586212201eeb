"""`tfqat bench model.onnx --against float.onnx`: how fast graphs run here, timed in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def bench(
    onnx: Annotated[Path, typer.Argument(help="An ONNX graph.")],
    against: Annotated[Path | None, typer.Option("--against", help="Another one, which the ratios are of.")] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", min=1, help="A batch size; repeatable. Default: 1, 8, 32.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Timed runs of each.")] = 50,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw the throughput: an SVG file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time a graph on every runtime of this machine, with the runtime's own kernels, and another graph in turn with it."""
    from rich.console import Console

    from tfqat import files
    from tfqat.engines.bench import bench as run
    from tfqat.report.bench_figure import throughput
    from tfqat_cli import display

    timings = run(onnx, against, batches=batch or (1, 8, 32), rounds=rounds)
    if plot is not None:
        files.write_text(plot, throughput(timings))
    if as_json:
        typer.echo(json.dumps([timing.to_dict() for timing in timings], indent=1))
    else:
        Console().print(display.bench_table(timings))
