"""`tfqat verify RUN`: structure and parity of an exported graph; exit code 1 if it is not proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Unsafe


def verify(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="The graph to prove; default: model.onnx of the run.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="How many examples of the recipe's test data.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    unsafe: Unsafe = False,
) -> None:
    """Compare an exported graph with the model it came from: rules, int8 codes at every point, outputs."""
    from rich.console import Console

    from tfqat.verify_run import verify_run
    from tfqat_cli import display

    report = verify_run(run_directory, onnx, examples=examples, unsafe=unsafe)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
    else:
        console = Console()
        console.print(display.parity_table(report))
        for check in report.structure:
            console.print(
                f"{'✓' if check.passed else '✗'} {check.rule}{': ' + check.detail if check.detail else ''}", markup=False, highlight=False
            )
        for failure in report.failures:
            console.print(f"failed: {failure}", style="red", markup=False, highlight=False)
    raise typer.Exit(0 if report.passed else 1)
