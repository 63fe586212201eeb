"""What an engine build needs to know of an ONNX file: that it is valid, its matrix products, and which inputs have a dynamic batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfqat.errors import EngineError

PRODUCT_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class ProductNode:
    """A Conv, ConvTranspose, MatMul or Gemm node; its name is the name of the Keras layer."""

    name: str
    op: str


def read_products(onnx_path: Path) -> tuple[ProductNode, ...]:
    """Checks an ONNX file and lists its matrix products in the order of the graph.

    Raises:
        EngineError: The file is missing, is not ONNX, breaks a rule of ONNX, or has an input with a dynamic axis other than the first.
    """
    model = _load(onnx_path)
    initializers = {initializer.name for initializer in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in initializers:
            _check_axes(value, onnx_path)
    return tuple(ProductNode(name=_node_name(node), op=node.op_type) for node in model.graph.node if node.op_type in PRODUCT_OPS)


def check_batch(batch: Sequence[int]) -> tuple[int, int, int]:
    """The batch sizes (smallest, optimal, largest) of an optimization profile, or an EngineError if they are not in that order."""
    sizes = tuple(batch) if isinstance(batch, Sequence) else ()
    if len(sizes) != 3 or any(type(size) is not int for size in sizes) or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise EngineError(f"batch must be three whole numbers, 1 <= smallest <= optimal <= largest, for example (1, 8, 32); got {batch!r}")
    return sizes


def _load(path: Path) -> Any:
    """The ModelProto; TensorRT's parser takes any bytes for an empty network and can crash on an invalid node, so ONNX checks first."""
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise EngineError(f"{path} is not a file; expected an ONNX model, such as the model.onnx that `tfqat export` writes")
    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(str(path))
    except DecodeError as error:
        raise EngineError(f"{path} is not an ONNX model: {_one_line(error)}") from error
    except (onnx.checker.ValidationError, OSError) as error:
        raise EngineError(f"{path} is not a valid ONNX model: {_one_line(error)}") from error
    return model


def _check_axes(value: Any, path: Path) -> None:
    dims = value.type.tensor_type.shape.dim
    dynamic = [axis for axis, dim in enumerate(dims) if axis > 0 and dim.dim_value <= 0]
    if dynamic:
        raise EngineError(
            f"{path}: input {value.name!r} has no fixed size on axis {', '.join(map(str, dynamic))}; "
            "an engine is built for a dynamic first axis (the batch) only: export the model with a fixed input shape"
        )


def _node_name(node: Any) -> str:
    """The node's name; TensorRT's parser calls a node without one `node_of_<its first output>`."""
    return str(node.name or f"node_of_{node.output[0]}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
