"""What a build may be told beside the graph and the target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfqat.engines.profile import check_batch, check_shapes
from tfqat.errors import EngineError

DEFAULT_BATCH = (1, 8, 32)
DEFAULT_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options of a build; a wrong one is an EngineError.

    Attributes:
        batch: The smallest, optimal and largest batch of the inputs whose first axis alone is free.
        shapes: Input -> smallest, optimal and largest shape, for inputs with other free axes.
        strict: Whether a product that the graph quantizes and that does not run Int8 x Int8 is an error.
        timeout_s: The most seconds for each engine.
        timing_cache: A file of TensorRT with the timings of earlier builds: read if it is there, and written.
        fp16: Whether TensorRT 8 may run the float remainder in half precision; later ones take the types from the graph.
    """

    batch: Sequence[int] = DEFAULT_BATCH
    shapes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    strict: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    timing_cache: Path | None = None
    fp16: bool = False

    def __post_init__(self) -> None:
        check_batch(self.batch)
        check_shapes(self.shapes)
        if isinstance(self.timeout_s, bool) or not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise EngineError(f"timeout_s must be a number of seconds above 0; got {self.timeout_s!r}")
        if self.timing_cache is not None and (self.timing_cache.is_dir() or not self.timing_cache.parent.is_dir()):
            raise EngineError(f"a timing cache cannot be written to {self.timing_cache}: give a file in a folder that exists")
