"""The recipe's metrics of a model, of its graph as written and of the graph as ONNX Runtime fuses it, on the same examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.datasets import check_batch, inputs_of, reason_of
from tfqat.engines import onnxruntime as runtime
from tfqat.errors import RecipeError
from tfqat.form import Form
from tfqat.models.dtypes import float32_policy
from tfqat.proof.qdq_graph import load
from tfqat.recipe.schema import TrainingConfig
from tfqat.training.evaluate import check_metrics, evaluate_outputs, make_loss

MAX_DROP = 0.0002
"""How far the first metric of the graph may be from the model's: 0.02 points of an accuracy."""

TIES = 2
"""So many examples may fall the other way in any case: one whose largest entries are a rounding apart is no fault."""

_BATCH = 50
_ROUNDING = 1e-9  # of a difference of two metrics, in float64


@dataclass(frozen=True, kw_only=True)
class GraphMetrics:
    """Metrics by name; `first` is the one that decides, and `skipped` says why there are none."""

    examples: int = 0
    keras: Mapping[str, float] = field(default_factory=dict)
    graph: Mapping[str, float] = field(default_factory=dict)
    deployed: Mapping[str, float] = field(default_factory=dict)
    first: str = ""
    max_drop: float = MAX_DROP
    skipped: str = ""

    @property
    def difference(self) -> float:
        """The first metric of the graph as written less the model's; 0 where it was skipped."""
        return self.graph[self.first] - self.keras[self.first] if not self.skipped else 0.0

    @property
    def failures(self) -> tuple[str, ...]:
        """What is out of its limit."""
        if abs(self.difference) <= self.max_drop + _ROUNDING:
            return ()
        values = f"Keras {self.keras[self.first]:.4f}, graph {self.graph[self.first]:.4f}"
        return (f"{self.first}: {values} on {self.examples} examples; at most {self.max_drop:g} apart is allowed (--max-drop)",)

    def __str__(self) -> str:
        if self.skipped:
            return f"metrics: skipped: {self.skipped}"
        values = (
            (label, found[self.first]) for label, found in (("Keras", self.keras), ("graph", self.graph), ("as deployed", self.deployed))
        )
        return f"{self.first}: " + ", ".join(f"{label} {value:.4f}" for label, value in values)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"skipped": self.skipped} if self.skipped else {**asdict(self), "difference": self.difference}


def allowed_drop(value: float, examples: int) -> float:
    """How far a metric may be from the model's `value`: MAX_DROP, or what TIES examples are worth if that is more; above 1 that share."""
    return max(MAX_DROP, TIES / examples) * max(1.0, abs(value))


class Measuring:
    """Runs the batches of a data set through the model and both sessions while another reads them: one pass over the data."""

    def __init__(self, model: Any, path: Path, *, examples: int) -> None:
        self._model, self._left = model, examples
        self._form = Form.of(load(path).metadata_props)
        self._sessions = {name: runtime.session(path, literal=name == "graph") for name in ("graph", "deployed")}
        self._outputs: dict[str, list[list[np.ndarray]]] = {"keras": [], "graph": [], "deployed": []}
        self._targets: list[tuple[Any, ...]] = []
        self._skipped = ""

    def through(self, data: Iterable[Any]) -> Iterator[Any]:
        """The batches of the data, each measured before it is handed on, until there are enough."""
        for batch in data:
            if self._left > 0 and not self._skipped:
                self._add(batch)
            yield batch

    def result(self, training: TrainingConfig, *, max_drop: float | None = None) -> GraphMetrics:
        """The loss and metrics of a recipe, or why they were skipped; max_drop None: see `allowed_drop`."""
        if self._skipped or not self._targets:
            return GraphMetrics(skipped=self._skipped or "the data set is empty")
        try:
            loss = make_loss(training.loss)
            check_metrics(training.metrics)
        except RecipeError as error:
            return GraphMetrics(skipped=str(error))
        names = self._model.output_names
        try:
            targets = tf.nest.map_structure(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *self._targets)
            joined = {name: [np.concatenate(parts) for parts in zip(*found, strict=True)] for name, found in self._outputs.items()}
            found = {
                name: evaluate_outputs(outputs, targets, loss=loss, metrics=training.metrics, names=names)
                for name, outputs in joined.items()
            }
        except Exception as error:  # Keras and TensorFlow raise a dozen types where outputs or labels do not fit
            return GraphMetrics(skipped=f"the recipe's loss and metrics do not take these labels: {reason_of(error)}")
        losses = {"loss", *(f"{output}_loss" for output in names)}
        first = next((name for name in found["keras"] if name not in losses), "loss")
        keras, graph, deployed = (found[name] for name in ("keras", "graph", "deployed"))
        examples = len(joined["keras"][0])
        allowed = allowed_drop(keras[first], examples) if max_drop is None else max_drop
        return GraphMetrics(examples=examples, keras=keras, graph=graph, deployed=deployed, first=first, max_drop=allowed)

    @float32_policy()
    def _add(self, batch: Any) -> None:
        if not isinstance(batch, tuple) or len(batch) not in (2, 3):
            self._skipped = "the data has no labels; expected batches of (inputs, labels)"
            return
        inputs, *targets = batch
        check_batch(self._model, inputs_of(batch), where="verify")
        size = min(self._left, int(tf.nest.flatten(inputs)[0].shape[0]))
        for start in range(0, size, _BATCH):
            part = slice(start, min(start + _BATCH, size))
            self._run(tf.nest.map_structure(lambda value, part=part: value[part], inputs))
        self._targets.append(tf.nest.map_structure(lambda value: np.asarray(value[:size]), tuple(targets)))
        self._left -= size

    def _run(self, inputs: Any) -> None:
        self._outputs["keras"].append([output.numpy() for output in tf.nest.flatten(self._model(inputs, training=False))])
        for name, session in self._sessions.items():
            names = [value.name for value in session.get_inputs()]
            given = [inputs[one] for one in names] if isinstance(inputs, Mapping) else tf.nest.flatten(inputs)
            fed = self._form.feed({one: np.asarray(value) for one, value in zip(names, given, strict=True)})
            self._outputs[name].append(runtime.run(session, fed))
