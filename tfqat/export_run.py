"""Exports a quantized model that lies on disk: a file, or what a run exported, again and in another form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfqat.errors import ModelError
from tfqat.export.onnx import ExportReport, export_onnx
from tfqat.export.saved_model import QUANTIZED
from tfqat.form import Form, Target
from tfqat.inputs import custom_objects
from tfqat.quantize import state
from tfqat.quantize.load import load_model
from tfqat.recipe.load import load_recipe, recipe_hash
from tfqat.recipe.schema import Recipe
from tfqat.run_directory import MANIFEST, exported_model, read_json
from tfqat.run_places import loaded_at_place


def export_source(
    source: Path,
    path: Path,
    *,
    opset: int | None = None,
    target: Target | None = None,
    fold_batchnorm: bool = True,
    form: Form | None = None,
    external_data: bool | None = None,
    unsafe: bool = False,
) -> ExportReport:
    """Write the ONNX graph of a quantized model on disk.

    Args:
        source: a run directory, whose exported model is taken with the recipe's opset; the file of a quantized model; or a SavedModel of
            `tfqat.export_saved_model`.
        path: the ONNX file.
        opset: 13 to 23; None: the run's own, or 17.
        target: in place of the form's; None: the run's own, or that of the form.
        fold_batchnorm, form, external_data: see `tfqat.export_onnx`.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.

    Raises:
        ModelError: the file cannot be loaded, or the model has no quantizers.
        TfqatError: see `tfqat.export_onnx`.
    """
    if (source / MANIFEST).exists():
        model, metadata, recipe = _of_run(source, unsafe)
        known, target = recipe.export.opset, target or recipe.target
    else:
        file = source / QUANTIZED if (source / QUANTIZED).exists() else source
        model, metadata, known = load_model(file, unsafe=unsafe), {}, 17
    if not state.is_quantized(model):
        raise ModelError(f"{source} is a float model: quantize and calibrate it first, with tfqat run or tfqat.quantize_model")
    form = form or Form()
    return export_onnx(
        model,
        path,
        opset=known if opset is None else opset,
        fold_batchnorm=fold_batchnorm,
        form=replace(form, target=target or form.target),
        metadata=metadata,
        external_data=external_data,
    )


def _of_run(directory: Path, unsafe: bool) -> tuple[Any, Mapping[str, str], Recipe]:
    """The model that a run exported, the metadata of its graph, and its recipe."""
    directory = directory.resolve()
    file = directory / exported_model(read_json(directory, "metrics.json"))
    recipe = load_recipe(directory / "recipe.yaml")
    with loaded_at_place(directory, lambda origin: load_model(file, custom_objects(recipe, origin), unsafe=unsafe)) as model:
        return model, {"tfqat.recipe_hash": recipe_hash(recipe)}, recipe
