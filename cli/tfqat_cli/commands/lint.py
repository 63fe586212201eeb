"""`tfqat lint FILE`: what TensorRT would not fuse or would run in float; exit code 1 if there is any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfqat_cli.options import Overrides, Unsafe

if TYPE_CHECKING:
    from rich.table import Table

    from tfqat.placement.lint import Finding


class Format(str, Enum):
    """How the findings are printed."""

    table = "table"
    json = "json"


def lint(
    file: Annotated[Path, typer.Argument(help="An ONNX file with Q/DQ, whoever wrote it, or a recipe (.yaml), whose placement is linted.")],
    format_: Annotated[Format, typer.Option("--format", help="table or json.")] = Format.table,
    set_: Overrides = None,
    unsafe: Unsafe = False,
) -> None:
    """Report what TensorRT would not fuse or would run in float, with the layer, the rule and the fix."""
    found = _lint_recipe(file, set_ or (), unsafe) if file.suffix in (".yaml", ".yml") else _lint_onnx(file)
    count = sum(finding.severity == "finding" for finding in found)
    if format_ is Format.json:
        report = {"file": str(file), "findings": count, "advice": len(found) - count, "items": [asdict(finding) for finding in found]}
        typer.echo(json.dumps(report, indent=1))
    else:
        _print(file, found, count)
    raise typer.Exit(1 if count else 0)


def _lint_onnx(file: Path) -> tuple[Finding, ...]:
    from tfqat.placement.lint import lint_onnx

    return lint_onnx(file)


def _lint_recipe(file: Path, overrides: Sequence[str], unsafe: bool) -> tuple[Finding, ...]:
    from tfqat.recipe.load import load_recipe

    recipe = load_recipe(file, overrides)
    # After the recipe has been read: these start TensorFlow, which takes seconds.
    from tfqat.inputs import Origin, load_recipe_model, plan_recipe, replace_recipe_blocks
    from tfqat.models import graph
    from tfqat.placement.lint import lint_placement

    origin = Origin.of(file, overrides, unsafe=unsafe)
    model = replace_recipe_blocks(recipe, origin, load_recipe_model(recipe, origin))
    return lint_placement(graph.read(model), plan_recipe(recipe, origin, model))


def _print(file: Path, found: tuple[Finding, ...], count: int) -> None:
    from rich.console import Console

    console = Console()
    if found:
        console.print(_table(found))
    advice = f"{len(found) - count} piece{'' if len(found) - count == 1 else 's'} of advice"
    console.print(f"{file}: {count or 'no'} finding{'' if count == 1 else 's'}, {advice}", markup=False, highlight=False, soft_wrap=True)


def _table(found: tuple[Finding, ...]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("layer", "rule", "message", "fix"):
        table.add_column(column, overflow="fold")
    for finding in found:
        is_advice = finding.severity == "advice"
        cells = (finding.layer, f"{finding.rule} (advice)" if is_advice else finding.rule, finding.message, finding.fix)
        table.add_row(*map(Text, cells), style="dim" if is_advice else None)
    return table
