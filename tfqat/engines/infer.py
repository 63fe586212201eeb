"""Predictions for files: images, `.npy` and `.npz`; and the classes that score highest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tfqat.arrays import read_arrays
from tfqat.engines.images import image_files, image_input
from tfqat.engines.serve import Engine
from tfqat.errors import DataError
from tfqat.form import Pixels

ARRAYS = (".npy", ".npz")
_MOST_LABELS = 16 << 20
"""Bytes; the names of 21,000 classes take one million."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What a model makes of a file or a folder.

    Attributes:
        outputs: every output by its name.
        sources: what each example is: the name of the image, or its number.
        notes: what was done to the input, a line each.
    """

    outputs: Mapping[str, np.ndarray[Any, Any]]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


def infer(engine: Engine, path: Path, normalization: Pixels | None = None) -> Inference:
    """Predict for an image, a folder of images, an array, or arrays by the names of inputs.

    Args:
        engine: the model.
        path: `.png`, `.jpg`, a folder of them, `.npy`, or `.npz`.
        normalization: of images, for a model that takes floats.

    Raises:
        DataError: the file cannot be read, or the model takes no images.
        EngineError: the input does not fit the model.
    """
    if path.suffix.lower() in ARRAYS:
        return _of_arrays(engine, path, normalization)
    if not path.exists():
        raise DataError(f"{path} is not there; expected a folder of images, an image, an .npz or an .npy file")
    files = image_files(path)
    given = image_input(engine.inputs, engine.form, normalization)
    images = ((file, given.read(file)) for file in files)
    # Free sides: neighbours of the same size run together. groupby is lazy, so a large folder is never in memory as a whole.
    results = [
        _by_name(engine, engine.predict(np.stack(chunk)))
        for _, group in groupby(images, lambda pair: pair[1].shape)
        for chunk in _chunks((image for _, image in group), engine.batch_size)
    ]
    return Inference(outputs=_joined(results), sources=tuple(file.name for file in files), notes=(given.describe(),))


def top_classes(outputs: Mapping[str, np.ndarray[Any, Any]], count: int) -> list[list[tuple[int, float]]]:
    """For every example the classes with the highest scores, the highest first; of the first output that has a score for each class.

    Raises:
        DataError: no output has the shape (examples, classes).
    """
    scores = class_scores(outputs)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return [[(int(index), float(row[index])) for index in best] for row, best in zip(scores, order, strict=True)]


def class_scores(outputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The first output of shape (examples, classes); a DataError if there is none."""
    for value in outputs.values():
        if value.ndim == 2:
            return value
    shapes = ", ".join(f"{name!r} {list(value.shape)}" for name, value in outputs.items())
    raise DataError(f"no output has the shape (examples, classes): {shapes}; write them to a file with -o")


def read_labels(path: Path, classes: int) -> tuple[str, ...]:
    """The names of the classes, a line each; a DataError if there are not as many as classes."""
    try:
        with path.open("rb") as stream:
            read = stream.read(_MOST_LABELS + 1)
        lines = read.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the labels {path} cannot be read: {error}") from error
    if len(read) > _MOST_LABELS:
        raise DataError(f"{path} is no file of labels: it has more than {_MOST_LABELS:,} bytes; expected a line for each class")
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) != classes:
        raise DataError(f"{path} has {len(lines)} labels, and the model {classes} classes; expected a line for each")
    return tuple(line.strip() for line in lines)


def _of_arrays(engine: Engine, path: Path, normalization: Pixels | None) -> Inference:
    if normalization is not None:
        raise DataError(f"--mean, --std and --unit are for images; the arrays of {path} go to the model as they are: leave them out")
    found = read_arrays(path)
    names = [one.name for one in engine.inputs]
    notes: tuple[str, ...] = ()
    if isinstance(found, dict):
        if len(names) == len(found) == 1:
            found = dict.fromkeys(names, next(iter(found.values())))
        unused = [name for name in found if name not in names]
        notes = (f"not read, as the model has no such input: {', '.join(unused)}",) if unused else ()
        found = {name: value for name, value in found.items() if name in names}
    outputs = _by_name(engine, engine.predict(found))
    first = next(iter(outputs.values()))
    count = len(first) if first.ndim else 1
    return Inference(outputs=outputs, sources=tuple(map(str, range(count))), notes=notes)


def _chunks(values: Iterator[np.ndarray[Any, Any]], size: int) -> Iterator[list[np.ndarray[Any, Any]]]:
    chunk: list[np.ndarray[Any, Any]] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _by_name(engine: Engine, predicted: Any) -> dict[str, np.ndarray[Any, Any]]:
    return predicted if isinstance(predicted, dict) else {engine.outputs[0].name: predicted}


def _joined(results: Sequence[Mapping[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    for name in results[0]:
        shapes = {result[name].shape[1:] for result in results}
        if len(shapes) > 1:
            raise DataError(f"output {name!r} has another shape for images of another size, {sorted(shapes)}: give images of one size")
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}
