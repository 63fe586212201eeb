"""What a fine-tuning that was cut off continues from: one file, written whole, with weights, optimizer, best weights and history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

from tfqat import files
from tfqat.arrays import read_arrays
from tfqat.errors import DataError, RunDirectoryError
from tfqat.training.callbacks import BestWeights, EpochHistory


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a fine-tuning has come: complete epochs, and optimizer steps in all."""

    epoch: int
    step: int


class Checkpoints(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Saves after each epoch, and every `steps` optimizer steps if given; `restore` puts everything back.

    Args:
        path: the file.
        best: keeps the best weights; saved and restored with them.
        history: the rows of the epochs; likewise.
        steps: optimizer steps between two saves within an epoch; None: none.
    """

    def __init__(self, path: Path, best: BestWeights, history: EpochHistory, steps: int | None = None) -> None:
        super().__init__()
        self._path, self._best, self._history, self._steps = path, best, history, steps
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save, if it is time; not after the last step, as the epoch is complete only when it has been validated."""
        last = batch + 1 == self.params.get("steps")
        if self._steps and not last and int(self.model.optimizer.iterations.numpy()) % self._steps == 0:
            self._save(self._epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save; what the callbacks before this one keep of the epoch is in it."""
        self._save(epoch + 1)

    def restore(self, model: Any) -> Position | None:
        """Put back what was saved, if there is something.

        Args:
            model: compiled as it was when it was saved, its optimizer built.

        Returns:
            Where to go on, None where nothing was saved.

        Raises:
            RunDirectoryError: the file is corrupt, or of another model or optimizer.
        """
        if not self._path.exists():
            return None
        try:
            arrays: Any = read_arrays(self._path)
            meta = json.loads(str(arrays["meta"]))
            groups = {name: [arrays[f"{name}/{number}"] for number in range(count)] for name, count in meta["counts"].items()}
        except (DataError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RunDirectoryError(f"{self._path} cannot be read: {error}; delete it, and fine-tuning starts anew") from error
        variables = _variables(model.optimizer)
        shapes = [[tuple(value.shape) for value in values] for values in (model.weights, variables)]
        if shapes != [[value.shape for value in groups[name]] for name in ("model", "optimizer")]:
            raise RunDirectoryError(f"{self._path} was saved by another model or optimizer; delete it, and fine-tuning starts anew")
        model.set_weights(groups["model"])
        for variable, value in zip(variables, groups["optimizer"], strict=True):
            variable.assign(value)
        self._best.set_state(meta["best"], groups["best"])
        self._history.rows = meta["rows"]
        self._history.write()
        return Position(epoch=meta["epoch"], step=meta["step"])

    def _save(self, epoch: int) -> None:
        groups: dict[str, Sequence[Any]] = {
            "model": self.model.get_weights(),
            "optimizer": [np.asarray(variable.numpy()) for variable in _variables(self.model.optimizer)],
            "best": self._best.weights or [],
        }
        meta = {
            "epoch": epoch,
            "step": int(self.model.optimizer.iterations.numpy()),
            "best": self._best.state(),
            "rows": self._history.rows,
            "counts": {name: len(values) for name, values in groups.items()},
        }
        arrays = {f"{name}/{number}": value for name, values in groups.items() for number, value in enumerate(values)}
        with files.replacing(self._path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, meta=np.asarray(json.dumps(meta)), **arrays)


def _variables(optimizer: Any) -> list[Any]:
    """Those of an optimizer, with its loss scale if it has one."""
    scale = getattr(optimizer, "_loss_scale", None)
    return [*optimizer.variables, *([] if scale is None else [scale.current_loss_scale, scale.counter])]
