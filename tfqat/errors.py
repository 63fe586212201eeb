"""The exceptions of tfqat.

    TfqatError
    ├── RecipeError            a recipe that cannot be read: every problem with its file, line and YAML path
    ├── ModelError             a model that cannot be loaded or that tfqat cannot take
    ├── PlacementError         a placement that cannot be made or does not fit the model
    │   └── NoMatchError       a pattern that matches no layer
    ├── DataError              a data reference, a batch or a calibration value that cannot be used
    ├── NotCalibratedError     a quantizer without a range
    ├── OutOfMemoryError       a batch that does not fit into memory
    ├── TrainingError          quantization-aware training that cannot go on
    ├── WorkerError            a process of a distributed run that is missing, was lost, or cannot be set up
    ├── ExportError            a graph that cannot be exported, or that breaks a rule of the exported form
    ├── EngineError            an engine that cannot be built or run
    ├── RunDirectoryError      a run directory that cannot be written or read
    └── ProjectError           a new project that cannot be written, mostly because a file of it is there already

The command line prints the message of any of them and ends with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TfqatError(Exception):
    """The root: catch this to catch everything that tfqat raises on purpose."""


class RecipeError(TfqatError):
    """A recipe that cannot be read. `problems` holds every problem found, one string each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class ModelError(TfqatError):
    """A model that cannot be loaded, or that tfqat cannot take."""


class PlacementError(TfqatError):
    """A placement that cannot be made, or that does not fit the model it is applied to."""


class NoMatchError(PlacementError):
    """A pattern that matches no layer of the model."""


class DataError(TfqatError):
    """Data that cannot be imported, is empty, has another shape than the model takes, or holds NaN or Inf."""


class NotCalibratedError(TfqatError):
    """A quantizer is asked for codes before it has a range."""


class OutOfMemoryError(TfqatError):
    """A batch does not fit into memory, however it is split."""


class TrainingError(TfqatError):
    """Quantization-aware training cannot go on, for example because the loss is NaN."""


class WorkerError(TfqatError):
    """The processes of a distributed run cannot work together: one is missing or was lost, or they cannot be set up."""


class ExportError(TfqatError):
    """A graph cannot be exported, or an exported graph breaks a rule."""


class EngineError(TfqatError):
    """An engine cannot be built, loaded or run."""


class RunDirectoryError(TfqatError):
    """A run directory cannot be written or read."""


class ProjectError(TfqatError):
    """A new project cannot be written: a file of it is there already, or the folder cannot be written."""


def add_note(error: BaseException, text: str) -> None:
    """`error.add_note(text)`, which Python 3.10 lacks: the note goes into `__notes__`, where later versions keep and print it."""
    error.__notes__ = [*getattr(error, "__notes__", ()), text]  # type: ignore[attr-defined]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name nearest to `name`, or the empty string if none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
