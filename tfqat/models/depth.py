"""Models of thousands of layers: Keras follows their graph by recursion, one call of Python for each layer (tf_keras 2.21, Keras 3.12)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tf_keras

LIMIT = 10_000
"""Calls within each other; Python itself allows 1,000. Calls take stack, and an overflow of it ends the process."""


@contextmanager
def deep_models() -> Iterator[None]:
    """Models may be as deep as LIMIT within it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, LIMIT))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@deep_models()
def functional_model(inputs: Any, outputs: Any, name: str | None = None) -> Any:
    """A functional tf_keras model, however deep."""
    return tf_keras.Model(inputs, outputs, name=name)
