"""Types and inputs of an exported graph: float16, float weights, uint8 pixels, data in a file of its own; all compute the trained codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import DataError, ExportError, RunDirectoryError
from tfqat.export import edit
from tfqat.form import Form, Pixels

UNIT = Pixels(std=(255.0,))
OPTIONS: dict[str, tuple[Form, dict[str, Any]]] = {
    "float16": (Form(remainder="float16"), {}),
    "float16, opset 21": (Form(remainder="float16"), {"opset": 21}),
    "float weights": (Form(weights="float"), {}),
    "pixels": (Form(pixels=UNIT), {}),
    "pixels, channels first": (Form(pixels=UNIT, layout="nchw"), {}),
    "data beside the graph": (Form(), {"external_data": True}),
    "all": (
        Form(target="onnxruntime", remainder="float16", weights="float", batch=4, layout="nchw", pixels=UNIT, outputs=("scores",)),
        {"external_data": True, "opset": 13},
    ),
}


@pytest.fixture(scope="module")
def images(tiny_data: Callable[[str], Any]) -> np.ndarray:
    """Validation images that uint8 holds exactly."""
    floats = next(iter(tiny_data("validation")))[0].numpy()[:60]
    return UNIT.normalized(np.rint(255 * floats).astype(np.uint8))


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_proven(name: str, tiny_quantized: Any, images: np.ndarray, tmp_path: Path) -> None:
    import tfqat

    form, keywords = OPTIONS[name]
    path = tmp_path / "model.onnx"
    report = tfqat.export_onnx(tiny_quantized, path, form=form, **keywords)
    parity = tfqat.verify(tiny_quantized, path, [images])
    saturates = [f"structure: 16-bit sums of two products do not saturate: {layer}" for layer in report.saturating[:1]]
    assert [failure for failure in parity.failures if not failure.startswith(tuple(saturates) or ("-",))] == []
    if form.remainder == "float32":
        assert parity.local.different == 0
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == report.size_bytes


def test_float16_keeps_the_scales_and_the_inputs(tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, form=Form(remainder="float16"))
    before, after = initializers(tiny_onnx), initializers(path)
    scales = [name for name in before if name.endswith("/scale")]
    assert len(scales) == 11
    for name in scales:
        np.testing.assert_array_equal(after[name], before[name])
    assert {name for name, array in after.items() if array.dtype == np.float32} == set(scales)
    assert sum(array.dtype == np.float16 for array in after.values()) >= 5  # the biases
    graph = onnx.load(path).graph
    assert [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)] == [TensorProto.FLOAT, TensorProto.FLOAT]


def test_float_weights_are_what_the_codes_stand_for(tiny_quantized: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, form=Form(weights="float"))
    codes, floats = initializers(tiny_onnx), initializers(path)
    assert codes["stem/kernel"].dtype == np.int8 and floats["stem/kernel"].dtype == np.float32
    scale = codes["stem/kernel/scale"].reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(floats["stem/kernel"], codes["stem/kernel"].astype(np.float32) * scale)
    names = [node.name for node in onnx.load(path).graph.node]
    assert names.index("stem/kernel/Q") + 1 == names.index("stem/kernel/DQ")


def test_pixels_give_what_normalized_images_give(tiny_quantized: Any, tiny_onnx: Path, images: np.ndarray, tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, form=Form(pixels=UNIT))
    pixels = np.rint(255 * images).astype(np.uint8)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    outputs = runtime.run_batches(runtime.session(path, literal=True), [pixels])
    np.testing.assert_array_equal(outputs, runtime.run_batches(runtime.session(tiny_onnx, literal=True), [images]))


def test_data_beside_the_graph_is_read_and_replaced_with_it(tiny_quantized: Any, images: np.ndarray, tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    for _ in range(2):
        tfqat.export_onnx(tiny_quantized, path, external_data=True)
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    stored = {one.name for one in onnx.load(path, load_external_data=False).graph.initializer if one.external_data}
    assert stored == {"head/kernel"}  # smaller ones stay in the graph
    assert runtime.run_batches(runtime.session(path, literal=False), [images]).shape == (60, 4)


def test_more_than_a_message_holds_goes_beside_by_itself(tiny_quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tfqat
    from tfqat.proof import cut

    monkeypatch.setattr(edit, "IN_MEMORY", 1000)  # bytes, as if the network were a thousand times larger
    tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > 3000
    opened = cut.OpenGraph.observed(tmp_path / "model.onnx", ["image"])  # by way of a file too
    _, codes = opened({"image": np.ones((1, 12, 12, 1), np.float32)})
    assert codes["image"].shape == (1, 12, 12, 1)


def pooled(**inputs: tuple[int, ...]) -> Any:
    """A quantized network of several inputs, a Dense layer for each but `unread`; calibrated on noise."""
    import tf_keras
    from tf_keras import layers

    import tfqat

    given = [tf_keras.Input(shape, name=name) for name, shape in inputs.items()]
    flat = [layers.Dense(4)(layers.Flatten()(one)) for one in given if one.name != "unread"]
    model = tf_keras.Model(given, layers.Add()(flat) if len(flat) > 1 else flat[0])
    qmodel = tfqat.quantize_model(model)
    data = {name: np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32) for name, shape in inputs.items()}
    tfqat.calibrate(qmodel, [data], batches=1)
    return qmodel


def test_pixels_are_for_the_images_among_the_inputs(tmp_path: Path) -> None:
    import tfqat

    qmodel = pooled(image=(4, 4, 3), sequence=(5, 2))
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx", form=Form(pixels=UNIT, layout="nchw"))
    found = {value.name: value.type.tensor_type for value in onnx.load(tmp_path / "model.onnx").graph.input}
    assert (found["image"].elem_type, found["sequence"].elem_type) == (TensorProto.UINT8, TensorProto.FLOAT)
    assert [dim.dim_value for dim in found["image"].shape.dim][1:] == [3, 4, 4]
    rng = np.random.default_rng(1)
    image = UNIT.normalized(rng.integers(0, 256, (8, 4, 4, 3), np.uint8))
    data = {"image": image, "sequence": rng.normal(size=(8, 5, 2)).astype(np.float32)}
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", [data]).failures == ()


@pytest.mark.parametrize("form", [Form(layout="nchw"), Form(pixels=UNIT)], ids=["nchw", "pixels"])
def test_an_input_that_nothing_reads(form: Form, tmp_path: Path) -> None:
    import tfqat

    tfqat.export_onnx(pooled(image=(4, 4, 3), unread=(4, 4, 3)), tmp_path / "model.onnx", form=form)
    assert {value.name for value in onnx.load(tmp_path / "model.onnx").graph.input} >= {"image"}


NO_IMAGES = {
    "nchw": (Form(layout="nchw"), (6, 2), "layout nchw is for images, and no input is one: "),
    "pixels": (Form(pixels=UNIT), (6,), "pixels is for images, and no input is one: "),
    "size": (Form(size=(4, 4)), (6,), "size is for images, and no input is one: "),
}


@pytest.mark.parametrize(("form", "shape", "message"), NO_IMAGES.values(), ids=NO_IMAGES)
def test_what_is_said_of_images_needs_one(form: Form, shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(ExportError, match=message):
        tfqat.export_onnx(pooled(numbers=shape), tmp_path / "model.onnx", form=form)


def test_normalization_layers_of_the_model_are_not_the_pixels(tmp_path: Path) -> None:
    """Channels first, the model's own subtraction stays behind the Transpose."""
    import tf_keras
    from tf_keras import layers

    import tfqat

    image = tf_keras.Input((6, 6, 3), name="image")
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 4.0, 9.0])(image)
    model = tf_keras.Model(image, layers.Flatten()(layers.Conv2D(4, 3)(x)))
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [images], batches=1)
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx", form=Form(layout="nchw"))
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", [images]).failures == ()


