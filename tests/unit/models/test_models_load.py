"""Loading models: each form of source gives the same outputs; each kind of bad source says what is wrong with it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfqat
from tfqat.errors import ModelError
from tfqat.models import load

ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@tf_keras.utils.register_keras_serializable("test_models_load")
class Registered(layers.Layer):
    def call(self, x: Any) -> Any:
        return x * 2.0


class Unregistered(Registered):
    pass


def small(*more: Any) -> Any:
    x = tf_keras.Input((4,), name="x")
    y = layers.Dense(2, name="fc")(x)
    for layer in more:
        y = layer(y)
    return tf_keras.Model(x, y, name="small")


def save(model: Any, path: Path) -> Path:
    if path.suffix == ".h5":
        with pytest.warns(UserWarning, match="considered legacy"):
            model.save(path)
    else:
        model.save(path)
    return path


# The loader underneath, which lower layers use, and the public one, which knows quantized models too.
LOADERS = pytest.mark.parametrize("load_model", [load.load_model, tfqat.load_model], ids=["models", "public"])


@LOADERS
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved_model"])
@pytest.mark.parametrize("kind", [str, Path])
def test_files(tmp_path: Path, load_model: Any, name: str, kind: type) -> None:
    model = small()
    loaded = load_model(kind(save(model, tmp_path / name)))
    assert np.array_equal(loaded(ROWS).numpy(), model(ROWS).numpy())
    assert [layer.name for layer in loaded.layers] == ["x", "fc"]


@LOADERS
def test_object_is_copied(load_model: Any) -> None:
    model = small()
    loaded = load_model(model)
    loaded.set_weights([value + 1 for value in loaded.get_weights()])
    assert np.array_equal(load_model(model)(ROWS).numpy(), model(ROWS).numpy())
    assert not np.array_equal(loaded(ROWS).numpy(), model(ROWS).numpy())


@LOADERS
@pytest.mark.parametrize("name", ["object", "m.keras", "m.h5", "saved_model"])
def test_a_sequential_becomes_a_functional_model(tmp_path: Path, load_model: Any, name: str) -> None:
    model = tf_keras.Sequential([tf_keras.Input((4,), name="x"), layers.Dense(3, name="a"), layers.Dense(2, name="b")], name="chain")
    loaded = load_model(model if name == "object" else save(model, tmp_path / name))
    assert not isinstance(loaded, tf_keras.Sequential)
    assert [layer.name for layer in loaded.layers] == ["x", "a", "b"]
    assert np.array_equal(loaded(ROWS).numpy(), model(ROWS).numpy())
    assert {id(weight) for weight in loaded.weights}.isdisjoint(id(weight) for weight in model.weights)


@LOADERS
@pytest.mark.parametrize("name", ["object", "m.keras", "m.h5"])
def test_float16_is_refused_and_the_advice_helps(tmp_path: Path, load_model: Any, name: str) -> None:
    model = small(layers.Activation("tanh", dtype="float16", name="half"))
    with pytest.raises(ModelError, match=r"^layer 'half' of model 'small' computes in float16; expected float32\. A saved model keeps its"):
        load_model(model if name == "object" else save(model, tmp_path / name))
    built = small(layers.Activation("tanh", name="half"))
    built.set_weights(model.get_weights())
    np.testing.assert_allclose(load_model(built)(ROWS).numpy(), model(ROWS).numpy(), atol=1e-3)


def test_compiled_model_loads_without_its_optimizer(tmp_path: Path) -> None:
    model = small()
    model.compile("adam", "mse")
    assert getattr(load.load_model(save(model, tmp_path / "m.keras")), "optimizer", None) is None


@LOADERS
def test_custom_layers(tmp_path: Path, load_model: Any) -> None:
    model = small(Registered(), Unregistered())
    path = save(model, tmp_path / "m.keras")
    loaded = load_model(path, custom_objects={"Unregistered": Unregistered})
    assert np.array_equal(loaded(ROWS).numpy(), model(ROWS).numpy())
    with pytest.raises(ModelError, match=r"m\.keras names .*\.Unregistered, .* give the classes of custom layers as custom_objects"):
        load_model(path)


def test_custom_layers_that_unsafe_lets_through(tmp_path: Path) -> None:
    path = save(small(Unregistered()), tmp_path / "m.keras")
    with pytest.raises(ModelError, match=r"m\.keras cannot be loaded .*a class that Keras does not know: give the classes of custom"):
        load.load_model(path, unsafe=True)


@LOADERS
def test_custom_layers_in_an_h5_file(tmp_path: Path, load_model: Any) -> None:
    path = save(small(Unregistered()), tmp_path / "m.h5")
    assert type(load_model(path, custom_objects={"Unregistered": Unregistered}).layers[-1]) is Unregistered
    with pytest.raises(ModelError, match=r"m\.h5 cannot be loaded .*Unregistered.* Give the classes of custom layers as custom_objects"):
        load_model(path)


def missing(tmp_path: Path) -> Path:
    return tmp_path / "none.keras"


def not_an_archive(tmp_path: Path) -> Path:
    (tmp_path / "bad.keras").write_bytes(b"not a zip")
    return tmp_path / "bad.keras"


def cut_short(tmp_path: Path) -> Path:
    path = save(small(), tmp_path / "cut.keras")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def other_archive(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return tmp_path / "other.keras"


def broken_weights(tmp_path: Path) -> Path:
    whole, path = save(small(), tmp_path / "whole.keras"), tmp_path / "broken.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b"broken" if name == "model.weights.h5" else source.read(name))
    return path


def bad_h5(tmp_path: Path) -> Path:
    (tmp_path / "bad.h5").write_bytes(b"not an hdf5 file")
    return tmp_path / "bad.h5"


def empty_folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def keras_3(tmp_path: Path) -> Path:
    whole, path = save(small(), tmp_path / "two.keras"), tmp_path / "three.keras"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, b'{"keras_version": "3.15.1"}' if name == "metadata.json" else source.read(name))
    return path


UNREADABLE = {
    "missing": (missing, "model file {path} does not exist"),
    "not an archive": (
        not_an_archive,
        "model file {path} is not a .keras archive (9 bytes): it is corrupt or of another format; save it again",
    ),
    "cut short": (cut_short, "model file {path} is not a .keras archive ("),
    "another archive": (other_archive, f"model file {{path}} cannot be loaded by tf_keras {tf_keras.__version__}: "),
    "broken weights": (broken_weights, "model file {path} is damaged: "),
    "bad h5": (bad_h5, "model file {path} is damaged: "),
    "empty folder": (
        empty_folder,
        "{path} is a folder without a saved model; expected a SavedModel, or give a .keras or .h5 file",
    ),
    "Keras 3, broken": (keras_3, f"model file {{path}} cannot be loaded by Keras {keras.__version__}: "),
}


@LOADERS
@pytest.mark.parametrize(("make", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_file(tmp_path: Path, load_model: Any, make: Any, message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_subclassed_model_is_refused_as_object_and_as_file(tmp_path: Path) -> None:
    class Mine(tf_keras.Model):
        def call(self, x: Any) -> Any:
            return x + 1.0

    model = Mine(name="mine")
    model(ROWS)
    path = tmp_path / "saved_model"
    model.save(path)
    for source in (model, path):
        with pytest.raises(ModelError, match=r"^model 'mine' \(\w+\) is a subclassed model: .* Rebuild it with the functional API"):
            load.load_model(source)


def test_nested_model_of_a_file_is_flattened(tmp_path: Path) -> None:
    x = tf_keras.Input((4,))
    outer = tf_keras.Model(x, small()(x), name="outer")
    loaded = load.load_model(save(outer, tmp_path / "m.keras"))
    assert [layer.name for layer in loaded.layers if layer.weights] == [f"small/{layer.name}" for layer in small().layers if layer.weights]
    assert np.array_equal(loaded(ROWS), outer(ROWS))


def test_something_else_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^expected a tf_keras\.Model, got builtins\.int; tfqat\.load_model makes one from a file or"):
        load.load_model(3)
