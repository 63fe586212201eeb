"""Proves the graph of a finished run again: the model, the graph and the test data are found from the run directory alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfqat.datasets import Data
from tfqat.export.parity import ParityReport
from tfqat.export.verify import verify
from tfqat.inputs import Origin, custom_objects, load_data
from tfqat.quantize.load import load_model
from tfqat.recipe.load import load_recipe
from tfqat.run_directory import exported_model, read_json
from tfqat.run_places import loaded_at_place


def verify_run(run_directory: Path, onnx: Path | None = None, *, examples: int = 1000, unsafe: bool = False) -> ParityReport:
    """Compare an exported graph with the model that a run exported, on the run's test data.

    Relative paths of the recipe are looked for from where the run was started and from where its recipe lay; if they are not there any
    more, from the working directory and from the run directory. Code that the recipe names runs with the working directory of the run.

    Args:
        run_directory: the directory of a run.
        onnx: the graph; None takes the run's own.
        examples: how many examples to compare.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.

    Raises:
        TfqatError: the directory holds no run that came this far, the data cannot be loaded, or the graph is of another model.
    """
    directory = run_directory.resolve()
    path = onnx.resolve() if onnx else directory / "model.onnx"
    file = directory / exported_model(read_json(directory, "metrics.json"))
    recipe = load_recipe(directory / "recipe.yaml")

    def load(origin: Origin) -> tuple[Any, Data]:
        model = load_model(file, custom_objects(recipe, origin), unsafe=unsafe)
        return model, load_data(recipe, "test", origin, model)

    with loaded_at_place(directory, load) as (model, data):
        return verify(model, path, data, examples=examples)
