"""How two sets of int8 codes differ, and how two sets of outputs do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfqat.proof.limits import FLOAT32, LOCAL_MAX_DIFFERENCE, LOCAL_POINT_TIES, TIES_OF_A_SIDE, Limits


@dataclass(frozen=True, kw_only=True)
class CodeDifference:
    """How two sets of codes differ: `histogram[d]` counts the codes that are d apart.

    `ties_up` and `ties_down` count those one apart whose value lies at a tie of the first set, where the last bit of a float decides, by
    the side that the second set took. Scales whose ratio is a simple fraction make many of them behind an average pooling: its sums of
    codes are whole numbers, and a few in a hundred are halves of the next scale.
    """

    histogram: Mapping[int, int] = field(default_factory=dict)
    ties_up: int = 0
    ties_down: int = 0

    @classmethod
    def between(cls, first: np.ndarray, second: np.ndarray, ties: np.ndarray | None = None) -> CodeDifference:
        """The difference of two int8 arrays of one shape; `ties` says which values of the first lie at a tie."""
        signed = second.astype(np.int16) - first.astype(np.int16)
        counts = np.bincount(np.abs(signed).ravel())
        up, down = (0, 0) if ties is None else (int(np.sum(ties & (signed == step))) for step in (1, -1))
        return cls(histogram={int(distance): int(counts[distance]) for distance in np.flatnonzero(counts)}, ties_up=up, ties_down=down)

    @classmethod
    def total(cls, differences: Iterable[CodeDifference]) -> CodeDifference:
        """All differences in one."""
        merged: dict[int, int] = {}
        differences = tuple(differences)
        for difference in differences:
            for distance, count in difference.histogram.items():
                merged[distance] = merged.get(distance, 0) + count
        up, down = sum(one.ties_up for one in differences), sum(one.ties_down for one in differences)
        return cls(histogram=dict(sorted(merged.items())), ties_up=up, ties_down=down)

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
    def unexplained(self) -> int:
        """How many codes differ and do not lie at a tie.

        Ties that all go to one side count too: a last bit falls to either, another rule of rounding does not.
        """
        ties, fewer = self.ties_up + self.ties_down, min(self.ties_up, self.ties_down)
        return self.different - (ties if fewer >= TIES_OF_A_SIDE * ties else 0)

    @property
    def agreeing(self) -> float:
        """The share of codes that are equal, or go either way at a tie; 1.0 if none were compared."""
        return 1 - self.unexplained / self.codes if self.codes else 1.0

    @property
    def max_difference(self) -> int:
        """The largest difference of two codes."""
        return max(self.histogram, default=0)

    def diverges(self, limits: Limits = FLOAT32) -> bool:
        """Whether these, the local codes of one point, differ by more than ties of rounding."""
        too_many = self.unexplained > max(LOCAL_POINT_TIES, (1 - limits.point_equal) * self.codes)
        return too_many or self.max_difference > LOCAL_MAX_DIFFERENCE

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        histogram = {str(distance): count for distance, count in self.histogram.items()}
        return {"equal": self.equal, "max_difference": self.max_difference, "codes": self.codes, "histogram": histogram} | (
            {"at_ties": self.ties_up + self.ties_down} if self.ties_up + self.ties_down else {}
        )


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
