"""Every option of the exporter on seven networks, and their engines beside those of `quantize_static`: `python benchmarks/deploy.py`.

Parity: each option by itself, and all together, exported and verified; local codes, end to end beside the noise floor, and ONNX Runtime's
fused kernels where the graph is for them. Each file is also run as it is, literally and by a default session. Sizes: the file over that
of the float model. Engines: by TensorRT for RTX, strict, for every target; kernels beside those of quantize_static's graph.
Exit code 1 if a figure is out of its limit.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import onnx
import tensorflow as tf
from deploy_engines import TARGETS, engines
from deploy_networks import NETWORKS, Network, freed
from figures import Figure, show

import tfqat
from tfqat.engines import onnxruntime as runtime
from tfqat.errors import TfqatError, add_note
from tfqat.form import Form


@dataclass(frozen=True, kw_only=True)
class Option:
    """What differs from the default: arguments of `export_onnx` and of its `Form`; the rest of the form is the network's own."""

    arguments: dict[str, Any] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)
    size: bool = False
    pixels: bool = False
    outputs: bool = False

    def form_of(self, network: Network, model: Any) -> Form:
        """The form of the network's graph."""
        form = dict(self.form)
        if self.is_freed(network):
            form["size"] = tuple(model.inputs[0].shape[1:-1])
        if self.pixels:
            form["pixels"] = network.pixels
        if self.outputs:
            form["outputs"] = tuple(f"renamed_{number}" for number in range(len(model.outputs)))
        return Form(**form)

    def is_freed(self, network: Network) -> bool:
        """Whether the graph is that of the model with free sizes, fixed again."""
        return self.size and network.free


ALL: dict[str, Any] = {"remainder": "float16", "weights": "float", "batch": 8, "layout": "nchw"}
ALL_ARGUMENTS = {"opset": 23, "fold_batchnorm": False, "external_data": True}
OPTIONS = {
    "default": Option(),
    "opset 13": Option(arguments={"opset": 13}),
    "opset 23": Option(arguments={"opset": 23}),
    "onnxruntime": Option(form={"target": "onnxruntime"}),
    "float16": Option(form={"remainder": "float16"}),
    "float weights": Option(form={"weights": "float"}),
    "external data": Option(arguments={"external_data": True}),
    "batch": Option(form={"batch": 8}),
    "size": Option(size=True),
    "nchw": Option(form={"layout": "nchw"}),
    "pixels": Option(pixels=True),
    "outputs": Option(outputs=True),
    "BatchNorm kept": Option(arguments={"fold_batchnorm": False}),
    "all": Option(arguments=ALL_ARGUMENTS, form=ALL, size=True, pixels=True, outputs=True),
    "all, onnxruntime": Option(arguments=ALL_ARGUMENTS, form={**ALL, "target": "onnxruntime"}, size=True, pixels=True, outputs=True),
}
PARTS = ("parity", "engines")


def main() -> int:
    """Measure and judge."""
    given = _parser().parse_args()
    tf.get_logger().setLevel("ERROR")  # every verification traces its own functions
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        for network in (NETWORKS[name] for name in given.models):
            if given.skip != "parity":
                kept &= show(parity(network, given.options, Path(folder)))
            gc.collect()
            if given.skip != "engines":
                kept &= show(engines(network, given.targets, Path(folder)))
    return 0 if kept else 1


def parity(network: Network, options: list[str], folder: Path) -> Iterator[Figure]:
    """One figure for each option; one that the network does not have is left out."""
    model = network.build()
    calibration, images = network.calibration(model), network.validation(model)
    quantized: dict[tuple[str, bool], Any] = {}
    for name, option in ((name, OPTIONS[name]) for name in options):
        if name == "size" and not network.free:
            continue
        form = option.form_of(network, model)
        key = (form.target, option.is_freed(network))
        if key not in quantized:
            source = freed(model) if option.is_freed(network) else model
            quantized[key] = tfqat.quantize_model(source, {"target": form.target})
            tfqat.calibrate(quantized[key], [calibration], batches=1)
        place = folder / f"{network.name} {name}"
        place.mkdir()
        yield judged(f"{network.name}: {name}", quantized[key], place / "model.onnx", option, form, images)


def judged(name: str, qmodel: Any, path: Path, option: Option, form: Form, images: np.ndarray) -> Figure:
    """Export, run as it is, and verify; what fails stands in the place of the limit."""
    try:
        report = tfqat.export_onnx(qmodel, path, form=form, **option.arguments)
        wrong = [f"saturates: {', '.join(report.saturating)}"] if report.saturating else []
        wrong += not_as_asked(path, form, option, images)
        proven = tfqat.verify(qmodel, path, [images], examples=len(images))
    except Exception as error:  # one line in the table; the other options still count
        if not isinstance(error, TfqatError):
            add_note(error, f"in {name}")
        return Figure(name=name, value="-", limit=f"{type(error).__name__}: {' '.join(str(error).split())[:600]}", kept=False)
    wrong += proven.failures
    if form.remainder == "float32" and (proven.local.equal < 0.9999 or proven.local.max_difference > 1):
        wrong.append("local: expected 99.99% and 1")
    return Figure(name=name, value=_parity_text(proven), limit="; ".join(wrong), kept=not wrong)


def not_as_asked(path: Path, form: Form, option: Option, images: np.ndarray) -> Iterator[str]:
    """What is wrong with the file as it is: its opset, its inputs and outputs, its data, what ONNX Runtime says to it."""
    proto = onnx.load(path, load_external_data=False)
    opset = next(one.version for one in proto.opset_import if not one.domain)
    if opset != option.arguments.get("opset", 17):
        yield f"the opset is {opset}"
    if path.with_name("model.onnx.data").is_file() != bool(option.arguments.get("external_data")):
        yield "the data is not where it should be"
    outputs = tuple(value.name for value in proto.graph.output)
    if form.outputs and outputs != form.outputs:
        yield f"the outputs are {outputs}"
    (image,) = proto.graph.input
    fed = form.feed({image.name: images[:11]})[image.name]
    sizes = [one.dim_value for one in image.type.tensor_type.shape.dim]
    if sizes[0] != (form.batch or 0) or (form.size and tuple(sizes[1:]) != fed.shape[1:]):
        yield f"the input has the sizes {sizes}"
    for literal in (True, False):
        found = runtime.run_batches(runtime.session(path, literal=literal), [{image.name: fed}])
        arrays = found if isinstance(found, tuple) else (found,)
        if not all(np.isfinite(array).all() and len(array) == len(fed) and array.dtype == np.float32 for array in arrays):
            yield f"outputs {[(array.dtype, array.shape) for array in arrays]}, literal={literal}"


def _parity_text(report: Any) -> str:
    floor = max(1 - one.equal for one in (report.noise_floor, report.compiled, report.perturbed))
    text = f"local {report.local.equal:.4%}, {report.local.max_difference}; differ {1 - report.end_to_end.equal:.3%}, floor {floor:.3%}"
    return text + (f"; fused {report.fused.equal:.4%}, {report.fused.max_difference}" if report.fused.codes else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--models", nargs="+", metavar="NAME", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--options", nargs="+", metavar="NAME", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--targets", nargs="+", metavar="SM", default=list(TARGETS))
    parser.add_argument("--skip", choices=PARTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
