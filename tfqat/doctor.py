"""What this machine has of what tfqat needs or can use, and how to get the rest. Nothing here starts TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tfqat.engines import onnxruntime, tensorrt, tensorrt_rtx

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)  # the newest that TensorFlow 2.21 has wheels for
LOW_DISK, LOW_MEMORY = 2 * 2**30, 4 * 2**30
"""Bytes: a run with its models, graphs and engines takes about 100 MB for a small model; TensorFlow alone takes about 1 GB of memory."""

_EXTRAS = {
    "ray": ("ray", "sensitivity on a cluster"),
    "tensorboard": ("tensorboard", "curves of ranges and codes in use"),
    "pillow": ("images", "`tfqat infer` on image files"),
}
"""Package -> the extra of tfqat that brings it, and what it is for."""

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of the machine.

    Attributes:
        part: its name.
        state: its version, or what was found.
        level: ok; note, for what works without, or not as well; missing, for what nothing works without.
        advice: what to do; empty where there is nothing to do.
    """

    part: str
    state: str
    level: Literal["ok", "note", "missing"] = "ok"
    advice: str = ""


def examine(folder: Path) -> tuple[Check, ...]:
    """All checks, for runs that are written below `folder`."""
    requirements = _requirements()
    wanted = [*(requirement.name for requirement in requirements), *_EXTRAS]
    installed = {name: version for name in wanted if (version := _version(name))}
    gpu = tensorrt.gpu_name() if tensorrt.gpu_visible() else None
    return (
        check_python(platform.python_version()),
        *check_packages(requirements, installed),
        *check_pair(installed),
        *check_extras(installed),
        *check_backends(gpu, rtx=tensorrt_rtx.is_available(), full=tensorrt.is_available(), runtime=onnxruntime.is_available()),
        check_gpu(gpu, cuda=_version("nvidia-cudnn-cu12") is not None),
        check_vnni(onnxruntime.cpu_has_vnni()),
        check_disk(shutil.disk_usage(folder).free, folder),
        check_memory(_available_memory()),
    )


def check_python(version: str) -> Check:
    """Whether TensorFlow has wheels for this Python."""
    number = tuple(int(part) for part in version.split(".")[:2])
    span = f"{'.'.join(map(str, OLDEST_PYTHON))} to {'.'.join(map(str, NEWEST_PYTHON))}"
    if number < OLDEST_PYTHON:
        return Check(part="python", state=version, level="missing", advice=f"tfqat needs Python {span}")
    if number > NEWEST_PYTHON:
        return Check(part="python", state=version, level="note", advice=f"tfqat is made for Python {span}: TensorFlow may have no wheel")
    return Check(part="python", state=version)


def check_packages(requirements: Iterable[Requirement], installed: Mapping[str, str]) -> tuple[Check, ...]:
    """Whether each package that tfqat requires is there, in a version that it takes."""
    checks = []
    for requirement in requirements:
        name, version = requirement.name, installed.get(requirement.name)
        install = f"pip install '{name}{requirement.specifier}'"
        if version is None:
            checks.append(Check(part=name, state="not installed", level="missing", advice=install))
        elif not requirement.specifier.contains(version, prereleases=True):
            checks.append(Check(part=name, state=version, level="missing", advice=f"takes {requirement.specifier}: {install}"))
        else:
            checks.append(Check(part=name, state=version))
    return tuple(checks)


def check_pair(installed: Mapping[str, str]) -> tuple[Check, ...]:
    """Whether tf-keras is that of this TensorFlow: their minor versions go together."""
    minor = {name: installed[name].split(".")[:2] for name in ("tensorflow", "tf-keras") if name in installed}
    if len(minor) < 2 or minor["tensorflow"] == minor["tf-keras"]:
        return ()
    wanted = ".".join(minor["tensorflow"])
    state = f"tensorflow {installed['tensorflow']}, tf-keras {installed['tf-keras']}"
    return (
        Check(part="tf-keras for tensorflow", state=state, level="missing", advice=f"they go together: pip install 'tf-keras=={wanted}.*'"),
    )


def check_extras(installed: Mapping[str, str]) -> tuple[Check, ...]:
    """What is there of the packages that some commands can use."""
    return tuple(
        Check(part=name, state=installed[name])
        if name in installed
        else Check(part=name, state="not installed", level="note", advice=f"for {use}: pip install 'tfqat[{extra}]'")
        for name, (extra, use) in _EXTRAS.items()
    )


