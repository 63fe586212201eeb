"""What a worker does: it builds a bench of its own once, and computes the outputs that tasks ask for.

TensorFlow is imported when a worker starts, not with this module: its settings and where its messages go have to be known before.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfqat.errors import TfqatError, add_note
from tfqat.files import stderr_to

if TYPE_CHECKING:
    from tfqat.analysis.bench import Bench, Change, Level, Levels

Outcome = tuple[Any, bytes | None]
"""What a call returned, or None and what it raised, pickled."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Changes, in the order of the model, whose outputs are wanted for one batch; `plain`: those of no change too."""

    changes: tuple[Change, ...]
    base: Levels
    others: Level
    plain: bool


class Worker:
    """Computes tasks. Nothing that a task raises leaves a method: it is returned, so that it reaches the caller as it was.

    Args:
        quiet: write nothing when starting: Ray shows on the terminal what its workers write.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bench: Bench | None = None

    def start(self, payload: bytes, number: int) -> Outcome:
        """Build the bench of a pickled `executors_payload.Payload`, as worker `number`."""

        def build() -> None:
            with _silence() if self._quiet else contextlib.nullcontext():
                self._bench = pickle.loads(payload).build(number)

        return _guarded(build)

    def run(self, inputs: Any, task: Task) -> Outcome:
        """A list of (change or None, outputs as numpy)."""
        return _guarded(lambda: list(self._outputs(inputs, task)))

    def _outputs(self, inputs: Any, task: Task) -> Iterator[tuple[Any, list[Any]]]:
        assert self._bench is not None  # the caller started it
        left = len(task.changes) + task.plain
        for change, outputs in self._bench.sweep(inputs, task.changes, task.base, others=task.others):
            yield change, [output.numpy() for output in outputs]
            left -= 1
            if left == 0:  # without `plain` the outputs of no change, which come last, are not computed
                return


def serve() -> None:
    """Answer on what was standard output what comes on standard input: first a payload and a number, then inputs and tasks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the one that started this ends it
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    worker = Worker()
    call: Callable[..., Outcome] = worker.start
    with contextlib.suppress(EOFError, BrokenPipeError):  # the process that started this is gone
        while True:
            outcome = call(*pickle.load(requests))
            pickle.dump(outcome, answers, protocol=5)
            answers.flush()
            call = worker.run


def _guarded(function: Callable[[], Any]) -> Outcome:
    try:
        return function(), None
    except Exception as error:
        return None, _pickled(error)


def _pickled(error: Exception) -> bytes:
    """The exception with its traceback as a note; a TfqatError with its message where it cannot be pickled."""
    add_note(error, f"In a worker of sensitivity.executor:\n{''.join(traceback.format_exception(error))}")
    with contextlib.suppress(Exception):  # whatever a foreign class raises when it is pickled
        data = pickle.dumps(error)
        copy = pickle.loads(data)
        if type(copy) is type(error) and str(copy) == str(error):
            return data
    return pickle.dumps(TfqatError(f"a worker of sensitivity.executor raised {type(error).__name__}: {error}"))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Standard error to nowhere; TensorFlow writes to its descriptor when it is imported."""
    with open(os.devnull, "wb") as nowhere, stderr_to(nowhere.fileno()):
        yield
