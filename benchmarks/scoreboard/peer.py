"""What every tool has to offer to be compared, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Cannot(Exception):  # noqa: N818 - not an error: what a tool does not do is one of the results
    """What a tool does not offer; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Fine-tuning, the same for all: cosine decay from `learning_rate` to a hundredth of it, SGD with momentum 0.9."""

    epochs: int
    batch_size: int
    learning_rate: float


class Peer(Protocol):
    """A tool.

    Attributes:
        packages: whose versions are noted; the first is the tool's own.
        variants: ways to quantize after training, and what each was asked for, in words.
        trains_from: the variant that fine-tuning starts from; empty if the tool has none.
        is_keras: whether it takes and returns Keras models; else ONNX files.
    """

    packages: tuple[str, ...]
    variants: Mapping[str, str]
    trains_from: str
    is_keras: bool

    def load(self, folder: Path) -> Any:
        """The float model of a network's folder, in the form that the tool takes."""

    def quantize(self, model: Any, batches: list[Any], *, bits: int, variant: str) -> Any:
        """The model quantized after training, calibrated with the batches; weights of `bits`, activations of 8."""

    def finetune(self, model: Any, images: Any, labels: Any, schedule: Schedule) -> Any:
        """The model of `trains_from` trained on with quantization in the loop, by `fit`; it stays compiled."""

    def export(self, model: Any, path: Path) -> None:
        """Write the quantized model as ONNX."""
