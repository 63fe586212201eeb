"""Reading `.npy` and `.npz` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tfqat import arrays
from tfqat.arrays import read_arrays
from tfqat.errors import DataError


def test_an_array_and_arrays_by_name(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "one.npy", value)
    np.savez_compressed(tmp_path / "two.npz", a=value, b=value[0])
    assert np.array_equal(read_arrays(tmp_path / "one.npy"), value)
    found = read_arrays(tmp_path / "two.npz")
    assert isinstance(found, dict) and list(found) == ["a", "b"] and np.array_equal(found["b"], value[0])


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"objects\.npy cannot be read as arrays: .*allow_pickle=False"):
        read_arrays(tmp_path / "objects.npy")


def test_an_npz_that_would_become_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "zeros.npz", a=np.zeros(1 << 20, np.float32))
    read_arrays(tmp_path / "zeros.npz")
    monkeypatch.setattr(arrays, "_ALWAYS", 1 << 20)
    with pytest.raises(DataError, match=r"zeros\.npz is refused: its [\d,]+ bytes would become 4,194,\d+; write it with numpy\.savez"):
        read_arrays(tmp_path / "zeros.npz")


def test_a_flipped_bit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, a=np.zeros(1000, np.float32))
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[0].header_offset + 2000
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_arrays(path)
