"""What a recipe may say: every block, key, unit, bound and default, as frozen pydantic models.

The models are strict: `epochs: "30"` and `epochs: 30.0` are wrong types, not numbers to convert.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from tfqat.form import Form, Target
from tfqat.recipe.blocks import REFERENCE, BatchProfile, Block, CalibratorText, Items, Reference, ShapeProfile, Text
from tfqat.recipe.distribution import DistributionConfig
from tfqat.recipe.export import ExportConfig
from tfqat.recipe.qat import QatConfig
from tfqat.recipe.quantization import QuantizationConfig


class ModelConfig(Block):
    """The `model` block."""

    source: Text = Field(
        description="The trained Keras model: a .keras or .h5 file, a SavedModel folder, or module:function or path/file.py:function."
    )
    custom_objects: dict[str, Reference] = Field(
        default={}, description="Classes of custom layers by the name that the file has for them, as references."
    )


class Replacement(Block):
    """A block of the model that is replaced before quantization."""

    match: Text = Field(description="Layers by name glob, `re:` regular expression, or layer class.")
    with_: Text = Field(
        alias="with", description="hard_swish, relu, repvgg, or module:function or path/file.py:function: a layer in, its replacement out."
    )

    @field_validator("with_")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value in ("hard_swish", "relu", "repvgg") or re.match(REFERENCE, value):
            return value
        raise ValueError("hard_swish, relu, repvgg, or module:function or path/file.py:function")


class DataConfig(Block):
    """The `data` block: functions that return a `tf.data.Dataset`, as `module:function` or `path/file.py:function`."""

    train: Reference = Field(description="Batches to fine-tune on.")
    validation: Reference = Field(description="Batches that choose the best checkpoint.")
    calibration: Reference | None = Field(default=None, description="Batches that set the ranges; null: those of `train`.")
    test: Reference | None = Field(default=None, description="Batches for the reported accuracy; null: those of `validation`.")

    @property
    def calibration_reference(self) -> str:
        """`calibration`, or `train` where the recipe leaves it out."""
        return self.calibration or self.train

    @property
    def test_reference(self) -> str:
        """`test`, or `validation` where the recipe leaves it out."""
        return self.test or self.validation


class LossConfig(Block):
    """A Keras loss: its name alone, or a mapping of `name` and the keyword arguments of its class."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(description="A loss function or class of Keras, e.g. SparseCategoricalCrossentropy.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for the loss class, e.g. `{"from_logits": True}`."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _to_name(self, default: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        return default(self) if self.arguments else self.name

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "minLength": 1}, handler(schema)], "title": "LossConfig"}


class FloatSchedule(Block):
    """How the float model was trained, as far as the QAT schedule follows from it; the `training` block less what is required."""

    epochs: int = Field(ge=1, description="Epochs that the float model was trained for.")
    batch_size: int = Field(ge=1, description="Examples per step of the float training.")
    learning_rate: float = Field(gt=0, description="Peak learning rate of the float training.")
    optimizer: Text = Field(default="sgd", description="Optimizer of the float training; for the record, `qat.optimizer` fine-tunes.")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of the float training, per step.")
    steps_per_epoch: int | None = Field(default=None, ge=1, description="Steps per epoch of the fine-tuning; null: counted from the data.")
    loss: LossConfig | None = Field(default=None, description="Loss, a Keras name or {name: ..., keyword arguments of its class}.")
    metrics: Items[Text] = Field(default=(), description="Keras metrics; the first one chooses the best checkpoint.")


class TrainingConfig(FloatSchedule):
    """The `training` block: the float recipe that made the model."""

    loss: LossConfig = Field(description="Loss, a Keras name or {name: ..., keyword arguments of its class}.")
    metrics: Items[Text] = Field(min_length=1, description="Keras metrics; the first one chooses the best checkpoint.")


