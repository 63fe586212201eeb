"""A kernel of an engine: what it reads and writes, the ONNX nodes it computes, and whether it multiplies, moves data, or neither."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tfqat.engines.report import INT8

_FUSED = re.compile(r"^__myl_(?P<operations>[A-Za-z0-9]+?)_myl\d")
_FUSED_PRODUCTS = frozenset({"Fc", "Gemm", "Conv", "Corr", "Deco", "Dot", "Bmm", "Matm"})
_REFORMATS = frozenset({"Cast", "Conc", "Copy", "Move", "Pad", "Repl", "Resh", "Slic", "Tran"})
_NO_KERNELS = frozenset({"shape_call", "NoOp", "Constant", "signal", "wait", "ShapeHostToDevice", "DeviceToShapeHost"})


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input, constant or output of a kernel. A dynamic dimension is -1."""

    dims: tuple[int, ...]
    dtype: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One entry of a build log or of the engine inspector.

    `multiplies_by_type` is what the inspector says of it; None if only the name tells (`__myl_<operations>` is pointwise work).
    """

    name: str
    layer_type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_nodes: tuple[str, ...]
    multiplies_by_type: bool | None = None

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of a `__myl_` kernel in the order that they run, abbreviated as the log does; empty for any other."""
        fused = _FUSED.match(self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", fused["operations"])) if fused else ()

    @property
    def multiplies(self) -> bool:
        """Whether this is a convolution or a matrix product, not the pointwise work around one."""
        if self.multiplies_by_type is not None:
            return self.multiplies_by_type
        return bool(_FUSED_PRODUCTS.intersection(self.operations)) or not self.name.startswith("__my")

    @property
    def role(self) -> Literal["product", "reformat", "pointwise", "none"]:
        """What the kernel does; `none` if nothing is launched for it, as for the shapes that the host computes.

        A reformat changes the layout, the place or the type of a tensor and computes nothing else.
        """
        if self.layer_type in _NO_KERNELS:
            return "none"
        if self.layer_type == "Reformat" or (self.operations and _REFORMATS.issuperset(self.operations)):
            return "reformat"
        return "product" if self.multiplies else "pointwise"

    @property
    def operands(self) -> tuple[str, ...]:
        """The data types of the data and of the weights; of all inputs if no constant can be the weights."""
        if self.name.startswith("_gemm_mha"):  # q, k, a mask if there is one, v
            return tuple(tensor.dtype for tensor in (*self.inputs[:2], *self.inputs[-1:]))
        weights = [constant.dtype for constant in self.constants if constant.dtype == INT8 or _is_matrix(constant)]
        if weights:
            return (*(tensor.dtype for tensor in self.inputs[:1]), weights[0])
        return tuple(tensor.dtype for tensor in self.inputs)

    @property
    def int8(self) -> bool:
        """Whether the product is Int8 x Int8."""
        product = next((i for i, operation in enumerate(self.operations) if operation in _FUSED_PRODUCTS), 0)
        dequantized_first = "Cast" in self.operations[:product]
        return len(self.operands) > 1 and set(self.operands) == {INT8} and not dequantized_first


def _is_matrix(constant: Tensor) -> bool:
    """Whether a constant has two dimensions larger than 1: weights do, a scale or a bias per channel does not."""
    return sum(dim != 1 for dim in constant.dims) > 1
