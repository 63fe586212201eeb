"""`tfqat calibrate RECIPE`, or `tfqat calibrate --from RUN --method entropy`: ranges from data, or by another method from a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Overrides, Unsafe


def calibrate(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe, a YAML file; not with --from.")] = None,
    set_: Overrides = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A run directory: its histograms serve, no data are read.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="With --from: max, percentile, percentile(99.9), entropy or mse, for all activations.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the new run directory.")] = Path("runs"),
    unsafe: Unsafe = False,
) -> None:
    """Choose the ranges of a model and save the calibrated model with them."""
    from rich.console import Console

    from tfqat_cli import display

    if (recipe is None) == (from_ is None):
        raise typer.BadParameter("give either a recipe or --from RUN")
    if (method is None) != (from_ is None):
        raise typer.BadParameter("--method goes with --from; a recipe names its calibrator as quantization.activations.calibrator")
    console = Console()
    stages = display.Stages(console)
    with stages.stage("Start TensorFlow"):
        from tfqat import pipeline
        from tfqat.recalibrate_run import recalibrate_run
    if from_ is not None:
        before, after, directory = recalibrate_run(from_, str(method), out=out, unsafe=unsafe)
        console.print(display.ranges_table(after, before))
        typer.echo(f"Saved:     {directory}")
        return
    assert recipe is not None
    try:
        result = pipeline.calibrate_recipe(recipe, overrides=set_ or (), out=out, unsafe=unsafe, progress=stages)
    except KeyboardInterrupt as interrupt:
        raise typer.Abort(*getattr(interrupt, "__notes__", ())) from interrupt
    if result is None:
        display.say_that_the_chief_has_it(console)
        return
    console.print(display.ranges_table(result.calibration))
    console.print(display.summary_table(result.metrics))
    typer.echo(f"Report:    {result.directory / 'report.html'}")
