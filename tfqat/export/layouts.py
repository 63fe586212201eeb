"""How the axes of a tensor in one graph lie in another."""

from __future__ import annotations

import itertools

import numpy as np

from tfqat.errors import ExportError
from tfqat.export.parity import CodeDifference


def layout(first: np.ndarray, second: np.ndarray) -> tuple[int, ...]:
    """The permutation from one layout to another, which leaves the batch axis; where several fit the shape, the one that agrees.

    Raises:
        ExportError: the shapes have other axes.
    """
    permutations = [(0, *axes) for axes in itertools.permutations(range(1, first.ndim))] if first.ndim else [()]
    fitting = [permutation for permutation in permutations if first.transpose(permutation).shape == second.shape]
    if not fitting:
        raise ExportError(f"a tensor of shape {first.shape} has the shape {second.shape} in the ONNX graph; expected the same axes")
    if len(fitting) == 1:
        return fitting[0]
    return max(fitting, key=lambda permutation: CodeDifference.between(first[:2].transpose(permutation), second[:2]).equal)
