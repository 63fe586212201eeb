"""SuperGradients recipes: every key that has a counterpart, both layouts, what is said of the rest, and what is no recipe at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfqat.errors import RecipeError
from tfqat.recipe.super_gradients import convert, read_super_gradients

# recipes/quantization_params/default_quantization_params.yaml of Deci-AI/super-gradients
DEFAULTS: dict[str, Any] = {
    "ptq_only": False,
    "selective_quantizer_params": {
        "calibrator_w": "max",
        "calibrator_i": "histogram",
        "per_channel": True,
        "learn_amax": False,
        "skip_modules": None,
    },
    "calib_params": {"histogram_calib_method": "percentile", "percentile": 99.99, "num_calib_batches": None, "verbose": False},
}
BLOCKS: dict[str, Any] = {
    "ptq_only": False,
    "quantization": {
        "weights": {"calibrator": "max", "granularity": "per_channel"},
        "activations": {"calibrator": "percentile", "percentile": 99.99},
    },
    "qat": {"amax": {"weights": "frozen", "activations": "frozen"}},
}


def selective(**keys: Any) -> dict[str, Any]:
    return {"selective_quantizer_params": keys}


def calib(**keys: Any) -> dict[str, Any]:
    return {"calib_params": keys}


def weights(**keys: Any) -> dict[str, Any]:
    return {"quantization": {"weights": keys}}


def activations(**keys: Any) -> dict[str, Any]:
    return {"quantization": {"activations": keys}}


CONVERTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": (DEFAULTS, BLOCKS),
    "nested in quantization_params": ({"quantization_params": DEFAULTS}, BLOCKS),
    "ptq_only": ({"ptq_only": True}, {"ptq_only": True}),
    "TRTPTQQuantizer": (
        {"quantizer": {"TRTPTQQuantizer": calib(num_calib_batches=3)}},
        {"ptq_only": True, "calibration": {"batches": 3}},
    ),
    "TRTQATQuantizer": (
        {"quantizer": {"TRTQATQuantizer": {"qat_params": {"max_epochs_divisor": 60}}}},
        {"ptq_only": False, "qat": {"max_epochs_divisor": 60}},
    ),
    "TRTQuantizer beside ptq_only": (
        {"ptq_only": True, "quantizer": {"TRTQuantizer": calib(percentile=99.9)}},
        {"ptq_only": True, **activations(percentile=99.9)},
    ),
    "calibrator_w max": (selective(calibrator_w="max"), weights(calibrator="max")),
    "calibrator_w histogram, no method": (selective(calibrator_w="histogram"), weights(calibrator="max")),
    "calibrator_w histogram, mse": (
        {**calib(histogram_calib_method="mse"), **selective(calibrator_w="histogram")},
        {"quantization": {"weights": {"calibrator": "mse"}, "activations": {"calibrator": "mse"}}},
    ),
    "calibrator_i max wins over the method, which stands before it": (
        {**calib(histogram_calib_method="entropy"), **selective(calibrator_i="max")},
        activations(calibrator="max"),
    ),
    "entropy": (calib(histogram_calib_method="entropy"), activations(calibrator="entropy")),
    "per_channel false": (selective(per_channel=False), weights(granularity="per_tensor")),
    "learn_amax": (selective(learn_amax=True), {"qat": {"amax": {"weights": "learned", "activations": "learned"}}}),
    "skip_modules": (selective(skip_modules=["conv1", "heads.head1"]), {"quantization": {"skip": ["conv1", "heads.head1"]}}),
    "num_calib_batches": (calib(num_calib_batches=128), {"calibration": {"batches": 128}}),
    "num_calib_batches null, with the batch size": (
        {**calib(num_calib_batches=None), "dataset_params": {"train_dataloader_params": {"batch_size": 64}}},
        {"calibration": {"batches": 8}, "training": {"batch_size": 64}},
    ),
    "the callback": (
        {
            "pre_launch_callbacks_list": [
                {
                    "QATRecipeModificationCallback": {
                        "batch_size_divisor": 4,
                        "max_epochs_divisor": 5,
                        "lr_decay_factor": 0.02,
                        "warmup_epochs_divisor": 7,
                        "cosine_final_lr_ratio": 0.05,
                        "disable_phase_callbacks": False,
                    }
                }
            ]
        },
        {
            "qat": {
                "batch_size_divisor": 4,
                "max_epochs_divisor": 5,
                "lr_decay_factor": 0.02,
                "warmup_epochs_divisor": 7,
                "cosine_final_lr_ratio": 0.05,
                "disable_phase_callbacks": False,
            }
        },
    ),
    "the callback with its defaults": ({"pre_launch_callbacks_list": [{"QATRecipeModificationCallback": None}]}, {"qat": {}}),
    "the float schedule": (
        {
            "training_hyperparams": {
                "max_epochs": 250,
                "initial_lr": 1,
                "optimizer": "SGD",
                "optimizer_params": {"weight_decay": 1e-4, "momentum": 0.8},
            }
        },
        {
            "training": {"epochs": 250, "learning_rate": 1.0, "optimizer": "sgd", "weight_decay": 1e-4},
            "qat": {"optimizer": {"momentum": 0.8}},
        },
    ),
}


@pytest.mark.parametrize(("given", "blocks"), CONVERTED.values(), ids=CONVERTED)
def test_blocks(given: dict[str, Any], blocks: dict[str, Any]) -> None:
    assert convert(given).blocks == blocks


LEFT: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "verbose": (calib(verbose=False), {"calib_params.verbose": "progress"}),
    "num_bins": (calib(num_bins=2048), {"calib_params.num_bins": "bins of a fixed relative width"}),
    "no batch size": (calib(num_calib_batches=None), {"calib_params.num_calib_batches": "512 / batch size"}),
    "calibrator_w": (selective(calibrator_w="histogram"), {"selective_quantizer_params.calibrator_w": "max is taken"}),
    "unknown calibrator": (
        selective(calibrator_i="median"),
        {"selective_quantizer_params.calibrator_i": 'expected max or histogram; got "median"'},
    ),
    "unknown method": (calib(histogram_calib_method="kl"), {"calib_params.histogram_calib_method": "expected 'max'"}),
    "augmentations": (
        {"pre_launch_callbacks_list": [{"QATRecipeModificationCallback": {"disable_augmentations": True}}]},
        {"pre_launch_callbacks_list[0].QATRecipeModificationCallback.disable_augmentations": "data.train"},
    ),
    "another callback": (
        {"pre_launch_callbacks_list": [{"AutoTrainBatchSizeSelectionCallback": {"min_batch_size": 8}}]},
        {"pre_launch_callbacks_list[0].AutoTrainBatchSizeSelectionCallback": "only QATRecipeModificationCallback"},
    ),
    "defaults list": ({"defaults": ["roboflow_yolo_nas_s", {"quantization_params": "x"}]}, {"defaults": "Hydra"}),
    "unknown key": ({"architecture": "yolo_nas_s"}, {"architecture": "no counterpart"}),
    "OpenVINO": ({"quantizer": {"OpenVinoQuantizer": calib(num_calib_batches=8)}}, {"quantizer.OpenVinoQuantizer": "onnxruntime"}),
    "mandatory value": ({"ptq_only": "???"}, {"ptq_only": "not resolved"}),
    "interpolation": (calib(percentile="${p}"), {"calib_params.percentile": "not resolved"}),
    "out of range": (calib(percentile=20), {"calib_params.percentile": "expected more than 50"}),
    "a list for a block": ({"calib_params": [1]}, {"calib_params": "no counterpart"}),
    "rest of the training": (
        {"training_hyperparams": {"max_epochs": 3, "lr_mode": "cosine", "loss": "CrossEntropyLoss"}},
        {"training_hyperparams": "lr_mode, loss"},
    ),
}


@pytest.mark.parametrize(("given", "left"), LEFT.values(), ids=LEFT)
def test_what_is_not_taken_is_listed_with_the_reason(given: dict[str, Any], left: dict[str, str]) -> None:
    found = convert(given).left
    assert list(found) == list(left)
    for key, reason in left.items():
        assert reason.replace('"median"', "'median'") in found[key]


def test_what_is_taken_is_not_listed() -> None:
    assert list(convert(DEFAULTS).left) == ["calib_params.num_calib_batches", "calib_params.verbose"]
    assert convert({**selective(calibrator_w="histogram"), **calib(histogram_calib_method="mse")}).left == {}


NO_RECIPES = {
    "not YAML": ("a: [1\n", r"x\.yaml:2: not YAML: "),
    "a list": ("- 1\n", r"expected a mapping with the keys of a SuperGradients recipe; got \[1\]"),
    "empty": ("", "got an empty file"),
    "a tag that makes objects": ("a: !!python/object:os.system {}\n", r"x\.yaml:1: a: the tag .*os\.system is refused"),
    "duplicate key": ("a: 1\na: 2\n", r"x\.yaml:2: a: duplicate key; the first is at .*x\.yaml:1"),
}


@pytest.mark.parametrize(("text", "message"), NO_RECIPES.values(), ids=NO_RECIPES)
def test_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_super_gradients(path)


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"\xff\xfe\x00", "not UTF-8")])
def test_no_text(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_super_gradients(path)
