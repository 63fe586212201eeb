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
    or empty if no kernel is named for the node.

    `fused_with` are the other ONNX nodes of the same kernel, Q/DQ among them; `reformats` and `pointwise` the kernels that make its
    inputs or read its outputs: those that only move data or change its layout or type, and those that compute something elementwise.
    `quantized` says whether both operands have Q/DQ in the graph, and `macs` is the number of multiply-accumulates at batch 1 and
    the optimal size of every other free axis. They are None where they are not known, as in the reports of earlier versions.
    """

    keras_layer: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    int8: bool
    kernel: str
    fused_with: tuple[str, ...] = ()
    reformats: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()
    quantized: bool | None = None
    macs: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> KernelPrecision:
        """The inverse of `to_dict`."""
        lists: dict[str, Any] = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        return cls(**{**data, **lists})


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """One engine. `target` is the GPU generation it is for, such as `SM86`; `layers` is empty if the build did not report kernels.

    `kernels` and `reformats` count what the engine launches, and `int8_macs` is the share of multiply-accumulates that runs
    Int8 x Int8, from 0 to 1; each is None where it is not known.
    """

    target: str
    seconds: float
    engine_path: str | None
    size_bytes: int
    layers: tuple[KernelPrecision, ...]
    kernels: int | None = None
    reformats: int | None = None
    int8_macs: float | None = None

    @property
    def unmet(self) -> tuple[KernelPrecision, ...]:
        """The products that the graph quantizes and that do not run Int8 x Int8."""
        return tuple(layer for layer in self.layers if layer.quantized and not layer.int8)

    def summary(self) -> str:
        """`SM86: 53 of 53 convolutions and matrix products run Int8 x Int8 (100.0% of multiply-accumulates), 71 kernels, ...`."""
        if not self.layers:
            return f"{self.target}: built, but the build did not report the precision of its kernels"
        share = "" if self.int8_macs is None else f" ({self.int8_macs:.1%} of multiply-accumulates)"
        kernels = "" if self.kernels is None else f", {self.kernels} kernels, {self.reformats} reformats"
        count = f"{sum(layer.int8 for layer in self.layers)} of {len(self.layers)} convolutions and matrix products"
        return f"{self.target}: {count} run Int8 x Int8{share}{kernels}, {self.size_bytes / 1e6:.1f} MB"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {**asdict(self), "layers": [layer.to_dict() for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TargetReport:
        """The inverse of `to_dict`."""
        return cls(**{**data, "layers": tuple(KernelPrecision.from_dict(layer) for layer in data["layers"])})


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """The result of a compilation: `built` with one target per engine, or `not_run` with the reason in `message`.

    `commands` are the command lines of NVIDIA's own tools that build the same engines.
    """

    backend: str
    version: str
    status: Literal["built", "not_run"]
    message: str
    targets: tuple[TargetReport, ...] = ()
    commands: tuple[str, ...] = ()

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
        return {**asdict(self), "targets": [target.to_dict() for target in self.targets], "commands": list(self.commands)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EngineReport:
        """The inverse of `to_dict`."""
        targets = tuple(TargetReport.from_dict(target) for target in data["targets"])
        return cls(**{**data, "targets": targets, "commands": tuple(data.get("commands", ()))})


def _runs_int8(target: TargetReport, keras_layer: str) -> bool:
    kernels = [layer.int8 for layer in target.layers if layer.keras_layer == keras_layer]
    return bool(kernels) and all(kernels)