def test_a_folder_in_the_way_leaves_nothing(tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat

    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(RunDirectoryError, match=r"model.onnx is a folder; choose another name"):
        tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", external_data=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("text", ["{", '{"shape": 3}', '{"pixels": {"mode": 1}}', "3"])
def test_a_form_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ExportError, match=r"the graph's metadata 'tfqat\.form' cannot be read"):
        Form.of({"tfqat.form": text})


def test_data_that_are_no_pixels_are_refused(tiny_quantized: Any, images: np.ndarray, tmp_path: Path) -> None:
    import tfqat

    path = tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, form=Form(pixels=Pixels(mean=(127.5,), std=(127.5,))))
    with pytest.raises(DataError, match=r"input 'image': the values are no uint8 pixels normalized by mean \[127.5\] and std \[127.5\]"):
        tfqat.verify(tiny_quantized, path, [images + 0.003])


def test_numbers_for_other_channels_are_refused(tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(ExportError, match=r"input 'image' has 1 channels; got 3 numbers for pixels.mean, expected 1 or 1"):
        tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", form=Form(pixels=Pixels(mean=(1.0, 2.0, 3.0))))
    assert list(tmp_path.iterdir()) == []


PIXELS = {
    "one number": (Pixels(mean=(127.5,), std=(127.5,)), [[0, 255]], [[-1.0, 1.0]]),
    "one per channel": (Pixels(mean=(100.0, 50.0), std=(50.0, 25.0)), [[0, 255]], [[-2.0, 8.2]]),
}


@pytest.mark.parametrize(("pixels", "given", "normalized"), PIXELS.values(), ids=PIXELS)
def test_pixels_there_and_back(pixels: Pixels, given: list[list[int]], normalized: list[list[float]]) -> None:
    values = pixels.normalized(np.array(given, np.uint8))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, normalized, rtol=1e-7)
    np.testing.assert_array_equal(pixels.pixels("x", values), np.array(given, np.uint8))


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0])
def test_what_is_no_pixel(value: float) -> None:
    with pytest.raises(DataError, match=rf"they give pixels from .* to {max(value, 0):g}"):
        Pixels().pixels("x", np.array([[0.0, value]]))


def test_a_form_survives_the_metadata() -> None:
    form = OPTIONS["all"][0]
    assert Form.of(form.to_metadata()) == form
    assert Form.of({}) == Form() and Form().to_metadata() == {}
