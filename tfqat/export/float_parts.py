"""The passes that choose the types of floats in a graph: weights as floats instead of codes, and a remainder in float16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tfqat.export.edit import add_initializer, constant_of, is_constant, remove_unused


def float_weights(graph: ir.Graph) -> int:
    """Write each quantized weight as the floats that its codes stand for, for tools that want to quantize it themselves.

        before   codes -> DQ -> Conv          after   codes * scale -> Q -> DQ -> Conv

    Requires: quantize_weights. Ensures: Q gives the same codes again, as codes * scale is within a rounding of them. Returns: how many.
    """
    found = [node for node in graph if node.op_type == "DequantizeLinear" and is_constant(node.inputs[0])]
    for node in found:
        codes, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
        axis = node.attributes.get_int("axis", 1)
        wide = scale.reshape([-1 if other == axis else 1 for other in range(codes.ndim)]) if scale.ndim else scale
        name, stored = str(node.name).removesuffix("/DQ"), node.inputs[0]
        assert stored is not None
        quantize = ir.node(
            "QuantizeLinear",
            [stored, node.inputs[1], add_initializer(graph, f"{name}/zero_point", np.zeros(scale.shape, np.int8))],
            attributes={"axis": axis} if scale.ndim else {},
            name=f"{name}/Q",
        )
        quantize.outputs[0].name, quantize.outputs[0].type = f"{name}/Q.out", ir.TensorType(ir.DataType.INT8)
        quantize.outputs[0].shape = ir.Shape(codes.shape)
        graph.insert_before(node, quantize)
        node.replace_input_with(0, quantize.outputs[0])
        del graph.initializers[str(stored.name)]
        quantize.replace_input_with(0, add_initializer(graph, str(stored.name), (codes * wide).astype(np.float32)))
    return len(found)


def in_float16(model: ir.Model) -> ir.Model:
    """The model with all that is not quantized in float16: constants, values, operations; its inputs, outputs and Q/DQ stay as they are.

        before   DQ -> Conv -> Q          after   DQ -> Cast -> Conv(float16) -> Cast -> Q

    Scales stay float32, so the grid stays the one that was trained. By ONNX Runtime's converter.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    _left_out_resize_inputs(model.graph)
    block = [*DEFAULT_OP_BLOCK_LIST, "QuantizeLinear", "DequantizeLinear"]
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # the converter infers them, and mistakes some that are there already
    converted = ir.from_proto(convert_float_to_float16(proto, keep_io_types=True, op_block_list=block))
    converted.graph.sort()
    return converted


def _left_out_resize_inputs(graph: ir.Graph) -> None:
    """Leave out the empty region and scales of each Resize that is given sizes.

        before   Resize(x, [], [], sizes)          after   Resize(x, , , sizes)

    The same by ONNX's specification; but behind a Cast, as the converter (onnxruntime 1.32) puts it, an empty constant counts as given.
    """
    for node in graph:
        if node.op_type == "Resize" and len(node.inputs) == 4 and node.inputs[3] is not None:
            for index in (1, 2):
                if is_constant(node.inputs[index]) and not constant_of(node.inputs[index]).size:
                    node.replace_input_with(index, None)
    remove_unused(graph)
