"""Rounds weights so that their errors cancel in what the layer computes, instead of each weight to its nearest code.

A layer computes y = X W, X of shape (positions, inputs). Rounding W to Q costs

    ||X W - X Q||^2 = trace((W - Q)^T H (W - Q)),      H = X^T X / positions

Row after row of W is rounded, and takes over the errors of the rows before it, as far as its input goes along with theirs: with the
upper triangular R of H = R R^T and d = W - Q the cost is sum_k || sum_{j <= k} R_jk d_j ||^2, so row k is least wrong as

    q_k = round(w_k + sum_{j < k} R_jk d_j / R_kk)

Rows whose inputs are large come first. Codes stay on the grid that amax gives; the float weights become what they represent. It is what
GPTQ computes from the Cholesky factor of H^-1, which is R^-1, without the inverse.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", on the grounds of
Hassibi and Stork 1993, "Optimal Brain Surgeon".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.spec import QuantSpec

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean: so much are inputs taken to vary beyond what was seen."""

_BLOCK = 32  # rows that get the errors of all rows before them in one matrix product


def second_moments(x: tf.Tensor, layer: Any) -> np.ndarray:
    """sum over positions of x x^T for the inputs that one output of a layer reads.

    Args:
        x: a batch of the layer's input.
        layer: a Keras Dense, Conv1D, Conv2D, DepthwiseConv1D or DepthwiseConv2D layer, channels last.

    Returns:
        float64 of shape (groups, inputs, inputs): one group, or one for each group of a grouped or depthwise convolution; the inputs
        are ordered as the rows of `rows_of`.
    """
    if _groups(layer, int(x.shape[-1])) == 1:
        if _reads_one_position(layer):
            strides = [1, 1] if type(layer).__name__ == "Dense" else layer.strides
            rows = tf.reshape(
                x if set(strides) == {1} else tf.strided_slice(x, [0] * x.shape.rank, tf.shape(x), [1, *strides, 1]), [-1, x.shape[-1]]
            )
            return np.asarray(tf.matmul(rows, rows, transpose_a=True).numpy().astype(np.float64)[None])
        (columns,) = _columns(x, layer)
        return np.asarray(tf.matmul(columns, columns, transpose_b=True).numpy().astype(np.float64)[None])
    # Group by group, so that what is copied of a depthwise convolution's input stays in the processor's cache.
    return np.stack([columns @ columns.T for columns in _columns(x, layer)]).astype(np.float64)


