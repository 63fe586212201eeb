"""The JSON Schema of recipes, as editors read it: `tfqat schema` prints it, `tfqat init` writes it beside the recipe."""

from __future__ import annotations

import json

from tfqat.recipe.schema import Recipe

SCHEMA_FILE = "recipe.schema.json"
MODELINE = f"# yaml-language-server: $schema=./{SCHEMA_FILE}\n"
"""The first line of a recipe, by which an editor with a YAML language server finds the schema beside it."""


def schema_text() -> str:
    """The JSON Schema of recipes as indented JSON."""
    return json.dumps(Recipe.model_json_schema(), indent=2) + "\n"
