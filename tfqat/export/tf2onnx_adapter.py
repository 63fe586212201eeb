"""tf_keras model -> ONNX through tf2onnx: the one place that touches its private parts (checked on tf2onnx 1.17.0).

A quantized weight is handed over as an input of the model, so that nothing can fold it, merge it with another or multiply it.
An activation quantizer is handed over as a `FakeQuantWithMinMaxArgs` op: it carries its range as attributes, no TensorFlow optimizer
touches it, and its own handler turns it into QuantizeLinear + DequantizeLinear named after the QPoint. (tf2onnx's conversion of
QuantizeAndDequantize gives those nodes names of its own, so that they could not be told apart later.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import tensorflow as tf
import tf2onnx
import tf_keras
from tf2onnx import optimizer as tf2onnx_optimizers

from tfqat import numerics
from tfqat.errors import ExportError
from tfqat.export.edit import add_initializer
from tfqat.placement.plan import QPoint

MIN_OPSET, MAX_OPSET = 13, 23
LAST_OPSET = 17
"""The last one that is taken from tf2onnx (1.17): in 18, its own last, it writes global pooling as a mean behind a Transpose."""

# The first two move or delete Q/DQ; the third makes one of two equal Q/DQ, which then lack the name of one point.
_HARMFUL_OPTIMIZERS = {"q_dq_optimizer", "const_dequantize_optimizer", "merge_duplication"}
_MARKER = "FakeQuantWithMinMaxArgs"


class Marker(tf_keras.layers.Layer):  # type: ignore[misc]
    """Stands for an activation quantizer while tf2onnx converts the graph."""

    def __init__(self, point: QPoint, amax: Any, *, number: int) -> None:
        super().__init__(name=f"tfqat_point_{number}")  # no layer's name contains it, and it contains no other marker's name at a slash
        self.point = point
        self.amax = float(amax)
        # Computed here, because tf2onnx calls the handler while a graph is being built.
        self.scale = numerics.scale_from_amax(amax, point.spec).numpy()

    def call(self, inputs: Any) -> Any:
        """The marker op; its arithmetic is never run."""
        return tf.raw_ops.FakeQuantWithMinMaxArgs(inputs=inputs, min=-self.amax, max=self.amax)


def convert(model: Any, *, opset: int, markers: Sequence[Marker] | None = None) -> ir.Model:
    """Convert a float model, with markers where activations are quantized.

    Args:
        model: a tf_keras model.
        opset: 13 to 23; above LAST_OPSET the graph is in that one.
        markers: the markers in the model; None converts a float model with all of tf2onnx's optimizers.

    Returns:
        The graph as tf2onnx leaves it: weights float, Q/DQ nodes named `<point id>/Q` and `<point id>/DQ`.

    Raises:
        ExportError: the opset is out of range, or a TensorFlow op has no ONNX counterpart.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ExportError(
            f"opset {opset} is out of range: Q/DQ per channel can be exported for {MIN_OPSET} to {MAX_OPSET}; 17 is the default"
        )
    optimizers = dict(tf2onnx_optimizers._get_optimizers())
    if markers is not None:
        optimizers = {name: factory for name, factory in optimizers.items() if name not in _HARMFUL_OPTIMIZERS}
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.name) for tensor in tf.nest.flatten(model.inputs)]
    foreign: list[str] = []
    with quiet_converters(), _inlined_grouped_convolutions(model):
        proto, _ = tf2onnx.convert.from_keras(
            model,
            input_signature=signature,
            opset=min(opset, LAST_OPSET),
            optimizers=optimizers,
            custom_op_handlers={_MARKER: (_quantizer_handler(markers or (), foreign), []), "Erfc": (_complementary_error_function, [])},
        )
    if foreign:
        raise ExportError(
            f"TensorFlow op {foreign[0]!r} ({_MARKER}) belongs to the model itself, not to tfqat; remove fake quantization from the model"
        )
    _check_no_tensorflow_ops(proto)
    converted = ir.from_proto(proto)
    _squeeze_outputs(converted.graph, model.outputs)
    return converted


@contextmanager
def _inlined_grouped_convolutions(model: Any) -> Iterator[None]:
    """Let grouped convolutions be traced in place: tf_keras compiles them as functions of their own, which tf2onnx cannot convert."""
    layers = [getattr(layer, "inner", layer) for layer in model.layers]  # the layer inside a FedWeight
    grouped = [layer for layer in layers if getattr(layer, "groups", 1) > 1 and hasattr(layer, "_jit_compiled_convolution_op")]
    for layer in grouped:
        vars(layer)["_jit_compiled_convolution_op"] = layer.convolution_op
    try:
        yield
    finally:
        for layer in grouped:
            del vars(layer)["_jit_compiled_convolution_op"]