def rows_of(weight: np.ndarray, layer: Any) -> np.ndarray:
    """The weight as (groups, inputs, outputs of the group)."""
    groups = _groups(layer, weight.shape[-2])
    if "Depthwise" in type(layer).__name__:
        return np.moveaxis(weight.reshape(-1, groups, weight.shape[-1]), 1, 0)
    rows = weight.reshape(-1, groups, weight.shape[-1] // groups)
    return np.moveaxis(rows, 1, 0)


def weight_of(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `rows_of`."""
    return np.moveaxis(rows, 0, 1).reshape(shape)


def obstacle(layer: Any) -> str:
    """Why the weight of a layer cannot be rounded so; empty if it can."""
    name = type(layer).__name__
    if name not in ("Dense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D"):
        return f"{name} is not among the classes whose inputs tfqat can line up"
    if name != "Dense" and layer.padding == "causal":
        return "causal padding"
    if name != "Dense" and layer.data_format != "channels_last":
        return "channels first"
    return ""


def round_compensated(rows: np.ndarray, scale: np.ndarray, moments: np.ndarray, spec: QuantSpec, *, damping: float = DAMPING) -> np.ndarray:
    """The values that the rounded weight represents.

    Args:
        rows: (groups, inputs, outputs).
        scale: positive, (groups, outputs) or what broadcasts to it.
        moments: (groups, inputs, inputs), from `second_moments`, of all batches together.
        spec: the grid.
        damping: see DAMPING.

    Returns:
        float32 of the shape of `rows`, on the grid. An output for which rounding to the nearest costs less is rounded so.
    """
    weights, scale = rows.astype(np.float64), np.broadcast_to(scale, (len(rows), rows.shape[2])).astype(np.float64)[:, None]
    means = np.mean(np.diagonal(moments, axis1=1, axis2=2), axis=1)
    damped = moments + np.eye(rows.shape[1]) * (damping * means + np.finfo(np.float32).tiny)[:, None, None]
    nearest, compensated = _nearest(weights, scale, spec), _compensated(weights, scale, damped, spec)
    better = _cost(weights - compensated, damped) < _cost(weights - nearest, damped)
    return np.where(better, compensated, nearest).astype(np.float32)


def _compensated(weights: np.ndarray, scale: np.ndarray, moments: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """The rows of all groups at once, shapes as in `round_compensated`."""
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")
    weights = np.take_along_axis(weights, order[:, :, None], axis=1)
    factor = _factor(np.take_along_axis(np.take_along_axis(moments, order[:, :, None], axis=1), order[:, None, :], axis=2))
    rounded, errors = np.empty_like(weights), np.empty_like(weights)
    for start in range(0, weights.shape[1], _BLOCK):
        end = min(start + _BLOCK, weights.shape[1])
        targets = weights[:, start:end] + _product(factor[:, start:end, :start], errors[:, :start])
        for row in range(start, end):
            carried = np.einsum("gj,gjo->go", factor[:, row, start:row], errors[:, start:row])
            rounded[:, row] = _nearest(targets[:, row - start] + carried, scale[:, 0], spec)
            errors[:, row] = weights[:, row] - rounded[:, row]
    return np.take_along_axis(rounded, np.argsort(order, axis=1)[:, :, None], axis=1)


def _factor(moments: np.ndarray) -> np.ndarray:
    """R_jk / R_kk at [group, k, j]; R is upper triangular and R R^T = `moments`: the Cholesky factor of the reversed matrix, reversed."""
    lower = np.ascontiguousarray(tf.linalg.cholesky(moments[:, ::-1, ::-1]).numpy()[:, ::-1, ::-1].swapaxes(1, 2))
    return np.asarray(lower / np.diagonal(lower, axis1=1, axis2=2)[:, :, None])


def _nearest(values: np.ndarray, scale: np.ndarray, spec: QuantSpec) -> np.ndarray:
    return np.clip(np.rint(values / scale), spec.lo, spec.hi) * scale


def _cost(errors: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """e^T H e of each column of `errors`, (groups, 1, outputs)."""
    return np.asarray(np.sum(errors * _product(moments, errors), axis=1, keepdims=True))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # TensorFlow's threads, not NumPy's: OpenBLAS's spin while they wait, which on a loaded machine takes ten times as long.
    return np.asarray(tf.matmul(a, b).numpy())


def _groups(layer: Any, channels: int) -> int:
    if "Depthwise" in type(layer).__name__:
        return channels
    return int(getattr(layer, "groups", 1))


def _reads_one_position(layer: Any) -> bool:
    return type(layer).__name__ == "Dense" or set(layer.kernel_size) == {1}


def _columns(x: tf.Tensor, layer: Any) -> Iterator[np.ndarray]:
    """For each group (inputs, positions): what one output position reads, for each position of the batch."""
    channels = int(x.shape[-1])
    sizes, strides, rates = (_two(value) for value in (layer.kernel_size, layer.strides, layer.dilation_rate))
    spans = [(size - 1) * rate + 1 for size, rate in zip(sizes, rates, strict=True)]
    image = x if x.shape.rank == 4 else x[:, None]
    if layer.padding == "same":
        image = tf.pad(image, [[0, 0], *(_same(int(n), *of) for n, *of in zip(image.shape[1:3], spans, strides, strict=True)), [0, 0]])
    by_channel = tf.transpose(image, [3, 0, 1, 2]).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(by_channel, spans, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: rates[0], :: rates[1]].transpose(4, 5, 0, 1, 2, 3)
    for group in np.split(windows, _groups(layer, channels), axis=2):  # (height, width, channels of the group, batch, rows, columns)
        yield group.reshape(sizes[0] * sizes[1] * group.shape[2], -1)


def _same(size: int, span: int, stride: int) -> list[int]:
    """How much padding "same" adds before and after, as TensorFlow does: the odd one after."""
    total = max((-(-size // stride) - 1) * stride + span - size, 0)
    return [total // 2, total - total // 2]


def _two(values: Any) -> tuple[int, int]:
    """The sizes of a two-dimensional window; a one-dimensional one has height 1."""
    return (1, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))
