"""Workers compute the bits that this process computes, in its order; their errors, and their death, come back in words."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.analysis import executors, executors_payload, executors_ray, executors_settings
from tfqat.analysis.bench import Bench
from tfqat.analysis.executors import InProcess, Spread, executor_for
from tfqat.analysis.executors_crew import Crew
from tfqat.analysis.executors_local import local_crew
from tfqat.analysis.executors_payload import Payload
from tfqat.errors import ModelError, RecipeError, TfqatError

SCRIPT = """\
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
import tf_keras
import tfqat
from tensorflow.python.framework.config import is_op_determinism_enabled
from tfqat.recipe.references import load_reference

print("main", flush=True)
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(3)
tf.config.experimental.enable_op_determinism()
tf_keras.utils.set_random_seed(1)
Doubled = load_reference("layer.py:Doubled", base=Path())


class Threads(tf_keras.layers.Layer):  # what a worker computes says which settings it has
    def call(self, inputs):
        threading = tf.config.threading
        threads = 10.0 * threading.get_intra_op_parallelism_threads() + threading.get_inter_op_parallelism_threads()
        return inputs + threads + (100.0 if is_op_determinism_enabled() else 0.0)


@tf_keras.saving.register_keras_serializable("mine")
def bent(inputs):
    return tf.nn.relu(inputs) * 0.7


image = tf_keras.Input((8, 8, 3))
x = tf_keras.layers.Conv2D(4, 3, activation=bent, name="a")(image)
x = Threads()(Doubled(2.0)(x))
x = tf_keras.layers.Lambda(lambda value: value * 3)(x)
qmodel = tfqat.quantize_model(tf_keras.Model(image, tf_keras.layers.Dense(2, name="b")(x)))
data = [np.random.default_rng(seed).normal(size=(4, 8, 8, 3)).astype("float32") for seed in range(int(sys.argv[1]))]
tfqat.calibrate(qmodel, data[:2], batches=2)
values = []
for workers in map(int, sys.argv[2:]):
    print("workers", workers, flush=True)
    found = tfqat.sensitivity(qmodel, data, method="leave_one_in", workers=workers)
    values.append([(unit.name, unit.value) for unit in found.units])
print("equal", values[0] == values[-1], len(values[0]), flush=True)
"""

LAYER = """\
import tf_keras


def times(value, factor):
    return value * factor


class Doubled(tf_keras.layers.Layer):
    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return times(inputs, self.factor)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
"""


@pytest.fixture(scope="module")
def bench(tiny_quantized: Any, tiny_float: Any) -> Bench:
    """Of a model whose weights are not those of the float one, as if they had been corrected."""
    like = tf_keras.models.clone_model(tiny_float)
    like.set_weights([1.01 * value for value in tiny_float.get_weights()])
    return Bench(tiny_quantized, like)


@pytest.fixture(scope="module")
def images(tiny_data: Callable[[str], Any]) -> list[np.ndarray]:
    return [image.numpy() for image, _ in tiny_data("calibration").take(3)]


@pytest.fixture(scope="module")
def crew(bench: Bench, images: list[np.ndarray]) -> Iterator[Crew]:
    """Two processes; the batch after the good ones has a shape that the model does not take."""
    with local_crew(2, pickle.dumps(Payload.of(*bench.made_from)), [*images, np.zeros((2, 5, 5, 3), np.float32)]) as started:
        yield started


def bits(found: Any) -> list[tuple[int, Any, list[bytes]]]:
    return [(number, change, [output.tobytes() for output in outputs]) for number, change, outputs in found]


def changes(bench: Bench, level: str) -> list[Any]:
    return [(unit.name, level) for unit in reversed(bench.units)]


def workers_of(pid: int) -> list[int]:
    """The worker processes that a process started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and b"executors_worker" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [(5, 2, [2, 3]), (5, 1, [5]), (3, 8, [1, 1, 1]), (0, 4, [0])],
    ids=["two", "one", "no empty part", "no changes"],
)
def test_parts_follow_one_another(size: int, count: int, expected: list[int]) -> None:
    given = [(str(number), "float") for number in range(size)]
    parts = executors._parts(given, count)  # type: ignore[arg-type]
    assert [len(part) for part in parts] == expected
    assert [change for part in parts for change in part] == given


