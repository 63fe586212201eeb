"""Exports a quantized model that lies on disk: a file, or what a run exported, again and in another form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfqat.errors import ModelError
from tfqat.export.onnx import ExportReport, export_onnx
from tfqat.export.saved_model import QUANTIZED
from tfqat.inputs import custom_objects
from tfqat.quantize import state
from tfqat.quantize.load import load_model
from tfqat.recipe.export import ExportConfig
from tfqat.recipe.load import load_recipe, recipe_hash
from tfqat.recipe.schema import Recipe
from tfqat.run_directory import MANIFEST, exported_model, read_json
from tfqat.run_places import loaded_at_place


def export_source(source: Path, path: Path, settings: Mapping[str, Any] | None = None, *, unsafe: bool = False) -> ExportReport:
    """Write the ONNX graph of a quantized model on disk.

    Args:
        source: a run directory, whose exported model is taken; the file of a quantized model; or a SavedModel of
            `tfqat.export_saved_model`.
        path: the ONNX file.
        settings: keys of a recipe's `export` block; what is left out is as the run had it, or the block's default.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.

    Raises:
        ModelError: the file cannot be loaded, or the model has no quantizers.
        TfqatError: see `tfqat.export_onnx`.
    """
    metadata: Mapping[str, str] = {}
    known: dict[str, Any] = {}
    if (source / MANIFEST).exists():
        model, metadata, recipe = _of_run(source, unsafe)
        known = {**recipe.export.model_dump(), "target": recipe.target}
    else:
        file = source / QUANTIZED if (source / QUANTIZED).exists() else source
        model = load_model(file, unsafe=unsafe)
    if not state.is_quantized(model):
        raise ModelError(f"{source} is a float model: quantize and calibrate it first, with tfqat run or tfqat.quantize_model")
    config = ExportConfig.model_validate({**known, **(settings or {})})
    return export_onnx(
        model,
        path,
        opset=config.opset,
        fold_batchnorm=config.fold_batchnorm,
        form=config.form,
        metadata=metadata,
        external_data=config.external_data,
    )


def graph_of(source: Path, folder: Path, *, unsafe: bool = False) -> Path:
    """The graph of a source to build an engine from or to serve: of a run the one that it proved, else one written into a folder.

    Raises:
        TfqatError: see `export_source`.
    """
    of_run = source / "model.onnx"
    if (source / MANIFEST).exists() and of_run.is_file():
        return of_run
    return export_source(source, folder / "model.onnx", unsafe=unsafe).path


def _of_run(directory: Path, unsafe: bool) -> tuple[Any, Mapping[str, str], Recipe]:
    """The model that a run exported, the metadata of its graph, and its recipe."""
    directory = directory.resolve()
    file = directory / exported_model(read_json(directory, "metrics.json"))
    recipe = load_recipe(directory / "recipe.yaml")
    with loaded_at_place(directory, lambda origin: load_model(file, custom_objects(recipe, origin), unsafe=unsafe)) as model:
        return model, {"tfqat.recipe_hash": recipe_hash(recipe)}, recipe
