"""How two sets of int8 codes differ, and how two sets of outputs do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfqat.proof.limits import FLOAT32, LOCAL_MAX_DIFFERENCE, LOCAL_POINT_TIES, Limits


@dataclass(frozen=True, kw_only=True)
class CodeDifference:
    """How two sets of codes differ: `histogram[d]` counts the codes that are d apart."""

    histogram: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray) -> CodeDifference:
        """The difference of two int8 arrays of one shape."""
        apart = np.abs(first.astype(np.int16) - second.astype(np.int16)).ravel()
        counts = np.bincount(apart)
        return cls(histogram={int(distance): int(counts[distance]) for distance in np.flatnonzero(counts)})

    @classmethod
    def total(cls, differences: Iterable[CodeDifference]) -> CodeDifference:
        """All differences in one."""
        merged: dict[int, int] = {}
        for difference in differences:
            for distance, count in difference.histogram.items():
                merged[distance] = merged.get(distance, 0) + count
        return cls(histogram=dict(sorted(merged.items())))

    @property
    def codes(self) -> int:
        """How many codes were compared."""
        return sum(self.histogram.values())

    @property
    def different(self) -> int:
        """How many codes are not equal."""
        return self.codes - self.histogram.get(0, 0)

    @property
    def equal(self) -> float:
        """The share of equal codes; 1.0 if none were compared."""
        return self.histogram.get(0, 0) / self.codes if self.codes else 1.0

    @property
    def max_difference(self) -> int:
        """The largest difference of two codes."""
        return max(self.histogram, default=0)

    def diverges(self, limits: Limits = FLOAT32) -> bool:
        """Whether these, the local codes of one point, differ by more than ties of rounding."""
        too_many = self.different > max(LOCAL_POINT_TIES, (1 - limits.point_equal) * self.codes)
        return too_many or self.max_difference > LOCAL_MAX_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        histogram = {str(distance): count for distance, count in self.histogram.items()}
        return {"equal": self.equal, "max_difference": self.max_difference, "codes": self.codes, "histogram": histogram}


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """The model's outputs in Keras and in ONNX Runtime: largest difference, cosine, and how often the largest entry is the same.

    An example whose largest entries lie closer together than the noise floor of both, times the factor that codes are allowed, counts as
    the same.
    """

    max_abs_difference: float
    cosine: float
    top1_agreement: float

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray, noise: float = 0.0) -> OutputParity:
        """The difference of two (examples, ..., classes) arrays; an output with one class agrees by definition.

        Args:
            first: the reference.
            second: what is compared with it.
            noise: how far two entries of the reference may lie apart by rounding alone.
        """
        a, b = first.astype(np.float64), second.astype(np.float64)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        classes = a.shape[-1] if a.ndim > 1 else 1
        chosen = np.take_along_axis(a, b.argmax(axis=-1)[..., None], axis=-1)[..., 0] if classes > 1 else np.zeros(1)
        largest = a.max(axis=-1) if classes > 1 else np.zeros(1)
        return cls(
            max_abs_difference=float(np.abs(a - b).max(initial=0.0)),
            cosine=float((a * b).sum() / norms) if norms else float(not np.any(a) and not np.any(b)),
            top1_agreement=float((largest - chosen <= noise).mean()),
        )

    @classmethod
    def worst(cls, outputs: Iterable[OutputParity]) -> OutputParity:
        """The worst figure of each kind over the outputs of a model."""
        outputs = tuple(outputs)
        return cls(
            max_abs_difference=float(np.max([output.max_abs_difference for output in outputs])),  # NaN stays
            cosine=float(np.min([output.cosine for output in outputs])),
            top1_agreement=float(np.min([output.top1_agreement for output in outputs])),
        )
