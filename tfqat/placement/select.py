"""Selects layers by pattern: a name glob (`stem_*`), a regular expression (`re:block[12]_.*`), or a layer class (`DepthwiseConv2D`)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from tfqat.errors import NoMatchError, PlacementError, nearest
from tfqat.models.graph import ModelGraph, Node

REGEX_PREFIX = "re:"


def matches(pattern: str, *, name: str, class_name: str) -> bool:
    """Whether a pattern selects a layer. A regular expression must match the whole name.

    Raises:
        PlacementError: the regular expression cannot be compiled.
    """
    if not pattern.startswith(REGEX_PREFIX):
        return fnmatch.fnmatchcase(name, pattern) or pattern == class_name
    try:
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    except re.error as error:
        raise PlacementError(f"pattern {pattern!r} is not a regular expression: {error}") from error


def select(pattern: str, graph: ModelGraph, *, where: str) -> tuple[Node, ...]:
    """The layers that `pattern` selects.

    Args:
        pattern: see the module's first line.
        graph: the model's layers.
        where: what holds the pattern, for the message, such as `quantization.skip[0]`.

    Raises:
        NoMatchError: it selects none.
    """
    selected = tuple(node for node in graph.nodes if matches(pattern, name=node.name, class_name=node.class_name))
    if not selected:
        raise NoMatchError(no_match(pattern, graph.nodes, where=where))
    return selected


def no_match(pattern: str, nodes: Iterable[Node], *, where: str) -> str:
    """The message for a pattern that selects nothing: what was looked for, the nearest name, and the three forms."""
    nodes = tuple(nodes)
    known = [*(node.name for node in nodes), *sorted({node.class_name for node in nodes})]
    wanted = pattern.removeprefix(REGEX_PREFIX)
    return (
        f"{where}: pattern {pattern!r} matches none of the {len(nodes)} layers{nearest(wanted, known)} "
        "(a pattern is a layer name or glob, a regular expression after 're:', or a layer class)"
    )