class CalibrationConfig(Block):
    """The `calibration` block."""

    batches: int = Field(default=16, ge=1, description="Batches of the calibration data to read.")
    search: Items[CalibratorText] = Field(
        default=(),
        description="Calibrators to try for the whole model, e.g. [max, percentile(99.9), entropy, mse, best]; the best on the validation "
        "data is taken. Points whose calibrator an override names keep it.",
    )
    rounding: Literal["nearest", "compensated"] | None = Field(
        default=None,
        description="How weights are rounded after calibration: to the nearest code, or so that their errors cancel for the calibration "
        "data; null: compensated for the preset selective, nearest for the others.",
    )
    bias_correction: bool | None = Field(
        default=None,
        description="Give back to each bias the mean error that the rounding of its weight causes; null: on for the preset selective where "
        "weights are rounded to the nearest code.",
    )
    equalization: bool | None = Field(
        default=None, description="Equalize the channels between layers by exact factors before calibration; null: off."
    )

    def rounds_compensated(self, preset: str) -> bool:
        """Whether weights are rounded so that their errors cancel."""
        return self.rounding == "compensated" or (self.rounding is None and preset == "selective")

    def corrects_bias(self, preset: str) -> bool:
        """Whether biases are corrected."""
        if self.bias_correction is None:
            return preset == "selective" and not self.rounds_compensated(preset)
        return self.bias_correction


class BudgetConfig(Block):
    """What a placement may cost; exactly one key."""

    int8_share: float | None = Field(default=None, ge=0, le=1, description="Least share of multiply-accumulates in INT8.")
    latency_ms: float | None = Field(default=None, gt=0, description="Most milliseconds per batch of 1 in ONNX Runtime on this machine.")

    @model_validator(mode="after")
    def _has_one_key(self) -> BudgetConfig:
        if (self.int8_share is None) == (self.latency_ms is None):
            raise ValueError("exactly one of int8_share and latency_ms")
        return self


class SensitivityConfig(Block):
    """The `sensitivity` block: which layers lose accuracy by quantization, and which of them are left at higher precision for it."""

    metric: Text = Field(
        default="output_error",
        description="What is compared with the float model: a metric of `training.metrics`, loss, output_error, or module:function or "
        "path/file.py:function, a function (outputs, labels) -> number where more is better.",
    )
    method: Literal["fast", "leave_one_in", "leave_one_out"] = Field(
        default="fast", description="fast: by gradients, in a few passes; or one measurement per layer: alone quantized, or alone float."
    )
    max_drop: float | None = Field(
        default=None, ge=0, description="How much worse than float the metric may be; leaves as few layers as possible at higher precision."
    )
    budget: BudgetConfig | None = Field(default=None, description="What the placement may cost; takes the least sensitive one within it.")
    batches: int | None = Field(default=None, ge=1, description="Batches of the validation data to measure on; null: all.")
    executor: Literal["local", "ray"] = Field(default="local", description="Where measurements run: processes here, or a Ray cluster.")
    workers: int = Field(default=1, ge=1, description="How many measurements run at once; 1 stays in this process.")

    @model_validator(mode="after")
    def _has_one_goal(self) -> SensitivityConfig:
        if self.max_drop is not None and self.budget is not None:
            raise ValueError("max_drop or budget, not both")
        return self


class CompileConfig(Block):
    """The `compile` block: the TensorRT engine."""

    enabled: bool = Field(default=True, description="Build an engine.")
    backend: Literal["auto", "tensorrt_rtx", "tensorrt", "none"] = Field(
        default="auto", description="Builder; auto takes one that is installed."
    )
    batch: BatchProfile = Field(default=(1, 8, 32), description="Batch sizes that the engine takes: [min, opt, max], in examples.")
    compute_capabilities: Items[Annotated[str, Field(pattern=r"^SM\d{2,3}$")]] = Field(
        default=("SM86", "SM89"), min_length=1, description="GPUs that TensorRT for RTX builds for, e.g. SM86 (Ampere), SM89 (Ada)."
    )
    shapes: dict[str, ShapeProfile] = Field(
        default={}, description="Inputs with free axes other than the batch: {name: [min, opt, max]}, each a shape with the batch."
    )
    strict: bool = Field(default=False, description="End the run with an error if a layer that is quantized does not run Int8 x Int8.")
    timeout_s: float = Field(default=600.0, gt=0, description="The most time to build each engine in, in seconds.")


