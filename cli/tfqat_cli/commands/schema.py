"""`tfqat schema`: the JSON Schema of a recipe, for editors."""

from __future__ import annotations

import typer


def schema() -> None:
    """Print the JSON Schema of recipes."""
    from tfqat.recipe.json_schema import schema_text

    typer.echo(schema_text(), nl=False)
