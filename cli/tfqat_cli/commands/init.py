"""`tfqat init MODEL`, `--example NAME`, `--from FILE`: a new project, from a model's file, an example, or a SuperGradients recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfqat_cli.options import Unsafe

if TYPE_CHECKING:
    from tfqat.recipe.super_gradients import Converted
    from tfqat.scaffold.project import Project


def init(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="The trained model: a .keras or .h5 file, or a SavedModel folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder that gets the files; default: this one, or one named after the example.")
    ] = None,
    example: Annotated[str | None, typer.Option("--example", help="Copy an example that runs as it is: fashion_mnist.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Take the quantization settings of a SuperGradients recipe.")] = None,
    unsafe: Unsafe = False,
) -> None:
    """Start a project: write a recipe, its schema for editors, and a stub of the data code. Nothing is overwritten."""
    if example is not None and (model is not None or from_ is not None):
        raise typer.BadParameter("--example comes with its own model and recipe: give it alone")
    if example is None and model is None and from_ is None:
        raise typer.BadParameter("give the model's file, or --example fashion_mnist, or --from a SuperGradients recipe")
    if example is not None:
        from tfqat.scaffold.example import copy_example

        project = copy_example(example, out or Path(example))
        _say_written(project)
        _say_next(project, ("tfqat plan recipe.yaml", "where quantizers go"), ("tfqat run recipe.yaml", "about two minutes on 2 CPU cores"))
        return
    converted = _converted(from_) if from_ is not None else None  # before TensorFlow starts, which takes seconds
    folder = out or Path()
    if model is not None:
        from tfqat.scaffold.from_model import new_project

        project = new_project(model, folder, converted=converted, unsafe=unsafe)
    elif converted is not None:
        from tfqat.scaffold.project import new_recipe

        project = new_recipe(folder, converted)
    _say_written(project)
    if converted is not None:
        _say_left(converted, project)
    _say_project(project)


def _converted(path: Path) -> Converted:
    from tfqat.recipe.super_gradients import read_super_gradients

    return read_super_gradients(path)


def _say_written(project: Project) -> None:
    names = [path.relative_to(project.folder).as_posix() for path in project.written]
    shown = names if len(names) < 5 else [*names[:4], f"{len(names) - 4} more"]
    typer.echo(f"written to {project.folder}: {', '.join(shown)}")


def _say_left(converted: Converted, project: Project) -> None:
    left = dict(converted.left)
    left |= {f"skip_modules: {name}": "no layer of the model has this name" for name in project.unmatched}
    if left:
        typer.echo("without a counterpart here, or not taken:")
        for key, reason in left.items():
            typer.echo(f"  {key}: {reason}")


def _say_project(project: Project) -> None:
    if project.facts is None:
        typer.echo(
            "next: put your Keras model's file at model.source, your data functions at data, and state the `training` block;\n"
            "or have these written too: tfqat init MODEL --from FILE"
        )
        return
    typer.echo(f"guessed: {project.facts.loss.yaml}: {project.facts.loss.reason}")
    _say_next(
        project,
        ("tfqat plan recipe.yaml", "where quantizers go, and why; needs no data"),
        ("edit data.py", "your data in the place of the stubs"),
        ("edit recipe.yaml", "what is marked TO DO and GUESSED"),
        ("tfqat run recipe.yaml", "quantize, fine-tune, export, prove"),
    )


def _say_next(project: Project, *steps: tuple[str, str]) -> None:
    typer.echo("next:")
    all_steps = steps if project.folder.resolve() == Path.cwd() else ((f"cd {project.folder}", ""), *steps)
    for command, what in all_steps:
        typer.echo(f"  {command:24}{f'  # {what}' if what else ''}".rstrip())
