"""One module for each tool, with the object `PEER`; and where each of them runs.

`quantize`, `finetune` and `export` of a module are what a user of that tool writes, and counted as such; `PEER` fits them to the benchmark.
A tool that cannot live beside tfqat's versions of TensorFlow or ONNX gets an environment of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a peer runs: `requirements` make an environment of its own, with the first of `pythons` that is there; none: this one."""

    module: str
    title: str
    requirements: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ("python3",)


FLOAT = Place(module="plain", title="float")
TFQAT = Place(module="ours", title="tfqat")
TFMOT = Place(module="tfmot", title="TFMOT")
ONNXRUNTIME = Place(module="quantize_static", title="ONNX Runtime")
MCT = Place(
    module="mct",
    title="Sony MCT",
    requirements=("tensorflow-cpu==2.15.*", "model-compression-toolkit==2.6.*", "tf2onnx==1.17.*", "onnx<1.17", "setuptools<80"),
    pythons=("python3.11", "python3.10"),
)
MODELOPT = Place(
    module="modelopt",
    title="Model Optimizer",
    # The extra [onnx] wants onnxruntime-gpu and cupy, for NVIDIA's GPUs; these are its other parts. torch is imported, not used.
    requirements=(
        *("torch==2.13.0", "onnx==1.21.*", "onnxruntime==1.24.*", "onnxconverter-common==1.16.*", "onnx-graphsurgeon>=0.6.1"),
        *("onnxslim>=0.1.76", "onnxscript", "polygraphy>=0.53.4", "cppimport", "lief", "ml_dtypes", "ninja", "nvidia-ml-py", "omegaconf"),
        *("packaging", "pulp<4", "pydantic>=2", "PyYAML", "regex", "rich", "safetensors", "scipy", "setuptools>=80", "tqdm"),
    ),
    without_dependencies=("nvidia-modelopt==0.47.*",),
    pythons=("python3.11", "python3.12"),
)
PEERS = {place.title: place for place in (TFQAT, TFMOT, ONNXRUNTIME, MCT, MODELOPT)}
