"""Plans without a GPU: what runs them is a TensorRT with the recorded names of each version and a driver whose memory is the host's.

The engine doubles its input. Nothing here runs TensorRT or CUDA; what is missing on a real machine is tested by its message.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import importlib
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfqat.engines import plan as module
from tfqat.engines import tensorrt, tensorrt_rtx
from tfqat.engines.cuda import Device
from tfqat.engines.serve import load_engine
from tfqat.errors import EngineError

SURFACES = Path(__file__).parent / "surfaces"
VERSIONS = ["tensorrt_8.6", "tensorrt_10", "tensorrt_11", "tensorrt_rtx_1.7"]
ENUMS = ("DataType", "TensorIOMode")


class FakeDriver:
    """The driver's functions; addresses are those of buffers on the host, and results come back when the stream is waited for."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.pending: list[tuple[int, int, int]] = []
        self.depth, self.calls, self.refused = threading.local(), [], ""  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        made = type(self).__dict__.get(f"do_{name}", lambda *arguments: None)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == self.refused:
                return 2
            if name.startswith(("cuMem", "cuStream")):
                assert getattr(self.depth, "value", 0) == 1, f"{name} without the context"
            made(self, *arguments)
            return 0

        return call

    def do_cuCtxPushCurrent_v2(self, context: Any) -> None:  # noqa: N802
        self.depth.value = getattr(self.depth, "value", 0) + 1

    def do_cuCtxPopCurrent_v2(self, context: Any) -> None:  # noqa: N802
        self.depth.value -= 1

    def do_cuStreamCreate(self, stream: Any, flags: Any) -> None:  # noqa: N802
        stream._obj.value = 77

    def do_cuMemAlloc_v2(self, address: Any, size: Any) -> None:  # noqa: N802
        made = ctypes.create_string_buffer(size.value)
        address._obj.value = ctypes.addressof(made)
        self.memory[address._obj.value] = made

    def do_cuMemFree_v2(self, address: Any) -> None:  # noqa: N802
        del self.memory[address.value]

    def do_cuMemcpyHtoDAsync_v2(self, address: Any, host: Any, size: Any, stream: Any) -> None:  # noqa: N802
        assert stream.value == 77 and size.value <= len(self.memory[address.value])
        ctypes.memmove(address.value, host.value, size.value)

    def do_cuMemcpyDtoHAsync_v2(self, host: Any, address: Any, size: Any, stream: Any) -> None:  # noqa: N802
        assert stream.value == 77 and size.value <= len(self.memory[address.value])
        self.pending.append((host.value, address.value, size.value))

    def do_cuStreamSynchronize(self, stream: Any) -> None:  # noqa: N802
        while self.pending:
            ctypes.memmove(*self.pending.pop(0))


