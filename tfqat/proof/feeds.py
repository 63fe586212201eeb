"""Inputs to compare graphs on where no run gives data: a .npz file, or noise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfqat.arrays import read_arrays
from tfqat.errors import DataError
from tfqat.proof.qdq_graph import GraphInput

NOISE_EXAMPLES, SEED = 100, 0


def from_npz(path: Path, inputs: Mapping[str, GraphInput]) -> dict[str, np.ndarray]:
    """The array of each input, by its name, from a file of `numpy.savez`; other arrays in it are left alone. Images are channels last.

    Raises:
        DataError: the file is missing or no .npz, lacks an input, or arrays of different lengths.
    """
    wanted = f"expected a .npz file with an array for each of {', '.join(inputs)}"
    if not path.is_file():
        raise DataError(f"{path} does not exist; {wanted}")
    found = read_arrays(path)
    if isinstance(found, np.ndarray):
        raise DataError(f"{path} holds one array without a name; {wanted}")
    missing = [name for name in inputs if name not in found]
    if missing:
        raise DataError(f"{path} lacks the input {missing[0]!r}: it has {', '.join(found) or 'nothing'}")
    arrays = {name: found[name] for name in inputs}
    wrong = [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]
    if wrong:
        raise DataError(f"{path}: input {wrong[0]!r} holds {arrays[wrong[0]].dtype}; expected numbers")
    lengths = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or () in lengths.values():
        raise DataError(f"{path}: arrays of the lengths {lengths}; expected one length, that of the examples")
    return arrays


def noise(inputs: Mapping[str, GraphInput], *, examples: int = NOISE_EXAMPLES) -> dict[str, np.ndarray]:
    """Standard normal noise for each input, or of pixels for one that takes them, normalized; the same at every call.

    Raises:
        DataError: an input of whole numbers, or with a free axis other than the first: only the user knows what fits.
    """
    rng, made = np.random.default_rng(SEED), {}
    for name, one in inputs.items():
        if one.pixels is not None and None not in one.sizes[1:]:
            pixels = rng.integers(0, 256, (examples, *(size or 1 for size in one.sizes[1:])), np.uint8)
            made[name] = one.pixels.normalized(pixels)
            continue
        if not np.issubdtype(one.dtype, np.floating) or None in one.sizes[1:]:
            raise DataError(
                f"input {name!r} has the type {one.dtype} and the sizes {one.sizes}: noise does not fit it; give data with --data FILE.npz"
            )
        made[name] = rng.standard_normal((examples, *(size or 1 for size in one.sizes[1:]))).astype(one.dtype)
    return made
