"""The `data.py` of a new project: functions that say what they have to return, and random numbers of the right shapes until they do."""

from __future__ import annotations

import pprint

from tfqat.scaffold.facts import Facts, Output

FREE_SIZES = {1: 16, 2: 64, 3: 16}
"""The length that stands for a free axis in the random numbers, by the number of axes that are not channels: tokens, pixels, voxels."""

_STUB = '''\
"""The data of recipe.yaml. Replace the bodies of `train`, `validation` and `calibration`; nothing else here is needed then.

{model} takes
{inputs}
and returns
{outputs}

Each function returns a `tf.data.Dataset` of batches (inputs, labels){structure}.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf

BATCH_SIZE = 32


def train() -> tf.data.Dataset:
    """Training examples, shuffled anew in every epoch and augmented as they were for the float model. Not read with `ptq_only: true`."""
    return _to_do("train")


def validation() -> tf.data.Dataset:
    """Examples that the accuracy is measured on, in order, preprocessed as for the float model."""
    return _to_do("validation")


def calibration() -> tf.data.Dataset:
    """Training examples without augmentation, of all kinds; a few hundred are enough. The labels are not used."""
    return _to_do("calibration")


# --- until there is data ---

INPUTS = {input_table}  # name: shape of one example, type
LABELS = {label_table}  # name: shape of one label, number of classes or None


def random_numbers() -> tf.data.Dataset:
    """One batch of random numbers, again and again: it proves that a run gets through, and says nothing about accuracy."""
    print("data.py: RANDOM NUMBERS in the place of data; every range and every accuracy of this run is meaningless", file=sys.stderr)
    rng = np.random.default_rng(0)

    def draw(shape, below):
        return rng.random((BATCH_SIZE, *shape), np.float32) if below is None else rng.integers(0, below, (BATCH_SIZE, *shape))

    inputs = {{name: draw(shape, 2 if "int" in dtype else None).astype(dtype) for name, (shape, dtype) in INPUTS.items()}}
    labels = {{name: draw(shape, classes) for name, (shape, classes) in LABELS.items()}}
    return tf.data.Dataset.from_tensor_slices((_alone(inputs), _alone(labels))).batch(BATCH_SIZE).repeat({batches})


def _alone(arrays):
    """A model with one input or output takes its array, one with several takes a mapping by name."""
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _to_do(name):
    dry_run = " ".join(f"--set data.{{key}}=data.py:random_numbers" for key in ("train", "validation", "calibration"))
    raise NotImplementedError(
        f"{{name}}() of data.py is still a stub: have it return your data, a tf.data.Dataset of (inputs, labels). "
        f"To try the road on random numbers first: tfqat run recipe.yaml --set ptq_only=true {{dry_run}}"
    )
'''


def data_stub(model: str, facts: Facts, *, batches: int = 16) -> str:
    """The text of `data.py` for a model.

    Args:
        model: what the text calls the model.
        facts: what it takes and returns.
        batches: how many the random numbers have, which calibration reads.
    """
    several = len(facts.inputs) > 1, len(facts.outputs) > 1
    parts = [part for part, is_mapping in zip(("inputs", "labels"), several, strict=True) if is_mapping]
    return _STUB.format(
        model=model,
        batches=batches,
        inputs="\n".join(f"    {port.name:20}{port.dtype:9}{_batch(port.shape)}" for port in facts.inputs),
        outputs="\n".join(
            f"    {output.name:20}{'float32':9}{_batch(output.shape)}   labels (guessed): {_said(output)}" for output in facts.outputs
        ),
        structure=f", where {' and '.join(parts)} are mappings by these names" if parts else "",
        input_table=_table({port.name: (_sizes(port.shape), port.dtype) for port in facts.inputs}),
        label_table=_table({output.name: _label(output) for output in facts.outputs}),
    )


def _batch(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join(['batch', *('any' if size is None else str(size) for size in shape)])})"


def _said(output: Output) -> str:
    shape = _batch(output.shape[:-1] if output.labels == "classes" else output.shape)
    return {
        "classes": f"class indices 0 to {(output.units or 1) - 1}, whole numbers {shape}",
        "binary": f"0 or 1, {shape}",
        "numbers": f"numbers {shape}",
    }[output.labels]


def _sizes(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    free = FREE_SIZES.get(len(shape) - 1, 16)
    return tuple(free if size is None else size for size in shape)


def _label(output: Output) -> tuple[tuple[int, ...], int | None]:
    sizes = _sizes(output.shape)
    return {"classes": (sizes[:-1], output.units), "binary": (sizes, 2), "numbers": (sizes, None)}[output.labels]


def _table(value: object) -> str:
    return pprint.pformat(value, width=100, sort_dicts=False)
