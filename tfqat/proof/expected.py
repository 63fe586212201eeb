"""What the model says that its exported graph must hold, derived from the model alone, so that it can be held against the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfqat import numerics
from tfqat.export.fold import fold_batch_norms
from tfqat.export.unsigned import SIGNED, UNSIGNED
from tfqat.form import Form
from tfqat.quantize import state


@dataclass(frozen=True, kw_only=True)
class WeightCodes:
    """The int8 codes of a layer's weight in ONNX's layout, its float32 scales, and the axis that they go along (None: one scale)."""

    layer: str
    weight: str
    codes: np.ndarray
    scale: np.ndarray
    axis: int | None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Activation scales by point id, weight codes before BatchNorm is folded, whether it was to be, and the BatchNorms that cannot be.

    `form` is what the graph looks like from outside, `non_negative` the activation points that hold no negative value.
    """

    activations: Mapping[str, np.ndarray]
    weights: tuple[WeightCodes, ...]
    fold_batchnorm: bool = True
    kept_batch_norms: frozenset[str] = frozenset()
    form: Form = field(default_factory=Form)
    non_negative: frozenset[str] = frozenset()

    def zero_point(self, point: str) -> np.int8 | np.uint8:
        """The zero point of an activation point."""
        if self.form.target == "tensorrt":
            return np.int8(0)
        return np.uint8(UNSIGNED if point in self.non_negative else SIGNED)


def expected_of(qmodel: Any, *, fold_batchnorm: bool = True) -> Expected:
    """What the graph of a calibrated quantized model must hold.

    Raises:
        NotCalibratedError: a quantizer has no range.
    """
    handles = state.handles(qmodel)
    ranges = state.ranges(qmodel)
    return Expected(
        activations={
            name: numerics.scale_from_amax(ranges[name], handle.point.spec).numpy()
            for name, handle in handles.items()
            if handle.weight is None
        },
        weights=tuple(_in_onnx_layout(handle) for handle in handles.values() if handle.weight is not None),
        fold_batchnorm=fold_batchnorm,
        non_negative=state.non_negative(handles),
        kept_batch_norms=frozenset(result.node for result in fold_batch_norms(qmodel).batch_norms if not result.folded),
    )


def onnx_layout(codes: np.ndarray, scale: np.ndarray, weight: str) -> tuple[np.ndarray, np.ndarray, int | None]:
    """A Keras weight's codes and scales in ONNX's layout, with the axis of the scales. Export reads the layout off the graph instead.

    kernel of Conv1D, 2D, 3D    (*size, in, out)         -> (out, in, *size),            axis 0
    kernel of ConvTranspose     (*size, out, in)         -> (in, out, *size),            one scale
    depthwise_kernel            (*size, in, multiplier)  -> (in * multiplier, 1, *size), axis 0
    kernel of Dense             (in, out)                -> (in, out),                   axis 1
    """
    size = range(codes.ndim - 2)
    if weight == "depthwise_kernel":
        codes, axis = codes.transpose(codes.ndim - 2, codes.ndim - 1, *size).reshape(-1, 1, *codes.shape[:-2]), 0
    elif codes.ndim > 2:
        codes, axis = codes.transpose(codes.ndim - 1, codes.ndim - 2, *size), 0
    else:
        axis = 1
    return codes, scale.reshape(-1) if scale.ndim else scale, axis if scale.ndim else None


def _in_onnx_layout(handle: state.Handle) -> WeightCodes:
    weight = str(handle.point.weight)
    codes, scale, axis = onnx_layout(*state.weight_codes(handle), weight)
    return WeightCodes(layer=handle.point.given_source, weight=weight, codes=codes, scale=scale, axis=axis)
