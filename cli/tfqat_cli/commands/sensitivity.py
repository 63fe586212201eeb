"""`tfqat sensitivity RECIPE`: which layers lose accuracy, and the placement that a goal leads to; exit code 1 if the goal is not met."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Overrides, RecipePath, Unsafe


def sensitivity(
    recipe: RecipePath,
    set_: Overrides = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Override sensitivity.metric.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Override sensitivity.method: fast, leave_one_in, leave_one_out.")] = None,
    max_drop: Annotated[float | None, typer.Option("--max-drop", help="Override sensitivity.max_drop.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Override sensitivity.workers.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the run directory.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print sensitivity.json instead of the table.")] = False,
    unsafe: Unsafe = False,
) -> None:
    """Calibrate a model, rank its layers by what their quantization loses, and search a placement if the recipe sets a goal."""
    from rich.console import Console

    from tfqat.recipe.load import load_recipe
    from tfqat_cli import display

    given = {"metric": metric, "method": method, "max_drop": max_drop, "workers": workers}
    overrides = [*(set_ or ()), *(f"sensitivity.{key}={value}" for key, value in given.items() if value is not None)]
    load_recipe(recipe, overrides)
    console = Console(stderr=as_json)
    stages = display.Stages(console)
    with stages.stage("Start TensorFlow"):
        from tfqat import pipeline
    try:
        result = pipeline.analyse_recipe(recipe, overrides=overrides, out=out, unsafe=unsafe, progress=stages)
    except KeyboardInterrupt as interrupt:
        raise typer.Abort(*getattr(interrupt, "__notes__", ())) from interrupt
    if result is None:
        display.say_that_the_chief_has_it(console)
        return
    found = result.sensitivity
    assert found is not None  # analyse_recipe always measures it
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        console.print(display.sensitivity_table(found))
        if found.recipe:
            typer.echo(f"To ask for this placement, add to the recipe:\n\n{found.recipe}")
        typer.echo(f"Report:    {result.directory / 'report.html'}")
    raise typer.Exit(1 if found.search is not None and not found.search.met else 0)
