"""Splits a layer that computes several products into layers of one product each, where its options allow it exactly.

    SeparableConv        -> DepthwiseConv -> Conv
    EinsumDense          -> [Reshape] -> Dense -> [Reshape]
    MultiHeadAttention   -> Dense, Reshape, Permute for query, key and value -> MatMul -> Softmax -> MatMul -> Permute, Reshape, Dense

Reads private attributes of tf_keras (the sublayers of MultiHeadAttention), checked on tf-keras 2.21.0.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tf_keras import layers

from tfqat.models.layers import MatMul
from tfqat.models.steps import Step, computes_plainly, is_symbolic


@dataclass(frozen=True, kw_only=True)
class Split:
    """The layers that replace one, in order, and the parts that are its outputs."""

    steps: tuple[Step, ...]
    outputs: Any  # a part's name, or a tuple of them


def split(layer: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Split | None:
    """The layers that compute what `layer` computes of these arguments; None if it stays whole.

    A class derived from one of Keras's may compute something else, so it stays whole.
    """
    splitter = _SPLITTERS.get(type(layer))
    if splitter is None or layer.activity_regularizer is not None:
        return None
    bound = inspect.signature(layer.call).bind(*arguments, **keywords)
    bound.apply_defaults()
    return splitter(layer, **bound.arguments)


def _common(layer: Any) -> dict[str, Any]:
    return {"dtype": layer.dtype, "trainable": layer.trainable}


def _weights(*variables: Any) -> tuple[Any, ...]:
    return tuple(variable for variable in variables if variable is not None)


# Separable convolutions

_CONVOLUTIONS = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}


def _split_separable(layer: Any, inputs: Any) -> Split | None:
    """Causal padding, (kernel - 1) * dilation zeros before the first step, becomes a layer; DepthwiseConv1D has none."""
    causal = layer.padding == "causal"
    if not computes_plainly(inputs) or (causal and layer.data_format != "channels_last"):
        return None
    config, (depthwise, pointwise) = layer.get_config(), _CONVOLUTIONS[type(layer)]
    steps = []
    if causal:
        padding = (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0)
        steps.append(Step(part="padding", layer_class=layers.ZeroPadding1D, config={"padding": padding, **_common(layer)}, reads=inputs))
    window = {key: config[key] for key in ("kernel_size", "strides", "data_format", "depth_multiplier", "dilation_rate")}
    depthwise_config = {
        **window,
        **{key: config[key] for key in ("depthwise_initializer", "depthwise_regularizer", "depthwise_constraint")},
        "padding": "valid" if causal else layer.padding,
        "use_bias": False,
        **_common(layer),
    }
    pointwise_config = {
        **{f"kernel_{key}": config[f"pointwise_{key}"] for key in ("initializer", "regularizer", "constraint")},
        **{key: config[key] for key in ("filters", "data_format", "activation", "use_bias", *_BIAS)},
        "kernel_size": 1,
        **_common(layer),
    }
    reads = "padding" if causal else inputs
    steps.append(
        Step(part="depthwise", layer_class=depthwise, config=depthwise_config, reads=reads, weights=_weights(layer.depthwise_kernel))
    )
    weights = _weights(layer.pointwise_kernel, layer.bias)
    steps.append(Step(part="pointwise", layer_class=pointwise, config=pointwise_config, reads="depthwise", weights=weights))
    return Split(steps=tuple(steps), outputs="pointwise")


_BIAS = ("bias_initializer", "bias_regularizer", "bias_constraint")
_KERNEL = ("kernel_initializer", "kernel_regularizer", "kernel_constraint")


# EinsumDense

_ELEMENTWISE = ("linear", "relu", "sigmoid", "tanh", "gelu", "swish", "silu", "elu", "selu", "softplus", "exponential")


def _split_einsum_dense(layer: Any, inputs: Any) -> Split | None:
    """A product over the last axes is a Dense on those axes merged into one.

    "abc,cd->abd" is a Dense; "abc,cde->abde" a Dense of d * e units whose output is reshaped; "abcd,cde->abe" has its input reshaped.
    """
    axes = _product_axes(layer.equation)
    if axes is None or not computes_plainly(inputs) or not _bias_fits(layer) or layer.kernel_constraint or layer.bias_constraint:
        return None
    contracted, made = axes
    if made > 1 and getattr(layer.activation, "__name__", "") not in _ELEMENTWISE:
        return None
    batch = list(inputs.shape[1 : len(inputs.shape) - contracted])
    kernel, merges = layer.kernel.shape, contracted > 1 or made > 1
    if merges and batch.count(None) > 1:
        return None
    batch = [-1 if size is None else size for size in batch]
    config = {
        **{key: layer.get_config()[key] for key in ("activation", *_KERNEL, *_BIAS)},
        "units": math.prod(kernel[contracted:]),
        "use_bias": layer.bias is not None,
        **_common(layer),
    }
    steps, reads = [], inputs
    if contracted > 1:
        steps.append(_reshape(layer, "reshape_in", reads, [*batch, math.prod(kernel[:contracted])]))
        reads = "reshape_in"
    steps.append(Step(layer_class=layers.Dense, config=config, reads=reads, weights=_weights(layer.kernel, layer.bias)))
    if made > 1:
        steps.append(_reshape(layer, "reshape_out", "", [*batch, *kernel[contracted:]]))
    return Split(steps=tuple(steps), outputs=steps[-1].part)


def _product_axes(equation: str) -> tuple[int, int] | None:
    """(axes that are summed over, axes that are made) of a matrix product over the last axes; None for another equation."""
    left, _, output = equation.replace(" ", "").replace("...", "0").partition("->")
    source, _, kernel = left.partition(",")
    contracted = next((count for count in range(len(kernel), 0, -1) if source.endswith(kernel[:count])), 0)
    batch, made = source[: len(source) - contracted], kernel[contracted:]
    plain = contracted and made and batch and output == batch + made and "0" not in batch[1:] + made
    return (contracted, len(made)) if plain and len(set(source)) == len(source) and not set(made) & set(source) else None


def _bias_fits(layer: Any) -> bool:
    """Whether there is no bias, or one element of it for every element of the output's made axes."""
    if layer.bias_axes is None:
        return True
    left, _, output = layer.equation.partition("->")
    made = [letter for letter in output if letter.isalpha() and letter not in left.partition(",")[0]]
    return sorted(layer.bias_axes) == sorted(made)


