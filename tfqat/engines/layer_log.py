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

from tfqat.engines.kernels import Kernel, Tensor

MARK = "Layers:"

_KERNEL = re.compile(
    r"^\s*Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<inputs>.*?)(?:, Constants: (?P<constants>.*?))?"
    r", Outputs: (?P<outputs>.*?), TacticName: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def parse_kernels(message: str) -> tuple[Kernel, ...]:
    """The kernels of a `Layers:` message, in its order; lines of any other form are passed over."""
    matches = (_KERNEL.match(line) for line in message.splitlines())
    return tuple(_kernel(match) for match in matches if match)


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The names of the ONNX nodes in a kernel's metadata, `[ONNX Layer: a][ONNX Layer: b]`."""
    return tuple(_ONNX_NODE.findall(metadata))


def _kernel(match: re.Match[str]) -> Kernel:
    return Kernel(
        name=match["name"],
        layer_type=match["type"],
        inputs=_tensors(match["inputs"]),
        constants=_tensors(match["constants"] or ""),
        outputs=_tensors(match["outputs"]),
        onnx_nodes=onnx_nodes(match["metadata"]),
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name=match["name"], dims=tuple(int(dim) for dim in match["dims"].split(",") if dim), dtype=match["dtype"])
        for match in _TENSOR.finditer(text)
    )
