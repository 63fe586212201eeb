"""Which tf_keras layer means the same as an operation: `x + y`, `x * 2`, `tf.nn.relu(x)`, `tf.concat` and so on.

tf_keras wraps an operation on symbolic tensors in a TFOpLambda layer; `layer_for` looks it up in `RULES` by its public TensorFlow
symbol. A rule takes the operation's arguments by name and returns the layer to make, or None where no layer computes the same:
the operation then stays as it is. Reads the private attribute `symbol` of tf_keras, checked on tf-keras 2.21.0.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from tf_keras import layers

from tfqat.models.arithmetic_rules import ARITHMETIC, dot
from tfqat.models.shape_rules import SHAPES
from tfqat.models.steps import Rule, Step, computes_plainly

RULES: Mapping[str, Rule] = {**ARITHMETIC, **SHAPES}
"""The public TensorFlow symbol of an operation -> the rule that names its layer."""


def is_operation(layer: Any) -> bool:
    """Whether `layer` is tf_keras's wrapper of a TensorFlow operation."""
    return isinstance(layer, layers.Layer) and type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod")


def layer_for(layer: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Step | None:
    """The layer that means the same as the operation `layer` called on these arguments; None where there is none."""
    if type(layer) is layers.Dot:
        found = dot(layer, *arguments, **keywords)
    elif not is_operation(layer) or (rule := RULES.get(getattr(layer, "symbol", None) or "")) is None:
        return None
    else:
        bound = inspect.signature(layer.function).bind(*arguments, **keywords)
        bound.apply_defaults()
        found = rule(**{name: value for name, value in bound.arguments.items() if name != "name"})
    return found if found is not None and computes_plainly(found.reads) else None


def written_out(layer: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a slice with `...` written as full slices, since tf_keras cannot save an Ellipsis; other arguments as they are,
    the same object.

    x[..., ::-1] with x of rank 4 -> x[:, :, :, ::-1]
    """
    if getattr(layer, "symbol", None) != "__operators__.getitem" or len(arguments) < 2 or arguments[0].shape.rank is None:
        return arguments
    tensor, given = arguments[:2]
    slices = list(given) if isinstance(given, list | tuple) else [given]
    if not any(value is Ellipsis for value in slices):
        return arguments
    at = next(index for index, value in enumerate(slices) if value is Ellipsis)
    missing = tensor.shape.rank - sum(value is not Ellipsis and value is not None for value in slices)
    slices[at : at + 1] = [{"start": None, "stop": None, "step": None} for _ in range(missing)]
    return (tensor, tuple(slices), *arguments[2:])