def _reshape(layer: Any, part: str, reads: Any, shape: Sequence[int]) -> Step:
    return Step(part=part, layer_class=layers.Reshape, config={"target_shape": tuple(shape), **_common(layer)}, reads=reads)


# MultiHeadAttention


def _split_attention(
    layer: Any,
    query: Any,
    value: Any,
    key: Any,
    attention_mask: Any,
    return_attention_scores: Any,
    training: Any,
    use_causal_mask: Any,
) -> Split | None:
    """Attention over one axis: softmax(Q K^T / sqrt(d)) V per head, Q, K, V of shape (batch, heads, positions, d).

    The mask, where one is given, becomes the mask of the Softmax layer, which adds -1e9 to what it hides as the attention does.
    """
    key = value if key is None else key
    if not _attention_is_plain(layer, [query, key, value]) or use_causal_mask or not _mask_is_plain(attention_mask):
        return None
    heads, depth = layer._num_heads, layer._key_dim
    steps = [
        _projection(layer, "query", query, layer._query_dense),
        Step(part="query_scale", layer_class=layers.Rescaling, config={"scale": 1.0 / math.sqrt(depth), **_common(layer)}, reads="query"),
        *_to_heads(layer, "query", "query_scale", query, (heads, depth)),
        _projection(layer, "key", key, layer._key_dense),
        *_to_heads(layer, "key", "key", key, (heads, depth)),
        _projection(layer, "value", value, layer._value_dense),
        *_to_heads(layer, "value", "value", value, (heads, layer._value_dim)),
        Step(
            part="scores",
            layer_class=MatMul,
            config={"transpose_b": True, **_common(layer)},
            reads=["query_permute", "key_permute"],
        ),
        *_softmax(layer, attention_mask, training),
        Step(part="product", layer_class=MatMul, config=_common(layer), reads=[_weights_part(layer), "value_permute"]),
        Step(part="output_permute", layer_class=layers.Permute, config={"dims": (2, 1, 3), **_common(layer)}, reads="product"),
        _reshape(layer, "output_reshape", "output_permute", [_length(query), heads * layer._value_dim]),
        _projection(layer, "output", "output_reshape", layer._output_dense),
    ]
    return Split(steps=tuple(steps), outputs=("output", "softmax") if return_attention_scores else "output")


