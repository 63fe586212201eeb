"""The rules that an exported Q/DQ graph must obey so that TensorRT runs it in INT8, each checked on the file itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.export.edit import MATRIX_OPS, weight_codes
from tfqat.export.unsigned import saturating_products, scale_of_zeros
from tfqat.models.graph import CALL
from tfqat.proof.expected import Expected, WeightCodes

Q, DQ = "QuantizeLinear", "DequantizeLinear"
# What may stand between a DequantizeLinear and the operation that reads it: TensorRT moves these before the DequantizeLinear.
_MOVING = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Pad", "Identity")


@dataclass(frozen=True, kw_only=True)
class StructureCheck:
    """One rule, whether the graph obeys it, and what breaks it if not."""

    rule: str
    passed: bool
    detail: str


def check_structure(model: ir.Model, expected: Expected) -> tuple[StructureCheck, ...]:
    """Check every rule; a rule that fails names the nodes that break it."""
    graph = model.graph
    checks = [(rule, list(check(graph, expected))) for rule, check in _RULES]
    return tuple(StructureCheck(rule=rule, passed=not broken, detail="; ".join(broken[:5])) for rule, broken in checks)


def _only_onnx_operators(graph: ir.Graph, _: Expected) -> Iterable[str]:
    return (f"{node.name} is {node.domain}.{node.op_type}" for node in graph if node.domain not in ("", "ai.onnx"))


def _batch_is_dynamic(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    """Unless it was exported with a fixed one."""
    for value in (*graph.inputs, *graph.outputs):
        size = value.shape[0] if value.shape is not None else 0
        if (size if isinstance(size, int) else None) != expected.form.batch:
            yield f"{value.name} has the shape {value.shape}"


def missing_nodes(graph: ir.Graph, expected: Expected) -> list[str]:
    """The names of Q/DQ nodes that the model has points for and the graph does not hold."""
    return sorted(_wanted_nodes(expected) - {str(node.name) for node in graph if node.op_type in (Q, DQ)})


def _wanted_nodes(expected: Expected) -> set[str]:
    activations = {f"{point}/{kind}" for point in expected.activations for kind in ("Q", "DQ")}
    return activations | {f"{weight.layer}/{weight.weight}/DQ" for weight in expected.weights}


def _points_are_there(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    yield from (f"{name} is missing" for name in missing_nodes(graph, expected))
    found = {str(node.name) for node in graph if node.op_type in (Q, DQ)} - {str(node.name) for _, node in _weight_nodes(graph, expected)}
    found -= _weight_quantizers(graph, expected)
    yield from (f"{name} belongs to no quantization point" for name in sorted(found - _wanted_nodes(expected)))


def _activation_scales_are_scalar(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for node, _ in _activation_nodes(graph, expected):
        if _array(node.inputs[1]).shape != ():
            yield f"{node.name} has a scale of shape {_array(node.inputs[1]).shape}"


def _activation_scales_are_the_models(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for node, scale in _activation_nodes(graph, expected):
        if not np.array_equal(_array(node.inputs[1]).ravel(), scale.ravel()):
            yield f"{node.name} has the scale {_array(node.inputs[1])!r}, the model {scale!r}"


def _scales_are_positive(graph: ir.Graph, _: Expected) -> Iterable[str]:
    return (str(node.name) for node in graph if node.op_type in (Q, DQ) and not np.all(_array(node.inputs[1]) > 0))


def _zero_points_are_the_targets(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    """int8 0; for ONNX Runtime uint8 128 for activations, and 0 for those that hold no negative value."""
    weights = {str(node.name) for _, node in _weight_nodes(graph, expected)} | _weight_quantizers(graph, expected)
    for node in graph:
        if node.op_type in (Q, DQ):
            zero = _array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
            point = str(node.name).rpartition("/")[0]
            wanted = np.int8(0) if str(node.name) in weights else expected.zero_point(point)
            if (zero is not None or wanted.dtype != np.int8) and (zero is None or zero.dtype != wanted.dtype or np.any(zero != wanted)):
                yield f"{node.name} has the zero point {zero}, expected {wanted.dtype} {wanted}"


def _sums_do_not_saturate(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    """Kernels for CPUs without VNNI add two products of uint8 and int8 codes in 16 bits."""
    if expected.form.target == "onnxruntime":
        for name, sums in saturating_products(graph).items():
            yield f"{name}: two products add up to {sums}, more than 32767; plan the model for onnxruntime, with 7-bit weights there"


def _weights_are_int8_constants(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for weight, node in _weight_nodes(graph, expected):
        codes = weight_codes(node)
        if codes is None or codes.dtype != np.int8:
            yield f"{weight.layer}/{weight.weight} is no int8 constant"


def _weight_codes_are_the_models(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    """Equal code for code; a channel may be negated as a whole, which folding a BatchNorm with a negative gamma does."""
    for weight, node in _weight_nodes(graph, expected):
        found, wanted = weight_codes(node), weight.codes.astype(np.int16)
        found = _array(node.inputs[0]) if found is None else found
        if _without_ones(found.shape) == _without_ones(wanted.shape):
            found = found.reshape(wanted.shape)  # a convolution over one axis is written as one over two, of which one has size 1
        if found.shape != wanted.shape:
            yield f"{weight.layer}/{weight.weight} has codes of shape {found.shape}, the model {wanted.shape}"
            continue
        axis = _channel_axis(wanted)
        rows, models = (np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1) for codes in (found.astype(np.int16), wanted))
        # A channel that BatchNorm multiplies by zero has lost its codes, and shows it by its scale.
        scale = _array(node.inputs[1])
        empty = (rows == 0).all(axis=1)
        zeroed = empty & (scale == scale_of_zeros(scale, empty, expected.form.target) if scale.shape == (len(rows),) else False)
        same = (rows == models).all(axis=1) | (rows == -models).all(axis=1) | zeroed
        if not same.all():
            yield f"{weight.layer}/{weight.weight}: {int((~same).sum())} of {len(same)} channels differ"


def _nothing_between_weight_and_operation(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for _, node in _weight_nodes(graph, expected):
        readers = [reader.op_type for reader in _readers(node.outputs[0], expected)]
        if not readers or not set(readers) <= set(MATRIX_OPS):
            yield f"{node.name} is read by {', '.join(readers) or 'nothing'}"


def _weight_scales_on_output_channels(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for weight, node in _weight_nodes(graph, expected):
        scale, wanted = _array(node.inputs[1]), _channel_axis(weight.codes)
        channels = weight.codes.shape[wanted]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        if scale.ndim and (axis != wanted or scale.shape != (channels,)):
            yield f"{node.name} has {scale.shape} scales on axis {axis}, expected {channels} on axis {wanted}"


def _inputs_of_weighted_operations_are_quantized(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for _, node in _weight_nodes(graph, expected):
        for reader in _readers(node.outputs[0], expected):
            source = reader.inputs[0].producer() if reader.inputs[0] is not None else None
            while source is not None and source.op_type in (*_MOVING, *_casts(expected)):
                source = source.inputs[0].producer() if source.inputs[0] is not None else None
            if source is None or source.op_type != DQ:
                yield f"{reader.name} reads a float activation"


def _biases_are_float(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for node in graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        if bias is not None and _array(bias).dtype != expected.form.remainder:
            yield f"{node.name} has a bias of type {_array(bias).dtype}"


def _batch_norms_are_folded(graph: ir.Graph, expected: Expected) -> Iterable[str]:
    for node in graph:
        kept = (node.name or "").startswith(tuple(f"{layer}/" for layer in expected.kept_batch_norms))
        if expected.fold_batchnorm and node.op_type == "BatchNormalization" and not kept and not _fold_obstacle(node):
            yield f"{node.name} could be folded into the convolution before it"


_RULES: tuple[tuple[str, Callable[[ir.Graph, Expected], Iterable[str]]], ...] = (
    ("only operators of ONNX, none of TensorFlow", _only_onnx_operators),
    ("the batch size is dynamic", _batch_is_dynamic),
    ("the Q/DQ nodes are those of the placement, by name", _points_are_there),
    ("activation scales are scalars", _activation_scales_are_scalar),
    ("activation scales are the model's, to the last bit", _activation_scales_are_the_models),
    ("scales are positive", _scales_are_positive),
    ("zero points are those of the target: int8 0, or for ONNX Runtime uint8 128 and 0", _zero_points_are_the_targets),
    ("16-bit sums of two products do not saturate", _sums_do_not_saturate),
    ("weights are constants of int8 codes", _weights_are_int8_constants),
    ("weight codes are the model's", _weight_codes_are_the_models),
    ("nothing stands between a weight's DequantizeLinear and its operation", _nothing_between_weight_and_operation),
    ("weight scales go along the output channels", _weight_scales_on_output_channels),
    ("an operation with a quantized weight reads a quantized activation", _inputs_of_weighted_operations_are_quantized),
    ("biases are float, of the type of what is not quantized", _biases_are_float),
    ("BatchNorm is folded wherever that is exact", _batch_norms_are_folded),
)


def _activation_nodes(graph: ir.Graph, expected: Expected) -> list[tuple[ir.Node, np.ndarray]]:
    """The Q and the DQ node of each activation point that is there, with the model's scale."""
    found = [(node, expected.activations.get((node.name or "").rpartition("/")[0])) for node in graph if node.op_type in (Q, DQ)]
    return [(node, scale) for node, scale in found if scale is not None]


