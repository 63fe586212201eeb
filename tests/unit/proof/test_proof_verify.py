"""The proof itself: a good export passes, and one changed number in the file fails at the point behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tfqat.errors import DataError, ExportError
from tfqat.proof.against import compare_graphs
from tfqat.proof.parity import ParityReport
from tfqat.proof.verify import verify


def tampered(path: Path, folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of a file with one initializer changed."""
    model = onnx.load(path)
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor).copy())), name))
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def good(tiny_quantized: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any]) -> ParityReport:
    return verify(tiny_quantized, tiny_onnx, tiny_data("validation"), examples=300)


def test_a_good_export_is_proven(good: ParityReport) -> None:
    assert good.failures == ()
    assert good.passed
    assert good.examples == 300
    assert all(check.passed for check in good.structure)
    assert good.local.max_difference <= 1 and good.local.equal >= 0.9999
    assert good.outputs.top1_agreement >= 0.998
    assert good.local_output_difference < 1e-5


def test_every_code_of_every_activation_is_compared(good: ParityReport) -> None:
    sizes = {"image": 144, "stem_relu": 2304, "depthwise_relu": 2304, "add": 2304, "head_relu": 864, "pool": 24}
    assert {point.id: point.local.codes for point in good.points} == {name: 300 * size for name, size in sizes.items()}
    for point in good.points:
        assert point.end_to_end.codes == point.noise_floor.codes == point.local.codes


def test_the_noise_floor_is_measured(good: ParityReport) -> None:
    """float32 against float64 flips codes only behind the first product: none at the image."""
    floors = {point.id: point.noise_floor for point in good.points}
    assert floors["image"].equal == 1.0
    assert 0.999 < good.noise_floor.equal < 1.0


def shifted(index: int, by: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] += np.asarray(by, array.dtype)
        return array

    return change


def next_code(array: np.ndarray) -> np.ndarray:
    """The largest code of channel 3 made small."""
    channel = array[3].reshape(-1)
    channel[np.abs(channel.astype(int)).argmax()] //= 8
    return array


# initializer -> (change, the point where it shows, the rules that see it too)
TAMPERED: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str, set[str]]] = {
    "bias of the first layer": ("stem/bias", shifted(2, 0.2), "stem_relu", set()),
    "bias in the middle": ("project/bias", shifted(7, 0.3), "add", set()),
    "bias before the pooling": ("head/bias", shifted(5, 0.3), "head_relu", set()),
    "code of a weight": ("head/kernel", next_code, "head_relu", {"weight codes are the model's"}),
    "code of a depthwise weight": ("depthwise/depthwise_kernel", next_code, "depthwise_relu", {"weight codes are the model's"}),
    "scale of a weight": ("depthwise/depthwise_kernel/scale", shifted(1, 0.005), "depthwise_relu", set()),
    "scale of an activation": ("add/scale", lambda scale: scale * 1.1, "add", {"activation scales are the model's, to the last bit"}),
}


@pytest.mark.parametrize(("name", "change", "point", "rules"), TAMPERED.values(), ids=TAMPERED)
def test_one_changed_number_fails_at_its_point(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    point: str,
    rules: set[str],
    tiny_quantized: Any,
    tiny_onnx: Path,
    tiny_data: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    report = verify(tiny_quantized, tampered(tiny_onnx, tmp_path, name, change), tiny_data("validation"), examples=100)
    assert not report.passed
    (local,) = (failure for failure in report.failures if failure.startswith("local:") and "worst at" in failure)
    assert f"worst at {point!r}" in local
    assert {check.rule for check in report.structure if not check.passed} == rules
    # Every other segment is fed Keras's codes, so it agrees.
    wrong = {one.id for one in report.points if one.local.equal < 0.9999 or one.local.max_difference > 1}
    assert wrong - {"add", "head_relu"} == {point} - {"add", "head_relu"}
    assert point in wrong


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("logits/BiasAdd.in1", shifted(1, 0.01)),
        ("logits/kernel/scale", lambda scale: scale * np.float32(1.001)),
        ("logits/kernel", lambda codes: np.where(np.arange(4) == 2, -codes, codes)),
    ],
    ids=["bias", "scale", "a channel negated"],
)
def test_a_change_behind_the_last_point_fails_too(
    name: str,
    change: Callable[[np.ndarray], np.ndarray],
    tiny_quantized: Any,
    tiny_onnx: Path,
    tiny_data: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    """No code comes after the last layer: its outputs are compared instead."""
    report = verify(tiny_quantized, tampered(tiny_onnx, tmp_path, name, change), tiny_data("validation"), examples=100)
    assert report.local.max_difference <= 1
    assert any("look behind the last point" in failure for failure in report.failures)


def test_a_graph_with_further_points_is_not_proven(tiny_float: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any]) -> None:
    import tfqat

    other = tfqat.quantize_model(tiny_float, {"preset": "selective", "skip": ["logits"]})
    tfqat.calibrate(other, tiny_data("calibration"), batches=1)
    report = verify(other, tiny_onnx, tiny_data("validation"), examples=50)
    (rule,) = (failure for failure in report.failures if failure.startswith("structure: the Q/DQ nodes are those of the placement"))
    assert "logits/kernel/DQ belongs to no quantization point" in rule


