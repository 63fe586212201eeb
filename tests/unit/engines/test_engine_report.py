"""Reports: the layers that are not seen to run in int8, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tfqat.engines.build import check_strict
from tfqat.engines.precisions import int8_share
from tfqat.engines.report import EngineReport, KernelPrecision, TargetReport
from tfqat.errors import EngineError


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


def test_all_that_a_report_says_survives_json() -> None:
    layer = dataclasses.replace(
        kernel("stem", True), fused_with=("relu",), reformats=("copy",), pointwise=("__myl_Add",), quantized=True, macs=123
    )
    whole = dataclasses.replace(target("SM86", layer), kernels=3, reformats=1, int8_macs=0.5)
    built = dataclasses.replace(report(whole), commands=("tensorrt_rtx --onnx=model.onnx",))
    assert EngineReport.from_dict(json.loads(json.dumps(built.to_dict()))) == built


EARLIER = {
    "backend": "tensorrt_rtx",
    "version": "1.7.1.116",
    "status": "built",
    "message": "SM86: 1 of 1 convolutions and matrix products run Int8 x Int8",
    "targets": [
        {
            "target": "SM86",
            "seconds": 0.326,
            "engine_path": "model.sm86.plan",
            "size_bytes": 2467284,
            "layers": [
                {
                    "keras_layer": "stem",
                    "op": "Conv",
                    "inputs": ["Int8", "Int8"],
                    "outputs": ["Float"],
                    "int8": True,
                    "kernel": "stem_myl0_2",
                }
            ],
        }
    ],
}


def test_a_report_of_an_earlier_version_is_read() -> None:
    found = EngineReport.from_dict(EARLIER)
    (layer,) = found.targets[0].layers
    assert (layer.inputs, layer.int8, layer.fused_with, layer.quantized, layer.macs) == (("Int8", "Int8"), True, (), None, None)
    assert (found.commands, found.targets[0].kernels, found.targets[0].int8_macs, found.targets[0].unmet) == ((), None, None, ())
    assert found.targets[0].summary() == "SM86: 1 of 1 convolutions and matrix products run Int8 x Int8, 2.5 MB"


def test_the_summary_of_an_engine() -> None:
    layers = [dataclasses.replace(kernel(f"conv{number}", number > 0), macs=100) for number in range(4)]
    built = dataclasses.replace(target("SM86", *layers), size_bytes=25_314_159, kernels=71, reformats=3, int8_macs=int8_share(layers))
    assert built.summary() == (
        "SM86: 3 of 4 convolutions and matrix products run Int8 x Int8 (75.0% of multiply-accumulates), 71 kernels, 3 reformats, 25.3 MB"
    )
    assert target("SM89").summary() == "SM89: built, but the build did not report the precision of its kernels"


@pytest.mark.parametrize(
    ("macs", "share"),
    [((300, 100), 0.75), ((0, 100), 0.0), ((300, None), None), ((), None)],
    ids=["both", "float alone", "unknown", "none"],
)
def test_the_share_of_int8_is_weighed_by_multiply_accumulates(macs: tuple[int | None, ...], share: float | None) -> None:
    assert int8_share(dataclasses.replace(kernel("x", number == 0), macs=count) for number, count in enumerate(macs)) == share


def marked(layer: str, *, int8: bool, quantized: bool) -> KernelPrecision:
    return dataclasses.replace(kernel(layer, int8), quantized=quantized, inputs=("Int8", "Int8") if int8 else ("Float", "Int8"))


def test_a_strict_build_takes_float_products_that_the_graph_leaves_float() -> None:
    check_strict(target("SM86", marked("stem", int8=True, quantized=True), marked("head", int8=False, quantized=False)), Path("m.onnx"))


def test_a_strict_build_names_every_quantized_product_that_is_float() -> None:
    layers = [marked("stem", int8=True, quantized=True), *(marked(name, int8=False, quantized=True) for name in ("mid", "head"))]
    with pytest.raises(EngineError) as refused:
        check_strict(target("SM86", *layers), Path("run/m.onnx"))
    assert str(refused.value) == (
        "strict: 2 of 3 products that m.onnx quantizes do not run as such for SM86: mid (Float x Int8), head (Float x Int8); expected "
        "Int8 x Int8. `tfqat lint run/m.onnx` says what TensorRT would not fuse; leave strict out to keep the engine"
    )


def test_a_strict_build_is_not_content_without_a_report() -> None:
    with pytest.raises(EngineError, match=r"strict: the build for SM86 did not report the precision of its kernels"):
        check_strict(target("SM86"), Path("m.onnx"))
