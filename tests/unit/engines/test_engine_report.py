"""Reports: the layers that are not seen to run in int8, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tfqat.engines.report import EngineReport, KernelPrecision, TargetReport


def kernel(layer: str, int8: bool) -> KernelPrecision:
    return KernelPrecision(keras_layer=layer, op="Conv", inputs=("Int8", "Int8"), outputs=("Float",), int8=int8, kernel=f"{layer}_0")


def target(name: str, *layers: KernelPrecision) -> TargetReport:
    return TargetReport(target=name, seconds=1.5, engine_path=f"model.{name.lower()}.plan", size_bytes=10, layers=layers)


def report(*targets: TargetReport) -> EngineReport:
    return EngineReport(backend="tensorrt_rtx", version="1.7.1", status="built", message="", targets=targets)


def test_float_layers_names_the_target_and_the_layer() -> None:
    built = report(target("SM86", kernel("stem", True), kernel("head", False)), target("SM89", kernel("stem", True), kernel("head", True)))
    assert built.float_layers(["stem", "head"]) == (("SM86", "head"),)
    assert built.float_layers(["stem"]) == ()


def test_a_layer_that_the_report_does_not_have_is_not_int8() -> None:
    assert report(target("SM86", kernel("stem", True))).float_layers(["stem", "logits", "logits"]) == (("SM86", "logits"),)


def test_a_layer_with_two_kernels_needs_both() -> None:
    assert report(target("SM86", kernel("sep", True), kernel("sep", False))).float_layers(["sep"]) == (("SM86", "sep"),)


def test_a_report_survives_json() -> None:
    built = report(target("SM86", kernel("stem", True)), target("SM89"))
    assert EngineReport.from_dict(json.loads(json.dumps(built.to_dict()))) == built


def test_reports_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        report().message = "other"  # type: ignore[misc]
