"""How the Python APIs of TensorRT 8.6, 10, 11 and TensorRT for RTX differ, for all that a build uses; every other module is blind to it.

                                             8.6            10               11               RTX 1.7
    create_network flag                      EXPLICIT_BATCH STRONGLY_TYPED   STRONGLY_TYPED   STRONGLY_TYPED
    builder flags for a Q/DQ graph           INT8, FP16     none             none             none
    types of the float remainder             TensorRT's     the graph's      the graph's      the graph's
    target                                   this GPU       this GPU         this GPU         set_compute_capability
    timing cache                             yes            yes              yes              there, without any effect
    inspector                                yes            yes              yes              on a machine with the GPU
    ParserError.node_name, node_operator     no             yes              yes              yes

What differs is decided by what a module has, not by its version: STRONGLY_TYPED is opt-in in 10, and accepted and ignored from 11 on, so
it is set wherever it is there. Read in NVIDIA's documentation and sources of 8.6, 10 and 11, and run on TensorRT for RTX 1.7.1 alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CACHE_REFUSED = "the timing cache is of another GPU, another TensorRT or is damaged; delete it or give another path"


class RefusedError(Exception):
    """What was asked for is not to be had of this TensorRT. The process that started the build makes an EngineError of it."""


def is_rtx(trt: Any) -> bool:
    """Whether this is TensorRT for RTX, which builds for the GPU generation that it is told."""
    return hasattr(trt.IBuilderConfig, "set_compute_capability")


def is_strongly_typed(trt: Any) -> bool:
    """Whether the types in the ONNX file are binding."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """The argument of create_network: a strongly typed network, or, where there is none, one with an explicit batch."""
    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if is_strongly_typed(trt) else flags.EXPLICIT_BATCH)


def set_precision(trt: Any, config: Any, *, fp16: bool) -> None:
    """Allow what a weakly typed network needs to run Q/DQ in int8; a strongly typed one has it from the graph."""
    if not is_strongly_typed(trt):
        config.set_flag(trt.BuilderFlag.INT8)
        if fp16:
            config.set_flag(trt.BuilderFlag.FP16)
    elif fp16:
        raise RefusedError("fp16 is for TensorRT 8: this one takes float types from the graph; leave fp16 out")


def set_target(trt: Any, config: Any, compute_capability: str | None) -> None:
    """The GPU generation that TensorRT for RTX builds for; None is the GPU of this machine."""
    if compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, compute_capability), 0)


def add_profile(builder: Any, config: Any, profile: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """One optimization profile with the smallest, optimal and largest shape of each input that has a free axis."""
    if profile:
        made = builder.create_optimization_profile()
        for name, (small, optimal, large) in profile.items():
            made.set_shape(name, tuple(small), tuple(optimal), tuple(large))
        config.add_optimization_profile(made)


def attach_timing_cache(trt: Any, config: Any, data: bytes) -> Any:
    """A timing cache with the timings in `data`, in use by the build; its `serialize()` has the new ones too."""
    if is_rtx(trt):  # its functions are deprecated no-ops since TensorRT for RTX 1.2
        raise RefusedError("TensorRT for RTX times nothing while it builds, so it has no timing cache; leave timing_cache out")
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise RefusedError(CACHE_REFUSED)
    return cache


def inspect(trt: Any, logger: Any, plan: Any, profile: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """The kernels of an engine as JSON; empty where it cannot be loaded, as TensorRT for RTX cannot without the GPU.

    Types are given for the optimal shapes: without a context the inspector says `N/A due to dynamic shapes` for every tensor.
    """
    if is_rtx(trt):
        return ""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    inspector = engine.create_engine_inspector()
    if profile:
        context = engine.create_execution_context()
        for name, (_, optimal, _) in profile.items():
            context.set_input_shape(name, tuple(optimal))
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parser_error(error: Any) -> dict[str, str]:
    """A parser error as strings; 8.6 knows a node by its number alone."""
    if hasattr(error, "node_name"):
        return {"node": error.node_name(), "op": error.node_operator(), "message": error.desc()}
    return {"node": "", "op": "", "message": f"node number {error.node()} of the graph: {error.desc()}"}
