"""The schema: its defaults, what it accepts, how overrides resolve, and the JSON Schema that it prints."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from tfqat.recipe.quantization import Method, Override, QuantizationConfig, WeightsConfig
from tfqat.recipe.schema import CalibrationConfig, FloatSchedule, LossConfig, Recipe, SensitivityConfig
from tfqat.spec import METHODS, Calibrator

MINIMAL: dict[str, Any] = {
    "version": 1,
    "model": {"source": "float.keras", "custom_objects": {}},
    "data": {"train": "data.py:train", "validation": "pkg.data:validation"},
    "training": {"epochs": 30, "batch_size": 128, "learning_rate": 0.1, "loss": "mse", "metrics": ["accuracy"]},
}
DEFAULTS = {
    "model": {"source": "float.keras", "custom_objects": {}},
    "data": {"train": "data.py:train", "validation": "pkg.data:validation", "calibration": None, "test": None},
    "training": {
        "epochs": 30,
        "batch_size": 128,
        "learning_rate": 0.1,
        "optimizer": "sgd",
        "weight_decay": 0.0,
        "steps_per_epoch": None,
        "loss": "mse",
        "metrics": ["accuracy"],
    },
    "replace": [],
    "quantization": {
        "preset": "selective",
        "target": None,
        "weights": {"num_bits": 8, "calibrator": "max", "granularity": "per_channel"},
        "activations": {"num_bits": 8, "calibrator": "percentile", "percentile": 99.99},
        "skip": [],
        "force": [],
        "small_products": "int8",
        "custom_layers": [],
        "overrides": [],
    },
    "calibration": {"batches": 16, "search": [], "rounding": None, "bias_correction": None, "equalization": None},
    "sensitivity": None,
    "ptq_only": False,
    "qat": {
        "batch_size_divisor": 2,
        "max_epochs_divisor": 10,
        "lr_decay_factor": 0.01,
        "warmup_epochs_divisor": 10,
        "cosine_final_lr_ratio": 0.01,
        "disable_phase_callbacks": True,
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": False},
        "weight_decay": None,
        "precision": "float32",
        "clip_norm": None,
        "ema": False,
        "amax": {"weights": "frozen", "activations": "frozen"},
        "gradient": "clipped",
        "batchnorm": "train",
        "distill": None,
        "control": False,
        "checkpoint_steps": None,
    },
    "export": {
        "opset": 17,
        "fold_batchnorm": True,
        "target": None,
        "remainder": "float32",
        "weights": "int8",
        "external_data": None,
        "batch": None,
        "size": None,
        "layout": "nhwc",
        "pixels": None,
        "outputs": [],
    },
    "compile": {
        "enabled": True,
        "backend": "auto",
        "batch": [1, 8, 32],
        "compute_capabilities": ["SM86", "SM89"],
        "shapes": {},
        "strict": False,
        "timeout_s": 600.0,
    },
    "distribution": None,
    "seed": 0,
    "deterministic": False,
    "version": 1,
}


def test_defaults() -> None:
    assert Recipe.model_validate(MINIMAL).model_dump(mode="json") == DEFAULTS


def test_data_falls_back_to_train_and_validation() -> None:
    data = Recipe.model_validate(MINIMAL).data
    assert (data.calibration_reference, data.test_reference) == ("data.py:train", "pkg.data:validation")
    given = data.model_copy(update={"calibration": "a:b", "test": "c:d"})
    assert (given.calibration_reference, given.test_reference) == ("a:b", "c:d")


def test_recipe_is_frozen() -> None:
    recipe = Recipe.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    assert recipe.training.metrics == ("accuracy",)


LOSSES = {
    "name": ("mse", "mse", {}),
    "mapping": ({"name": "X", "from_logits": True, "label": None}, "X", {"from_logits": True, "label": None}),
    "mapping of the name alone": ({"name": "X"}, "X", {}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str) -> None:
    value, loss_name, arguments = LOSSES[name]
    loss = LossConfig.model_validate(value)
    assert (loss.name, loss.arguments) == (loss_name, arguments)
    assert loss.model_dump(mode="json") == (value if arguments else loss_name)


def test_loss_and_metrics_are_required_in_a_recipe_but_not_in_a_schedule() -> None:
    training = {"epochs": 1, "batch_size": 1, "learning_rate": 1}
    assert FloatSchedule.model_validate(training).loss is None
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(MINIMAL | {"training": training})
    assert [error["loc"] for error in caught.value.errors()] == [("training", "loss"), ("training", "metrics")]


def test_overrides_replace_only_the_keys_that_are_given() -> None:
    config = QuantizationConfig.model_validate(
        {
            "weights": {"granularity": "per_tensor"},
            "activations": {"percentile": 99.9},
            "overrides": [
                {"match": "a*", "weights": {"num_bits": 4}, "activations": {"calibrator": "mse"}},
                {"match": "ab", "weights": {"num_bits": 6}},
            ],
        }
    )
    first, second = config.overrides
    assert config.resolve() == (config.weights, config.activations)
    weights, activations = config.resolve([first])
    assert (weights.num_bits, weights.granularity) == (4, "per_tensor")
    assert (activations.calibrator, activations.percentile) == ("mse", 99.9)
    assert config.resolve([first, second])[0].num_bits == 6
    assert config.resolve([second, first])[0].num_bits == 4
    assert second.model_dump() == {"match": "ab", "weights": {"num_bits": 6}, "activations": None}


@pytest.mark.parametrize("block", [{}, {"weights": {}}, {"weights": None, "activations": {}}], ids=str)
def test_override_of_nothing_is_an_error(block: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="at least one key of weights or activations"):
        Override.model_validate({"match": "a", **block})


NARROW = {
    "8 bits, engine on": ({}, True, True),
    "8 bits given in an override": ({"overrides": [{"match": "a", "weights": {"num_bits": 8}}]}, True, True),
    "an override that leaves num_bits alone": ({"overrides": [{"match": "a", "weights": {"granularity": "per_tensor"}}]}, True, True),
    "7 bits, engine on": ({"weights": {"num_bits": 7}}, True, False),
    "4 bits in an override, engine on": ({"overrides": [{"match": "a", "weights": {"num_bits": 4}}]}, True, False),
    "2 bits, engine off": ({"weights": {"num_bits": 2}}, False, True),
}


@pytest.mark.parametrize("name", NARROW)
def test_weights_below_8_bits_need_the_engine_off(name: str) -> None:
    quantization, enabled, valid = NARROW[name]
    recipe = MINIMAL | {"quantization": quantization, "compile": {"enabled": enabled}}
    if valid:
        assert Recipe.model_validate(recipe).compile.enabled is enabled
        return
    with pytest.raises(ValidationError, match=r"TensorRT has no convolution below 8 bits; set compile.enabled: false"):
        Recipe.model_validate(recipe)


def test_methods_are_those_of_the_calibrators() -> None:
    assert get_args(Method) == (*METHODS, "best")
    assert QuantizationConfig().activations.percentile == Calibrator().percentile
    with pytest.raises(ValidationError):
        WeightsConfig(calibrator="percentile")  # type: ignore[arg-type]


def test_json_schema_describes_every_key_and_bound() -> None:
    schema = Recipe.model_json_schema()
    blocks = {"Recipe": schema} | schema["$defs"]
    loss = blocks.pop("LossConfig")
    assert [option.get("type") for option in loss["anyOf"]] == ["string", "object"]
    for name, block in blocks.items():
        assert block["additionalProperties"] is False, name
        for key, value in block["properties"].items():
            referenced = schema["$defs"].get(value.get("$ref", "").removeprefix("#/$defs/"), {})
            assert (referenced | value).get("description"), f"{name}.{key}"
    bits = schema["$defs"]["WeightsConfig"]["properties"]["num_bits"]
    assert (bits["minimum"], bits["maximum"], bits["default"]) == (2, 8, 8)
    assert schema["required"] == ["version", "model", "data", "training"]


def test_every_block_is_strict() -> None:
    def blocks(model: type[BaseModel]) -> list[type[BaseModel]]:
        return [model] + [block for child in model.__subclasses__() for block in blocks(child)]

    every = blocks(Recipe.__mro__[1])
    assert len(every) >= 14
    for block in every:
        assert block.model_config["frozen"] and block.model_config["strict"], block.__name__
        assert block.model_config["extra"] == ("allow" if block is LossConfig else "forbid"), block.__name__


@pytest.mark.parametrize(
    ("preset", "calibration", "compensated", "bias"),
    [
        ("selective", {}, True, False),
        ("selective", {"rounding": "nearest"}, False, True),
        ("selective", {"bias_correction": True}, True, True),
        ("naive", {}, False, False),
        ("hybrid", {"rounding": "compensated"}, True, False),
    ],
)
def test_what_is_corrected_by_default(preset: str, calibration: dict[str, object], compensated: bool, bias: bool) -> None:
    settings = CalibrationConfig.model_validate(calibration)
    assert (settings.rounds_compensated(preset), settings.corrects_bias(preset)) == (compensated, bias)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"search": ["max", "median"]}, r"percentile\(P\) with P above 50"),
        ({"search": ["percentile(40)"]}, r"percentile\(P\) with P above 50"),
        ({"rounding": "up"}, "nearest"),
    ],
)
def test_calibration_problems(block: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CalibrationConfig.model_validate(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"max_drop": 0.1, "budget": {"int8_share": 0.5}}, "max_drop or budget, not both"),
        ({"budget": {}}, "exactly one of int8_share and latency_ms"),
        ({"budget": {"int8_share": 0.5, "latency_ms": 1.0}}, "exactly one of int8_share and latency_ms"),
        ({"max_drop": -0.1}, "greater than or equal to 0"),
        ({"executor": "slurm"}, "local"),
    ],
)
def test_sensitivity_problems(block: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SensitivityConfig.model_validate(block)
