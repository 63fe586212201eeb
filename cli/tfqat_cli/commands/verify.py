"""`tfqat verify RUN`: structure and parity of an exported graph, or two graphs side by side; exit code 1 if they do not agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfqat_cli.options import Unsafe

if TYPE_CHECKING:
    from tfqat.proof.comparison import GraphComparison
    from tfqat.verify_run import Proof


def verify(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory; with --against also an ONNX file.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="The graph to prove; default: model.onnx of the run.")] = None,
    against: Annotated[Path | None, typer.Option("--against", help="Another graph: compare the two instead.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="With --against: a .npz file, an array per input. Default: the run's test data, or noise.")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="How many examples to compare; at most 100 of noise.")] = 1000,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", min=0, help="How far the first metric of Keras and graph may differ; default: 0.0002, or two examples."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    unsafe: Unsafe = False,
) -> None:
    """Compare an exported graph with the model it came from: rules, int8 codes at every point, outputs, metrics. Or with another graph."""
    from tfqat.verify_run import compare, verify_run

    if against is None and data is not None:
        raise typer.BadParameter("--data goes with --against; a run is proven on its own test data")
    if against is not None and onnx is not None and not source.is_dir():
        raise typer.BadParameter("--onnx takes the place of a run's graph, and the first argument is no run; leave it out")
    report: Proof | GraphComparison
    if against is None:
        report = verify_run(source, onnx, examples=examples, max_drop=max_drop, unsafe=unsafe)
    else:
        report = compare(source, against, onnx, data=data, examples=examples, unsafe=unsafe)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        _show(report)
    raise typer.Exit(0 if report.passed else 1)


def _show(report: Proof | GraphComparison) -> None:
    from rich.console import Console

    from tfqat.verify_run import Proof
    from tfqat_cli import display_parity

    console = Console()
    if isinstance(report, Proof):
        from tfqat_cli import display

        console.print(display.parity_table(report.parity))
        console.print(display_parity.histogram_table(report.parity))
        for check in report.parity.structure:
            console.print(
                f"{'✓' if check.passed else '✗'} {check.rule}{': ' + check.detail if check.detail else ''}", markup=False, highlight=False
            )
        console.print(str(report.metrics), markup=False, highlight=False)
    else:
        console.print(display_parity.comparison_table(report))
    for failure in report.failures:
        console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