class FakeTensorRT:
    """An engine `y = 2 x` of (1..8, 4, sizes), 4 the optimal batch, made of the names that a surface has and no others."""

    def __init__(
        self, surface: str, *, loads: bool = True, runs: bool = True, shape: tuple[int, ...] = (-1, 3), dtype: str = "FLOAT"
    ) -> None:
        data = json.loads((SURFACES / f"{surface}.json").read_text())
        self.version, self.loads, self.runs, self.shape, self.dtype = data["version"], loads, runs, shape, dtype
        self.asked: list[tuple[str, Any]] = []
        self.bound: dict[str, int] = {}
        self.batch: tuple[int, ...] = ()
        self.module: Any = types.SimpleNamespace(__version__=data["version"])
        for name in ENUMS:
            setattr(self.module, name, enum.IntEnum(name, data["classes"][name], start=0))
        recorded, classes = (
            data["classes"],
            {"Runtime": self._runtime(), "ICudaEngine": self._engine(), "IExecutionContext": self._context()},
        )
        for name, members in classes.items():
            assert set(members) <= set(recorded[name]), f"{surface} lacks {set(members) - set(recorded[name])} of {name}"
        self.module.ILogger = type("ILogger", (), {"__init__": lambda instance: None})
        self.module.Runtime = lambda logger: self._object("Runtime", classes["Runtime"], logger=logger)
        self.classes = classes

    def _object(self, owner: str, members: dict[str, Any], **state: Any) -> Any:
        made = types.SimpleNamespace()
        for name, member in members.items():
            value = member(state) if owner == "Runtime" else member
            setattr(made, name, value)
        return made

    def _runtime(self) -> dict[str, Any]:
        def deserialize(state: dict[str, Any]) -> Callable[[bytes], Any]:
            def load(plan: bytes) -> Any:
                self.asked.append(("deserialize", plan))
                if not self.loads:
                    state["logger"].log(types.SimpleNamespace(name="ERROR"), "The engine plan file is not compatible")
                    state["logger"].log(types.SimpleNamespace(name="INFO"), "not said")
                    return None
                return self._object("ICudaEngine", self._engine())

            return load

        return {"deserialize_cuda_engine": deserialize}

    def _engine(self) -> dict[str, Any]:
        modes = self.module.TensorIOMode
        return {
            "num_io_tensors": 2,
            "get_tensor_name": lambda number: "yx"[number],
            "get_tensor_mode": lambda name: modes.INPUT if name == "x" else modes.OUTPUT,
            "get_tensor_shape": lambda name: self.shape,
            "get_tensor_dtype": lambda name: self.module.DataType[self.dtype],
            "get_tensor_profile_shape": lambda name, number: [(size, *(max(n, 5) for n in self.shape[1:])) for size in (2, 4, 8)],
            "is_shape_inference_io": lambda name: False,
            "create_execution_context": lambda: self._object("IExecutionContext", self._context()),
        }

    def _context(self) -> dict[str, Any]:
        def execute(stream: int) -> bool:
            assert stream == 77
            count = int(np.prod(self.batch))
            kind = ctypes.c_float * count
            source, target = kind.from_address(self.bound["x"]), kind.from_address(self.bound["y"])
            for place in range(count):
                target[place] = 2 * source[place]
            return self.runs

        def set_shape(name: str, shape: tuple[int, ...]) -> bool:
            self.batch = shape
            self.asked.append(("shape", shape))
            return True

        return {
            "set_input_shape": set_shape,
            "get_tensor_shape": lambda name: self.batch,
            "set_tensor_address": lambda name, address: self.bound.__setitem__(name, address) or True,
            "execute_async_v3": execute,
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Path, FakeDriver]]:
    """A machine with a GPU and a TensorRT, and a plan with its metadata."""

    def make(fake: FakeTensorRT, surface: str = "tensorrt_10", **metadata: Any) -> tuple[Path, FakeDriver]:
        driver = FakeDriver()
        backend = "tensorrt_rtx" if "rtx" in surface else "tensorrt"
        monkeypatch.setitem(sys.modules, module.RUNTIMES[backend].module, fake.module)
        monkeypatch.setattr(tensorrt, "gpu_visible", lambda: True)
        monkeypatch.setattr(tensorrt, "gpu_name", lambda: "NVIDIA L4")
        monkeypatch.setattr(tensorrt, "cuda_driver", lambda: driver)
        return write(tmp_path / "model.plan", backend=backend, version=fake.version, **metadata), driver

    return make


def write(path: Path, **metadata: Any) -> Path:
    path.write_bytes(b"engine")
    known = {"engine": {"sha256": hashlib.sha256(b"engine").hexdigest()}, "gpu": "NVIDIA A10", "target": "this machine's GPU"}
    known |= {"onnx": {"file": "net.onnx", "metadata": {"tfqat.form": json.dumps({"layout": "nchw"})}}}
    path.with_name(path.name + ".json").write_text(json.dumps(known | metadata))
    return path


@pytest.mark.parametrize("surface", VERSIONS)
def test_a_plan_predicts_like_a_graph(machine: Callable[..., Any], surface: str) -> None:
    fake = FakeTensorRT(surface)
    path, driver = machine(fake, surface)
    with load_engine(path) as engine:
        assert (engine.runtime, engine.batch_size, engine.form.layout) == (module.RUNTIMES[engine.runtime].name, 4, "nchw")
        assert [str(one) for one in (*engine.inputs, *engine.outputs)] == ["'x' float32 [2..8, 3]", "'y' float32 [?, 3]"]
        x = np.random.default_rng(0).standard_normal((9, 3))
        np.testing.assert_array_equal(engine.predict(x), 2 * x.astype(np.float32))
        assert fake.asked == [("deserialize", b"engine"), ("shape", (4, 3)), ("shape", (4, 3)), ("shape", (2, 3))]  # 1 filled up to 2
        assert engine.predict(x[:0]).shape == (0, 3)
        assert len(driver.memory) == 2  # a buffer for each tensor, kept from run to run
    assert driver.memory == {} and driver.calls[-1] == "cuDevicePrimaryCtxRelease_v2"


def test_memory_grows_with_the_input(machine: Callable[..., Any]) -> None:
    fake = FakeTensorRT("tensorrt_10")
    path, driver = machine(fake)
    engine = load_engine(path, batch_size=8)
    for count in (2, 8, 3):
        np.testing.assert_array_equal(engine.predict(np.ones((count, 3))), np.full((count, 3), 2))
    assert driver.calls.count("cuMemAlloc_v2") == 4 and driver.calls.count("cuMemFree_v2") == 2


