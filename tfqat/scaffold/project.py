"""What a new project is, and one for a SuperGradients recipe whose model is still to come; no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tfqat.recipe.json_schema import SCHEMA_FILE, schema_text
from tfqat.recipe.super_gradients import Converted
from tfqat.scaffold.facts import Facts
from tfqat.scaffold.recipe_text import recipe_text
from tfqat.scaffold.writing import write_new

RECIPE, DATA = "recipe.yaml", "data.py"
NO_MODEL = "model.keras"
"""What a recipe without a model yet names as its source."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """What was written, what the model's file told, and the names to skip that none of its layers has."""

    folder: Path
    written: tuple[Path, ...]
    facts: Facts | None = None
    unmatched: tuple[str, ...] = ()


def new_recipe(folder: Path, converted: Converted) -> Project:
    """Write the recipe of a SuperGradients recipe, for a model that is still to come, and the schema.

    Raises:
        ProjectError: a file is there already, or cannot be written.
    """
    contents = {RECIPE: recipe_text(NO_MODEL, None, converted).encode(), SCHEMA_FILE: schema_text().encode()}
    return Project(folder=folder, written=write_new(folder, contents))
