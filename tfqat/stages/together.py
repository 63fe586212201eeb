"""The parts of a run that all its processes do together: calibration and training. The chief calls them, the others `serve`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.calibration.calibrate import BEST_EXAMPLES, calibrate, choose_best
from tfqat.calibration.result import Calibration
from tfqat.datasets import inputs_of
from tfqat.inputs import load_data
from tfqat.progress import counted
from tfqat.quantize import state
from tfqat.stages.under_way import Run
from tfqat.training.callbacks import Ticker
from tfqat.training.fit import QatResult, fine_tune
from tfqat.training.replicas import synchronize_batchnorm
from tfqat.workers import Message

_MODEL, _TEACHER, _CHECKPOINT, _HISTORY = "model.keras", "teacher.keras", "checkpoint.npz", "history.csv"


@dataclass(frozen=True, kw_only=True)
class Training:
    """One fine-tuning: its metric, the value of it before, and the names of its files in the run directory."""

    monitor: str
    baseline: float
    history: str
    checkpoint: str


def calibrated(run: Run, qmodel: Any, advance: Callable[[], None]) -> Calibration:
    """Calibrate a quantized model in place, each process with its part of every batch.

    Raises:
        DataError: what `calibrate` raises, in any of the processes.
        WorkerError: another process was lost.
    """
    batches = run.inputs.recipe.calibration.batches
    files = _saved({_MODEL: qmodel}) if run.workers.count > 1 else {}
    with run.workers.together(Message(kind="calibrate", files=files)):
        found = _calibrate_part(run, qmodel, advance)
    if run.workers.count == 1:
        return found
    best = [name for name, handle in state.handles(qmodel).items() if handle.point.calibrator.method == "best"]
    if best:  # with whole batches, as one process does
        found = choose_best(qmodel, found, best, first_examples(run))
        state.set_ranges(qmodel, {name: point.amax for name, point in found.points.items()})
    return replace(found, batches=batches)


def trained(run: Run, model: Any, training: Training, *, teacher: Any, advance: Callable[[], None]) -> QatResult:
    """Fine-tune a model in place, on all devices of all processes.

    Raises:
        TrainingError: what `fine_tune` raises.
        WorkerError: another process was lost.
    """
    checkpoint = run.directory / training.checkpoint
    if run.workers.strategy is None:
        return _fine_tune(run, model, training, teacher, run.directory / training.history, checkpoint, advance)
    files = _saved({_MODEL: model} | ({} if teacher is None else {_TEACHER: teacher}))
    if checkpoint.exists() and run.workers.count > 1:
        files[_CHECKPOINT] = checkpoint.read_bytes()
    message = Message(kind="train", settings=asdict(training), files=files)
    with run.workers.together(message), tempfile.TemporaryDirectory() as folder:
        message.unpack(Path(folder))
        result, weights = _train_part(run, Path(folder), training, run.directory / training.history, checkpoint, advance)
    model.set_weights(weights)
    return result


def serve(run: Run) -> None:
    """For the processes beside the chief: take part in what it begins, until it ends.

    Raises:
        WorkerError: the chief failed, or a process was lost.
        TfqatError: what this process's own part raises.
    """
    while (message := run.workers.receive()).kind != "end":
        with tempfile.TemporaryDirectory() as name, run.workers.meeting():
            folder = Path(name)
            message.unpack(folder)
            if message.kind == "calibrate":
                batches = run.inputs.recipe.calibration.batches
                with run.progress.stage(f"Calibrate {batches} batches", batches) as advance:
                    _calibrate_part(run, run.load_model(folder / _MODEL), advance)
            else:
                steps = run.inputs.schedule.total_steps if run.inputs.schedule else None
                with run.progress.stage("Train", steps) as advance:
                    training = Training(**message.settings)
                    _train_part(run, folder, training, folder / _HISTORY, folder / _CHECKPOINT, advance)


def first_examples(run: Run) -> list[Any]:
    """Batches of inputs from the calibration data, with enough examples for the calibrator `best`."""
    batches, left = [], BEST_EXAMPLES
    for batch in run.inputs.calibration:
        if left <= 0:
            break
        batches.append(inputs_of(batch))
        left -= int(tf.nest.flatten(batches[-1])[0].shape[0])
    return batches


def _calibrate_part(run: Run, qmodel: Any, advance: Callable[[], None]) -> Calibration:
    with run.workers.scope():
        return calibrate(qmodel, counted(_parts(run), advance), run.inputs.recipe.calibration.batches)


def _parts(run: Run) -> Iterator[Any]:
    """This process's part of each calibration batch; it may be empty."""
    index, count = run.workers.index, run.workers.count
    for batch in run.inputs.calibration:
        if count == 1:
            yield batch
            continue
        inputs = inputs_of(batch)
        size = int(tf.nest.flatten(inputs)[0].shape[0])
        rows = slice(index * size // count, (index + 1) * size // count)
        yield tf.nest.map_structure(lambda value, rows=rows: value[rows], inputs)


def _train_part(
    run: Run, folder: Path, training: Training, history: Path, checkpoint: Path, advance: Callable[[], None]
) -> tuple[QatResult, list[Any]]:
    """The result and the weights. Every process makes the same calls: making and reading a variable can be a meeting of all of them."""
    with run.workers.scope():
        model = run.load_model(folder / _MODEL)
        teacher = run.load_model(folder / _TEACHER) if (folder / _TEACHER).exists() else None
        if run.workers.replicas > 1 and run.workers.synchronizes_batchnorm:
            synchronize_batchnorm(model)
        return _fine_tune(run, model, training, teacher, history, checkpoint, advance), model.get_weights()


def _fine_tune(
    run: Run, model: Any, training: Training, teacher: Any, history: Path, checkpoint: Path, advance: Callable[[], None]
) -> QatResult:
    """Data are loaded with the seed set anew: so a run that goes on reads the same, and every process does."""
    inputs, schedule = run.inputs, run.inputs.schedule
    assert schedule is not None  # a recipe without fine-tuning trains nothing
    recipe = inputs.recipe

    def load_train() -> Any:
        tf_keras.utils.set_random_seed(recipe.seed)
        return load_data(recipe, "train", run.origin, inputs.model).dataset

    return fine_tune(
        model,
        schedule,
        load_train,
        inputs.validation.dataset,
        loss=inputs.loss,
        metrics=recipe.training.metrics,
        monitor=training.monitor,
        baseline=training.baseline,
        history=history,
        teacher=teacher,
        checkpoint=checkpoint,
        checkpoint_steps=recipe.qat.checkpoint_steps,
        seed=recipe.seed,
        callbacks=[Ticker(on_train=advance)],
    )


def _saved(models: dict[str, Any]) -> dict[str, bytes]:
    """Keras models as the bytes of their files."""
    contents = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            path = Path(folder) / name
            model.save(path)
            contents[name] = path.read_bytes()
    return contents