def test_threads_take_turns(machine: Callable[..., Any]) -> None:
    path, _ = machine(FakeTensorRT("tensorrt_10"))
    engine = load_engine(path)
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(20):
            x = np.full((5, 3), number * 100 + turn, np.float32)
            if not np.array_equal(engine.predict(x), 2 * x):
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_what_does_not_fit_the_profile(machine: Callable[..., Any]) -> None:
    path, _ = machine(FakeTensorRT("tensorrt_10", shape=(-1, -1)))
    engine = load_engine(path)
    with pytest.raises(
        EngineError, match=r"input 'x' has the shape \[1, 6\]; expected 'x' float32 \[2\.\.8, 5\.\.5\].*axis 1 does not fit"
    ):
        engine.predict(np.zeros((1, 6)))
    with pytest.raises(EngineError, match=r"batch_size must be 2 to 8 for this model; got 9"):
        load_engine(path, batch_size=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": False}, r"model\.plan: TensorRT cannot run the engine"),
        ({"dtype": "FP8"}, r"tensor 'y' has TensorRT's type FP8, which NumPy lacks; expected one of FLOAT, HALF"),
        (
            {"loads": False},
            r"cannot be loaded: it was built for NVIDIA A10, and the GPU here is NVIDIA L4: compile it again .*not compatible\)$",
        ),
    ],
)
def test_what_tensorrt_refuses(machine: Callable[..., Any], changes: dict[str, Any], message: str) -> None:
    path, _ = machine(FakeTensorRT("tensorrt_10", **changes))
    with pytest.raises(EngineError, match=message):
        load_engine(path).predict(np.zeros((1, 3)))


def test_a_plan_of_another_version(machine: Callable[..., Any]) -> None:
    path, _ = machine(FakeTensorRT("tensorrt_10", loads=False))
    write(path, backend="tensorrt", version="8.6.1")
    with pytest.raises(EngineError, match=r"it was built by TensorRT 8\.6\.1, and 10 is installed: compile it again, or install 8\.6\.1"):
        load_engine(path)
    path.with_name("model.plan.json").unlink()
    with pytest.raises(EngineError, match=r"cannot be loaded: a plan runs with the version .* and no metadata beside it says which"):
        load_engine(path)


def test_no_memory_on_the_gpu(machine: Callable[..., Any]) -> None:
    path, driver = machine(FakeTensorRT("tensorrt_10"))
    engine = load_engine(path)
    driver.refused = "cuMemAlloc_v2"
    with pytest.raises(EngineError, match=r"the CUDA driver refused cuMemAlloc_v2: there is not enough memory on the GPU"):
        engine.predict(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("metadata", "options", "message"),
    [
        (
            {"backend": "tensorrt"},
            {},
            r"needs TensorRT, which is not installed .*pip install tfqat\[tensorrt\].*net\.onnx, runs in ONNX Runtime",
        ),
        ({"backend": "tensorrt"}, {"runtime": "cpu"}, r"was built by TensorRT, and runs in nothing else; got the runtime 'cpu'"),
        ({"backend": "tensorrt_rtx"}, {"runtime": "tensorrt"}, r"was built by TensorRT for RTX, and runs in nothing else"),
        ({}, {"runtime": "cuda"}, r"is a plan of TensorRT and runs in tensorrt or tensorrt_rtx alone; got the runtime 'cuda'"),
        ({"engine": {"sha256": "0"}}, {}, r"model\.plan is damaged, or model\.plan\.json beside it is of another engine"),
        ({}, {"threads": 2}, r"literal and threads are for ONNX Runtime; .*model\.plan is a plan: leave them out"),
    ],
)
def test_what_is_missing_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=message):
        load_engine(write(tmp_path / "model.plan", **metadata), **options)


def test_a_plan_of_tensorrt_for_rtx_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tensorrt_rtx.RTX.module, types.SimpleNamespace(__version__="1.7"))
    monkeypatch.setattr(tensorrt, "gpu_visible", lambda: False)
    path = write(tmp_path / "model.sm86.plan", backend="tensorrt_rtx", gpu=None, target="SM86")
    with pytest.raises(EngineError, match=r"model\.sm86\.plan was built for SM86 and needs an NVIDIA GPU to run; none is visible here"):
        load_engine(path)
    with pytest.raises(EngineError, match=r"nothing\.plan is not a file; expected an engine"):
        load_engine(tmp_path / "nothing.plan")
    path.with_name(path.name + ".json").write_text("{")
    with pytest.raises(EngineError, match=r"model\.sm86\.plan\.json cannot be read .*; compile the engine again, or delete that file"):
        load_engine(path)


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "cuda_driver", lambda: None)
    with pytest.raises(EngineError, match="no NVIDIA GPU is visible"):
        Device()


@pytest.mark.skipif(not tensorrt_rtx.is_available()[0], reason="not compared: TensorRT for RTX is not installed")
def test_the_names_that_a_run_uses_are_in_the_installed_tensorrt_for_rtx() -> None:
    installed = importlib.import_module(tensorrt_rtx.RTX.module)
    for owner, members in FakeTensorRT("tensorrt_rtx_1.7").classes.items():
        for member in members:
            assert hasattr(getattr(installed, owner), member), (owner, member)
    assert set(module._DTYPES) <= set(installed.DataType.__members__) and "INPUT" in installed.TensorIOMode.__members__
