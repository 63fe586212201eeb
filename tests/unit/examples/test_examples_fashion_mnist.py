"""The example's data sources, its bundled sample, its network, and the accuracy of the trained model that is committed."""

from __future__ import annotations

import gzip
import importlib.util
import lzma
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "fashion_mnist"
FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLE / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data() -> ModuleType:
    return load("data")


def put(folder: Path, *, marker: int, suffix: str = ".gz", leave_out: str = "") -> Path:
    """Four IDX files of three training and two test images, all pixels `marker`."""
    folder.mkdir(parents=True)
    pack = {".gz": gzip.compress, ".xz": lzma.compress, "": bytes}[suffix]
    for stem in FILES:
        count = 3 if stem.startswith("train") else 2
        images = bytes(16) + bytes([marker]) * (784 * count)
        labels = bytes(8) + bytes(range(count))
        if stem != leave_out:
            (folder / f"{stem}-ubyte{suffix}").write_bytes(pack(images if "images" in stem else labels))
    return folder


@pytest.fixture
def sources(data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders in the place of the three sources; none of them exists."""
    folders = {name: tmp_path / name for name in data._SOURCES}
    monkeypatch.setattr(data, "_SOURCES", folders)
    return folders


ORDER = ("Keras cache", "Debian package dataset-fashion-mnist", "bundled sample")


@pytest.mark.parametrize("present", [ORDER, ORDER[1:], ORDER[2:], ORDER[::2]], ids=["all", "no Keras", "sample", "no Debian"])
def test_the_first_source_that_is_there_is_taken_and_named(
    present: tuple[str, ...], data: ModuleType, sources: dict[str, Path], capsys: Any
) -> None:
    for marker, name in enumerate(present, start=1):
        put(sources[name], marker=marker * 51)
    assert data.source() == (present[0], sources[present[0]])
    for make, count in ((data.train, 3), (data.validation, 2), (data.calibration, 3)):
        images, labels = next(iter(make()))
        assert images.shape == (count, 28, 28, 1) and images.dtype == "float32" and labels.dtype == "int64"
        assert np.all(images.numpy() == np.float32(51) / np.float32(255))  # the marker of the first
        assert sorted(labels.numpy()) == list(range(count))
        captured = capsys.readouterr()
        assert captured.err == f"Fashion-MNIST from the {present[0]} ({sources[present[0]]})\n" and captured.out == ""


@pytest.mark.parametrize("missing", FILES)
def test_a_source_with_a_missing_file_is_passed_over(missing: str, data: ModuleType, sources: dict[str, Path]) -> None:
    put(sources[ORDER[0]], marker=1, leave_out=missing)
    put(sources[ORDER[1]], marker=2)
    assert data.source()[0] == ORDER[1]


def test_no_source_is_an_error_that_names_all(data: ModuleType, sources: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data.source()
    assert all(str(folder) in str(caught.value) for folder in sources.values())
    with pytest.raises(FileNotFoundError, match="holds no t10k images and labels in IDX format"):
        data.load("t10k", sources[ORDER[0]])


@pytest.mark.parametrize("suffix", [".gz", ".xz", ""])
def test_each_form_of_the_files_is_read(suffix: str, data: ModuleType, tmp_path: Path) -> None:
    images, labels = data.load("train", put(tmp_path / "data", marker=7, suffix=suffix))
    assert images.shape == (3, 28, 28, 1) and images.dtype == np.uint8 and np.all(images == 7)
    assert labels.tolist() == [0, 1, 2]


def test_keras_home_is_where_keras_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path / "home" / "datasets" / "fashion-mnist", marker=1)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    assert load("data").source() == ("Keras cache", folder)
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    again = put(tmp_path / ".keras" / "datasets" / "fashion-mnist", marker=2)
    assert load("data").source() == ("Keras cache", again)


def test_the_order_of_the_sources(data: ModuleType) -> None:
    assert tuple(data._SOURCES) == ORDER
    assert data._SOURCES["Debian package dataset-fashion-mnist"] == Path("/usr/share/datasets/fashion-mnist")
    assert data._SOURCES["bundled sample"] == EXAMPLE / "sample"


# split -> images, labels of each class, mean pixel
SAMPLE = {
    "train": (12_000, [1122, 1220, 1201, 1212, 1181, 1204, 1244, 1192, 1195, 1229], 72.96815),
    "t10k": (10_000, [1000] * 10, 73.14656),
}


@pytest.mark.parametrize("split", SAMPLE)
def test_the_bundled_sample_is_what_it_says(split: str, data: ModuleType) -> None:
    count, classes, mean = SAMPLE[split]
    images, labels = data.load(split, EXAMPLE / "sample")
    assert images.shape == (count, 28, 28, 1) and labels.shape == (count,)
    assert np.bincount(labels).tolist() == classes
    assert images.mean() == pytest.approx(mean, abs=1e-4)
    assert len(np.unique(images.reshape(count, -1), axis=0)) > 0.99 * count  # images, not copies
    assert images.min() == 0 and images.max() == 255


def test_the_sample_is_small_and_carries_its_licence() -> None:
    assert sum(path.stat().st_size for path in (EXAMPLE / "sample").iterdir()) < 10 * 2**20
    licence = (EXAMPLE / "sample" / "LICENSE").read_text()
    assert "MIT License" in licence and "Zalando" in licence and "github.com/zalandoresearch/fashion-mnist" in licence


def test_bundled_sets_take_the_sample_whatever_else_is_there(data: ModuleType, sources: dict[str, Path], capsys: Any) -> None:
    put(sources[ORDER[0]], marker=1)
    images, labels = data.load("train", EXAMPLE / "sample")
    first, first_labels = next(iter(data.bundled_calibration()))
    assert np.array_equal(first, images[:128].astype(np.float32) / np.float32(255))
    assert np.array_equal(first_labels, labels[:128])
    assert (len(data.bundled_train()), len(data.bundled_validation()), len(data.bundled_calibration())) == (94, 79, 94)
    assert capsys.readouterr().err == ""


def test_training_images_are_shuffled_anew_in_every_epoch(data: ModuleType) -> None:
    train = data.bundled_train()
    epochs = [np.concatenate([labels.numpy() for _, labels in train]) for _ in range(2)]
    _, labels = data.load("train", EXAMPLE / "sample")
    assert not np.array_equal(epochs[0], labels) and not np.array_equal(epochs[0], epochs[1])
    assert [np.bincount(epoch).tolist() for epoch in epochs] == [np.bincount(labels).tolist()] * 2


def test_the_first_calibration_batches_hold_all_classes_evenly(data: ModuleType) -> None:
    labels = np.concatenate([labels.numpy() for _, labels in data.bundled_calibration().take(16)])
    assert len(labels) == 2048 and np.bincount(labels, minlength=10).min() > 150


def test_the_network(data: ModuleType) -> None:
    model = load("model").build()
    assert model.count_params() == 97_426
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 10)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert {kind: kinds.count(kind) for kind in ("Conv2D", "DepthwiseConv2D", "ReLU", "Add", "Dense", "BatchNormalization")} == {
        "Conv2D": 10,
        "DepthwiseConv2D": 4,
        "ReLU": 10,
        "Add": 2,
        "Dense": 1,
        "BatchNormalization": 14,
    }
    assert {float(layer.max_value) for layer in model.layers if type(layer).__name__ == "ReLU"} == {6.0}


def test_the_committed_model_reaches_its_accuracy(data: ModuleType) -> None:
    import tf_keras

    path = EXAMPLE / "float.keras"
    assert path.stat().st_size < 2 * 2**20
    model = tf_keras.models.load_model(path, compile=False)
    built = load("model").build()
    assert [weight.shape for weight in model.weights] == [weight.shape for weight in built.weights]
    assert [layer.name for layer in model.layers] == [layer.name for layer in built.layers]
    right = sum(
        int(np.sum(model.predict_on_batch(images).argmax(axis=1) == labels.numpy())) for images, labels in data.bundled_validation()
    )
    assert right >= 9180


def test_older_tf_keras_can_load_the_float_model() -> None:
    """tf_keras 2.19 and later write `optional` into an InputLayer's configuration, which 2.18 refuses: take it out of config.json."""
    import zipfile

    with zipfile.ZipFile(EXAMPLE / "float.keras") as archive:
        assert b'"optional"' not in archive.read("config.json")