def _quantizer_handler(markers: Sequence[Marker], foreign: list[str]) -> Any:
    """The handler of the marker op; the names of those that are not ours go to `foreign`, as tf2onnx swallows exceptions."""

    def handler(context: Any, node: Any, name: str, args: Any) -> None:
        marker = next((marker for marker in markers if f"/{marker.name}/" in f"/{name}/"), None)
        if marker is None:
            foreign.append(name)
            return
        point, scale = marker.point, marker.scale
        inputs, outputs, shape, dtype = (
            list(node.input),
            list(node.output),
            context.get_shape(node.output[0]),
            context.get_dtype(node.output[0]),
        )
        context.remove_node(name)
        constants = [
            context.make_const(f"{point.id}/scale", scale).output[0],
            context.make_const(f"{point.id}/zero_point", np.array(0, np.int8)).output[0],
        ]
        codes = context.make_node(
            "QuantizeLinear", [*inputs, *constants], name=f"{point.id}/Q", shapes=[shape], dtypes=[onnx.TensorProto.INT8]
        )
        context.make_node(
            "DequantizeLinear", [codes.output[0], *constants], outputs=outputs, name=f"{point.id}/DQ", shapes=[shape], dtypes=[dtype]
        )

    return handler


def _complementary_error_function(context: Any, node: Any, name: str, args: Any) -> None:
    """erfc(x) = 1 - erf(x), for the exact GELU; tf2onnx 1.17 knows Erf only."""
    inputs, outputs = list(node.input), list(node.output)
    shape, dtype = context.get_shape(node.output[0]), context.get_dtype(node.output[0])
    context.remove_node(name)
    one = context.make_const(f"{name}/one", np.array(1, np.float32)).output[0]
    erf = context.make_node("Erf", inputs, name=f"{name}/Erf", shapes=[shape], dtypes=[dtype])
    context.make_node("Sub", [one, erf.output[0]], outputs=outputs, name=f"{name}/Sub", shapes=[shape], dtypes=[dtype])


def _squeeze_outputs(graph: ir.Graph, wanted: Sequence[Any]) -> None:
    """Give an output the Squeeze that tf2onnx's reshape_optimizer forgets where a Reshape makes it, as behind one channel of a free size.

        before   Reshape(1, -1, 0, 0, 1) -> output          after   Reshape(1, -1, 0, 0, 1) -> Squeeze(0) -> output

    It happens in some conversions of a model and not in others (1.17.0): the order of the graph's nodes decides.
    """
    for index, tensor in enumerate(wanted):
        value, rank = graph.outputs[index], len(tensor.shape)
        reshape = value.producer()
        if value.shape is None or len(value.shape) <= rank or reshape is None or reshape.op_type != "Reshape":
            continue
        shape = list(value.shape)
        axes = add_initializer(graph, f"{value.name}/axes", np.arange(len(shape) - rank, dtype=np.int64))
        squeeze = ir.node("Squeeze", [value, axes], name="Squeeze")
        graph.append(squeeze)
        graph.outputs[index] = squeeze.outputs[0]
        squeeze.outputs[0].name, squeeze.outputs[0].type = value.name, value.type
        squeeze.outputs[0].shape = ir.Shape(shape[len(shape) - rank :])
        value.name, value.shape = f"{value.name}/reshaped", None


def _check_no_tensorflow_ops(proto: onnx.ModelProto) -> None:
    """tf2onnx logs an op that it cannot convert and leaves it in the graph."""
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"tf2onnx {tf2onnx.__version__} left an operation that ONNX does not have: {str(error).splitlines()[0]}"
        ) from error


class quiet_converters:  # noqa: N801 - used as a function
    """Keeps tf2onnx's and TensorFlow's progress messages and warnings off the terminal; their errors stay.

    One of the warnings is Keras's about a model whose inputs differ in their first axis, as weights and images do.
    """

    _NAMES = ("tf2onnx", "tf2onnx.tfonnx", "tensorflow")

    def __enter__(self) -> None:
        self._levels = {name: logging.getLogger(name).level for name in self._NAMES}
        for name in self._NAMES:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
