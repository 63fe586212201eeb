"""The lint rules of a planned placement: a placement that breaks each, and what the planner makes of the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tfqat.placement.lint import Finding, lint_placement
from tfqat.placement.plan import Edge, FloatLayer, Placement, QPoint
from tfqat.spec import Calibrator, PerChannel, QuantSpec

Draw = Callable[..., Any]


def activation(source: str, *edges: tuple[str, int], group: str | None = None) -> QPoint:
    made = tuple(Edge(layer=layer, index=index) for layer, index in edges)
    return QPoint(
        id=source,
        kind="activation",
        source=source,
        spec=QuantSpec(),
        calibrator=Calibrator(method="max"),
        reason="",
        edges=made,
        scale_group=group,
    )


def weight(source: str) -> QPoint:
    spec = QuantSpec(granularity=PerChannel(axes=(3,)), narrow_range=True)
    return QPoint(
        id=f"{source}/kernel", kind="weight", source=source, spec=spec, calibrator=Calibrator(method="max"), reason="", weight="kernel"
    )


def conv(source: str, name: str) -> tuple[QPoint, QPoint]:
    """The two points of an int8 convolution."""
    return activation(source, (name, 0)), weight(name)


def placed(*points: QPoint, float_layers: tuple[tuple[str, str, str], ...] = ()) -> Placement:
    layers = tuple(FloatLayer(layer=layer, class_name=class_name, reason=reason) for layer, class_name, reason in float_layers)
    return Placement(preset="selective", points=points, float_layers=layers)


STEM = ("image InputLayer", "stem Conv2D image")
RESIDUAL = (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "add Add stem bn")
INT8 = (*conv("image", "stem"), *conv("stem", "conv"))
CONCAT = (*STEM, "conv Conv2D stem", "cat Concatenate stem conv", "head Conv2D cat")
POOL = (*STEM, "pool GlobalAveragePooling2D stem", "flat Flatten pool", "logits Dense flat")
GATE = (*STEM, "gate Conv2D stem", "mul Multiply stem gate")
FUSES = "the Add fuses with 'conv', but reads the shortcut in float"

# lines, placement, findings as (layer, rule, message, fix[, severity])
CASES: dict[str, tuple[tuple[str, ...], Placement, tuple[tuple[str, ...], ...]]] = {
    "all is well": (RESIDUAL, placed(*INT8, activation("stem", ("add", 0))), ()),
    "input alone": (
        STEM,
        placed(activation("image", ("stem", 0))),
        (("stem", "half-quantized", "its input is quantized, its weight is not: TensorRT multiplies in float", "quantize both"),),
    ),
    "weight alone": (
        STEM,
        placed(weight("stem")),
        (("stem", "half-quantized", "its weight is quantized, its input is not: TensorRT multiplies in float", "quantize both"),),
    ),
    "quantizer before Dropout": (
        ("image InputLayer", "drop Dropout image", "stem Conv2D drop"),
        placed(activation("image", ("drop", 0)), weight("stem")),
        (),
    ),
    "Add with both inputs": (
        RESIDUAL,
        placed(*INT8, activation("stem", ("add", 0)), activation("bn", ("add", 1))),
        (
            (
                "add",
                "residual-add",
                "every input is quantized: the Add cannot fuse with 'conv'",
                "use the preset selective, which quantizes the shortcut only",
            ),
        ),
    ),
    "Add with no input": (
        RESIDUAL,
        placed(*INT8),
        (("add", "residual-add", f"no input is quantized: {FUSES}", "use the preset selective, which quantizes the shortcut"),),
    ),
    "Add with no input, skipped": (RESIDUAL, placed(*INT8, float_layers=(("add", "Add", "skipped by the recipe: 'add'"),)), ()),
    "Add behind float convolutions": (RESIDUAL, placed(*conv("image", "stem")), ()),
    "Concatenate of two scales": (
        CONCAT,
        placed(*INT8, activation("stem", ("cat", 0)), activation("conv", ("cat", 1)), *conv("cat", "head")),
        (
            (
                "cat",
                "concat-scales",
                "its inputs have quantizers of their own (conv, stem): their scales will be unequal",
                "give them one scale_group",
            ),
        ),
    ),
    "Concatenate of one scale": (
        CONCAT,
        placed(*INT8, activation("stem", ("cat", 0), group="a"), activation("conv", ("cat", 1), group="a"), *conv("cat", "head")),
        (),
    ),
    "pool with a quantized input only": (
        POOL,
        placed(*conv("image", "stem"), activation("stem", ("pool", 0))),
        (
            (
                "pool",
                "half-quantized-pool",
                "its input is quantized, its output is not: GlobalAveragePooling2D runs in float",
                "quantize its output too, or neither",
            ),
        ),
    ),
    "pool with a quantized output only": (
        POOL,
        placed(*conv("image", "stem"), *conv("flat", "logits")),
        (
            (
                "pool",
                "half-quantized-pool",
                "its output is quantized, its input is not: GlobalAveragePooling2D runs in float",
                "quantize its input too, or neither",
            ),
        ),
    ),
    "pool between quantizers": (POOL, placed(*conv("image", "stem"), activation("stem", ("pool", 0)), *conv("flat", "logits")), ()),
    "transposed convolution": (
        ("image InputLayer", "up Conv2DTranspose image"),
        placed(*conv("image", "up")),
        (
            (
                "up",
                "conv-transpose",
                "quantized Conv2DTranspose: TensorRT for RTX always runs it in float",
                "remove it from quantization.force",
            ),
        ),
    ),
    "gate with one quantized input": (
        GATE,
        placed(*conv("image", "stem"), *conv("stem", "gate"), activation("stem", ("mul", 0))),
        (
            (
                "mul",
                "half-quantized-gate",
                "input 1 is not quantized, another one is: it runs in float",
                "quantize all of its inputs, or none",
            ),
        ),
    ),
    "gate with both inputs": (
        GATE,
        placed(*conv("image", "stem"), *conv("stem", "gate"), activation("stem", ("mul", 0)), activation("gate", ("mul", 1))),
        (),
    ),
    "a product that no rule takes": (
        (*STEM, "einsum EinsumDense stem"),
        placed(*conv("image", "stem"), float_layers=(("einsum", "EinsumDense", "EinsumDense: no rule for it, computes in float"),)),
        (
            (
                "einsum",
                "float-product",
                "runs in float: EinsumDense: no rule for it, computes in float",
                "nothing, if that is meant; name it in quantization.skip to say so",
                "advice",
            ),
        ),
    ),
    "a product that the recipe skips": (
        (*STEM, "logits Dense stem"),
        placed(*conv("image", "stem"), float_layers=(("logits", "Dense", "skipped by the recipe: 'logits'"),)),
        (),
    ),
    "a layer that multiplies nothing": (
        (*STEM, "norm LayerNormalization stem"),
        placed(*conv("image", "stem"), float_layers=(("norm", "LayerNormalization", "LayerNormalization: computes in float"),)),
        (),
    ),
}


@pytest.mark.parametrize(("lines", "placement", "found"), CASES.values(), ids=CASES)
def test_planned_rule(draw: Draw, lines: tuple[str, ...], placement: Placement, found: tuple[tuple[str, ...], ...]) -> None:
    wanted = tuple(
        Finding(layer=layer, rule=rule, message=message, fix=fix, severity=rest[0] if rest else "finding")  # type: ignore[arg-type]
        for layer, rule, message, fix, *rest in found
    )
    assert lint_placement(draw(*lines), placement) == wanted


@pytest.mark.parametrize(("shape", "small"), [((3, 3, 16, 16), ""), ((3, 3, 3, 16), "3 input and 16"), ((3, 3, 16, 8), "16 input and 8")])
def test_small_product(draw: Draw, shape: tuple[int, ...], small: str) -> None:
    graph = draw(*STEM)
    graph = replace(graph, nodes=(graph.nodes[0], replace(graph.nodes[1], weights={"kernel": shape})))
    found = lint_placement(graph, placed(*conv("image", "stem")))
    wanted = [f"{small} output channels: below 16, FP16 is usually faster than int8"] if small else []
    assert [(finding.rule, finding.severity) for finding in found] == [("small-product", "advice")] * len(wanted)
    assert [finding.message for finding in found] == wanted


@pytest.mark.parametrize(("preset", "rules"), [("selective", []), ("naive", [("add", "residual-add")])])
def test_what_the_planner_makes(tiny_float: Any, preset: str, rules: list[tuple[str, str]]) -> None:
    import tfqat
    from tfqat.models import graph

    found = lint_placement(graph.read(tiny_float), tfqat.plan(tiny_float, preset))
    assert [(finding.layer, finding.rule) for finding in found if finding.severity == "finding"] == rules
    assert [(finding.layer, finding.rule) for finding in found if finding.severity == "advice"] == [
        ("stem", "small-product"),
        ("logits", "small-product"),
    ]
