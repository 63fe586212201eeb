"""`tfqat plan RECIPE`: the placement and the schedule, without training."""

from __future__ import annotations

from tfqat_cli.options import Overrides, RecipePath


def plan(recipe: RecipePath, set_: Overrides = None) -> None:
    """Print the placement, with the reason for every point and everything left float, and the QAT schedule."""
    from rich.console import Console
    from rich.table import Table

    from tfqat.recipe.load import load_recipe
    from tfqat_cli import display

    loaded = load_recipe(recipe, set_ or ())
    # After the recipe has been read: these start TensorFlow, which takes seconds.
    from tfqat.inputs import Origin, load_recipe_model
    from tfqat.placement import planner
    from tfqat.recipe.modifiers import qat_plan

    model = load_recipe_model(loaded, Origin(file=str(recipe), folder=recipe.parent))
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
