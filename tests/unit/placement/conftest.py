"""A model's graph from a few lines of text, so that rules can be tested without building a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Draw = Callable[..., Any]


@pytest.fixture
def draw() -> Draw:
    """draw("image InputLayer", "conv Conv2D image", "add Add image conv", configs={...}, outputs=...) -> ModelGraph."""
    from tfqat.models.graph import ModelGraph, Node, TensorRef

    def draw(*lines: str, configs: dict[str, dict[str, Any]] | None = None, outputs: tuple[str, ...] = ()) -> ModelGraph:
        nodes = []
        for line in lines:
            name, class_name, *inputs = line.split()
            refs = tuple(TensorRef(layer=source, index=int(index or 0)) for source, _, index in (text.partition(":") for text in inputs))
            nodes.append(Node(name=name, class_name=class_name, inputs=refs, config=(configs or {}).get(name, {})))
        names = outputs or (nodes[-1].name,)
        return ModelGraph(nodes=tuple(nodes), outputs=tuple(TensorRef(layer=name) for name in names))

    return draw
