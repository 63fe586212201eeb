"""A new project for a model's file: `recipe.yaml` with a guessed loss, `recipe.schema.json`, and `data.py` with the right shapes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tfqat.errors import ModelError
from tfqat.models import graph
from tfqat.models.load import is_reference
from tfqat.placement.select import matches
from tfqat.quantize.load import load_model
from tfqat.recipe.json_schema import SCHEMA_FILE, schema_text
from tfqat.recipe.schema import CalibrationConfig
from tfqat.recipe.super_gradients import Converted
from tfqat.scaffold.data_stub import data_stub
from tfqat.scaffold.guess import facts_of
from tfqat.scaffold.project import DATA, RECIPE, Project
from tfqat.scaffold.recipe_text import recipe_text
from tfqat.scaffold.writing import check_new, write_new

_BATCHES = CalibrationConfig().batches


def new_project(model: Path, folder: Path, *, converted: Converted | None = None, unsafe: bool = False) -> Project:
    """Write a project for a model.

    Args:
        model: a `.keras` or `.h5` file or a SavedModel folder, of tf_keras or Keras 3. It stays where it is; the recipe names it as seen
            from `folder`.
        folder: made if it is not there.
        converted: what a SuperGradients recipe said; names to skip that no layer of the model has become a comment.
        unsafe: also load Lambda layers, whose Python code comes from the file and can do anything.

    Raises:
        ModelError: the model cannot be loaded, or not taken.
        ProjectError: a file is there already, or cannot be written; nothing is written then.
    """
    if is_reference(model):
        raise ModelError(
            f"{str(model)!r} is a function, and init takes a model's file: save the model that it returns, or name it as model.source"
        )
    check_new(folder, (RECIPE, SCHEMA_FILE, DATA))  # before the model is loaded, which takes seconds
    loaded = load_model(model, unsafe=unsafe)
    facts = facts_of(loaded)
    skip = _found(converted.blocks.get("quantization", {}).get("skip", ()), loaded) if converted else None
    batches = converted.blocks.get("calibration", {}).get("batches", _BATCHES) if converted else _BATCHES
    unmatched = tuple(name for name, pattern in (skip or {}).items() if pattern is None)
    source = Path(os.path.relpath(model.resolve(), folder.resolve())).as_posix()
    contents = {
        RECIPE: recipe_text(source, facts.loss, converted, skip).encode(),
        SCHEMA_FILE: schema_text().encode(),
        DATA: data_stub(model.name, facts, batches=max(_BATCHES, batches)).encode(),
    }
    return Project(folder=folder, written=write_new(folder, contents), facts=facts, unmatched=unmatched)


def _found(names: Iterable[str], model: Any) -> dict[str, str | None]:
    """Name of a PyTorch module -> the pattern that selects layers of the model: the name, or the path that it spells; None if none does."""
    layers = [(node.layer, node.class_name) for node in graph.read(model).nodes]

    def selects(pattern: str) -> bool:
        return any(matches(pattern, name=name, class_name=kind) for name, kind in layers)

    return {name: next((pattern for pattern in (name, name.replace(".", "/")) if selects(pattern)), None) for name in names}
