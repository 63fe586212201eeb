"""What a build says afterwards: each engine, and for each convolution and matrix product the precision that its kernel runs in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

INT8 = "Int8"


@dataclass(frozen=True, kw_only=True)
class KernelPrecision:
    """The kernel that computes one Conv, ConvTranspose, MatMul or Gemm node.

    `inputs` are the data types of the two operands, the data first and then the weights; a kernel without constant weights
    (attention) lists all its inputs. `int8` is true only if the product itself is Int8 x Int8: a fused kernel that reads int8
    codes and dequantizes them before it multiplies has Int8 inputs and `int8=False`. `kernel` is the kernel's name and type,
    or empty if the build log names no kernel for the node.
    """

    keras_layer: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    int8: bool
    kernel: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {**asdict(self), "inputs": list(self.inputs), "outputs": list(self.outputs)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> KernelPrecision:
        """The inverse of `to_dict`."""
        return cls(**{**data, "inputs": tuple(data["inputs"]), "outputs": tuple(data["outputs"])})


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """One engine. `target` is the GPU generation it is for, such as `SM86`; `layers` is empty if the build did not report kernels."""

    target: str
    seconds: float
    engine_path: str | None
    size_bytes: int
    layers: tuple[KernelPrecision, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {**asdict(self), "layers": [layer.to_dict() for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TargetReport:
        """The inverse of `to_dict`."""
        return cls(**{**data, "layers": tuple(KernelPrecision.from_dict(layer) for layer in data["layers"])})


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """The result of a compilation: `built` with one target per engine, or `not_run` with the reason in `message`."""

    backend: str
    version: str
    status: Literal["built", "not_run"]
    message: str
    targets: tuple[TargetReport, ...] = ()

    def float_layers(self, expected: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """The layers that should run Int8 x Int8 and are not seen to.

        Args:
            expected: Keras layer names, normally those whose input and weights the placement quantizes.

        Returns:
            (target, layer) pairs, in the order of the targets and of `expected`. A layer is listed if one of its kernels is
            not Int8 x Int8 or if the target's report does not have it.
        """
        names = tuple(dict.fromkeys(expected))
        return tuple((target.target, name) for target in self.targets for name in names if not _runs_int8(target, name))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {**asdict(self), "targets": [target.to_dict() for target in self.targets]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EngineReport:
        """The inverse of `to_dict`."""
        return cls(**{**data, "targets": tuple(TargetReport.from_dict(target) for target in data["targets"])})


def _runs_int8(target: TargetReport, keras_layer: str) -> bool:
    kernels = [layer.int8 for layer in target.layers if layer.keras_layer == keras_layer]
    return bool(kernels) and all(kernels)
