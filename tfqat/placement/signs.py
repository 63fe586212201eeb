"""Which tensors of a model can never be negative, whatever the data: what follows from the layers that make them."""

from __future__ import annotations

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules import classes

_NON_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential"})
# Non-negative if all that they read is: joins, and what moves, averages or picks values.
_CARRYING = (
    classes.AVERAGE_POOLS
    | classes.MAX_POOLS
    | classes.PADDINGS
    | classes.RESHAPES
    | classes.INFERENCE_IDENTITIES
    | {"Add", "Average", "Multiply", "Minimum", "Maximum", "Concatenate"}
)
_ACTIVATED = frozenset(classes.WEIGHTS) | frozenset(classes.TRANSPOSED) | classes.ACTIVATIONS  # whose activation comes last
_LINEAR_RESIZING = frozenset({"nearest", "bilinear", "area"})  # the others weigh with negative numbers too


def non_negative(graph: ModelGraph) -> frozenset[TensorRef]:
    """The tensors that hold no negative value. Inputs of the model may, as nothing says what they are."""
    found: set[TensorRef] = set()
    for node in graph.nodes:
        if _is_non_negative(node, found):
            found |= {TensorRef(layer=node.name, index=index) for index in range(max(1, len(node.shapes)))}
    return frozenset(found)


def _is_non_negative(node: Node, known: set[TensorRef]) -> bool:
    if node.class_name in _ACTIVATED and classes.activation_name(node) in _NON_NEGATIVE:
        return not node.config.get("negative_slope")
    carries = (
        node.class_name in _CARRYING
        or (node.class_name == "Activation" and classes.activation_name(node) == "linear")
        or (node.class_name in classes.UPSAMPLINGS and node.config.get("interpolation", "nearest") in _LINEAR_RESIZING)
    )
    return carries and bool(node.inputs) and all(tensor in known for tensor in node.inputs)
