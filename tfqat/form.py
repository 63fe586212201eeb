"""What a graph looks like from outside: sizes of its axes, layout of its inputs, names of its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

FORM = "tfqat.form"
"""The metadata entry that holds the form of a graph as JSON, if it is not the model's own."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The outside of a graph.

    Attributes:
        batch: the size of the first axis of all inputs and outputs; None: free.
        size: the sizes of the axes between batch and channels of every input that has such axes, (height, width) of images; None: as the
            model has them.
        layout: of these inputs: `nhwc`, as Keras has them, or `nchw`.
        outputs: new names of the outputs, in the model's order; empty: as the model has them.
    """

    batch: int | None = None
    size: tuple[int, ...] | None = None
    layout: Literal["nhwc", "nchw"] = "nhwc"
    outputs: tuple[str, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """The entry of a file's metadata; none for the model's own form."""
        return {} if self == Form() else {FORM: json.dumps(asdict(self))}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Form:
        """The form of a graph, from its file's metadata."""
        known = json.loads(metadata.get(FORM, "{}"))
        kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        return cls(**kept)

    def feed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs in Keras's layout, as the graph takes them."""
        return {name: _to_channels_first(value) if self.layout == "nchw" else value for name, value in values.items()}


def _to_channels_first(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(value, -1, 1)) if value.ndim > 2 else value