def test_one_local_worker_is_this_process(bench: Bench, images: list[np.ndarray]) -> None:
    with executor_for("local", 1, bench, images) as executor:
        assert isinstance(executor, InProcess)
        assert not workers_of(os.getpid())


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize(("level", "others"), [("float", "planned"), ("planned", "float")])
def test_processes_compute_the_same_bits_in_the_same_order(
    bench: Bench, images: list[np.ndarray], crew: Crew, batches: int, level: str, others: Any
) -> None:
    base: Any = {bench.units[1].name: "float"}
    spread, here = Spread(bench, batches, crew), InProcess(bench, images[:batches])
    for wanted in (changes(bench, level), ()):
        expected = bits(here.outputs(wanted, base, others))
        assert bits(spread.outputs(wanted, base, others)) == expected
        assert len(expected) == batches * (len(wanted) + 1)


def test_what_a_worker_raises_keeps_its_type_and_message(bench: Bench, images: list[np.ndarray], crew: Crew) -> None:
    with pytest.raises(Exception) as here:
        list(InProcess(bench, [np.zeros((2, 5, 5, 3), np.float32)]).outputs((), {}, "planned"))
    with pytest.raises(type(here.value)) as there:
        list(Spread(bench, 4, crew).outputs((), {}, "planned"))
    assert str(there.value) == str(here.value)
    assert "worker" in there.value.__notes__[0]
    assert len(list(Spread(bench, 3, crew).outputs((), {}, "planned"))) == 3  # the workers live on


def test_a_killed_worker_is_an_error_and_leaves_no_process(bench: Bench, images: list[np.ndarray]) -> None:
    already, started = set(workers_of(os.getpid())), time.monotonic()
    with pytest.raises(TfqatError, match=r"worker process \d+ was killed by signal SIGKILL.*sensitivity\.workers"):  # noqa: SIM117
        with executor_for("local", 2, bench, images) as executor:
            own = set(workers_of(os.getpid())) - already
            assert len(own) == 2
            os.kill(min(own), signal.SIGKILL)
            for _ in range(100):
                list(executor.outputs((), {}, "planned"))
    assert time.monotonic() - started < 60
    assert set(workers_of(os.getpid())) == already


