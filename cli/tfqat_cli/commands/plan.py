"""`tfqat plan RECIPE`: the placement and the schedule, without training."""

from __future__ import annotations

from tfqat_cli.options import Overrides, RecipePath


def plan(recipe: RecipePath, set_: Overrides = None) -> None:
    """Print the placement, with the reason for every point and everything left float, and the QAT schedule."""
    from rich.console import Console
    from rich.table import Table

    from tfqat.models.load import load_model
    from tfqat.placement import planner
    from tfqat.recipe.load import load_recipe
    from tfqat.recipe.modifiers import qat_plan
    from tfqat.recipe.references import resolve_path
    from tfqat_cli import display

    loaded = load_recipe(recipe, set_ or ())
    model = load_model(resolve_path(loaded.model.source, recipe.parent))
    console = Console()
    console.print(display.placement_table(planner.plan(model, loaded.quantization)))
    if loaded.ptq_only:
        console.print("ptq_only: no fine-tuning")
        return
    table = Table(title="QAT schedule")
    table.add_column("setting")
    table.add_column("value")
    for name, value in qat_plan(loaded.training, loaded.qat).to_dict().items():
        table.add_row(name, "counted from the data" if value is None else str(value))
    console.print(table)
