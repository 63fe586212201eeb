"""Several workers, each with a thread here that hands it one task after the other."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from tfqat.analysis.executors_worker import Outcome, Task


class Remote(Protocol):
    """A worker as seen from here. Its methods but `kill` are called from one thread only.

    Raises:
        TfqatError: (by `start` and `run`) the worker is dead.
    """

    def start(self) -> Outcome:
        """Wait until it has built its bench."""

    def run(self, batch: int, task: Task) -> Outcome:
        """The result of a task for a batch, by number."""

    def kill(self) -> None:
        """End it, whatever it does; a call that waits for it ends too."""


class Crew:
    """Hands tasks to the workers that are ready. What a worker raises, and its death, comes out of the task's future."""

    def __init__(self, workers: Sequence[Remote]) -> None:
        self.size = len(workers)
        self._workers = workers
        self._jobs: SimpleQueue[tuple[int, Task, Future[Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._serve, args=(worker,), daemon=True) for worker in workers]
        for thread in self._threads:
            thread.start()

    def submit(self, batch: int, task: Task) -> Future[Any]:
        """The future result of a task: a list of (change or None, outputs)."""
        future: Future[Any] = Future()
        self._jobs.put((batch, task, future))
        return future

    def close(self) -> None:
        """End the workers and what waits for them."""
        for worker in self._workers:
            worker.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, worker: Remote) -> None:
        refusal: Exception | None = None
        try:  # a worker that is not there yet, such as one that a cluster has no room for, holds no task back
            _opened(worker.start())
        except Exception as error:
            refusal = error
        while (job := self._jobs.get()) is not None:
            batch, task, future = job
            try:
                if refusal:
                    raise refusal
                future.set_result(_opened(worker.run(batch, task)))
            except Exception as error:
                future.set_exception(error)


def _opened(outcome: Outcome) -> Any:
    value, error = outcome
    if error is not None:
        raise pickle.loads(error)
    return value
