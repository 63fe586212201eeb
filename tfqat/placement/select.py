"""Selects layers by pattern: a name glob (`stem_*`), a regular expression (`re:block[12]_.*`), or a layer class (`DepthwiseConv2D`).

A layer of a nested model is called by its path, `backbone/conv1`; `backbone` selects all of them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from tfqat.errors import PlacementError, nearest
from tfqat.models.split import SPLIT_CLASSES

REGEX_PREFIX = "re:"


def matches(pattern: str, *, name: str, class_name: str) -> bool:
    """Whether a pattern selects a layer. A regular expression must match the whole name; a name selects what is under it too.

    Raises:
        PlacementError: the regular expression cannot be compiled.
    """
    if not pattern.startswith(REGEX_PREFIX):
        return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*") or pattern == class_name
    try:
        return re.fullmatch(pattern.removeprefix(REGEX_PREFIX), name) is not None
    except (re.error, OverflowError, RecursionError) as error:  # the latter for `a{99999999999}`, and for a thousand parentheses
        raise PlacementError(f"pattern {pattern[:200]!r} is not a regular expression: {error}") from error


def no_match(pattern: str, named: Iterable[tuple[str, str]], *, layers: int, where: str) -> str:
    """The message for a pattern that selects nothing: what was looked for, the nearest name, and the three forms.

    Args:
        pattern: see the module's first line.
        named: the (name, class name) pairs it was held against.
        layers: how many layers the model has.
        where: what holds the pattern, such as `quantization.skip[0]`.
    """
    named = tuple(named)
    known = [*(name for name, _ in named), *sorted({class_name for _, class_name in named if class_name})]
    wanted = pattern.removeprefix(REGEX_PREFIX)
    if pattern in SPLIT_CLASSES:
        return (
            f"{where}: pattern {pattern!r} matches none of the {layers} layers: a {pattern} is split into plain layers when its model is "
            "loaded. Write its name, which selects all its parts, or the class of a part (`tfqat plan` shows both)"
        )
    return (
        f"{where}: pattern {pattern!r} matches none of the {layers} layers{nearest(wanted, known)} "
        "(a pattern is a layer name or glob, a regular expression after 're:', or a layer class)"
    )
