"""TensorRT's rules of where Q/DQ go, one rule per pattern; the first rule that matches a layer decides it.

A rule looks at one layer and answers with a `Quantize` (which inputs and which weight), a `KeepFloat` with the reason, or None when
its pattern does not match. Source of the rules: NVIDIA TensorRT developer guide, "Working with Quantized Types", section
"Q/DQ Layer-Placement Recommendations"; what TensorRT for RTX 1.7.1 does with them was measured (`docs/placement.md`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tfqat.form import Target
from tfqat.models.graph import ModelGraph
from tfqat.placement.rules import choice, elementwise, joining, moving, products, runtime
from tfqat.placement.rules.classes import WEIGHTS, Weight
from tfqat.placement.rules.decision import Decision, KeepFloat, Quantize, Rule, View
from tfqat.recipe.quantization import Preset

SELECTIVE: tuple[Rule, ...] = (
    choice.skipped_layer,
    choice.forced_layer,
    choice.custom_layer,
    products.small_product,
    products.weighted_layer,
    products.transposed_convolution,
    products.product_of_activations,
    products.unsupported_product,
    products.embedding,
    joining.residual_add,
    joining.concatenate,
    joining.multiply,
    moving.average_pool,
    moving.interpolation,
    moving.max_pool,
    moving.identity,
    moving.movement,
    elementwise.batch_norm,
    elementwise.layer_scale,
    elementwise.activation,
    elementwise.normalization,
    elementwise.anything_else,
)
NAIVE: tuple[Rule, ...] = tuple(joining.every_add if rule is joining.residual_add else rule for rule in SELECTIVE)
RULES: dict[Preset, tuple[Rule, ...]] = {"selective": SELECTIVE, "naive": NAIVE, "hybrid": NAIVE}

__all__ = ["NAIVE", "RULES", "SELECTIVE", "WEIGHTS", "Decision", "KeepFloat", "Quantize", "Rule", "View", "Weight", "view"]


def view(
    graph: ModelGraph,
    *,
    preset: Preset = "selective",
    target: Target = "tensorrt",
    skipped: Mapping[str, str] | None = None,
    forced: Collection[str] = (),
    custom: Mapping[str, Quantize] | None = None,
    small_products_float: bool = False,
) -> View:
    """A view of a model with the rules of a preset, as the target wants them; the other arguments are those of `View`."""
    replaced: dict[Rule, Rule] = runtime.REPLACED if target == "onnxruntime" else {}
    return View(
        graph=graph,
        rules=tuple(replaced.get(rule, rule) for rule in RULES[preset]),
        skipped=skipped or {},
        forced=frozenset(forced),
        custom=custom or {},
        small_products_float=small_products_float,
    )
