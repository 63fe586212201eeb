"""`tfqat schema`: the JSON Schema of a recipe, for editors."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of recipes."""
    from tfqat.recipe.schema import Recipe

    typer.echo(json.dumps(Recipe.model_json_schema(), indent=2))
