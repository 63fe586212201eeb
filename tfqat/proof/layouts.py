"""How the axes of a tensor in one graph lie in another."""

from __future__ import annotations

import itertools

import numpy as np

from tfqat.errors import ExportError
from tfqat.proof.differences import CodeDifference

_CLEARLY = 0.5
"""Another order of the axes than those that converters make is taken if at most so much of the disagreement is left."""


def layout(first: np.ndarray, second: np.ndarray) -> tuple[int, ...]:
    """The permutation from one layout to another, which leaves the batch axis.

    Where several fit the shape, as of square images, the one whose codes agree. The usual ones come first: in a graph that is wrong,
    height and width swapped may agree no worse.

    Raises:
        ExportError: the shapes have other axes.
    """
    axes = tuple(range(first.ndim))
    channels_first, channels_last = (*axes[:1], *axes[-1:], *axes[1:-1]), (*axes[:1], *axes[2:], *axes[1:2])
    usual = (axes, channels_first, channels_last) if len(axes) > 2 else (axes,)
    every = [(*axes[:1], *others) for others in itertools.permutations(axes[1:])]
    fitting = [order for order in dict.fromkeys([*usual, *every]) if first.transpose(order).shape == second.shape]
    if not fitting:
        raise ExportError(f"a tensor of shape {first.shape} has the shape {second.shape} in the ONNX graph; expected the same axes")
    if len(fitting) == 1:
        return fitting[0]
    apart = {order: 1 - CodeDifference.between(first[:2].transpose(order), second[:2]).equal for order in fitting}
    likely, best = (
        min([order for order in fitting if order in usual] or fitting, key=apart.__getitem__),
        min(fitting, key=apart.__getitem__),
    )
    return best if apart[best] < _CLEARLY * apart[likely] else likely