def check_backends(
    gpu: str | None, *, rtx: tuple[bool, str], full: tuple[bool, str], runtime: tuple[bool, str]
) -> tuple[Check, Check, Check]:
    """What builds engines and runs graphs here; each as (usable, version or what is missing)."""
    no_engines = "" if rtx[0] or full[0] else "; without either TensorRT no engine is built"
    rtx_advice = f"builds engines without a GPU: {tensorrt_rtx.INSTALL}{no_engines}"
    # Without a GPU there is nothing to do about it: an engine of the full TensorRT is built on the GPU that will run it.
    full_advice = tensorrt.INSTALL if gpu else "needs an NVIDIA GPU; TensorRT for RTX builds engines without"
    cpu_only = "CUDAExecutionProvider" not in runtime[1]
    advice = "pip install onnxruntime"
    if runtime[0]:
        advice = "has no GPU provider: `tfqat bench` times the CPU; pip install onnxruntime-gpu in its place" if gpu and cpu_only else ""
    return (
        Check(part="backend tensorrt", state=full[1], level="ok" if full[0] else "note", advice="" if full[0] else full_advice),
        Check(part="backend tensorrt_rtx", state=rtx[1], level="ok" if rtx[0] else "note", advice="" if rtx[0] else rtx_advice),
        Check(
            part="backend onnxruntime",
            state=runtime[1],
            level=("note" if advice else "ok") if runtime[0] else "missing",
            advice=advice,
        ),
    )


def check_gpu(gpu: str | None, *, cuda: bool) -> Check:
    """Whether there is a GPU, and the CUDA libraries by which TensorFlow trains on it."""
    if gpu is None:
        advice = "nothing needs one, but running engines and the full TensorRT do; if this machine has one, install NVIDIA's driver"
        return Check(part="NVIDIA GPU", state="none visible", level="note", advice=advice)
    if not cuda:
        return Check(part="NVIDIA GPU", state=gpu, level="note", advice="to fine-tune on it: pip install 'tensorflow[and-cuda]'")
    return Check(part="NVIDIA GPU", state=gpu)


def check_vnni(vnni: bool | None) -> Check:
    """Whether ONNX Runtime's fused int8 kernels are exact on this CPU."""
    if vnni is None:
        return Check(
            part="CPU has VNNI", state="not known", level="note", advice="/proc/cpuinfo has no flags; see `onnx_deployed` of a run"
        )
    if vnni:
        return Check(part="CPU has VNNI", state="yes: fused int8 kernels are exact")
    return Check(
        part="CPU has VNNI",
        state="no: fused int8 kernels saturate 16-bit sums",
        level="note",
        advice="to deploy on CPUs like this one: `export.target: onnxruntime`, a graph that cannot saturate; TensorRT is not concerned",
    )


def check_disk(free: int, folder: Path) -> Check:
    """Whether there is room for runs."""
    if free >= LOW_DISK:
        return Check(part="free disk", state=f"{free / _GIB:.1f} GiB")
    advice = f"little for runs in {folder}: write them elsewhere with `tfqat run --out`"
    return Check(part="free disk", state=f"{free / _GIB:.1f} GiB", level="note", advice=advice)


def check_memory(available: int | None) -> Check:
    """Whether there is memory for TensorFlow and a batch."""
    if available is None:
        return Check(part="available memory", state="not known")
    state = f"{available / _GIB:.1f} GiB"
    if available >= LOW_MEMORY:
        return Check(part="available memory", state=state)
    advice = "little: make training.batch_size smaller or qat.batch_size_divisor larger, and have the data functions yield small batches"
    return Check(part="available memory", state=state, level="note", advice=advice)


def _requirements() -> tuple[Requirement, ...]:
    """What the installed tfqat requires without extras, in the order of its metadata; empty where it runs without being installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        parsed = (Requirement(line) for line in importlib.metadata.requires("tfqat") or ())
        return tuple(one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""}))
    return ()


def _version(name: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(canonicalize_name(name))
    return None


def _available_memory() -> int | None:
    """Bytes that can be had without swapping: what Linux estimates, else the free pages."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