def test_a_worker_that_cannot_start_says_what_it_wrote(bench: Bench, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfqat.analysis.executors_local._BOOT", "import sys; sys.exit('no room')")
    with (
        pytest.raises(TfqatError, match=r"worker process \d+ ended with exit code 1; it wrote: no room"),
        executor_for("local", 2, bench, images) as executor,
    ):
        list(executor.outputs((), {}, "planned"))


def test_custom_objects_are_the_foreign_classes_and_functions_of_layers() -> None:
    class Own(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs

    def bent(inputs: Any) -> Any:
        return tf.nn.relu(inputs)

    image = tf_keras.Input((4,))
    model = tf_keras.Model(image, tf_keras.layers.Dense(2, activation=bent)(Own()(image)))
    assert executors_payload.custom_objects(model) == {"Own": Own, "bent": bent}


def test_a_class_that_cannot_be_handed_on_is_named() -> None:
    lock = __import__("threading").Lock()

    class Locked(tf_keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs if lock else None

    with pytest.raises(ModelError, match=r"Locked cannot be handed to workers: TypeError.*installed where workers run.*workers to 1"):
        executors_payload._by_value({"Locked": Locked})


def test_other_versions_are_refused() -> None:
    settings = executors_settings.Settings.here()
    other = executors_settings.Settings(**{**vars(settings), "versions": {**settings.versions, "tensorflow": "2.16.0"}})
    with pytest.raises(TfqatError, match=r"tensorflow 2\.16\.0.*install the same versions"):
        other.apply(0)


def test_ray_that_is_not_installed_names_the_extra(bench: Bench, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(RecipeError, match=r"sensitivity\.executor: ray needs .*pip install 'tfqat\[ray\]'"),
        executor_for("ray", 2, bench, images),
    ):
        pass


def test_a_share_lets_all_workers_in() -> None:
    class Cluster:
        def cluster_resources(self) -> dict[str, float]:
            return {"CPU": 2.0}

    assert [executors_ray._share(Cluster(), "CPU", workers) for workers in (1, 2, 3)] == [1.0, 1.0, 0.6666]
    with pytest.raises(TfqatError, match="has no GPU"):
        executors_ray._share(Cluster(), "GPU", 1)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Number of batches, numbers of workers -> a running script without a guard of its main module, whose layers are its own."""
    (tmp_path / "layer.py").write_text(LAYER)
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(batches: int, *workers: int) -> subprocess.Popen[str]:
        command = [sys.executable, "script.py", str(batches), *map(str, workers)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
def test_layers_of_a_script_and_of_a_file_reach_workers_with_its_settings(script: Callable[..., subprocess.Popen[str]]) -> None:
    process = script(4, 1, 2)
    output, errors = process.communicate()
    assert output.split("\n")[-2] == "equal True 2", errors
    assert output.count("main") == 1
    assert errors.count("port.cc") <= 2  # what TensorFlow writes in this process, not in two more


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(script: Callable[..., subprocess.Popen[str]], number: signal.Signals) -> None:
    process = script(5000, 2)
    assert process.stdout is not None
    deadline = time.monotonic() + 300
    while len(workers := workers_of(process.pid)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert len(workers) == 2
    time.sleep(5)
    process.send_signal(number)
    process.communicate(timeout=60)
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert process.returncode in (-number, 130)


RAY = """\
import json, os, signal, sys
from pathlib import Path
import numpy as np
import tfqat
from tfqat.analysis.bench import Bench
from tfqat.analysis.executors import InProcess, executor_for
from tfqat.errors import TfqatError

import ray

def bits(found):
    return [(number, change, [output.tobytes() for output in outputs]) for number, change, outputs in found]

qmodel = tfqat.load_model(sys.argv[1])
bench, images = Bench(qmodel), list(np.load(sys.argv[2]))
said = {}
wanted = [(unit.name, "float") for unit in bench.units]
cases = [(wanted, {}, "planned"), ((), {bench.units[1].name: "float"}, "planned")]
expected = [bits(InProcess(bench, images).outputs(*case)) for case in cases]
with executor_for("ray", 3, bench, images) as executor:  # more workers than cores: none of them may wait for a place for ever
    said["equal"] = [bits(executor.outputs(*case)) for case in cases] == expected
said["left"] = ray.is_initialized()
ray.init(num_cpus=2, include_dashboard=False, logging_level=40)
try:
    with executor_for("ray", 2, bench, images) as executor:
        list(executor.outputs((), {}, "planned"))
        os.kill(ray.get(executor._crew._workers[0]._actor.__ray_call__.remote(lambda worker: os.getpid())), signal.SIGKILL)
        for _ in range(100):
            list(executor.outputs((), {}, "planned"))
except TfqatError as error:
    said["error"] = str(error)
said["stays"] = ray.is_initialized() and ray.get(ray.put(1)) == 1
Path(sys.argv[3]).write_text(json.dumps(said))
"""


@pytest.mark.slow
def test_a_ray_cluster_computes_the_same_bits(tiny_quantized: Any, images: list[np.ndarray], tmp_path: Path) -> None:
    """In a process of its own: Ray leaves threads, and warnings that are errors here."""
    pytest.importorskip("ray")
    tiny_quantized.save(tmp_path / "tiny.keras")
    np.save(tmp_path / "images.npy", np.stack(images))
    (tmp_path / "cluster.py").write_text(RAY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "cluster.py", "tiny.keras", "images.npy", "said.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["equal"] is True
    assert said["left"] is False
    assert said["stays"] is True
    assert "a worker of the Ray cluster ended" in said["error"]
