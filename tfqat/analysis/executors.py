"""Where measurements run: in this process, in several here, or on a Ray cluster; what they compute is the same."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfqat.analysis.bench import Bench, Change, Level, Levels
from tfqat.analysis.executors_crew import Crew
from tfqat.analysis.executors_local import local_crew
from tfqat.analysis.executors_payload import Payload
from tfqat.analysis.executors_ray import ray_crew
from tfqat.analysis.executors_worker import Task
from tfqat.datasets import inputs_of

_TASKS = 4
"""Tasks for each worker in one pass over the data, at least: the last ones to end leave the others idle for a quarter of it at most."""

_CHANGES = 16
"""Changes in one task, at most: its outputs are in memory together. What comes before the first of them is computed once for all."""


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


class Spread:
    """Computes in the workers of a crew, each of which has a bench like this process's.

    A task is one batch, with all changes if there are batches enough for all workers, else with a part of them that follow one another
    in the model. Results are passed on in the order of InProcess; at most two tasks for each worker are under way or wait for that.
    """

    def __init__(self, bench: Bench, batches: int, crew: Crew) -> None:
        self._bench, self._batches, self._crew = bench, batches, crew

    def outputs(self, changes: Sequence[Change], base: Levels, others: Level) -> Iterator[tuple[int, Change | None, list[np.ndarray]]]:
        """See `Executor`."""
        ordered = sorted(changes, key=lambda change: self._bench.first_piece(change[0]))
        parts = _parts(ordered, max(-(-_TASKS * self._crew.size // self._batches), -(-len(ordered) // _CHANGES)))
        tasks = [Task(changes=tuple(part), base=dict(base), others=others, plain=part is parts[-1]) for part in parts]
        waiting: deque[tuple[int, Future[Any]]] = deque()
        for number in range(self._batches):
            for task in tasks:
                waiting.append((number, self._crew.submit(number, task)))
                if len(waiting) >= 2 * self._crew.size:
                    yield from _taken(*waiting.popleft())
        while waiting:
            yield from _taken(*waiting.popleft())


@contextlib.contextmanager
def executor_for(executor: str, workers: int, bench: Bench, batches: Sequence[Any]) -> Iterator[Executor]:
    """The executor that a recipe's `sensitivity.executor` and `workers` name; its workers end with the block.

    Args:
        executor: `local` or `ray`.
        workers: how many; one local one is this process.
        bench: computes here, and is what workers build theirs from.
        batches: of inputs, or of (inputs, labels, ...).

    Raises:
        RecipeError: Ray is asked for and not installed.
        ModelError: the model cannot be handed to workers.
        TfqatError: no Ray cluster can be reached. From `outputs`: a worker died.
    """
    if executor == "local" and workers == 1:
        yield InProcess(bench, batches)
        return
    payload = Payload.of(*bench.made_from)
    inputs = [tf.nest.map_structure(np.asarray, inputs_of(batch)) for batch in batches]
    data = pickle.dumps(payload)
    with (
        local_crew(workers, data, inputs)
        if executor == "local"
        else ray_crew(workers, data, inputs, gpus=bool(payload.settings.gpus)) as crew
    ):
        yield Spread(bench, len(batches), crew)


def _taken(number: int, future: Future[Any]) -> Iterator[tuple[int, Change | None, list[np.ndarray]]]:
    for change, outputs in future.result():
        yield number, change, outputs


def _parts(changes: Sequence[Change], count: int) -> list[Sequence[Change]]:
    """`count` parts that follow one another, none of them empty; one if there are no changes."""
    count = max(1, min(count, len(changes)))
    bounds = [len(changes) * number // count for number in range(count + 1)]
    return [changes[first:last] for first, last in itertools.pairwise(bounds)]