def _weight_nodes(graph: ir.Graph, expected: Expected) -> list[tuple[WeightCodes, ir.Node]]:
    """The DQ nodes of each weight: one, or one for each layout that the calls of a shared layer read it in (`conv/kernel@2/DQ`)."""
    weights = {f"{weight.layer}/{weight.weight}": weight for weight in expected.weights}
    found = [(weights.get(re.sub(rf"({CALL}\d+)?/DQ$", "", node.name or "")), node) for node in graph if node.op_type == DQ]
    return [(weight, node) for weight, node in found if weight is not None]


def _weight_quantizers(graph: ir.Graph, expected: Expected) -> set[str]:
    """The Q nodes of weights that are written as floats."""
    makers = [node.inputs[0].producer() for _, node in _weight_nodes(graph, expected) if node.inputs[0] is not None]
    return {str(maker.name) for maker in makers if maker is not None and maker.op_type == Q}


def _casts(expected: Expected) -> tuple[str, ...]:
    """What may stand behind a DequantizeLinear too where the rest is in float16: its output is float32."""
    return ("Cast",) if expected.form.remainder == "float16" else ()


def _readers(value: ir.Value, expected: Expected) -> list[ir.Node]:
    """What reads a value, behind casts."""
    nodes = [use.node for use in value.uses()]
    behind = [reader for node in nodes if node.op_type in _casts(expected) for reader in _readers(node.outputs[0], expected)]
    return [*(node for node in nodes if node.op_type not in _casts(expected)), *behind]


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _channel_axis(codes: np.ndarray) -> int:
    """The axis of the output channels: the first of a convolution's weight, the last of a matrix."""
    return 0 if codes.ndim > 2 else 1


def _array(value: ir.Value | None) -> np.ndarray:
    tensor = convenience.get_const_tensor(value) if value is not None else None
    return np.asarray(tensor.numpy()) if tensor is not None else np.array(np.nan, np.float32)


def _fold_obstacle(norm: ir.Node) -> str:
    """Why a BatchNormalization cannot be folded; empty if it can."""
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv":
        return "no convolution right before it"
    dequantize = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return f"the weight of {conv.name} is not quantized"
    if len(list(conv.outputs[0].uses())) != 1 or conv.outputs[0].is_graph_output():
        return f"the output of {conv.name} is read elsewhere too"
    return ""
