"""Sizes and engines of the default graph of a network, beside those of ONNX Runtime's `quantize_static`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy_networks import Network
from figures import Figure
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime_target import static_graph

import tfqat
from tfqat.errors import EngineError
from tfqat.export.onnx import export_float_onnx
from tfqat.quantize.apply import placement_of

TARGETS = ("SM80", "SM86", "SM89", "SM120")
COUNTED = ("ResNet50", "MobileNetV2")
"""The networks that have no more kernels than quantize_static's graph."""
SIZE = {"ResNet50": 0.27}
PIXELS, CLASSES, BATCH = 224, 1000, (1, 8, 32)


def engines(network: Network, targets: list[str], folder: Path) -> Iterator[Figure]:
    """The size of the graph, and the precision and kernels of its engines."""
    model = network.build(PIXELS, CLASSES) if network.is_application else network.build()
    images = network.calibration(model)
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [images], batches=1)
    path, plain = folder / f"{network.name}.onnx", folder / f"{network.name}_float.onnx"
    share = tfqat.export_onnx(qmodel, path).size_bytes / export_float_onnx(tfqat.load_model(model), plain)
    limit = SIZE.get(network.name)
    yield Figure(
        name=f"{network.name}: int8 file / float file",
        value=f"{share:.4f}",
        limit=f"at most {limit}" if limit else "",
        kept=limit is None or share <= limit,
    )
    sources = [point.source for point in placement_of(qmodel).weights]
    kernels = {target: built(path, target, strict=True) for target in targets}
    for target, found in kernels.items():
        yield _int8(f"{network.name}: {target}", found, sources)
    if network.name in COUNTED:
        yield from _counted(network.name, plain, images, kernels)


def built(path: Path, target: str, *, strict: bool) -> Any:
    """The report of one engine, or what the build said."""
    try:
        return tfqat.compile_engine(
            path, path.with_suffix(".plan"), "tensorrt_rtx", compute_capabilities=(target,), batch=BATCH, strict=strict
        )
    except EngineError as error:
        return error


def _int8(name: str, found: Any, sources: list[str]) -> Figure:
    """The share of the MACs of products that the placement quantized that runs Int8 x Int8; and of all."""
    if isinstance(found, EngineError):
        return Figure(name=name, value="-", limit=str(found), kept=False)
    (target,) = found.targets
    planned = [layer for layer in target.layers if layer.keras_layer in set(sources) or layer.quantized]
    macs = sum(layer.macs or 0 for layer in planned)
    share = sum(layer.macs or 0 for layer in planned if layer.int8) / macs
    missing = [layer for _, layer in found.float_layers(sources)]
    text = f"Int8 {share:.2%} of the planned MACs, {target.int8_macs:.2%} of all; {target.kernels} kernels, {target.reformats} reformats"
    limit = f"not Int8: {', '.join(missing)}" if missing else "100% of the planned"
    return Figure(name=name, value=text, limit=limit, kept=share == 1 and not missing)


def _counted(name: str, plain: Path, images: Any, ours: dict[str, Any]) -> Iterator[Figure]:
    """Kernels beside those of quantize_static's graph: symmetric int8, per channel; with int32 biases as it writes them, and without."""
    prepared = plain.with_name(f"{name}_prepared.onnx")
    quant_pre_process(str(plain), str(prepared))
    for title, more in (("quantize_static", {}), ("quantize_static, float biases", {"QuantizeBias": False})):
        path = plain.with_name(f"{name} {title}.onnx")
        static_graph(prepared, path, images, kind=QuantType.QInt8, symmetric=True, **more)
        for target, report in ours.items():
            yield _beside(f"{name}: {target}, kernels beside {title}", report, built(path, target, strict=False))


def _beside(name: str, ours: Any, theirs: Any) -> Figure:
    if isinstance(ours, EngineError):
        return Figure(name=name, value="-", limit="no engine of ours", kept=False)
    count = ours.targets[0].kernels
    if isinstance(theirs, EngineError):
        return Figure(name=name, value=f"{count} beside none", limit=f"theirs does not compile: {' '.join(str(theirs).split())}", kept=True)
    (target,) = theirs.targets
    return Figure(
        name=name,
        value=f"{count} beside {target.kernels}, whose MACs are {target.int8_macs:.2%} Int8",
        limit=f"at most {target.kernels}",
        kept=count <= target.kernels,
    )
