"""Reads the quantization part of a SuperGradients recipe, and says of every key what became of it.

    SuperGradients                                       a recipe here
    ptq_only; quantizer: TRTPTQQuantizer                 ptq_only; true
    selective_quantizer_params.calibrator_w              quantization.weights.calibrator
                              .calibrator_i              quantization.activations.calibrator: max, or histogram_calib_method
                              .per_channel               quantization.weights.granularity
                              .learn_amax                qat.amax.weights and .activations: learned, or frozen
                              .skip_modules              quantization.skip
    calib_params.histogram_calib_method, .percentile     quantization.activations.calibrator, .percentile
                .num_calib_batches                       calibration.batches; null: 512 / batch size, as there
    QATRecipeModificationCallback, qat_params            qat, key by key
    training_hyperparams, dataset_params                 training: epochs, learning_rate, optimizer, weight_decay, batch_size

Both forms are read: `selective_quantizer_params` at the top or under `quantization_params` (to 3.6), and under `quantizer: {<class>: ...}`
with `qat_params` beside it (3.7). Sources: recipes/quantization_params/default_quantization_params.yaml, default_tensorrt_qat.yaml,
roboflow_yolo_nas_s_qat.yaml and pre_launch_callbacks.py of Deci-AI/super-gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tfqat.recipe.load import read_mapping
from tfqat.recipe.problems import shown, validate
from tfqat.recipe.qat import OptimizerConfig, QatConfig
from tfqat.recipe.quantization import ActivationsConfig, WeightsConfig
from tfqat.recipe.schema import CalibrationConfig, FloatSchedule, Recipe

CALIBRATION_IMAGES = 512
"""What SuperGradients calibrates on where `num_calib_batches` is null."""

_CALLBACK = "QATRecipeModificationCallback"
_CLASSES = ("TRTQuantizer", "TRTPTQQuantizer", "TRTQATQuantizer")
_QAT_KEYS = (
    "batch_size_divisor",
    "max_epochs_divisor",
    "lr_decay_factor",
    "warmup_epochs_divisor",
    "cosine_final_lr_ratio",
    "disable_phase_callbacks",
)
_NO_COUNTERPART = {
    "verbose": "`tfqat run` shows its progress, and calibration.json and the report have every range",
    "num_bins": "histograms here have bins of a fixed relative width, so that no range has to be known beforehand",
    "disable_augmentations": "augmentation is the business of the function that `data.train` names",
    "defaults": "a Hydra defaults list: what the files it names say is not read; give one that has been composed, or copy their keys",
    "exporter": "see the `export` block",
    "export_params": "see the `export` block; pre- and postprocessing are not part of the graph, but for `export.pixels`",
    "pre_launch_callbacks_list": "only QATRecipeModificationCallback is read",
    "OpenVinoQuantizer": "for OpenVINO; here a graph is for TensorRT or, with `export.target: onnxruntime`, for CPUs",
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The blocks of a recipe that a SuperGradients recipe gave.

    Attributes:
        blocks: as in a recipe, only the keys that were given: `quantization`, `calibration`, `ptq_only`, `qat`, `training`.
        comments: dotted key of a block -> what to know about its value.
        left: key of the SuperGradients recipe -> why it has no counterpart, or is not taken.
    """

    blocks: Mapping[str, Any]
    comments: Mapping[str, str]
    left: Mapping[str, str]


def read_super_gradients(path: Path) -> Converted:
    """Convert the file at `path`.

    Raises:
        RecipeError: it cannot be read, is no YAML, or holds no mapping.
    """
    return convert(read_mapping(path, "SuperGradients recipe"))


def convert(document: Mapping[Any, Any]) -> Converted:
    """The blocks that a SuperGradients recipe, as it was read from YAML, says."""
    conversion = _Conversion()
    conversion.top({str(key): value for key, value in document.items()})
    return Converted(blocks=conversion.blocks, comments=conversion.comments, left=conversion.left)


