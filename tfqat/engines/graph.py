"""What an engine build needs to know of an ONNX file: that it is valid, its inputs, its products and which have Q/DQ, its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfqat.engines.macs import multiply_accumulates
from tfqat.engines.profile import GraphInput, Profile
from tfqat.errors import EngineError

PRODUCT_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
METADATA = "tfqat."
"""What the keys of the metadata begin with that tfqat writes into a graph."""


@dataclass(frozen=True, kw_only=True)
class ProductNode:
    """A Conv, ConvTranspose, MatMul or Gemm node; its name is the name of the Keras layer.

    `quantized` says whether both operands come from Q/DQ; `macs` is its number of multiply-accumulates, None until it is counted or
    if the graph does not tell.
    """

    name: str
    op: str
    quantized: bool = False
    macs: int | None = None


@dataclass(frozen=True, kw_only=True)
class SourceGraph:
    """A checked ONNX file. `model` is its ModelProto without the data that is stored in other files."""

    path: Path
    model: Any
    sha256: str
    inputs: tuple[GraphInput, ...]
    products: tuple[ProductNode, ...]
    metadata: Mapping[str, str]

    def counted(self, profile: Profile) -> tuple[ProductNode, ...]:
        """The products with their multiply-accumulates at batch 1 and the optimal sizes of the profile."""
        sizes = {one.name: _sizes(one, profile) for one in self.inputs}
        counts = multiply_accumulates(self.model, sizes, PRODUCT_OPS)
        return tuple(replace(node, macs=macs) for node, macs in zip(self.products, counts, strict=True))


def read_graph(onnx_path: Path) -> SourceGraph:
    """Checks and reads an ONNX file; its products are in the order of the graph.

    Raises:
        EngineError: The file is missing, is not ONNX, or breaks a rule of ONNX.
    """
    model = _load(onnx_path)
    initializers = {initializer.name for initializer in model.graph.initializer}
    return SourceGraph(
        path=onnx_path,
        model=model,
        sha256=hashlib.sha256(onnx_path.read_bytes()).hexdigest(),
        inputs=tuple(_input(value) for value in model.graph.input if value.name not in initializers),
        products=_products(model),
        metadata={entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA)},
    )


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
    except Exception as error:  # besides ValidationError the checker raises what its C++ throws, and inference errors
        raise EngineError(f"{path} is not a valid ONNX model: {_one_line(error)}") from error
    return model


def _products(model: Any) -> tuple[ProductNode, ...]:
    import onnx_ir as ir

    from tfqat.placement.lint_graph import QdqGraph, label

    read = ir.from_proto(model)
    graph = QdqGraph(read)
    return tuple(
        ProductNode(name=label(node), op=node.op_type, quantized=graph.is_quantized(node, 0) and graph.is_quantized(node, 1))
        for node in read.graph
        if node.op_type in PRODUCT_OPS
    )


def _input(value: Any) -> GraphInput:
    dims = value.type.tensor_type.shape.dim
    return GraphInput(name=value.name, dims=tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims))


def _sizes(given: GraphInput, profile: Profile) -> tuple[int, ...]:
    optimal = profile[given.name][1] if given.name in profile else tuple(size or 1 for size in given.dims)
    return tuple(1 if axis == 0 and given.dims[0] is None else size for axis, size in enumerate(optimal))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
