"""Which permutation leads from one tensor to another: by shape, by the codes, and by what is usual where these say little."""

from __future__ import annotations

import numpy as np
import pytest

from tfqat.errors import ExportError
from tfqat.proof.layouts import layout

RNG = np.random.default_rng(0)
OBLONG, SQUARE, CUBE = (RNG.integers(-128, 128, (2, *sizes)).astype(np.int8) for sizes in ((4, 5, 6), (5, 5, 6), (5, 5, 5)))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 3, 1), (0, 3, 2, 1)])
@pytest.mark.parametrize("codes", [OBLONG, SQUARE, CUBE], ids=["oblong", "square", "cube"])
def test_the_codes_tell(codes: np.ndarray, order: tuple[int, ...]) -> None:
    assert layout(codes, codes.transpose(order)) == order


def test_a_graph_that_is_wrong_does_not_swap_height_and_width() -> None:
    """Mostly zeros, and the others wrong: swapped they agree a little better, by chance."""
    codes = np.zeros((2, 5, 5, 6), np.int8)
    codes[:, 0, 3], codes[:, 4, 2] = 50, 20
    found = np.zeros((2, 6, 5, 5), np.int8)
    found[:, :, 3, 0], found[:, :, 1, 1], found[:, :, 2, 2] = 50, 70, 70
    assert layout(codes, found) == (0, 3, 1, 2)


def test_few_axes() -> None:
    assert layout(np.zeros(3, np.int8), np.zeros(3, np.int8)) == (0,)
    assert layout(np.zeros((3, 4), np.int8), np.zeros((3, 4), np.int8)) == (0, 1)
    assert layout(np.zeros((), np.int8), np.zeros((), np.int8)) == ()


def test_other_axes() -> None:
    with pytest.raises(ExportError, match=r"a tensor of shape \(2, 4, 5, 6\) has the shape \(2, 30, 4\)"):
        layout(OBLONG, np.zeros((2, 30, 4), np.int8))
