"""What a quantizer is: its width, its integer range and the axes that have a scale of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale for each index along `axes`.

    A convolution kernel (height, width, in, out) has `axes=(3,)`; a depthwise kernel (height, width, in, multiplier) has an
    output channel for each pair (in, multiplier), so `axes=(2, 3)`; a Dense kernel (in, out) has `axes=(1,)`.
    """

    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.axes or any(axis < 0 for axis in self.axes) or list(self.axes) != sorted(set(self.axes)):
            raise ValueError(f"axes must be distinct, ascending and not negative, for example (3,); got {self.axes}")


Granularity = PerTensor | PerChannel


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """A symmetric integer grid with zero point 0.

    Codes run from `lo` to `hi = 2 ** (num_bits - 1) - 1`. With `narrow_range` lo = -hi, so that a channel of weights can be
    negated (folding a BatchNorm with a negative gamma does that); without it lo = -hi - 1, which is what ONNX's
    QuantizeLinear clamps to.
    """

    num_bits: int = 8
    granularity: Granularity = field(default_factory=PerTensor)
    narrow_range: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.num_bits <= MAX_BITS:
            raise ValueError(f"num_bits must be {MIN_BITS} to {MAX_BITS}; got {self.num_bits}")

    @property
    def hi(self) -> int:
        """The largest code, which represents amax."""
        return int(2 ** (self.num_bits - 1) - 1)

    @property
    def lo(self) -> int:
        """The smallest code."""
        return -self.hi if self.narrow_range else -self.hi - 1

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes with a scale of their own; empty per tensor."""
        return self.granularity.axes if isinstance(self.granularity, PerChannel) else ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {"num_bits": self.num_bits, "axes": list(self.axes), "narrow_range": self.narrow_range}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantSpec:
        """The inverse of `to_dict`."""
        axes = tuple(data["axes"])
        granularity: Granularity = PerChannel(axes=axes) if axes else PerTensor()
        return cls(num_bits=data["num_bits"], granularity=granularity, narrow_range=data["narrow_range"])

    def describe(self) -> str:
        """For people: `int8 per channel`."""
        return f"int{self.num_bits} per {'channel' if self.axes else 'tensor'}"


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """How a range is chosen from a histogram: one of METHODS. `percentile` is a per cent of values.

    `best` stands for the one of the others that gives the layers which read the tensor the least error.
    """

    method: str = "max"
    percentile: float = 99.99

    @classmethod
    def parse(cls, text: str) -> Calibrator:
        """Reads `max`, `entropy`, `mse`, `best`, `percentile`, `percentile(99.9)` or what `describe` writes.

        Raises:
            ValueError: something else; says what is expected.
        """
        found = re.fullmatch(r"([a-z]+)(?:\s*\(?(\d+(?:\.\d*)?)\)?)?", text.strip())
        if found and found[1] == "percentile" and (found[2] is None or 50 < float(found[2]) <= 100):
            return cls(method="percentile", percentile=float(found[2] or 99.99))
        if found and found[1] in (*METHODS, "best") and found[2] is None:
            return cls(method=found[1])
        raise ValueError(f"{EXPECTED_CALIBRATOR}; got {text!r}")

    def describe(self) -> str:
        """For people: `percentile 99.99`."""
        return f"percentile {self.percentile:g}" if self.method == "percentile" else self.method


METHODS = ("max", "percentile", "entropy", "mse")
EXPECTED_CALIBRATOR = "one of max, entropy, mse, best, or percentile(P) with P above 50 and at most 100"
