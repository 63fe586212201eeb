"""`tfqat run RECIPE`: the main job; exit code 1 if its graph is not proven."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfqat_cli.options import Overrides, RecipePath, Unsafe

if TYPE_CHECKING:
    from rich.console import Console

    from tfqat.pipeline import RunResult


def run(
    recipe: RecipePath,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the run directory.")] = Path("runs"),
    unsafe: Unsafe = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="The directory of a run that was cut off; it goes on.")] = None,
) -> None:
    """Quantize, calibrate, fine-tune, export, prove and compile a model, as the recipe says."""
    from rich.console import Console

    from tfqat.recipe.load import load_recipe
    from tfqat_cli import display

    load_recipe(recipe, set_ or ())  # what is wrong with it is said before TensorFlow starts, which takes seconds
    console = Console()
    stages = display.Stages(console)
    with stages.stage("Start TensorFlow"):
        from tfqat import pipeline
    try:
        result = pipeline.run(
            recipe,
            overrides=set_ or (),
            out=out,
            unsafe=unsafe,
            resume=resume,
            progress=stages,
            on_placement=lambda placement: stages.message(display.placement_line(placement, recipe)),
        )
    except KeyboardInterrupt as interrupt:  # Typer ends on it with an exit code alone, without the note where the run is kept
        raise typer.Abort(*getattr(interrupt, "__notes__", ())) from interrupt
    if result is None:
        display.say_that_the_chief_has_it(console)
        return
    _print(console, result)
    raise typer.Exit(0 if result.parity.passed else 1)


def _print(console: Console, result: RunResult) -> None:
    from tfqat_cli import display

    console.print(display.summary_table(result.metrics))
    console.print(display.parity_table(result.parity))
    sizes = result.metrics["size_bytes"]
    ratio = sizes["model_onnx"] / sizes["float_onnx"]

    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    line(f"Exported:  {result.exported.upper()}, {sizes['model_onnx']:,} bytes, {ratio:.3f} of the float graph")
    if result.parity.passed:
        line("Parity:    proven")
    else:
        line(f"Parity:    NOT proven: {'; '.join(result.parity.failures)}", style="bold red")
    line(f"Engine:    {result.engine.message or result.engine.status}")
    for warning in result.metrics["warnings"]:
        line(f"Warning:   {warning}", style="yellow")
    line(f"Report:    {result.directory / 'report.html'}")
