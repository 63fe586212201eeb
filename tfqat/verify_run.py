"""Proves the graph of a finished run again, or compares it with another: all that is needed is found from the run directory alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfqat.datasets import Data
from tfqat.errors import RunDirectoryError
from tfqat.inputs import Origin, custom_objects, load_data
from tfqat.proof.against import compare_files, compare_graphs
from tfqat.proof.comparison import GraphComparison
from tfqat.proof.parity import ParityReport
from tfqat.proof.verify import verify
from tfqat.quantize.load import load_model
from tfqat.recipe.load import load_recipe
from tfqat.recipe.schema import Recipe
from tfqat.run_directory import exported_model, read_json
from tfqat.run_places import loaded_at_place
from tfqat.stages.metrics import GraphMetrics, Measuring


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The parity of a graph with the model of its run, and the recipe's metrics of both on the same examples."""

    parity: ParityReport
    metrics: GraphMetrics

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of its limit; empty if the graph is proven."""
        return (*self.parity.failures, *self.metrics.failures)

    @property
    def passed(self) -> bool:
        """Whether nothing is out of its limit."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The object of `parity.json`, with `metrics`."""
        return {**self.parity.to_dict(), "passed": self.passed, "failures": list(self.failures), "metrics": self.metrics.to_dict()}


def verify_run(
    run_directory: Path, onnx: Path | None = None, *, examples: int = 1000, max_drop: float | None = None, unsafe: bool = False
) -> Proof:
    """Compare an exported graph with the model that a run exported, on the run's test data.

    Relative paths of the recipe are looked for from where the run was started and from where its recipe lay; if they are not there any
    more, from the working directory and from the run directory. Code that the recipe names runs with the working directory of the run.

    Args:
        run_directory: the directory of a run.
        onnx: the graph; None takes the run's own.
        examples: how many examples to compare.
        max_drop: how far the recipe's first metric may differ between the model and the graph as it is written; None: 0.0002, or what two
            examples are worth if that is more.
        unsafe: also load Lambda layers, whose Python code comes from the model file and can do anything.

    Raises:
        TfqatError: the directory holds no run that came this far, the data cannot be loaded, or the graph is of another model.
    """
    if run_directory.is_file():
        raise RunDirectoryError(
            f"{run_directory} is a file; expected the directory of a run. To compare two graphs: tfqat verify A.onnx --against B.onnx"
        )
    path = onnx.resolve() if onnx else run_directory.resolve() / "model.onnx"
    with _model_and_data(run_directory, unsafe) as (recipe, model, data):
        measuring = Measuring(model, path, examples=examples)
        parity = verify(model, path, measuring.through(data), examples=examples)
        return Proof(parity=parity, metrics=measuring.result(recipe.training, max_drop=max_drop))


def compare(
    source: Path, other: Path, onnx: Path | None = None, *, data: Path | None = None, examples: int = 1000, unsafe: bool = False
) -> GraphComparison:
    """Compare a graph with another one.

    Args:
        source: a graph, or the directory of a run, whose graph is taken and, unless `data` is given, its test data.
        other: the graph to compare with.
        onnx: the graph to take with a run's data; None takes the run's own.
        data: a .npz file with an array for each input; None without a run: standard normal noise.
        examples: how many examples to compare.
        unsafe: as for `verify_run`.

    Raises:
        TfqatError: see `verify_run` and `tfqat.proof.against.compare_graphs`.
    """
    other, data = other.resolve(), data.resolve() if data else None
    if not source.is_dir():
        return compare_files(source, other, data=data, examples=examples)
    path = onnx.resolve() if onnx else source.resolve() / "model.onnx"
    if data is not None:
        return compare_files(path, other, data=data, examples=examples)
    with _model_and_data(source, unsafe) as (_, _, test):
        return compare_graphs(path, other, test, examples=examples, data=test.name)


@contextlib.contextmanager
def _model_and_data(run_directory: Path, unsafe: bool) -> Iterator[tuple[Recipe, Any, Data]]:
    """The recipe of a run, the model that it exported and its test data."""
    directory = run_directory.resolve()
    file = directory / exported_model(read_json(directory, "metrics.json"))
    recipe = load_recipe(directory / "recipe.yaml")

    def load(origin: Origin) -> tuple[Any, Data]:
        model = load_model(file, custom_objects(recipe, origin), unsafe=unsafe)
        return model, load_data(recipe, "test", origin, model)

    with loaded_at_place(directory, load) as (model, data):
        yield recipe, model, data
