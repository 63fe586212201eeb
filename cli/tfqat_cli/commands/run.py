"""`tfqat run RECIPE`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfqat_cli.options import Overrides, RecipePath


def run(
    recipe: RecipePath,
    set_: Overrides = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that gets the run directory.")] = Path("runs"),
) -> None:
    """Quantize, calibrate, fine-tune, export, prove and compile a model, as the recipe says."""
    from rich.console import Console

    from tfqat_cli import display

    console = Console()
    stages = display.Stages(console)
    with stages.stage("Start TensorFlow"):
        from tfqat import pipeline
    result = pipeline.run(
        recipe,
        overrides=set_ or (),
        out=out,
        progress=stages,
        on_placement=lambda placement: console.print(display.placement_table(placement)),
    )
    console.print(display.summary_table(result.metrics))
    console.print(display.parity_table(result.parity))
    sizes = result.metrics["size_bytes"]
    ratio = sizes["model_onnx"] / sizes["float_onnx"]
    console.print(f"Exported:  {result.exported.upper()}, {sizes['model_onnx']:,} bytes, {ratio:.3f} of the float graph")
    proof = "proven" if result.parity.passed else f"NOT proven: {'; '.join(result.parity.failures)}"
    console.print(f"Parity:    {proof}", markup=False)
    console.print(f"Engine:    {result.engine.message or result.engine.status}", markup=False)
    for warning in result.metrics["warnings"]:
        console.print(f"Warning:   {warning}", style="yellow", markup=False, highlight=False)
    console.print(f"Report:    {result.directory / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