def _attention_is_plain(layer: Any, tensors: Sequence[Any]) -> bool:
    if not computes_plainly(tensors) or any(len(tensor.shape) != 3 for tensor in tensors) or tuple(layer._attention_axes) != (1,):
        return False
    constraints = (layer._kernel_constraint, layer._bias_constraint)
    return len(layer._output_dense.kernel.shape) == 3 and constraints == (None, None)


def _mask_is_plain(mask: Any) -> bool:
    """Whether there is no mask, or a symbolic one of shape (batch, positions, positions), at most one of them unknown, or with heads."""
    if mask is None:
        return True
    return is_symbolic(mask) and (len(mask.shape) == 4 or (len(mask.shape) == 3 and list(mask.shape[1:]).count(None) <= 1))


def _length(tensor: Any) -> int:
    return -1 if tensor.shape[1] is None else tensor.shape[1]


def _projection(layer: Any, part: str, reads: Any, dense: Any) -> Step:
    """An EinsumDense of (model, heads, d), or (heads, d, model), as a Dense on the last axis."""
    kernel = dense.kernel.shape
    units = kernel[-1] if part == "output" else math.prod(kernel[1:])
    config = {**{key: layer.get_config()[key] for key in (*_KERNEL, *_BIAS)}, "units": units, "use_bias": dense.bias is not None}
    weights = _weights(dense.kernel, dense.bias)
    return Step(part=part, layer_class=layers.Dense, config={**config, **_common(layer)}, reads=reads, weights=weights)


def _to_heads(layer: Any, part: str, reads: str, source: Any, sizes: tuple[int, int]) -> tuple[Step, Step]:
    """(batch, positions, heads * d) -> (batch, heads, positions, d)."""
    permute = Step(
        part=f"{part}_permute", layer_class=layers.Permute, config={"dims": (2, 1, 3), **_common(layer)}, reads=f"{part}_reshape"
    )
    return _reshape(layer, f"{part}_reshape", reads, [_length(source), *sizes]), permute


def _softmax(layer: Any, mask: Any, training: Any) -> list[Step]:
    steps: list[Step] = []
    keywords: dict[str, Any] = {}
    if mask is not None and len(mask.shape) == 3:
        steps.append(_reshape(layer, "mask", mask, [1, *(-1 if size is None else size for size in mask.shape[1:])]))
        keywords = {"mask": "mask"}
    elif mask is not None:
        keywords = {"mask": mask}
    # tf-keras 2.18 and before have one way of masking, and no name for it.
    masking = {"robust_masking": layer._softmax_robust_masking} if hasattr(layer, "_softmax_robust_masking") else {}
    config = {"axis": -1, **masking, **_common(layer)}
    steps.append(Step(part="softmax", layer_class=layers.Softmax, config=config, reads="scores", keywords=keywords))
    if layer._dropout:
        trained = {} if training is None else {"training": training}
        config = {"rate": layer._dropout, **_common(layer)}
        steps.append(Step(part="dropout", layer_class=layers.Dropout, config=config, reads="softmax", keywords=trained))
    return steps


def _weights_part(layer: Any) -> str:
    return "dropout" if layer._dropout else "softmax"


_SPLITTERS: Mapping[type, Callable[..., Split | None]] = {
    layers.SeparableConv1D: _split_separable,
    layers.SeparableConv2D: _split_separable,
    layers.EinsumDense: _split_einsum_dense,
    layers.MultiHeadAttention: _split_attention,
}
SPLIT_CLASSES = frozenset(kind.__name__ for kind in _SPLITTERS)
