"""A run under way: where it writes, what it has measured, and whom it tells."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfqat import files
from tfqat.calibration.memory import OUT_OF_MEMORY
from tfqat.datasets import Data, reading
from tfqat.errors import OutOfMemoryError, RunDirectoryError, TfqatError, WorkerError, add_note
from tfqat.inputs import Inputs, Origin, custom_objects
from tfqat.progress import Advance, Progress
from tfqat.quantize.load import load_model
from tfqat.run_directory import RunDirectory, read_json
from tfqat.training.callbacks import Ticker
from tfqat.training.evaluate import evaluate
from tfqat.workers import Workers

_DIGITS = 6
STATE = "state.json"
CHECKPOINT, CONTROL_CHECKPOINT = "checkpoint.npz", "checkpoint-control.npz"
EQUALIZED, CALIBRATED, CALIBRATION = "resume-equalized.keras", "resume-calibrated.keras", "resume-calibration.json"
FOR_RESUME = (STATE, CHECKPOINT, CONTROL_CHECKPOINT, EQUALIZED, CALIBRATED, CALIBRATION)
"""What only a run that goes on needs; a complete one has none of them."""


def _digest(state: Mapping[str, Any]) -> str:
    """The checksum of what `state.json` holds, however it is written."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(state)), sort_keys=True).encode()).hexdigest()


@contextmanager
def out_of_memory(stage: Callable[[], str]) -> Iterator[None]:
    """Raises what says what to do, where the memory of the machine or of its GPU does not suffice.

    Raises:
        OutOfMemoryError: TensorFlow or Python raised within the block that memory is short; names the stage.
    """
    try:
        yield
    except OUT_OF_MEMORY as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OutOfMemoryError(
            f"stage {stage()} does not fit into memory ({reason}): let the functions of `data` give smaller batches, or set a smaller "
            "training.batch_size"
        ) from error


def keep(directory: RunDirectory, error: BaseException, *, stage: str) -> None:
    """Mark the run in a directory as incomplete, and have the error that ended it say where it lies."""
    with contextlib.suppress(RunDirectoryError):  # a full disk is the error already
        directory.mark("incomplete", stage=stage)
    add_note(
        error,
        f"what the run had made is kept in {directory.path}, whose manifest.json says `incomplete`; "
        f"`--resume {directory.path}` goes on from there",
    )


@dataclass
class Run:
    """What the stages of one run share. `measured` holds every value as it was computed; `metrics.json` has it rounded.

    `done` are the stages whose result lies in the directory, each with what else is needed to go on from it.
    """

    directory: RunDirectory
    inputs: Inputs
    origin: Origin
    progress: Progress
    write_log: Callable[[str], None]
    workers: Workers = field(default_factory=Workers)
    metrics: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    stage_name: str = "load"
    done: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False

    def finish(self, stage: str, **result: Any) -> None:
        """Note that a stage's result is written, so that a run that is cut off goes on behind it."""
        self.done[stage] = result
        known = {"done": self.done, "measured": self.measured, "metrics": self.metrics}
        files.write_json(self.directory / STATE, {**known, "sha256": _digest(known)})

    def restore(self) -> None:
        """What `finish` noted last, of a run that was cut off.

        Raises:
            RunDirectoryError: the file is corrupt.
        """
        self.resumed = True
        if (self.directory / STATE).exists():
            known = read_json(self.directory.path, STATE)
            if known.pop("sha256", None) != _digest(known):
                raise RunDirectoryError(f"{self.directory / STATE} is damaged: its checksum differs; start the run again, without --resume")
            self.done, self.measured, self.metrics = known["done"], known["measured"], known["metrics"]

    def load_model(self, name: str | Path) -> Any:
        """A model that this run has written, by its name in the run directory or its path."""
        recipe = self.inputs.recipe
        return load_model(self.directory.path / name, custom_objects(recipe, self.origin), unsafe=self.origin.unsafe)

    def end(self) -> None:
        """Say that this run is complete, and remove what only one that goes on needs: in this order, as it may be killed between."""
        self.directory.complete(leaving_out=FOR_RESUME)
        for name in FOR_RESUME:
            (self.directory / name).unlink(missing_ok=True)

    @contextmanager
    def stage(self, name: str, title: str, total: int | None = None) -> Iterator[Advance]:
        """Enter a stage: the manifest, the log and the progress display name it, and its seconds go to `metrics.json`."""
        self.stage_name = name
        self.directory.mark("running", stage=name)
        self.write_log(title)
        started, seconds = time.perf_counter(), self.metrics["seconds"]
        try:
            with self.progress.stage(title, total) as advance:
                yield advance
        finally:
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 2)

    def say(self, text: str) -> None:
        """Tell the log and the user."""
        self.write_log(text)
        self.progress.message(text)

    def warn(self, text: str) -> None:
        """Tell the log, the user and `metrics.json`."""
        self.metrics["warnings"].append(text)
        self.say(f"warning: {text}")

    def measure(self, name: str, values: dict[str, float]) -> None:
        """Keep the values of a stage, and write them rounded."""
        self.measured[name] = values
        self.metrics[name] = self.rounded(values)
        self.write_log(f"{name}: {self.metrics[name]}")
        self.save_metrics()

    def rounded(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values as `metrics.json` has them."""
        return {metric: round(value, _DIGITS) for metric, value in values.items()}

    def evaluate(self, name: str, title: str, model: Any, data: Data) -> dict[str, float]:
        """Loss and metrics of a Keras model over a data set, as a stage of their own."""
        metrics = self.inputs.recipe.training.metrics
        with self.stage(name, title, data.batches) as advance, reading(data.name):
            return evaluate(model, data.dataset, loss=self.inputs.loss, metrics=metrics, callbacks=[Ticker(on_test=advance)])

    def save_metrics(self) -> None:
        """Write `metrics.json`."""
        files.write_json(self.directory / "metrics.json", self.metrics)

    def save_model(self, model: Any, name: str) -> None:
        """Write a Keras model."""
        with files.replacing(self.directory / name) as temporary:
            model.save(temporary)
        self.metrics.setdefault("files", []).append(name)

    @property
    def first_metric(self) -> str:
        """The metric that decides: the first of the recipe's, of the first output; the loss if Keras reports no metric."""
        losses = {"loss", *(f"{output}_loss" for output in self.inputs.model.output_names)}
        return next((name for name in self.measured["float"] if name not in losses), "loss")

    def give_up(self, error: BaseException) -> None:
        """Leave nothing if there is no result yet; else keep what there is, mark it, and have the error say where it lies."""
        self.write_log(f"stopped in stage {self.stage_name}: {type(error).__name__}: {error}")
        if not self.workers.is_chief:
            return
        is_about_input = isinstance(error, TfqatError) and not isinstance(error, WorkerError)
        if is_about_input and not self.resumed and not (self.directory / "calibration.json").exists():
            self.directory.discard()
            return
        keep(self.directory, error, stage=self.stage_name)
