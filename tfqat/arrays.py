"""Reads `.npy` and `.npz` files, whoever wrote them: nothing in them is run, and no memory is taken for what they do not hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tfqat.errors import DataError

_RATIO, _ALWAYS = 200, 256 << 20
"""An .npz may become 200 times as large, as masks and zeros do, and 256 MB in any case; deflate packs nothing but zeros 1,000 times."""


def read_arrays(path: Path) -> np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]]:
    """The array of an `.npy` file, or those of an `.npz` file by their names.

    Raises:
        DataError: the file is missing, damaged or no such file, holds Python objects, or would become implausibly large.
    """
    try:
        _check_size(path)
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            return np.asarray(found)
        with found:
            return {name: np.asarray(found[name]) for name in found.files}
    except DataError:
        raise
    except Exception as error:  # of a dozen types: zlib's, struct's, tokenize's, MemoryError for a shape that no machine holds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as arrays: {reason[:300]}") from error


def _check_size(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > max(_ALWAYS, _RATIO * path.stat().st_size):
        raise DataError(f"{path} is refused: its {path.stat().st_size:,} bytes would become {declared:,}; write it with numpy.savez")
