"""What the lint rules see of an ONNX file: which values are constant, which come from Q/DQ, and who reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

Q, DQ = "QuantizeLinear", "DequantizeLinear"
PER_CHANNEL_OPSET = 13
PRODUCTS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = (
    *("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "ThresholdedRelu"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mish", "Softplus"),
)
# TensorRT moves Q/DQ past these: a convolution that reads DQ through one of them is still Int8 x Int8. Built with TensorRT for RTX 1.7.1,
# one graph for each; Resize, AveragePool, Relu and Add are not among them. Concat only with equal scales.
COMMUTING = (
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Dropout", "MaxPool", "GlobalMaxPool"),
    *("Pad", "Slice", "Split", "Gather", "Concat", "DepthToSpace", "SpaceToDepth"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What TensorRT would not fuse or would run in float (`finding`), or what may be done better (`advice`).

    `layer` is the name of an ONNX node, or of a Keras layer where a placement was read.
    """

    layer: str
    rule: str
    message: str
    fix: str
    severity: Literal["finding", "advice"] = "finding"


class QdqGraph:
    """An ONNX graph with what one walk over it tells: constants, and the DequantizeLinear that each value comes from.

    Attributes:
        nodes: every node, those of subgraphs too, in topological order.
        inputs: the inputs of the graph without its initializers.
        opset: the version of ONNX's own operators.
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self.nodes = tuple(graph.all_nodes())
        self.inputs = tuple(value for value in graph.inputs if not value.is_initializer())
        self.opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))
        self._constant: set[ir.Value] = set()
        self._source: dict[ir.Value, ir.Node] = {}
        for node in self.nodes:
            self._walk(node)

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is an initializer, or computed from initializers alone."""
        return value is not None and (value in self._constant or convenience.get_const_tensor(value) is not None)

    def data_inputs(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The inputs that are not constant."""
        return tuple(value for value in node.inputs if value is not None and not self.is_constant(value))

    def dequantizer(self, value: ir.Value | None) -> ir.Node | None:
        """The DequantizeLinear that a value comes from, through operators that Q/DQ commute with; None if the value is float."""
        return self._source.get(value) if value is not None else None

    def is_weight_quantizer(self, node: ir.Node) -> bool:
        """Whether a Q or DQ node works on a constant."""
        return self.is_constant(node.inputs[0])

    def weight(self, node: ir.Node) -> tuple[ir.Node, tuple[ir.Node, ...]] | None:
        """The DequantizeLinear of the second operand of a product, if that is a constant, and the nodes between them, first one first."""
        value, between = operand(node, 1), list[ir.Node]()
        while self.is_constant(value) and value is not None and (maker := value.producer()) is not None:
            if maker.op_type == DQ:
                return maker, tuple(reversed(between))
            between.append(maker)
            value = maker.inputs[0] if maker.inputs else None
        return None

    def is_quantized(self, node: ir.Node, index: int) -> bool:
        """Whether operand `index` of a product has Q/DQ, whatever stands between a weight's DequantizeLinear and the product."""
        return self.dequantizer(operand(node, index)) is not None or (index == 1 and self.weight(node) is not None)

    def is_int8(self, node: ir.Node) -> bool:
        """Whether both operands of a Conv, Gemm or MatMul are quantized."""
        return node.op_type in PRODUCTS and self.is_quantized(node, 0) and self.is_quantized(node, 1)

    @cached_property
    def has_int8_products(self) -> bool:
        """Whether any Conv, Gemm or MatMul has both operands quantized."""
        return any(self.is_int8(node) for node in self.nodes)

    def is_read_by_q(self, value: ir.Value) -> bool:
        """Whether all that reads a value quantizes it, behind operators that Q/DQ commute with or at once."""
        found = readers(value)
        return bool(found) and not value.is_graph_output() and all(self._leads_to_q(node) for node in found)

    def weight_shape(self, node: ir.Node) -> tuple[int, ...] | None:
        """The shape of the constant second operand of a product, as the product reads it; None if it is not known."""
        value = operand(node, 1)
        if not self.is_constant(value) or value is None:
            return None
        found = self.weight(node)
        stored = value if found is None else weight_constant(found[0]) if not found[1] else None
        tensor = convenience.get_const_tensor(stored) if stored is not None else None
        shape = tensor.shape if tensor is not None else value.shape
        sizes = tuple(size for size in shape if isinstance(size, int)) if shape is not None else ()
        return sizes if shape is not None and sizes and len(sizes) == len(shape) else None

    def _leads_to_q(self, node: ir.Node) -> bool:
        return node.op_type == Q or (node.op_type in (*COMMUTING, "Resize") and all(self.is_read_by_q(value) for value in node.outputs))

    def _walk(self, node: ir.Node) -> None:
        data = self.data_inputs(node)
        if not data and any(value is not None for value in node.inputs):
            self._constant.update(node.outputs)
        if node.op_type == DQ:
            self._source[node.outputs[0]] = node
        elif node.op_type in COMMUTING:
            # Of the inputs of the others, only the first holds data: the shape of a Reshape may be computed, and is not quantized.
            sources = [self.dequantizer(value) for value in (node.inputs if node.op_type == "Concat" else node.inputs[:1])]
            first = sources[0] if sources else None
            if first is not None and all(source is not None and same_scale(first, source) for source in sources):
                self._source.update(dict.fromkeys(node.outputs, first))


def finding_at(node: ir.Node, rule: str, message: str, fix: str, *, severity: Literal["finding", "advice"] = "finding") -> Finding:
    """A finding about a node."""
    return Finding(layer=label(node), rule=rule, message=message, fix=fix, severity=severity)


def label(node: ir.Node) -> str:
    """The node's name; TensorRT's parser calls a node without one `node_of_<its first output>`."""
    return str(node.name or f"node_of_{node.outputs[0].name}")


def array(value: ir.Value | None) -> np.ndarray | None:
    """The values of a constant; None for anything else."""
    tensor = convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input number `index` of a node; None if the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None


def weight_constant(dequantize: ir.Node) -> ir.Value | None:
    """What a weight's DequantizeLinear starts from: int8 codes, or the float weight in front of its QuantizeLinear."""
    codes = dequantize.inputs[0]
    maker = codes.producer() if codes is not None else None
    return maker.inputs[0] if maker is not None and maker.op_type == Q else codes


def maker_of(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a value; None for an input or a constant of the graph."""
    return value.producer() if value is not None else None


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """Every node that reads the numbers of a value, once for each input that does; Shape reads none."""
    return tuple(use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size"))


def reads_alone(value: ir.Value) -> bool:
    """Whether exactly one node input reads a value, and the graph does not return it."""
    return len(readers(value)) == 1 and not value.is_graph_output()


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return node.attributes[name].as_int() if name in node.attributes else default


def same_scale(node: ir.Node, other: ir.Node) -> bool:
    """Whether two Q or DQ nodes have one scale: the same value, or equal constants."""
    if node.inputs[1] is other.inputs[1]:
        return True
    first, second = array(node.inputs[1]), array(other.inputs[1])
    return first is not None and second is not None and first.shape == second.shape and np.array_equal(first, second)


def behind_activations(value: ir.Value | None) -> Iterator[ir.Node]:
    """The nodes behind a value, from the last to the first, through activations and BatchNorm that nothing else reads."""
    while value is not None and reads_alone(value) and (node := value.producer()) is not None:
        yield node
        if node.op_type not in (*ACTIVATIONS, "BatchNormalization", "Identity", "Dropout"):
            return
        value = node.inputs[0]