def test_a_graph_that_lacks_points_is_refused(
    tiny_float: Any, tiny_quantized: Any, tiny_data: Callable[[str], Any], tmp_path: Path
) -> None:
    import tfqat
    from tfqat.export.onnx import export_float_onnx

    export_float_onnx(tiny_float, tmp_path / "float.onnx")
    with pytest.raises(ExportError, match=r"float\.onnx was not exported from this model: it has no node add/DQ, add/Q"):
        tfqat.verify(tiny_quantized, tmp_path / "float.onnx", tiny_data("validation"))


def test_a_fine_tuned_graph_is_not_the_calibrated_ones(tiny_float: Any, tiny_onnx: Path, tiny_data: Callable[[str], Any]) -> None:
    """The same layers with other weights: nothing is missing, and nothing agrees."""
    import tfqat

    other = tfqat.quantize_model(tiny_float)
    tfqat.calibrate(other, tiny_data("calibration"), batches=4)
    other.get_layer("stem_bn").beta.assign_add(np.full(16, 0.1, np.float32))
    report = verify(other, tiny_onnx, tiny_data("validation"), examples=50)
    assert any("worst at 'stem_relu'" in failure for failure in report.failures)


def test_a_missing_file(tiny_quantized: Any, tiny_data: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no\.onnx does not exist"):
        verify(tiny_quantized, tmp_path / "no.onnx", tiny_data("validation"))


def test_empty_data(tiny_quantized: Any, tiny_onnx: Path) -> None:
    with pytest.raises(DataError, match="verify: the data set is empty"):
        verify(tiny_quantized, tiny_onnx, [])


def test_data_of_another_shape(tiny_quantized: Any, tiny_onnx: Path) -> None:
    with pytest.raises(
        DataError, match=r"verify: a batch of shape \(4, 28, 28, 1\), but input 'image' of model 'tiny' takes \(None, 12, 12, 1\)"
    ):
        verify(tiny_quantized, tiny_onnx, [np.zeros((4, 28, 28, 1), np.float32)])


def test_fewer_examples_than_asked_are_reported(tiny_quantized: Any, tiny_onnx: Path) -> None:
    report = verify(tiny_quantized, tiny_onnx, [np.full((3, 12, 12, 1), 0.25, np.float32)] * 2, examples=1000)
    assert report.examples == 6


def test_two_inputs_and_two_outputs_by_name_or_in_order(tmp_path: Path) -> None:
    import tf_keras
    from tf_keras import layers

    import tfqat

    tf_keras.utils.set_random_seed(3)
    # Named so that sorting by name turns them round.
    images, extra = tf_keras.Input((8, 8, 3), name="right"), tf_keras.Input((8, 8, 2), name="left")
    joined = layers.Concatenate(name="concat")(
        [layers.Conv2D(4, 3, activation="relu", name="a")(images), layers.Conv2D(4, 3, name="b")(extra)]
    )
    pooled = layers.GlobalAveragePooling2D(name="pool")(joined)
    model = tf_keras.Model([images, extra], [layers.Dense(3, name="one")(pooled), layers.Dense(2, name="two")(pooled)], name="pair")
    rng = np.random.default_rng(0)
    right, left = rng.normal(size=(64, 8, 8, 3)).astype(np.float32), rng.normal(size=(64, 8, 8, 2)).astype(np.float32)
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, [((right, left),)], batches=1)
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert verify(qmodel, tmp_path / "model.onnx", [((right, left),)]).failures == ()
    assert verify(qmodel, tmp_path / "model.onnx", [({"left": left, "right": right},)]).failures == ()
    (folder := tmp_path / "changed").mkdir()
    changed = tampered(tmp_path / "model.onnx", folder, "two/kernel/scale", lambda scale: scale * np.float32(1.01))
    report = verify(qmodel, changed, [((right, left),)])
    assert any("look behind the last point: 'two', made by 'two'" in failure for failure in report.failures)
    assert report.output_divergence is not None and report.first_divergence == report.output_divergence
    assert (report.output_divergence.point, report.output_divergence.kind) == ("two", "scale")
    assert compare_graphs(tmp_path / "model.onnx", tmp_path / "model.onnx", [((right, left),)]).passed
    found = compare_graphs(tmp_path / "model.onnx", changed, [{"left": left, "right": right}])
    assert found.first_difference is not None and found.first_difference.point == "two"
    with pytest.raises(DataError, match="a batch lacks the input 'left'"):
        compare_graphs(tmp_path / "model.onnx", changed, [{"right": right}])


@pytest.mark.parametrize(
    ("size", "examples", "sizes"), [(7, 120, [50, 50, 20]), (128, 130, [50, 50, 30]), (64, 100, [50, 50]), (3, 4, [4])]
)
def test_batches_have_one_size_however_the_data_come(tiny_quantized: Any, size: int, examples: int, sizes: list[int]) -> None:
    from tfqat.proof.verify import _limited

    data = np.random.default_rng(0).normal(size=(200, *tiny_quantized.input_shape[1:])).astype(np.float32)
    found = list(_limited(tiny_quantized, (data[start : start + size] for start in range(0, len(data), size)), examples))
    assert [len(batch) for batch in found] == sizes
    np.testing.assert_array_equal(np.concatenate(found), data[:examples])
