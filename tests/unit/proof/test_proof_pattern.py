"""Pairs of code arrays and the pattern of their difference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tfqat.proof.pattern import pattern_of

CODES = np.random.default_rng(0).integers(-100, 101, (8, 10, 10, 6)).astype(np.int8)


def where(mask: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The codes, changed where the mask says."""
    changed = np.clip(np.round(change(CODES.astype(np.float64))), -128, 127)
    return np.where(np.broadcast_to(mask, CODES.shape), changed, CODES).astype(np.int8)


def places(*indices: int) -> np.ndarray:
    return np.isin(np.arange(CODES.size), indices).reshape(CODES.shape)


INSIDE = np.pad(np.zeros((8, 8), bool), 1, constant_values=True)[None, :, :, None]
CHANNEL = np.arange(6) == 2
HALF = 0.5 * (CODES % 2 == 0) * (np.random.default_rng(1).random(CODES.shape) < 0.3)

PATTERNS = {
    "one step, twice": (where(places(5, 900), lambda codes: codes + 1), "ties", "rarely (0.0417%) and by one step"),
    "halves up": (np.floor(CODES + HALF + 0.5).astype(np.int8), "rounding", "halves are rounded up"),
    "halves away from zero": (
        (np.sign(CODES) * np.floor(np.abs(CODES) + HALF + 0.5)).astype(np.int8),
        "rounding",
        "halves are rounded away from zero",
    ),
    "clipped above": (np.minimum(CODES, 50).astype(np.int8), "clipping", "the graph ends at 50 above, the model goes to 100"),
    "clipped on both sides": (np.clip(CODES, -60, 50).astype(np.int8), "clipping", "the graph ends at 50 above and -60 below"),
    "the frame": (where(INSIDE, lambda codes: -codes), "border", "only at the border of the image, up to 1 deep"),
    "a channel by a constant": (where(CHANNEL, lambda codes: codes + 7), "bias", "in 1 of 6 channels (2), by a constant: bias off by 7"),
    "all by a constant": (where(np.True_, lambda codes: codes - 3), "bias", "in every channel, by a constant: bias off by -3"),
    "a channel by a factor": (where(CHANNEL, lambda codes: 0.5 * codes), "scale", "channels (2), by a factor: scale off by factor 0.5"),
    "by a factor and a constant": (where(np.True_, lambda codes: 0.7 * codes + 9), "scale", "scale off by factor 0.7"),
    "a channel at random": (where(CHANNEL, lambda codes: codes[::-1]), "channels", "in 1 of 6 channels (2), by no constant and no factor"),
    "everything at random": (where(np.True_, lambda codes: codes[::-1]), "everywhere", "and in every channel, by up to"),
}  # fmt: skip


@pytest.mark.parametrize(("found", "kind", "words"), PATTERNS.values(), ids=PATTERNS)
def test_patterns(found: np.ndarray, kind: str, words: str) -> None:
    pattern = pattern_of(CODES, found)
    assert pattern.kind == kind, pattern.text
    assert words in pattern.text


def test_an_activation_that_the_graph_lacks() -> None:
    pattern = pattern_of(np.maximum(CODES, 0), CODES)
    assert (pattern.kind, pattern.text) == ("activation", "only where the model clips: it ends at 0 below, the graph goes to -100")


def test_saturated_codes() -> None:
    """The model saturates at 127 where the graph has a smaller code."""
    wanted = np.where(CODES > 90, 127, CODES).astype(np.int8)
    assert pattern_of(wanted, np.where(CODES > 90, 120, CODES).astype(np.int8)).kind == "clipping"


def test_a_bias_in_units() -> None:
    assert pattern_of(CODES, where(np.True_, lambda codes: codes + 4), unit=0.05).text.endswith("bias off by 0.2")


def test_without_space() -> None:
    flat = CODES.reshape(-1, 6)
    assert pattern_of(flat, where(CHANNEL, lambda codes: codes + 7).reshape(-1, 6)).kind == "bias"
