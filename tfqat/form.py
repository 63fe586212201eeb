"""What a graph is for and looks like from outside: runtime, types, sizes of its axes, its inputs, names of its outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tfqat.errors import DataError, ExportError

FORM = "tfqat.form"
"""The metadata entry that holds the form of a graph as JSON, if it is not the model's own."""

Target = Literal["tensorrt", "onnxruntime"]
_WHOLE = 1e-3  # how far from a whole number a pixel may come back from float32 arithmetic


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Inputs of uint8 pixels, which the graph itself normalizes: x = (pixel - mean) / std, as the model was trained.

    Attributes:
        mean, std: one number for all channels, or one for each.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (..., channels) -> float32, as the graph computes it."""
        values = pixels.astype(np.float32) - np.array(self.mean, np.float32)
        return np.asarray(values / np.array(self.std, np.float32))

    def pixels(self, name: str, values: np.ndarray) -> np.ndarray:
        """The inverse: float (..., channels) -> uint8.

        Raises:
            DataError: the values are no pixels normalized so.
        """
        exact = values.astype(np.float64) * np.array(self.std) + np.array(self.mean)
        whole = np.rint(exact)
        if not values.size or np.abs(exact - whole).max() > _WHOLE or whole.min() < 0 or whole.max() > 255:
            raise DataError(
                f"input {name!r}: the values are no uint8 pixels normalized by mean {list(self.mean)} and std {list(self.std)}: they give "
                f"pixels from {exact.min(initial=0):g} to {exact.max(initial=0):g}; the data must be normalized as the graph does it"
            )
        return whole.astype(np.uint8)


def images(ranks: Mapping[str, int]) -> frozenset[str]:
    """Which inputs are images: those of four axes or more; where there is none, those of three, which have no axis of channels."""
    return frozenset(name for name, rank in ranks.items() if rank > 3) or frozenset(name for name, rank in ranks.items() if rank == 3)


@dataclass(frozen=True, kw_only=True)
class Form:
    """The outside of a graph; `images` says which inputs are images.

    Attributes:
        target: `tensorrt`: int8 codes; `onnxruntime`: the same grid as uint8, for ONNX Runtime's CPU kernels.
        remainder: the type of what is not quantized.
        weights: `int8` codes, or the `float` values that they stand for, with Q and DQ behind them.
        batch: the size of the first axis of all inputs and outputs; None: free.
        size: the sizes of the axes between batch and channels of images, (height, width); None: as the model has them.
        layout: of images with four axes or more: `nhwc`, as Keras has them, or `nchw`.
        pixels: images are uint8 pixels that the graph normalizes; None: as the model has them.
        outputs: new names of the outputs, in the model's order; empty: as the model has them.
    """

    target: Target = "tensorrt"
    remainder: Literal["float32", "float16"] = "float32"
    weights: Literal["int8", "float"] = "int8"
    batch: int | None = None
    size: tuple[int, ...] | None = None
    layout: Literal["nhwc", "nchw"] = "nhwc"
    pixels: Pixels | None = None
    outputs: tuple[str, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """The entry of a file's metadata; none for the model's own form."""
        return {} if self == Form() else {FORM: json.dumps(asdict(self))}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Form:
        """The form of a graph, from its file's metadata.

        Raises:
            ExportError: the entry is damaged, or of a later tfqat.
        """
        text = metadata.get(FORM, "{}")
        try:
            kept: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()}
            if (pixels := kept.get("pixels")) is not None:
                kept["pixels"] = Pixels(**{key: tuple(value) for key, value in pixels.items()})
            return cls(**kept)
        except (TypeError, ValueError, AttributeError) as error:
            raise ExportError(
                f"the graph's metadata {FORM!r} cannot be read ({error}): it is damaged, or of a later version of tfqat; export it again"
            ) from error

    def feed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs as Keras takes them, as the graph takes them.

        Raises:
            DataError: inputs that are no pixels, for a graph that takes pixels.
        """
        found = images({name: value.ndim for name, value in values.items()})
        return {name: self._as_taken(name, value) if name in found else value for name, value in values.items()}

    def _as_taken(self, name: str, value: np.ndarray) -> np.ndarray:
        taken = value if self.pixels is None else self.pixels.pixels(name, value)
        return np.ascontiguousarray(np.moveaxis(taken, -1, 1)) if self.layout == "nchw" and taken.ndim > 3 else taken
