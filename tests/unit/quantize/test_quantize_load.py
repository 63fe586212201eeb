"""A quantized model in a new process: identical outputs, ranges and points; and what a plain Keras load needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfqat
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of

SUFFIXES = ("keras", "h5", "folder")

# Loads every file that is named by every way, and writes down what each one computed, or how it failed.
CHILD = """
import json, sys
from pathlib import Path
import numpy as np

folder, found = Path(sys.argv[1]), {}
images = np.load(folder / "images.npy")

def attempt(name, load):
    try:
        model = load()
    except Exception as error:
        found[name] = type(error).__name__
        return
    np.save(folder / f"{name}.npy", model(images).numpy())
    found[name] = "loaded"

import tfqat
plain = lambda: __import__("tf_keras").models.load_model(folder / "model.keras")
attempt("plain keras, nothing registered", plain)
for suffix in ("keras", "h5", "folder"):
    attempt(f"tfqat {suffix}", lambda: tfqat.load_model(folder / f"model.{suffix}"))
attempt("plain keras, after tfqat.load_model", plain)
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of
model = tfqat.load_model(folder / "model.keras")
found["ranges"] = {name: amax.tolist() for name, amax in state.ranges(model).items()}
found["placement"] = placement_of(model).to_dict()
found["trainable"] = [[weight.name, weight.numpy().tolist()] for weight in model.trainable_weights]
print(json.dumps(found))
"""


@pytest.fixture
def saved(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any], tmp_path: Path) -> Any:
    net.get_layer("stem").trainable = False
    qmodel = with_ranges(tfqat.quantize_model(net, {"weights": {"num_bits": 4}}))
    qmodel.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="considered legacy"):
        qmodel.save(tmp_path / "model.h5")
    qmodel.save(tmp_path / "model.folder", save_format="tf")
    np.save(tmp_path / "images.npy", images)
    return qmodel


def test_reloads_in_a_new_process(saved: Any, images: np.ndarray, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    # Keras finds a custom layer only once its class is registered, and `import tfqat` alone imports none.
    assert found["plain keras, nothing registered"] == "TypeError"
    for name in (*(f"tfqat {suffix}" for suffix in SUFFIXES), "plain keras, after tfqat.load_model"):
        assert found[name] == "loaded", name
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), saved(images).numpy()), name

    assert found["ranges"] == {name: amax.tolist() for name, amax in state.ranges(saved).items()}
    assert found["placement"] == json.loads(json.dumps(placement_of(saved).to_dict()))
    assert [value for _, value in found["trainable"]] == [weight.numpy().tolist() for weight in saved.trainable_weights]
    assert [name.rpartition("/")[2] for name, _ in found["trainable"]] == [
        weight.name.rpartition("/")[2] for weight in saved.trainable_weights
    ]


def test_reload_can_be_trained_and_stripped(saved: Any, net: Any, images: np.ndarray, tmp_path: Path) -> None:
    loaded = tfqat.load_model(tmp_path / "model.keras")
    assert np.array_equal(tfqat.strip(loaded)(images).numpy(), net(images).numpy())
    loaded.compile("sgd", "mse")
    loaded.fit(images, np.ones((16, 5)), verbose=0)
    assert not np.array_equal(loaded(images).numpy(), saved(images).numpy())
    assert np.array_equal(loaded.get_layer("stem").layer.kernel.numpy(), net.get_layer("stem").kernel.numpy())


def test_uncalibrated_model_reloads_uncalibrated(net: Any, images: np.ndarray, tmp_path: Path) -> None:
    tfqat.quantize_model(net).save(tmp_path / "model.keras")
    loaded = tfqat.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(images).numpy(), net(images).numpy())
    with pytest.raises(tfqat.errors.NotCalibratedError, match=r"^9 of 9 quantizers of model 'net' have no range"):
        state.ranges(loaded)


def test_weights_are_saved_once(saved: Any, tmp_path: Path) -> None:
    """Each variable is in the file once: TFMOT's wrapper would hold a layer's weights a second time."""
    import zipfile

    import h5py

    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    sizes: list[int] = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda _, entry: sizes.append(entry.size) if isinstance(entry, h5py.Dataset) else None)
    assert sum(sizes) == sum(int(np.prod(weight.shape)) for weight in saved.weights)
