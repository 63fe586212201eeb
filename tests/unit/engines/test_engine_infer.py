"""Images and arrays as a model takes them: sizes, colours, layouts and numbers against those worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from tfqat.engines.images import UNIT, image_input
from tfqat.engines.infer import infer, read_labels, top_classes
from tfqat.engines.serve import load_engine
from tfqat.engines.tensors import Tensor
from tfqat.errors import DataError, EngineError
from tfqat.form import Form, Pixels

Image = pytest.importorskip("PIL.Image")

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '
SAME = "({type}[N, {shape}] x) => ({type}[N, {shape}] y) {{ y = Identity(x) }}"
TWO = "(float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Sub(a, b) }"

CHANNELS = Pixels(mean=(1, 2, 3), std=(4,))


@pytest.fixture
def engine(tmp_path: Path) -> Callable[..., Any]:
    def make(text: str, form: Form = Form(), **options: Any) -> Any:  # noqa: B008
        model = onnx.parser.parse_model(HEAD + text)
        onnx.helper.set_model_props(model, form.to_metadata())
        onnx.save(model, str(tmp_path / "model.onnx"))
        return load_engine(tmp_path / "model.onnx", **options)

    return make


def same(shape: str, type: str = "float") -> str:
    return SAME.format(shape=shape, type=type)


def save(path: Path, height: int, width: int, *, colours: int = 3, seed: int = 0) -> np.ndarray:
    """An image, and its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, colours)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if colours == 1 else pixels).save(path)
    return pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma, in integers as Pillow computes it."""
    return np.asarray((pixels.astype(np.int64) @ [19595, 38470, 7471] + 0x8000) >> 16)


@pytest.mark.parametrize(
    ("shape", "type", "form", "normalization", "expected", "said"),
    [
        ("4, 6, 3", "uint8", Form(), None, lambda p: p, "images resized to 4 x 6 (height x width, bilinear), RGB, as uint8 pixels"),
        ("3, 4, 6", "uint8", Form(layout="nchw"), None, lambda p: np.moveaxis(p, -1, 0), "RGB, as uint8 pixels"),
        ("3, 4, 6", "float", Form(), UNIT, lambda p: np.moveaxis(p, -1, 0) / 255, "RGB, pixels / 255"),
        ("H, W, 3", "float", Form(), CHANNELS, lambda p: (p - [1.0, 2, 3]) / 4, "own size, RGB, (pixel - [1, 2, 3]) / 4"),
        ("4, 6, 1", "uint8", Form(), None, lambda p: grey(p)[..., None], "L, as uint8 pixels"),
        ("4, 6", "float", Form(), UNIT, lambda p: grey(p) / 255, "L, pixels / 255"),
        ("4, 6, 4", "uint8", Form(), None, lambda p: np.dstack([p, np.full((4, 6), 255)]), "RGBA, as uint8 pixels"),
    ],
)  # fmt: skip
def test_an_image_becomes_an_example(
    engine: Callable[..., Any], tmp_path: Path, shape: str, type: str, form: Form, normalization: Any, expected: Any, said: str
) -> None:
    pixels = save(tmp_path / "a.png", 4, 6)
    found = infer(engine(same(shape, type), form), tmp_path / "a.png", normalization)
    np.testing.assert_allclose(found.outputs["y"], expected(pixels)[None], rtol=1e-6)
    assert found.sources == ("a.png",) and found.notes[0].endswith(said)


def test_resizing_is_bilinear_and_height_comes_first(engine: Callable[..., Any], tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(save(tmp_path / "unused.png", 2, 3), 4, axis=0), 4, axis=1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = infer(engine(same("2, 3, 3", "uint8")), tmp_path / "a.png").outputs["y"][0]
    wanted = np.asarray(Image.fromarray(pixels).resize((3, 2), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found, wanted)


def test_a_folder_in_the_order_of_names_and_in_batches(engine: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number}.{'png' if number % 2 else 'PNG'}" for number in range(7)]
    pixels = [save(folder / name, 4, 6, seed=number) for number, name in enumerate(names)]
    (folder / "notes.txt").write_text("no image")
    model = engine(same("4, 6, 3", "uint8"), batch_size=3)
    counts, predict = [], model.predict
    model.predict = lambda x: counts.append(len(x)) or predict(x)
    found = infer(model, folder)
    assert found.sources == tuple(names) and counts == [3, 3, 1]
    np.testing.assert_array_equal(found.outputs["y"], pixels)


def test_images_of_several_sizes(engine: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    means = [save(folder / f"{number}.png", 3 + number // 2, 5, seed=number).mean((0, 1)) for number in range(4)]
    text = "(uint8[N, H, W, 3] x) => (float[N, 3] y) { f = Cast<to=1>(x) y = ReduceMean<axes=[1, 2], keepdims=0>(f) }"
    np.testing.assert_allclose(infer(engine(text), folder).outputs["y"], means, rtol=1e-6)
    with pytest.raises(DataError, match=r"output 'y' has another shape for images of another size, .*: give images of one size"):
        infer(engine(same("H, W, 3", "uint8")), folder)


@pytest.mark.parametrize(
    ("shape", "type", "normalization", "message"),
    [
        ("4, 6, 3", "float32", None, r"takes normalized numbers, not pixels: say how .* --mean and --std, .* or with --unit"),
        ("4, 6, 3", "uint8", UNIT, r"takes pixels, and the graph normalizes them: leave --mean, --std and --unit out"),
        ("8, 6, 5", "float32", UNIT, r"has 5 channels; images have 1, 3 or 4"),
        ("4, 6, ?", "float32", UNIT, r"has None channels; images have 1, 3 or 4"),
        ("4", "float32", UNIT, r"does not take one image each, but 'x' float32 \[\?, 4\]: give its inputs as an \.npz file"),
        ("4, 6, 3", "float32", Pixels(mean=(1, 2)), r"mean has 2 numbers for the input .*; expected one, or one for each of 3 channels"),
    ],
)
def test_models_and_numbers_that_do_not_go_together(shape: str, type: str, normalization: Any, message: str) -> None:
    sizes = tuple(None if part == "?" else int(part) for part in shape.split(", "))
    with pytest.raises(DataError, match=message):
        image_input([Tensor(name="x", dtype=type, shape=(None, *sizes))], Form(), normalization)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.png", None, r"nothing\.png is not there; expected a folder of images, an image, an \.npz or an \.npy file"),
        ("folder", None, r"folder has no images; expected a folder with files that end in \.png, \.jpg, \.jpeg"),
        ("text.png", b"no image", r"text\.png cannot be read as an image"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", r"cut\.png cannot be read as an image"),
        ("text.npz", b"no arrays", r"text\.npz cannot be read as arrays"),
        ("empty.npy", b"", r"empty\.npy cannot be read as arrays"),
        ("nothing.npy", None, r"nothing\.npy cannot be read as arrays: .*No such file"),
    ],
)
def test_files_that_cannot_be_read(engine: Callable[..., Any], tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        infer(engine(same("4, 6, 3", "uint8")), tmp_path / name)


def test_without_pillow(engine: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", 4, 6)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"images are read with Pillow, which is not installed .*: pip install 'tfqat\[images\]'"):
        infer(engine(same("4, 6, 3", "uint8")), tmp_path / "a.png")


def test_arrays(engine: Callable[..., Any], tmp_path: Path) -> None:
    a, b = np.arange(6.0).reshape(3, 2), np.ones((3, 2))
    np.savez(tmp_path / "two.npz", b=b, a=a, labels=np.arange(3))
    found = infer(engine(TWO), tmp_path / "two.npz")
    np.testing.assert_array_equal(found.outputs["y"], a - b)
    assert (found.sources, found.notes) == (("0", "1", "2"), ("not read, as the model has no such input: labels",))
    np.savez(tmp_path / "missing.npz", a=a, c=b)
    with pytest.raises(EngineError, match="input 'b' is missing"):
        infer(engine(TWO), tmp_path / "missing.npz")
    np.savez(tmp_path / "one.npz", images=a)
    np.save(tmp_path / "one.npy", a)
    for name in ("one.npz", "one.npy"):
        np.testing.assert_array_equal(infer(engine(same("2")), tmp_path / name).outputs["y"], a)
    with pytest.raises(DataError, match=r"--mean, --std and --unit are for images"):
        infer(engine(same("2")), tmp_path / "one.npy", UNIT)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"objects\.npy cannot be read as arrays: .*allow_pickle=False"):
        infer(engine(same("2")), tmp_path / "objects.npy")


def test_the_highest_scores() -> None:
    outputs = {"boxes": np.zeros((2, 4, 4)), "scores": np.array([[0.1, 0.7, 0.2], [5.0, -1.0, 5.0]], np.float32)}
    assert top_classes(outputs, 2) == [[(1, pytest.approx(0.7)), (2, pytest.approx(0.2))], [(0, 5.0), (2, 5.0)]]
    assert [len(one) for one in top_classes(outputs, 9)] == [3, 3]
    with pytest.raises(
        DataError, match=r"no output has the shape \(examples, classes\): 'boxes' \[2, 4, 4\]; write them to a file with -o"
    ):
        top_classes({"boxes": outputs["boxes"]}, 1)


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\n dog \n\n\n")
    assert read_labels(path, 2) == ("cat", "dog")
    with pytest.raises(DataError, match=r"labels\.txt has 2 labels, and the model 3 classes; expected a line for each"):
        read_labels(path, 3)
    with pytest.raises(DataError, match=r"the labels .*none\.txt cannot be read"):
        read_labels(tmp_path / "none.txt", 3)
