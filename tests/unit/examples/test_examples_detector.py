"""The detector example: its scenes, the coding of boxes, COCO's mAP, its network, and what the trained model reaches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfqat.errors import DataError
from tfqat.recipe.references import load_reference

EXAMPLE = Path(__file__).parents[3] / "examples" / "detector"

needs_extra = pytest.mark.skipif(find_spec("pycocotools") is None, reason="pycocotools is not installed: pip install 'tfqat[examples]'")


def example(reference: str) -> Callable[..., Any]:
    """A function of the example, e.g. `data.py:encode`."""
    return load_reference(f"{EXAMPLE}/{reference}", base=EXAMPLE)


@pytest.fixture(scope="module")
def scenes() -> tuple[Any, ...]:
    """The first 200 test scenes."""
    return tuple(islice(example("data.py:compose")("test"), 200))


@pytest.fixture(scope="module")
def labels(scenes: tuple[Any, ...]) -> Any:
    return example("data.py:arrays")(scenes)[1]


def test_scenes_are_the_same_in_every_run(scenes: tuple[Any, ...]) -> None:
    again = list(islice(example("data.py:compose")("test"), 20))
    for scene, other in zip(scenes, again, strict=False):
        assert np.array_equal(scene.image, other.image) and np.array_equal(scene.boxes, other.boxes)
        assert np.array_equal(scene.classes, other.classes)
    other_split = next(example("data.py:compose")("validation"))
    assert not np.array_equal(scenes[0].image, other_split.image)


def test_scenes_hold_garments_of_all_sizes_and_classes(scenes: tuple[Any, ...]) -> None:
    overlap = example("data.py:overlap")
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0 and boxes.max() <= 96
    assert sides.min() >= 9 and sides.max() <= 72
    assert np.quantile(sides.max(axis=1), 0.2) < 20 and np.quantile(sides.max(axis=1), 0.8) > 40
    assert {len(scene.boxes) for scene in scenes} == {1, 2, 3, 4}
    assert set(np.concatenate([scene.classes for scene in scenes])) == set(range(10))
    for scene in scenes:
        for number, box in enumerate(scene.boxes):
            assert np.all(overlap(box, scene.boxes[:number]) <= 0.1)


def test_splits_for_testing_and_training_share_no_garment() -> None:
    garments = example("data.py:_garments")
    train, validation, test = ({garment.tobytes() for garment in garments(split)[0]} for split in ("train", "validation", "test"))
    assert (len(garments("train")[0]), len(garments("validation")[0]), len(garments("test")[0])) == (12_000, 5_000, 5_000)
    assert not train & (validation | test)
    assert not validation & test


def test_a_garment_is_brighter_than_its_ground(scenes: tuple[Any, ...]) -> None:
    def contrast(scene: Any) -> float:
        inside = np.zeros(scene.image.shape, bool)
        for left, top, right, bottom in scene.boxes.astype(int):
            inside[top:bottom, left:right] = True
        return float(scene.image[inside].mean() - scene.image[~inside].mean())

    assert np.mean([contrast(scene) for scene in scenes]) > 30  # of 255


# box, the cells that see it as (row, column): by hand
SEEN = {
    "the inner half": ((8, 16, 48, 48), {(row, column) for row in (3, 4) for column in (2, 3, 4)} | {(4, 3)}),
    "a small one: its centre's cell alone": ((41, 41, 51, 51), {(5, 5)}),
    "the corner of the image": ((87, 87, 96, 96), {(11, 11)}),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_cells_that_see_a_garment(name: str) -> None:
    box, cells = SEEN[name]
    classes, distances = example("data.py:encode")(np.array([box], np.float32), np.array([7]))
    assert set(zip(*(axis.tolist() for axis in np.nonzero(classes[..., 7])), strict=True)) == cells
    assert classes.sum() == len(cells)
    for row, column in cells:
        x, y = 8 * column + 4, 8 * row + 4
        assert distances[row, column].tolist() == [x - box[0], y - box[1], box[2] - x, box[3] - y]
        assert distances[row, column].min() > 0
    assert np.count_nonzero(distances.any(axis=-1)) == len(cells)


def test_of_two_garments_a_cell_sees_the_smaller_one() -> None:
    boxes = np.array([[30, 30, 50, 50], [8, 8, 72, 72]], np.float32)
    classes, distances = example("data.py:encode")(boxes, np.array([1, 2]))
    assert classes[5, 5].argmax() == 1 and distances[5, 5].tolist() == [14, 14, 6, 6]
    assert classes[3, 3].argmax() == 2


def test_decoding_inverts_encoding(scenes: tuple[Any, ...], labels: Any) -> None:
    classes, distances = labels
    corners = example("data.py:decode")(distances)
    for scene, seen, boxes in zip(scenes, classes, corners, strict=True):
        rows, columns, numbers = np.nonzero(seen)
        found = {(int(number), *box) for number, box in zip(numbers, boxes[rows, columns].tolist(), strict=True)}
        assert found == {(int(number), *box) for number, box in zip(scene.classes, scene.boxes.tolist(), strict=True)}


def test_data_sets_give_labels_and_weights_in_pairs() -> None:
    batches = list(example("data.py:calibration")())
    assert len(batches) == 8
    images, (classes, boxes), (every, seen) = batches[0]
    assert images.shape == (32, 96, 96, 1) and images.dtype == "float32" and 0 <= images.numpy().min() < images.numpy().max() <= 1
    assert classes.shape == (32, 12, 12, 10) and boxes.shape == (32, 12, 12, 4)
    assert np.all(every == 1) and np.array_equal(seen, boxes.numpy().any(axis=-1))


def test_the_true_garments_are_read_back_from_the_labels(scenes: tuple[Any, ...], labels: Any) -> None:
    found = example("metric.py:garments")(*labels)
    assert len(found) == sum(len(scene.boxes) for scene in scenes)
    first = [entry for entry in found if entry["image_id"] == 0]
    corners = [[left, top, left + width, top + height] for left, top, width, height in (entry["bbox"] for entry in first)]
    assert sorted(corners) == sorted(scenes[0].boxes.tolist())


@needs_extra
def test_the_metric_is_one_for_the_labels_themselves(labels: Any) -> None:
    figures = example("metric.py:average_precisions")(list(labels), labels)
    assert figures == {"mAP": pytest.approx(1.0), "mAP50": pytest.approx(1.0), "mAP75": pytest.approx(1.0)}
    assert example("metric.py:mean_average_precision")(list(labels), labels) == figures["mAP"]


@needs_extra
def test_the_metric_falls_as_boxes_are_shifted(labels: Any) -> None:
    classes, boxes = labels
    shift = np.array([-1, 0, 1, 0], np.float32)  # to the right
    figures = [example("metric.py:average_precisions")([classes, boxes + pixels * shift], labels) for pixels in (0, 1, 3, 6)]
    values = [entry["mAP"] for entry in figures]
    assert values == sorted(values, reverse=True) and 0.7 < values[1] < 0.95 and values[3] < 0.4
    assert figures[1]["mAP50"] == pytest.approx(1.0)  # a pixel costs no garment half of its overlap
    assert figures[2]["mAP50"] > figures[2]["mAP75"] + 0.2


@needs_extra
def test_the_metric_counts_classes_and_scores(labels: Any) -> None:
    measure = example("metric.py:mean_average_precision")
    classes, boxes = labels
    assert measure([np.roll(classes, 1, axis=-1), boxes], labels) < 0.05  # every garment is another class
    assert measure([np.zeros_like(classes), boxes], labels) == 0.0  # nothing found
    noise = np.random.default_rng(0).uniform(0, 0.5, classes.shape).astype(np.float32)
    strong = measure([np.maximum(classes, noise), np.where(boxes > 0, boxes, np.float32(10))], labels)
    weak = measure([np.maximum(0.25 * classes, noise), np.where(boxes > 0, boxes, np.float32(10))], labels)
    assert strong > 0.95 > weak + 0.3


def test_without_pycocotools_the_metric_says_how_to_install_it(labels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycocotools", "pycocotools.coco", "pycocotools.cocoeval"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pycocotools, which measures the mAP, is not installed .*pip install 'tfqat\[examples\]'"):
        example("metric.py:mean_average_precision")(list(labels), labels)


def test_losses_are_least_for_the_labels_themselves(labels: Any) -> None:
    classes, boxes = (part[:8] for part in labels)
    focal, giou = example("train_float.py:focal_loss"), example("train_float.py:giou_loss")
    assert float(focal(classes, classes)) == pytest.approx(0.0, abs=1e-6)
    assert float(giou(boxes, boxes)) == pytest.approx(0.0, abs=1e-5)
    # Half as wide and half as high about the same point: IoU 1/4, and the hull is the union. Cells without a garment do not count.
    assert float(giou(boxes, np.where(boxes > 0, boxes / 2, np.float32(5)))) == pytest.approx(2 * 0.75, abs=1e-4)
    scores = np.where(classes > 0, 0.5, 0.0).astype(np.float32)
    assert float(focal(classes, scores)) == pytest.approx(4 * 0.25 * 0.25 * np.log(2), rel=1e-4)


def test_the_network() -> None:
    network = example("model.py:build")()
    assert network.count_params() == 135_614
    assert network.output_names == ["classes", "boxes"]
    assert network.output_shape == [(None, 12, 12, 10), (None, 12, 12, 4)]
    assert network.get_layer("box_output").output_shape == (None, 12, 12, 4)
    assert network.get_layer("class_output").output_shape == (None, 12, 12, 10)


@needs_extra
def test_the_committed_model_reaches_its_figure(scenes: tuple[Any, ...], labels: Any) -> None:
    import tf_keras

    path = EXAMPLE / "float.keras"
    assert path.stat().st_size < 2**20
    trained, built = tf_keras.models.load_model(path, compile=False), example("model.py:build")()
    assert [weight.shape for weight in trained.weights] == [weight.shape for weight in built.weights]
    assert [layer.name for layer in trained.layers] == [layer.name for layer in built.layers]
    images, _ = example("data.py:arrays")(scenes)
    figures = example("metric.py:average_precisions")(trained.predict(images, batch_size=50, verbose=0), labels)
    assert figures["mAP"] > 0.5 and figures["mAP50"] > 0.7