@dataclass
class _Conversion:
    blocks: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def top(self, document: dict[str, Any]) -> None:
        training = {key: document.pop(key) for key in ("training_hyperparams", "dataset_params") if key in document}
        for key, value in training.items():
            self._training(key, value)
        self._quantization("", document)

    def _quantization(self, at: str, given: dict[str, Any]) -> None:
        readers = {
            "quantization_params": self._quantization,
            "selective_quantizer_params": self._selective,
            "calib_params": self._calibration,
            "qat_params": self._qat,
        }
        # What a calibrator is called decides what `calib_params` mean, wherever these stand.
        for key, value in sorted(given.items(), key=lambda item: item[0] != "selective_quantizer_params"):
            path = f"{at}{key}"
            if key in readers and isinstance(value, Mapping):
                readers[key](f"{path}.", dict(value))
            elif key == "ptq_only":
                self._put(path, "ptq_only", value, Recipe)
            elif key == "quantizer":
                self._quantizer(path, value)
            elif key == "pre_launch_callbacks_list":
                self._callbacks(path, value)
            elif key not in readers or value is not None:
                self._leave(path, value)

    def _quantizer(self, at: str, value: Any) -> None:
        for name, parameters in dict(value).items() if isinstance(value, Mapping) else [(value, {})]:
            if name not in _CLASSES:
                self._leave(f"{at}.{name}", parameters)
                continue
            if name != "TRTQuantizer":  # it has `ptq_only`; of the other two the class says it
                self.blocks["ptq_only"] = name == "TRTPTQQuantizer"
                self.comments["ptq_only"] = f"the quantizer is {name}"
            self._quantization(f"{at}.{name}.", dict(parameters or {}))

    def _callbacks(self, at: str, value: Any) -> None:
        for index, entry in enumerate(value if isinstance(value, list) else [value]):
            for name, parameters in entry.items() if isinstance(entry, Mapping) else [(entry, {})]:
                if name == _CALLBACK and isinstance(parameters or {}, Mapping):
                    self.blocks.setdefault("qat", {})
                    self._qat(f"{at}[{index}].{name}.", dict(parameters or {}))
                elif name is not None:
                    self.left[f"{at}[{index}].{name}"] = _NO_COUNTERPART["pre_launch_callbacks_list"]

    def _selective(self, at: str, given: dict[str, Any]) -> None:
        for key, value in given.items():
            path = f"{at}{key}"
            if key == "calibrator_w":
                self._weights_calibrator(path, value)
            elif key == "calibrator_i":
                self._activations_calibrator(path, value)
            elif key == "per_channel" and isinstance(value, bool):
                self._put(path, "quantization.weights.granularity", "per_channel" if value else "per_tensor", WeightsConfig)
            elif key == "learn_amax" and isinstance(value, bool):
                self._put(path, "qat.amax", dict.fromkeys(("weights", "activations"), "learned" if value else "frozen"), QatConfig)
            elif key == "skip_modules":
                self._skip(path, value)
            else:
                self._leave(path, value)

    def _weights_calibrator(self, path: str, value: Any) -> None:
        if value == "histogram":
            self.left[path] = "weights are calibrated by max or mse here; max is taken"  # unless histogram_calib_method is mse
            self.blocks.setdefault("quantization", {}).setdefault("weights", {})["calibrator"] = "max"
        else:
            self._put(path, "quantization.weights.calibrator", value, WeightsConfig)

    def _activations_calibrator(self, path: str, value: Any) -> None:
        if value == "max":
            self._put(path, "quantization.activations.calibrator", "max", ActivationsConfig)
        elif value != "histogram":
            self.left[path] = f"expected max or histogram; got {shown(value)}"

    def _skip(self, path: str, value: Any) -> None:
        names = [value] if isinstance(value, str) else value
        if names and (not isinstance(names, list) or not all(isinstance(name, str) and name for name in names)):
            self.left[path] = f"expected a list of names; got {shown(value)}"
        elif names:
            self.blocks.setdefault("quantization", {})["skip"] = list(names)
            self.comments["quantization.skip"] = "names of PyTorch modules, as they were: put the names of your Keras layers in their place"

    def _calibration(self, at: str, given: dict[str, Any]) -> None:
        for key, value in given.items():
            path = f"{at}{key}"
            if key == "histogram_calib_method":
                self._method(path, value)
            elif key == "percentile" and value is not None:
                self._put(path, "quantization.activations.percentile", value, ActivationsConfig)
            elif key == "num_calib_batches":
                self._batches(path, value)
            elif key != "percentile":
                self._leave(path, value)

    def _method(self, path: str, value: Any) -> None:
        quantization = self.blocks.setdefault("quantization", {})
        if quantization.get("activations", {}).get("calibrator") != "max":  # `calibrator_i: max` always uses max
            self._put(path, "quantization.activations.calibrator", value, ActivationsConfig)
        histogram = next((key for key in self.left if key.endswith(".calibrator_w")), None)
        if value == "mse" and histogram:
            quantization["weights"]["calibrator"] = "mse"
            del self.left[histogram]

    def _batches(self, path: str, value: Any) -> None:
        size = self.blocks.get("training", {}).get("batch_size")
        if value is not None:
            self._put(path, "calibration.batches", value, CalibrationConfig)
        elif size:
            self._put(path, "calibration.batches", max(1, CALIBRATION_IMAGES // size), CalibrationConfig)
            self.comments["calibration.batches"] = f"{CALIBRATION_IMAGES} / batch size, as num_calib_batches: null means"
        else:
            self.left[path] = f"null means {CALIBRATION_IMAGES} / batch size there, and no batch size is given; the default here is 16"

    def _qat(self, at: str, given: dict[str, Any]) -> None:
        for key, value in given.items():
            if key in _QAT_KEYS:
                self._put(f"{at}{key}", f"qat.{key}", value, QatConfig)
            else:
                self._leave(f"{at}{key}", value)
        if "batch_size_divisor" in self.blocks.get("qat", {}):
            self.comments["qat.batch_size_divisor"] = (
                "SuperGradients divides only with learn_amax: true; here always, 1 keeps the batch size"
            )

    def _training(self, key: str, value: Any) -> None:
        """The float schedule, from which the one of QAT is derived; other keys of these blocks are said in one line."""
        given = dict(value) if isinstance(value, Mapping) else {}
        found: dict[str, tuple[str, Any]] = {}
        if key == "training_hyperparams":
            found = {"max_epochs": ("epochs", given.get("max_epochs")), "initial_lr": ("learning_rate", given.get("initial_lr"))}
            optimizer = given.get("optimizer")
            found["optimizer"] = ("optimizer", optimizer.lower() if isinstance(optimizer, str) else optimizer)
            parameters = given.get("optimizer_params")
            decay = parameters.get("weight_decay") if isinstance(parameters, Mapping) else None
            found["optimizer_params.weight_decay"] = ("weight_decay", decay)
            momentum = parameters.get("momentum") if isinstance(parameters, Mapping) else None
            if momentum is not None:
                self._put(f"{key}.optimizer_params.momentum", "qat.optimizer.momentum", momentum, OptimizerConfig)
        else:
            loader = given.get("train_dataloader_params")
            size = loader.get("batch_size") if isinstance(loader, Mapping) else None
            found = {"train_dataloader_params.batch_size": ("batch_size", size)}
        for source, (name, one) in found.items():
            if one is not None:
                self._put(f"{key}.{source}", f"training.{name}", one, FloatSchedule)
        if others := [name for name in given if not any(source.split(".")[0] == name for source in found)]:
            self.left[key] = f"beside {', '.join(found)}: {', '.join(map(str, others))}"

    def _put(self, source: str, key: str, value: Any, model: type[BaseModel]) -> None:
        """Set `key` of the blocks if `model`, the block that it belongs to, takes the value."""
        *blocks, name = key.split(".")
        value = float(value) if type(value) is int and model.model_fields[name].annotation is float else value
        _, wrong = validate(model, {name: value})
        problems = [text for path, text in wrong if path and path[0] == name]
        if problems:
            self.left[source] = "not resolved: it stands in another file" if _is_open(value) else problems[0]
            return
        block = self.blocks
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = value

    def _leave(self, path: str, value: Any) -> None:
        name = path.rpartition(".")[2]
        if value is None and name not in _NO_COUNTERPART:
            return
        self.left[path] = _NO_COUNTERPART.get(name, "no counterpart")


def _is_open(value: Any) -> bool:
    """Whether OmegaConf would still have to fill a value in: `???` or `${...}`."""
    return isinstance(value, str) and (value == "???" or "${" in value)
