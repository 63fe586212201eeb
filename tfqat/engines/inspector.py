"""What TensorRT's engine inspector says, as JSON: the same kernels that the build log of TensorRT for RTX lists as text.

One entry of `Layers` (NVIDIA's documentation of the engine inspector, 8.6 to 11), shortened:

    {"Name": "stem + relu", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
     "Inputs": [{"Name": "a", "Dimensions": [8,16,28,28], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
     "Outputs": [...], "Weights": {"Type": "Int8", "Count": 2304}, "Metadata": "[ONNX Layer: stem]\\u001e[ONNX Layer: relu]"}

Three things differ between versions, and each is read in all of its forms: from 11 on `Datatype` stands beside `Format`; kernels of the
graph compiler have `Constants` where the others have `Weights`; entries without `Metadata` name their nodes in `Name`, joined by ` + `.
Without `profiling_verbosity = DETAILED` an entry is a name alone, which says nothing, and is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tfqat.engines.kernels import Kernel, Tensor
from tfqat.engines.layer_log import onnx_nodes

_TYPES = {
    "FP32": "Float",
    "FLOAT": "Float",
    "FP16": "Half",
    "HALF": "Half",
    "INT8": "Int8",
    "BF16": "BFloat16",
    "FP8": "FP8",
    "INT32": "Int32",
}
_TYPE = re.compile(r"\b(FP32|Float|FP16|Half|INT8|BF16|FP8|INT32)\b", re.IGNORECASE)
_PRODUCTS = ("Convolution", "Deconvolution", "MatrixMultiply", "FullyConnected")
_COMPILED = ("correlation", "gemm", "deconv", "conv")


def parse_inspector(text: str) -> tuple[Kernel, ...]:
    """The kernels of `get_engine_information(LayerInformationFormat.JSON)`; empty if the text is not such JSON."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(_kernel(layer) for layer in layers if isinstance(layer, Mapping))


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    return Kernel(
        name=name,
        layer_type=kind,
        inputs=_tensors(layer, "Inputs"),
        constants=(*_tensors(layer, "Constants"), *_weights(layer)),
        outputs=_tensors(layer, "Outputs"),
        onnx_nodes=onnx_nodes(str(layer.get("Metadata", ""))) or tuple(name.split(" + ")),
        multiplies_by_type=_multiplies(str(layer.get("ParameterType", "")), kind),
    )


def _multiplies(parameters: str, kind: str) -> bool | None:
    """None for kernels of the graph compiler that only their name describes."""
    if parameters:
        return parameters in _PRODUCTS
    return True if kind in _COMPILED else None


def _tensors(layer: Mapping[str, Any], key: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=str(one.get("Name", "")), dims=tuple(one.get("Dimensions", ())), dtype=_dtype(one)) for one in layer.get(key) or ()
    )


def _weights(layer: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The weights as a matrix: how they are laid out is not said, but that they are the second operand is."""
    weights = layer.get("Weights")
    return (Tensor(name="Weights", dims=(-1, -1), dtype=_type(str(weights.get("Type", "")))),) if isinstance(weights, Mapping) else ()


def _dtype(tensor: Mapping[str, Any]) -> str:
    return _type(str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or ""))


def _type(text: str) -> str:
    """`Thirty-two wide channel vectorized row major Int8 format` -> `Int8`; the text itself if it names no type."""
    found = _TYPE.search(text)
    return _TYPES[found[1].upper()] if found else text
