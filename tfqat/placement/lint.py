"""Lints an exported ONNX file, or a placement: what TensorRT would not fuse or would run in float, with the layer, the rule and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from google.protobuf.message import DecodeError

from tfqat.errors import PlacementError
from tfqat.external_data import outside
from tfqat.placement.lint_graph import DQ, Finding, Q, QdqGraph
from tfqat.placement.lint_products import PRODUCT_RULES
from tfqat.placement.lint_quantizers import QUANTIZER_RULES, dynamic_axes, integer_operator
from tfqat.placement.lint_rules import FUSION_RULES

if TYPE_CHECKING:
    from tfqat.models.graph import ModelGraph
    from tfqat.placement.plan import Placement

__all__ = ["Finding", "lint_onnx", "lint_placement"]


def lint_onnx(path: str | Path) -> tuple[Finding, ...]:
    """Everything in a Q/DQ graph that TensorRT cannot parse, would run in float or would not fuse, and advice.

    Args:
        path: any ONNX file with Q/DQ, whoever wrote it.

    Returns:
        The findings in the order of the graph's nodes; empty if there is nothing to say.

    Raises:
        PlacementError: the file is missing, is no ONNX model, or has neither Q/DQ nor other quantized operators.
    """
    model = _load(Path(path))
    try:
        return _findings(QdqGraph(model), path)
    except PlacementError:
        raise
    except OSError as error:
        raise PlacementError(f"{path}: the file of its external data cannot be read: {error}; put it beside the model") from error
    except Exception:  # a rule reads what every valid graph has
        _check_valid(path)
        raise


def _findings(graph: QdqGraph, path: str | Path) -> tuple[Finding, ...]:
    if not any(node.op_type in (Q, DQ) or any(integer_operator(graph, node)) for node in graph.nodes):
        raise PlacementError(
            f"{path} is not a Q/DQ graph: it has {len(graph.nodes)} nodes and no {Q} among them, so all of it runs in float; "
            "expected a quantized model, such as the model.onnx of a run (`tfqat run`)"
        )
    rules = (*QUANTIZER_RULES, *PRODUCT_RULES, *FUSION_RULES)
    return (*dynamic_axes(graph), *[finding for node in graph.nodes for rule in rules for finding in rule(graph, node)])


def lint_placement(graph: ModelGraph, placement: Placement) -> tuple[Finding, ...]:
    """What a planned placement leaves float or unfused although TensorRT could do better; scales are not known yet.

    Args:
        graph: the model that was planned.
        placement: its placement.

    Returns:
        The findings in the order of the model's layers; layers that the recipe skips are not among them.
    """
    from tfqat.placement import lint_planned  # starts TensorFlow, which an ONNX file does not need

    return lint_planned.lint(graph, placement)


def _load(path: Path) -> ir.Model:
    if not path.is_file():
        raise PlacementError(f"{path} is not a file; expected an ONNX model with Q/DQ, such as the model.onnx of a run")
    try:
        model = ir.load(path)
    except DecodeError as error:
        raise PlacementError(f"{path} is not an ONNX model: {_one_line(error)}") from error
    except Exception as error:  # onnx_ir wraps most of what a damaged file makes it raise in a SerdeError, but not all
        raise PlacementError(f"{path} is not a valid ONNX model: {_one_line(error.__cause__ or error)}") from error
    if (location := outside(model, path)) is not None:
        raise PlacementError(f"{path} is refused: its external data {location!r} are outside its folder; put them beside the model")
    if not len(model.graph):
        raise PlacementError(f"{path} is not an ONNX model, or an empty one: it has no nodes")
    return model


def _check_valid(path: str | Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # what its C++ throws has several types
        raise PlacementError(f"{path} is not a valid ONNX model: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
