"""The outside of an exported graph: sizes, layout, names and opset; inside it computes the same codes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError
from tfqat.form import FORM, Form

FORMS = {
    "fixed batch": Form(batch=8),
    "channels first": Form(layout="nchw"),
    "all": Form(batch=4, layout="nchw", outputs=("scores",)),
}


def shapes(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    values = (*proto.graph.input, *proto.graph.output)
    return {value.name: [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim] for value in values}


@pytest.mark.parametrize(("name", "opset"), list(itertools.product(FORMS, (13, 17, 23))))
def test_every_form_is_proven(name: str, opset: int, tiny_quantized: Any, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    import tfqat

    form, path = FORMS[name], tmp_path / "model.onnx"
    tfqat.export_onnx(tiny_quantized, path, opset=opset, form=form)
    report = tfqat.verify(tiny_quantized, path, tiny_data("validation"), examples=60)
    assert report.passed, report.failures
    images = next(iter(tiny_data("validation")))[0].numpy()[:20]
    fed = form.feed({"image": images})
    literal, fused = (runtime.run_batches(runtime.session(path, literal=one), [fed]) for one in (True, False))
    assert np.abs(literal - fused).max() < 0.05 * np.abs(literal).max()
    proto = onnx.load(path)
    batch = form.batch or "batch"
    image = [batch, 1, 12, 12] if form.layout == "nchw" else [batch, 12, 12, 1]
    assert shapes(proto) == {"image": image, (form.outputs or ("logits",))[0]: [batch, 4]}
    assert Form.of({one.key: one.value for one in proto.metadata_props}) == form


def test_its_own_form_leaves_no_entry(tiny_onnx: Path) -> None:
    assert FORM not in {one.key for one in onnx.load(tiny_onnx).metadata_props}


def test_a_fixed_batch_size_runs_any_number_of_examples(
    tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any], tmp_path: Path
) -> None:
    import tfqat

    tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", form=Form(batch=16))
    images = next(iter(tiny_data("validation")))[0].numpy()[:41]
    fixed, free = (runtime.run_batches(runtime.session(path, literal=True), [images]) for path in (tmp_path / "model.onnx", tiny_onnx))
    assert fixed.shape == (41, 4) and np.allclose(fixed, free, atol=1e-5)


def colours() -> Any:
    import tf_keras
    from tf_keras import layers

    tf_keras.utils.set_random_seed(0)
    image = tf_keras.Input((None, None, 3), name="image")
    x = layers.ReLU(name="relu")(layers.Conv2D(16, 3, padding="same", name="one")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(16, 3, name="two")(x))
    return tf_keras.Model(image, layers.Dense(4, name="fc")(x))


def test_channels_first_leaves_no_transpose_and_free_sizes_can_be_fixed(tmp_path: Path) -> None:
    import tfqat

    images = np.float32(np.random.default_rng(0).normal(size=(8, 20, 24, 3)))
    qmodel = tfqat.quantize_model(colours())
    tfqat.calibrate(qmodel, [images], batches=1)
    path = tmp_path / "model.onnx"
    tfqat.export_onnx(qmodel, path, form=Form(layout="nchw", size=(20, 24)))
    proto = onnx.load(path)
    assert shapes(proto)["image"] == ["batch", 3, 20, 24]
    assert not [node.name for node in proto.graph.node if node.op_type == "Transpose"]
    assert tfqat.verify(qmodel, path, [images], examples=8).passed


WRONG = {
    "another batch": (Form(size=(5, 5)), "input 'image' of the model has a fixed size of 12; got 5: build the model with that axis free"),
    "another number of axes": (Form(size=(12,)), r"input 'image' has 2 axes between batch and channels; got the size \(12,\)"),
    "too many names": (Form(outputs=("a", "b")), r"the model has the outputs logits; got the names \['a', 'b'\]"),
    "the name of an input": (Form(outputs=("image",)), "an output cannot be called 'image': an input is"),
}


@pytest.mark.parametrize(("form", "message"), WRONG.values(), ids=WRONG)
def test_a_form_that_does_not_fit_writes_nothing(form: Form, message: str, tiny_quantized: Any, tmp_path: Path) -> None:
    import tfqat

    with pytest.raises(ExportError, match=message):
        tfqat.export_onnx(tiny_quantized, tmp_path / "model.onnx", form=form)
    assert list(tmp_path.iterdir()) == []
