"""The text of a new recipe: what was read off the model, what was converted, and what only its owner can say."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tfqat.recipe.json_schema import MODELINE
from tfqat.recipe.super_gradients import Converted
from tfqat.scaffold.facts import Loss

WIDTH = 120

_PLAIN = re.compile(r"(\.{1,2}/)*[A-Za-z_][\w./-]*(:\w+)?")
_RESERVED = ("true", "false", "null", "yes", "no", "on", "off")

_QUANTIZATION: Mapping[str, Any] = {
    "preset": "selective",
    "weights": {"num_bits": 8, "calibrator": "max", "granularity": "per_channel"},
    "activations": {"calibrator": "percentile", "percentile": 99.99},
    "skip": [],
}
_TRAINING: Mapping[str, Any] = {"epochs": 30, "batch_size": 32, "learning_rate": 0.01, "optimizer": "sgd", "weight_decay": 0.0}
_QAT: Mapping[str, Any] = {
    "batch_size_divisor": 2,
    "max_epochs_divisor": 10,
    "lr_decay_factor": 0.01,
    "warmup_epochs_divisor": 10,
    "cosine_final_lr_ratio": 0.01,
    "disable_phase_callbacks": True,
}
_COMMENTS: Mapping[str, str] = {
    "quantization.preset": "TensorRT's rules; `tfqat plan` shows what they choose, and why",
    "quantization.activations": "or max, entropy, mse, best (per point)",
    "quantization.skip": "layers to leave float: names, globs, 're:...', layer classes",
    "calibration.batches": "a few hundred examples are enough",
    "qat.max_epochs_divisor": "a tenth of the epochs",
    "qat.lr_decay_factor": "from a hundredth of the learning rate",
}


def recipe_text(source: str, loss: Loss | None, converted: Converted | None, skip: Mapping[str, str | None] | None = None) -> str:
    """The text of `recipe.yaml`.

    Args:
        source: the model's file, as seen from the recipe.
        loss: the guessed loss; None where there is no model yet.
        converted: what a SuperGradients recipe said, if there is one.
        skip: name to skip -> the pattern for the model's layers; None for a name that no layer has, which is left as a comment. Without
            a model, the names stay as they are.
    """
    blocks: Mapping[str, Any] = converted.blocks if converted else {}
    own = {key: note for key, note in _COMMENTS.items() if not _given(blocks, key)}
    notes = {**own, **(converted.comments if converted else {})}
    training = {**_TRAINING, **blocks.get("training", {})}
    quantization = _merged(_QUANTIZATION, blocks.get("quantization", {}))
    if skip is not None:
        quantization["skip"] = [pattern for pattern in skip.values() if pattern is not None]
        notes.pop("quantization.skip", None)
    unmatched = [name for name, pattern in (skip or {}).items() if pattern is None]
    parts = [
        MODELINE + _comment("Made by `tfqat init`. Check what is marked GUESSED, and put your own numbers where it says TO DO."),
        "version: 1",
        _block("model", {"source": source}, notes),
        _comment("TO DO: data.py holds stubs; `tfqat plan` works without data.")
        + _block("data", {name: f"data.py:{name}" for name in ("train", "validation", "calibration")}, notes),
        _training_text(training, loss, blocks.get("training", {}), notes),
        _block("quantization", quantization, notes) + _unmatched(unmatched),
        _block("calibration", {"batches": 16, **blocks.get("calibration", {})}, notes),
        _comment(
            "Find the layers that lose accuracy and leave as few of them as possible at higher precision:\n"
            "  sensitivity: {metric: ..., max_drop: 0.005}"
        ).rstrip(),
        _comment("true: calibrate only; false: fine-tune with quantization in the loop too.")
        + _line("ptq_only", blocks.get("ptq_only", False), notes.get("ptq_only")),
        _block("qat", _merged(_QAT, blocks.get("qat", {})), notes),
        _comment("`export.target: onnxruntime` in the place of this block makes a graph for CPUs (docs/export.md).")
        + _block("compile", {"backend": "auto", "batch": [1, 8, 32], "compute_capabilities": ["SM86", "SM89"]}, notes),
    ]
    return "\n\n".join(part.rstrip() for part in [*parts, *_left(converted)]) + "\n"


def _training_text(training: Mapping[str, Any], loss: Loss | None, converted: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    open_keys = [key for key in ("epochs", "batch_size", "learning_rate", "weight_decay") if key not in converted]
    to_do = f"TO DO: {', '.join(open_keys)} of the float training; the schedule of QAT is derived from these." if open_keys else ""
    head = _comment(to_do or "How the float model was trained; the schedule of QAT is derived from it.")
    guess = loss.reason if loss else "there is no model yet; write the loss and the metric that it was trained with."
    name, metric = (loss.yaml, loss.metric) if loss else ("{name: SparseCategoricalCrossentropy, from_logits: true}", "accuracy")
    return head + _block("training", training, notes) + _comment(f"GUESSED: {guess}", indent=2) + f"  loss: {name}\n  metrics: [{metric}]\n"


def _given(blocks: Mapping[str, Any], key: str) -> bool:
    block, _, name = key.partition(".")
    return name in blocks.get(block, {})


def _unmatched(names: Sequence[str]) -> str:
    if not names:
        return ""
    return _comment(f"Not skipped, since no layer of the model has these names: {', '.join(names)}", indent=2)


def _left(converted: Converted | None) -> list[str]:
    if converted is None or not converted.left:
        return []
    return [
        _comment(
            "Of the SuperGradients recipe, without a counterpart here:\n" + "\n".join(f"- {k}: {v}" for k, v in converted.left.items())
        )
    ]


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: {**value, **given[key]} if isinstance(value, Mapping) and key in given else given.get(key, value)
        for key, value in defaults.items()
    }
    return both | {key: value for key, value in given.items() if key not in defaults}


def _block(name: str, values: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    return f"{name}:\n" + "".join("  " + _line(key, value, notes.get(f"{name}.{key}")) for key, value in values.items())


def _line(key: str, value: Any, note: str | None) -> str:
    text = f"{key}: {_flow(value)}"
    return f"{text}{f'   # {note}' if note else ''}\n"


def _flow(value: Any) -> str:
    """A value as YAML in one line; text is quoted where YAML would read it as something else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(one) for one in value) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED else json.dumps(value)
    return repr(value) if isinstance(value, float) else json.dumps(value)


def _comment(text: str, *, indent: int = 0) -> str:
    prefix = " " * indent + "# "
    lines: list[str] = []
    for line in text.splitlines():
        hanging = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=hanging, break_on_hyphens=False)
    return "".join(f"{prefix}{line}\n" for line in lines)
