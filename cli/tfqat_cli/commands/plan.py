"""`tfqat plan RECIPE|MODEL`: the placement as a tree, as JSON, as a drawing or as a graph, and the schedule, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfqat_cli.options import Overrides, Unsafe

if TYPE_CHECKING:
    from tfqat.placement.plan import Placement
    from tfqat.recipe.schema import Recipe


class Format(str, Enum):
    """What is shown."""

    tree = "tree"
    json = "json"
    svg = "svg"
    onnx = "onnx"


class Preset(str, Enum):
    """The presets of placement."""

    selective = "selective"
    naive = "naive"
    hybrid = "hybrid"


def plan(
    source: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.yaml), or a model: a file, a SavedModel folder, or module:function.")
    ],
    set_: Overrides = None,
    format_: Annotated[Format, typer.Option("--format", help="tree, json, svg, or onnx: the Q/DQ graph before calibration.")] = Format.tree,
    out: Annotated[Path | None, typer.Option("--out", help="The file to write, in place of the terminal; onnx needs one.")] = None,
    preset: Annotated[Preset | None, typer.Option("--preset", help="The preset, for a model: selective if not given.")] = None,
    unsafe: Unsafe = False,
) -> None:
    """Show the placement with the reason for every point and everything left float, and the QAT schedule of a recipe."""
    if format_ is Format.onnx and out is None:
        raise typer.BadParameter("--format onnx writes a file: give its name with --out")
    is_recipe = Path(source).suffix in (".yaml", ".yml")
    if is_recipe and preset is not None:
        raise typer.BadParameter(f"--preset is for a model; of a recipe, change its own: --set quantization.preset={preset.value}")
    if set_ and not is_recipe:
        raise typer.BadParameter(f"--set changes a recipe, and {source} is a model; choose its preset with --preset, or write a recipe")
    if is_recipe:
        recipe, model, placement = _planned_recipe(Path(source), set_ or (), unsafe)
    else:
        recipe, model, placement = None, *_planned_model(source, preset or Preset.selective, unsafe)
    if format_ is Format.onnx and out is not None:
        _write_graph(model, placement, out, recipe)
    elif format_ is Format.tree and out is None:
        _print_tree(model, placement)
        if recipe is not None:
            _print_schedule(recipe)
    else:
        _put(_text(format_, model, placement), out)


def _planned_model(source: str, preset: Preset, unsafe: bool) -> tuple[Any, Placement]:
    from tfqat.placement.planner import plan as plan_model
    from tfqat.quantize.load import load_model

    model = load_model(source, unsafe=unsafe)
    return model, plan_model(model, preset.value)


def _planned_recipe(path: Path, overrides: Sequence[str], unsafe: bool) -> tuple[Recipe, Any, Placement]:
    from tfqat.recipe.load import load_recipe

    recipe = load_recipe(path, overrides)
    # After the recipe has been read: these start TensorFlow, which takes seconds.
    from tfqat.inputs import Origin, load_recipe_model, plan_recipe, replace_recipe_blocks

    origin = Origin.of(path, overrides, unsafe=unsafe)
    model = replace_recipe_blocks(recipe, origin, load_recipe_model(recipe, origin))
    return recipe, model, plan_recipe(recipe, origin, model)


def _text(format_: Format, model: Any, placement: Placement) -> str:
    if format_ is Format.json:
        return json.dumps(placement.to_dict(), indent=1)
    from tfqat.models import graph

    if format_ is Format.svg:
        from tfqat_cli.placement_svg import placement_svg

        return placement_svg(graph.read(model), placement)
    from rich.console import Console

    from tfqat_cli import display

    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(display.placement_tree(graph.read(model), placement))
    return capture.get()


def _put(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text)
        return
    from tfqat import files

    files.write_text(out, text)
    typer.echo(f"written: {out}")


def _write_graph(model: Any, placement: Placement, out: Path, recipe: Recipe | None) -> None:
    from tfqat.export.planned import export_planned

    settings: dict[str, Any] = {"opset": recipe.export.opset, "fold_batchnorm": recipe.export.fold_batchnorm} if recipe else {}
    report = export_planned(model, placement, out, **settings)
    typer.echo(f"written: {out}, not calibrated: {report.activations} activations with the scale 1, {report.weights} weights")


def _print_tree(model: Any, placement: Placement) -> None:
    from rich.console import Console

    from tfqat.models import graph
    from tfqat_cli import display

    console = Console()
    # A pipe or a file has no width of its own, and a line that is broken cannot be searched.
    console = console if console.is_terminal else Console(width=max(console.width, 200))
    console.print(display.placement_tree(graph.read(model), placement))


def _print_schedule(recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    from tfqat.recipe.modifiers import qat_plan

    console = Console()
    if recipe.ptq_only:
        console.print("ptq_only: no fine-tuning")
        return
    table = Table(title="QAT schedule")
    table.add_column("setting")
    table.add_column("value")
    for name, value in qat_plan(recipe.training, recipe.qat).to_dict().items():
        table.add_row(name, _setting(name, value))
    console.print(table)


def _setting(name: str, value: Any) -> str:
    """A value of the schedule in words; what is counted in steps is not known without data."""
    if value is None:
        return "counted from the data" if name.endswith(("steps", "steps_per_epoch")) else "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_setting(key, part)}" for key, part in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "; ".join(str(part) for part in value) or "nothing"
    return str(value)
