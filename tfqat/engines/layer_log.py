"""What the `Layers:` message of a TensorRT build log says: each kernel, its data types, and the ONNX nodes that it computes.

The message has one line for each kernel (recorded from TensorRT for RTX 1.7.1, `profiling_verbosity = DETAILED`):

    Name: stem_myl0_2, LayerType: correlation, Inputs: [ {...}], Constants: [ {...}, ...], Outputs: [ {...}],
    TacticName: ..., StreamId: 0, Metadata: [ONNX Layer: stem][ONNX Layer: image/DQ][ONNX Layer: stem/kernel/DQ]

with `{ Name: ..., Dimensions: [-1,4,28,28], ..., Datatype: Int8, Format: ... }` for each tensor. An ONNX convolution is named by
several lines: the kernel that multiplies, whose name starts with the node's, and pointwise kernels before and after it, called
`__myl_<operations>`, that pad its input or add its bias.

Three forms of the multiplying kernel:

1. `stem`, of type correlation, gemm or deconv: the weights are a constant, or an input if another kernel dequantizes them.
   Products on a shared input are merged (`v+k+q`).
2. `__myl_CastMulCastCastMulFc`, of type runtime_fusion: operations in the order that they run. A Cast before the product means
   that int8 codes are turned into floats first, so that the product is not Int8 x Int8 whatever the kernel reads.
3. `_gemm_mha_v2`: a whole attention block; its inputs are q, k, a mask or bias if there is one, and v.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tfqat.engines.graph import ProductNode
from tfqat.engines.report import INT8, KernelPrecision

MARK = "Layers:"

_KERNEL = re.compile(
    r"^\s*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<inputs>.*?)(?:, Constants: (?P<constants>.*?))?"
    r", Outputs: (?P<outputs>.*?), TacticName: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_FUSED = re.compile(r"^__myl_(?P<operations>[A-Za-z0-9]+?)_myl\d")
_FUSED_PRODUCTS = frozenset({"Fc", "Gemm", "Conv", "Corr", "Deco", "Dot", "Bmm", "Matm"})


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input, constant or output of a kernel. A dynamic dimension is -1."""

    dims: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One line of the message."""

    name: str
    layer_type: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_nodes: tuple[str, ...]

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of a `__myl_` kernel in the order that they run, abbreviated as the log does; empty for any other."""
        fused = _FUSED.match(self.name)
        return tuple(re.findall(r"[A-Z][a-z0-9]*", fused["operations"])) if fused else ()

    @property
    def multiplies(self) -> bool:
        """Whether this is a convolution or a matrix product, not the pointwise work around one."""
        return bool(_FUSED_PRODUCTS.intersection(self.operations)) or not self.name.startswith("__my")

    @property
    def operands(self) -> tuple[str, ...]:
        """The data types of the data and of the weights; of all inputs if no constant can be the weights (forms 1 and 3)."""
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


def parse_kernels(message: str) -> tuple[Kernel, ...]:
    """The kernels of a `Layers:` message, in its order; lines of any other form are passed over."""
    matches = (_KERNEL.match(line) for line in message.splitlines())
    return tuple(_kernel(match) for match in matches if match)


def kernel_precisions(message: str, nodes: Iterable[ProductNode]) -> tuple[KernelPrecision, ...]:
    """For each node the precision of the kernel that computes it, in the order of `nodes`.

    A node that no multiplying kernel names is in the result too, with `int8=False` and an empty `kernel`. Of several nodes with
    one name (the two convolutions of a separable one) the first gets the first kernel of that name, and so on.
    """
    kernels = [kernel for kernel in parse_kernels(message) if kernel.multiplies]
    seen: Counter[str] = Counter()
    result = []
    for node in nodes:
        found = [kernel for kernel in kernels if node.name in kernel.onnx_nodes]
        result.append(_precision(node, found[min(seen[node.name], len(found) - 1)] if found else None))
        seen[node.name] += 1
    return tuple(result)


def _precision(node: ProductNode, kernel: Kernel | None) -> KernelPrecision:
    if kernel is None:
        return KernelPrecision(keras_layer=node.name, op=node.op, inputs=(), outputs=(), int8=False, kernel="")
    return KernelPrecision(
        keras_layer=node.name,
        op=node.op,
        inputs=kernel.operands,
        outputs=tuple(tensor.dtype for tensor in kernel.outputs),
        int8=kernel.int8,
        kernel=f"{kernel.name} ({kernel.layer_type})",
    )


def _kernel(match: re.Match[str]) -> Kernel:
    return Kernel(
        name=match["name"],
        layer_type=match["type"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"] or ""),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=tuple(_ONNX_NODE.findall(match["metadata"])),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    found = _TENSOR.finditer(text)
    return tuple(Tensor(dims=tuple(int(dim) for dim in match["dims"].split(",") if dim), dtype=match["dtype"]) for match in found)


def _is_matrix(constant: Tensor) -> bool:
    """Whether a constant has two dimensions larger than 1: weights do, a scale or a bias per channel does not."""
    return sum(dim != 1 for dim in constant.dims) > 1
