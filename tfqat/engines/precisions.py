"""Which kernel computes each product of a graph: its precision, what it was fused with, and the kernels that feed and follow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tfqat.engines.graph import ProductNode
from tfqat.engines.kernels import Kernel
from tfqat.engines.report import KernelPrecision


def kernel_precisions(kernels: Sequence[Kernel], nodes: Iterable[ProductNode]) -> tuple[KernelPrecision, ...]:
    """For each node the kernel that computes it, in the order of `nodes`.

    A node that no multiplying kernel names is in the result too, with `int8=False` and an empty `kernel`. Of several nodes with
    one name (the two convolutions of a separable one) the first gets the first kernel of that name, and so on.
    """
    products = [kernel for kernel in kernels if kernel.multiplies]
    seen: Counter[str] = Counter()
    result = []
    for node in nodes:
        found = [kernel for kernel in products if node.name in kernel.onnx_nodes]
        result.append(_precision(node, found[min(seen[node.name], len(found) - 1)] if found else None, kernels))
        seen[node.name] += 1
    return tuple(result)


def int8_share(layers: Iterable[KernelPrecision]) -> float | None:
    """The share of the multiply-accumulates of all products that runs Int8 x Int8; None if a product's number is not known."""
    counted = [(layer.macs, layer.int8) for layer in layers]
    total = sum(macs or 0 for macs, _ in counted)
    if not total or any(macs is None for macs, _ in counted):
        return None
    return sum(macs or 0 for macs, int8 in counted if int8) / total


def _precision(node: ProductNode, kernel: Kernel | None, kernels: Sequence[Kernel]) -> KernelPrecision:
    if kernel is None:
        return KernelPrecision(
            keras_layer=node.name, op=node.op, inputs=(), outputs=(), int8=False, kernel="", quantized=node.quantized, macs=node.macs
        )
    beside = _beside(kernel, kernels)
    return KernelPrecision(
        keras_layer=node.name,
        op=node.op,
        inputs=kernel.operands,
        outputs=tuple(tensor.dtype for tensor in kernel.outputs),
        int8=kernel.int8,
        kernel=f"{kernel.name} ({kernel.layer_type})",
        fused_with=tuple(name for name in dict.fromkeys(kernel.onnx_nodes) if name != node.name),
        reformats=tuple(one.name for one in beside if one.role == "reformat"),
        pointwise=tuple(one.name for one in beside if one.role == "pointwise"),
        quantized=node.quantized,
        macs=node.macs,
    )


def _beside(kernel: Kernel, kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels that make an input of this one or read an output of it, in the order that they run."""
    read = {tensor.name for tensor in kernel.inputs} - {""}
    made = {tensor.name for tensor in kernel.outputs} - {""}
    return [
        one
        for one in kernels
        if read.intersection(tensor.name for tensor in one.outputs) or made.intersection(tensor.name for tensor in one.inputs)
    ]
