"""Patterns: glob, regular expression, class; and the message for one that selects nothing."""

from __future__ import annotations

import pytest

from tfqat.errors import PlacementError
from tfqat.placement.select import matches, no_match

# pattern, layer name, whether it selects that layer, which is of class Conv2D
CASES = {
    "whole name": ("stem", "stem", True),
    "part of a name": ("stem", "stem_relu", False),
    "glob": ("stem_*", "stem_relu", True),
    "glob, no match": ("stem_*", "stem", False),
    "glob with a set": ("block[12]", "block2", True),
    "glob is case sensitive": ("STEM", "stem", False),
    "question mark": ("block?", "block2", True),
    "everything": ("*", "stem", True),
    "class": ("Conv2D", "stem", True),
    "another class": ("Dense", "stem", False),
    "class by glob is not a class": ("Conv*", "stem", False),
    "regular expression": ("re:block[12]_.*", "block1_conv", True),
    "regular expression must match the whole name": ("re:block", "block1", False),
    "regular expression is not for classes": ("re:Conv2D", "stem", False),
    "a dot in a glob is a dot": ("block.", "block1", False),
    "shortcut id": ("*:shortcut", "block2_add:shortcut", True),
}


@pytest.mark.parametrize(("pattern", "name", "expected"), CASES.values(), ids=CASES)
def test_matches(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name=name, class_name="Conv2D") is expected


def test_bad_regular_expression() -> None:
    with pytest.raises(PlacementError, match=r"^pattern 're:\(a' is not a regular expression: missing \), unterminated subpattern"):
        matches("re:(a", name="a", class_name="Conv2D")


LAYERS = [("stem", "Conv2D"), ("stem_relu", "ReLU"), ("logits", "Dense")]
NO_MATCHES = {
    "near a layer": ("stem_rely", "; did you mean 'stem_relu'?"),
    "near a class": ("Conv2d", "; did you mean 'Conv2D'?"),
    "regular expression near a layer": ("re:logit", "; did you mean 'logits'?"),
    "near nothing": ("zzz", ""),
}


@pytest.mark.parametrize(("pattern", "suggestion"), NO_MATCHES.values(), ids=NO_MATCHES)
def test_message_for_a_pattern_that_matches_nothing(pattern: str, suggestion: str) -> None:
    assert no_match(pattern, LAYERS, layers=3, where="quantization.skip[1]") == (
        f"quantization.skip[1]: pattern {pattern!r} matches none of the 3 layers{suggestion} "
        "(a pattern is a layer name or glob, a regular expression after 're:', or a layer class)"
    )


@pytest.mark.parametrize("name", ["SeparableConv2D", "MultiHeadAttention", "EinsumDense"])
def test_a_class_that_is_split_when_a_model_is_loaded(name: str) -> None:
    message = no_match(name, [("s/depthwise", "DepthwiseConv2D")], layers=1, where="quantization.skip[0]")
    assert message.startswith(f"quantization.skip[0]: pattern {name!r} matches none of the 1 layers: a {name} is split into plain layers")
