"""What is known of a model that a project is made for: inputs, outputs with what their labels are taken to be, the guessed loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Labels = Literal["classes", "binary", "numbers"]
"""Indices of classes, 0 or 1 per unit, or numbers."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input of a model: the shape of one example, None for a free axis, and the type of its values."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output of a model, and what its labels are taken to be.

    `activation` is that of the last layer, `linear` if it has none.
    """

    name: str
    shape: tuple[int | None, ...]
    activation: str
    labels: Labels

    @property
    def units(self) -> int | None:
        """The length of the last axis."""
        return self.shape[-1] if self.shape else None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss as a recipe spells it, with a metric for it, and why it is the guess."""

    yaml: str
    metric: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model takes and returns, and the guessed loss."""

    inputs: tuple[Port, ...]
    outputs: tuple[Output, ...]
    loss: Loss
