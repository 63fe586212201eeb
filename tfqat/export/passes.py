"""The passes over the structure of tf2onnx's graph.

Every pass of export changes the graph it is given and says what it changed. `onnx` calls them in their order.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir import convenience

from tfqat.export.edit import permutation_of, remove_unused

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def join_quantizers(graph: ir.Graph) -> int:
    """Put each DequantizeLinear right behind its QuantizeLinear again, where tf2onnx has moved a Transpose in between.

    before   Q -> Transpose -> DQ -> y          after   Q -> DQ -> Transpose -> y

    Requires: nothing. Ensures: a point has one layout. Returns: how many were joined.
    """
    joined = 0
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        first: ir.Node | None = None
        value = node.inputs[0]
        while value is not None and (producer := value.producer()) is not None and producer.op_type in _MOVES and len(value.uses()) == 1:
            first, value = producer, producer.inputs[0]
        source = value.producer() if value is not None else None
        last = node.inputs[0]
        if first is None or last is None or source is None or source.op_type != "QuantizeLinear":
            continue
        convenience.replace_all_uses_with(node.outputs[0], last)
        graph.remove(node)
        graph.insert_before(first, node)
        node.replace_input_with(0, value)
        first.replace_input_with(0, node.outputs[0])
        joined += 1
    return joined


def cancel_transposes(graph: ir.Graph) -> int:
    """Remove pairs of Transpose that undo each other.

        before   x -> Transpose(p) -> Transpose(q) -> y,  p[q] = identity          after   x -> y

    Requires: nothing. Ensures: no such pair is left. Returns: how many second Transposes were removed.
    """
    removed = 0
    for node in list(graph):
        first = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose" or node.outputs[0].is_graph_output():
            continue
        inner, outer = permutation_of(first), permutation_of(node)
        source = first.inputs[0]
        if source is not None and [inner[axis] for axis in outer] == sorted(inner):
            convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)
            removed += 1
    remove_unused(graph)
    return removed


def plain_resizes(graph: ir.Graph) -> int:
    """Write nearest resizing by whole factors in the form that every runtime has.

    before   Resize(tf_half_pixel_for_nn, floor)          after   Resize(asymmetric, floor)

    Both repeat each value `factor` times: floor((i + 0.5) / factor) = floor(i / factor). The first form is deprecated since opset 13, and
    TensorRT does not parse it with `floor`.

    Requires: nothing. Ensures: no such node is left. Returns: how many were changed.
    """
    changed = 0
    for node in graph:
        if node.op_type != "Resize" or node.attributes.get_string("mode", "nearest") != "nearest":
            continue
        scales = convenience.get_const_tensor(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
        if scales is None or not all(float(scale).is_integer() for scale in scales.numpy()):
            continue
        if node.attributes.get_string("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString("coordinate_transformation_mode", "asymmetric")
            changed += 1
    return changed


def padded_average_pools(graph: ir.Graph) -> int:
    """Say that average pooling without padding counts the padding: the same numbers, and TensorRT for RTX runs only this form in INT8.

    before   AveragePool(pads=0)          after   AveragePool(pads=0, count_include_pad=1)

    Requires: nothing. Ensures: the values of the graph stay. Returns: how many were changed. Source: builds with TensorRT for RTX 1.7.1.
    """
    pools = [node for node in graph if node.op_type == "AveragePool" and _pads_nothing(node)]
    for node in pools:
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    return len(pools)


def _pads_nothing(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", ())
    fits = not node.attributes.get_int("ceil_mode", 0)
    return fits and not any(pads) and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