class Recipe(Block):
    """A recipe: all that `tfqat run` needs to know."""

    version: Literal[1] = Field(description="Version of the recipe format.")
    model: ModelConfig = Field(description="The trained float model.")
    data: DataConfig = Field(description="Functions that return the data.")
    training: TrainingConfig = Field(description="The float recipe that made the model; the QAT schedule is derived from it.")
    replace: Items[Replacement] = Field(default=(), description="Blocks to replace before quantization.")
    quantization: QuantizationConfig = Field(default=QuantizationConfig(), description="Which layers are quantized, and how.")
    calibration: CalibrationConfig = Field(default=CalibrationConfig(), description="How ranges are measured.")
    sensitivity: SensitivityConfig | None = Field(
        default=None, description="Find the layers that lose accuracy, and leave them at higher precision; null: not done."
    )
    ptq_only: bool = Field(default=False, description="Stop before training and export the calibrated model.")
    qat: QatConfig = Field(default=QatConfig(), description="How the fine-tuning schedule follows from the float one.")
    export: ExportConfig = Field(default=ExportConfig(), description="The ONNX file.")
    compile: CompileConfig = Field(default=CompileConfig(), validate_default=True, description="The TensorRT engine.")
    distribution: DistributionConfig | None = Field(
        default=None, description="Devices and hosts that calibrate and fine-tune together; null: one device."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of every random number generator.")
    deterministic: bool = Field(default=False, description="Have TensorFlow run only operations that give the same bits every time.")

    @field_validator("version", mode="before")
    @classmethod
    def _version_is_a_number(cls, value: Any) -> Any:
        if isinstance(value, bool):  # True == 1 in Python, so `version: true` would pass
            raise PydanticCustomError("literal_error", "expected 1", {"expected": "1"})
        return value

    @field_validator("export")
    @classmethod
    def _is_for_one_target(cls, value: ExportConfig, info: ValidationInfo) -> ExportConfig:
        quantization = info.data.get("quantization")
        placed = quantization.target if quantization else None
        if None not in (placed, value.target) and placed != value.target:
            message = "quantization.target is {target}: leave out one of the two; got {given}"
            raise PydanticCustomError("two_targets", message, {"target": placed, "given": value.target, "path": ("export", "target")})
        return value

    @property
    def target(self) -> Target:
        """What the placement and the graph are for."""
        return self.export.target or self.quantization.target or "tensorrt"

    @property
    def placement_config(self) -> QuantizationConfig:
        """The `quantization` block for the target."""
        return self.quantization.model_copy(update={"target": self.target})

    @property
    def form(self) -> Form:
        """The outside of the exported graph."""
        return replace(self.export.form, target=self.target)

    @field_validator("compile")
    @classmethod
    def _engine_takes_the_weights(cls, value: CompileConfig, info: ValidationInfo) -> CompileConfig:
        """Here, and not after the whole recipe, so that it is reported along with the errors of other blocks."""
        quantization, export = info.data.get("quantization"), info.data.get("export")
        if "onnxruntime" in (quantization and quantization.target, export and export.target):
            return value  # no engine is built then
        if value.enabled and quantization and (narrow := quantization.narrow_weights()):
            path, bits = next(iter(narrow.items()))
            message = "TensorRT has no convolution below 8 bits; set compile.enabled: false, or 8 bits; got {bits}"
            raise PydanticCustomError("narrow_weights", message, {"bits": bits, "path": ("quantization", *path)})
        return value
