"""Rules of what the user decides: layers that are skipped or forced, and classes of the user's own."""

from __future__ import annotations

from tfqat.models.graph import Node
from tfqat.placement.rules import classes
from tfqat.placement.rules.decision import Decision, KeepFloat, Quantize, View

# Layers without a weight that can read their inputs quantized.
INPUTS_ONLY = (
    classes.AVERAGE_POOLS
    | classes.PRODUCTS
    | classes.UPSAMPLINGS
    | {"Add", "Subtract", "Concatenate", "Multiply", "Maximum", "Minimum", "Average"}
)


def skipped_layer(view: View, node: Node) -> Decision | None:
    """A layer that the user keeps out stays float, whatever it is."""
    reason = view.skipped.get(node.layer)
    return KeepFloat(reason=reason) if reason else None


def forced_layer(view: View, node: Node) -> Decision | None:
    """A layer without a weight that the user wants in INT8: Q/DQ on every input."""
    if node.layer not in view.forced or node.class_name not in INPUTS_ONLY:
        return None
    return Quantize(
        inputs=tuple(range(len(node.inputs))), reason=f"{node.class_name}: forced by the recipe", one_scale=node.class_name == "Concatenate"
    )


def custom_layer(view: View, node: Node) -> Decision | None:
    """A layer of a class that the user has given a QuantizeConfig for."""
    return view.custom.get(node.class_name)


def obstacle_to_forcing(view: View, node: Node) -> str | None:
    """Why a layer cannot be quantized even if the user wants it; None if it can."""
    if node.class_name in INPUTS_ONLY | set(classes.TRANSPOSED) | set(view.custom) or view.weight(node) is not None:
        return None
    decision = view.decide(node)
    return decision.reason if isinstance(decision, KeepFloat) else "no rule quantizes it"
