"""Which layers compute what operations of TensorFlow on shapes compute: concat, reshape, padding, pooling and resizing.

A rule takes an operation's arguments by name and returns the layer to make, or None where no layer computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_keras import layers

from tfqat.models.arithmetic_rules import merge
from tfqat.models.steps import Rule, Step, axes_of, constant, dimension, is_symbolic, same_tensor, sizes_of, step


def _concat(values: Any, axis: Any) -> Step | None:
    tensors = values if isinstance(values, list | tuple) else [values]
    if not isinstance(axis, int) or merge(layers.Add, tensors) is None or axis % tensors[0].shape.rank == 0:
        return None
    return step(layers.Concatenate, list(tensors), axis=axis)


def _reshape(tensor: Any, shape: Any) -> Step | None:
    """Only where the batch is untouched whatever the batch size: it is written as the tensor's own, or nothing else is left for it."""
    sizes = sizes_of(shape)
    if not sizes or tensor.shape.rank is None or any(size is None for size in sizes[1:]):
        return None
    rest = sizes[1:]
    own_batch = _is_batch_of(shape, tensor) or (sizes[0] is not None and sizes[0] == tensor.shape[0])
    whole = math.prod(tensor.shape[1:]) if tensor.shape[1:].is_fully_defined() else None
    fits = -1 not in rest and whole == math.prod(size or 0 for size in rest) and sizes[0] in (-1, None)
    return step(layers.Reshape, tensor, target_shape=tuple(rest)) if own_batch or fits else None


def _is_batch_of(shape: Any, tensor: Any) -> bool:
    if not isinstance(shape, list | tuple) or not is_symbolic(shape[0]):
        return False
    source, axis = dimension(shape[0])
    return axis == 0 and same_tensor(source, tensor)


def _to_shape(tensor: Any, shape: Sequence[int | None]) -> Step | None:
    sizes = [-1 if size is None else size for size in shape]
    return step(layers.Reshape, tensor, target_shape=tuple(sizes)) if sizes.count(-1) <= 1 else None


def _squeeze(input: Any, axis: Any, squeeze_dims: Any = None) -> Step | None:
    rank = input.shape.rank
    axes = axes_of(axis if axis is not None else squeeze_dims, rank) if rank else None
    if not axes or 0 in axes:
        return None
    return _to_shape(input, [size for index, size in enumerate(input.shape) if index not in axes and index > 0])


def _expand_dims(input: Any, axis: Any) -> Step | None:
    if not isinstance(axis, int) or input.shape.rank is None or axis % (input.shape.rank + 1) == 0:
        return None
    shape = list(input.shape)
    shape.insert(axis % (len(shape) + 1), 1)
    return _to_shape(input, shape[1:])


def _transpose(a: Any, perm: Any, conjugate: bool = False) -> Step | None:
    order = constant(perm) if perm is not None else None
    if order is None or conjugate or order.ndim != 1 or order[0] != 0:
        return None
    return step(layers.Permute, a, dims=tuple(int(axis) for axis in order[1:]))


def _flatten(x: Any) -> Step:
    return step(layers.Flatten, x)


def _pad(tensor: Any, paddings: Any, mode: str, constant_values: Any) -> Step | None:
    amounts, filled, rank = constant(paddings), constant(constant_values), tensor.shape.rank
    if amounts is None or filled is None or filled.any() or mode.upper() != "CONSTANT" or rank not in (3, 4, 5):
        return None
    if amounts[0].any() or amounts[-1].any():
        return None
    pairs = tuple((int(before), int(after)) for before, after in amounts[1:-1])
    layer_class = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)[rank - 3]
    return step(layer_class, tensor, padding=pairs[0] if rank == 3 else pairs)


# Pooling and resizing

_GLOBAL = {
    "mean": (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    "max": (layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
}
_POOL = {
    "mean": (layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    "max": (layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
}


def _reduce(kind: str) -> Callable[..., Step | None]:
    def rule(input_tensor: Any, axis: Any, keepdims: Any) -> Step | None:
        rank = input_tensor.shape.rank
        if rank not in (3, 4, 5) or axes_of(axis, rank) != list(range(1, rank - 1)):
            return None
        return step(_GLOBAL[kind][rank - 3], input_tensor, data_format="channels_last", keepdims=bool(keepdims))

    return rule


def _pool(kind: str) -> Callable[..., Step | None]:
    def rule(ksize: Any, strides: Any, padding: Any, data_format: Any, input: Any = None, value: Any = None) -> Step | None:
        tensor = input if input is not None else value
        rank = tensor.shape.rank
        if rank not in (3, 4, 5) or not isinstance(padding, str) or str(data_format or "").startswith("NC"):
            return None
        window, steps = _window(ksize, rank - 2), _window(strides, rank - 2)
        if window is None or steps is None:
            return None
        config = {"pool_size": window, "strides": steps, "padding": padding.lower(), "data_format": "channels_last"}
        return step(_POOL[kind][rank - 3], tensor, **config)

    return rule


def _window(value: Any, count: int) -> tuple[int, ...] | None:
    """A pooling window or its strides over `count` spatial axes; None where it covers batch or channels too."""
    array = constant(value)
    if array is None:
        return None
    sizes = [int(size) for size in array.reshape(-1)]
    if len(sizes) == 1:
        return tuple(sizes * count)
    if len(sizes) == count + 2 and sizes[0] == sizes[-1] == 1:
        return tuple(sizes[1:-1])
    return tuple(sizes) if len(sizes) == count else None


def _resize(images: Any, size: Any, method: Any, preserve_aspect_ratio: Any, antialias: Any) -> Step | None:
    """UpSampling2D calls the same operation with the size times its factors."""
    return None if preserve_aspect_ratio or antialias else _upsample(images, size, method)


def _resize_nearest(images: Any, size: Any, align_corners: bool, half_pixel_centers: bool) -> Step | None:
    """With a whole factor f every output i reads input floor(i / f), half pixel centers or not."""
    return None if align_corners else _upsample(images, size, "nearest")


def _upsample(images: Any, size: Any, method: Any) -> Step | None:
    sizes = sizes_of(size)
    if images.shape.rank != 4 or sizes is None or len(sizes) != 2 or not isinstance(method, str):
        return None
    pairs = list(zip(sizes, images.shape[1:3], strict=True))
    if any(new is None or old is None or new % old for new, old in pairs):
        return None
    factors = tuple(int(new // old) for new, old in pairs)
    return step(layers.UpSampling2D, images, size=factors, interpolation=method.lower(), data_format="channels_last")


SHAPES: Mapping[str, Rule] = {
    "concat": _concat,
    "reshape": _reshape,
    "compat.v1.squeeze": _squeeze,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "compat.v1.transpose": _transpose,
    "transpose": _transpose,
    "keras.backend.batch_flatten": _flatten,
    "compat.v1.pad": _pad,
    "pad": _pad,
    "math.reduce_mean": _reduce("mean"),
    "math.reduce_max": _reduce("max"),
    "nn.max_pool": _pool("max"),
    "nn.max_pool1d": _pool("max"),
    "nn.max_pool2d": _pool("max"),
    "nn.max_pool3d": _pool("max"),
    "compat.v1.nn.max_pool": _pool("max"),
    "nn.avg_pool": _pool("mean"),
    "nn.avg_pool1d": _pool("mean"),
    "nn.avg_pool2d": _pool("mean"),
    "nn.avg_pool3d": _pool("mean"),
    "compat.v1.nn.avg_pool": _pool("mean"),
    "image.resize": _resize,
    "compat.v1.image.resize_nearest_neighbor": _resize_nearest,
}
