"""Padding schemes: exact check 17."""

import numpy as np
import pytest

from models.objectives import padding

ANSWER, PADS = [11, 12, 13, 14, 15], [1, 2, 3, 4, 5, 6, 7]


def test_rainbow():
    """Check 17: five tokens, K = 7, length 16: answer, eos, seven pads, three pads."""
    got = padding.rainbow(ANSWER, 16, 0, PADS)
    assert got.tolist() == [*ANSWER, 0, *PADS, 1, 2, 3] and got.dtype == np.int32
    assert padding.rainbow(ANSWER, 6, 0, PADS).tolist() == [*ANSWER, 0]
    assert padding.rainbow([], 3, 0, [9]).tolist() == [0, 9, 9]
    assert padding.strip(got, 0).tolist() == ANSWER


def test_eos_and_strip():
    assert padding.eos(ANSWER, 8, 0).tolist() == [*ANSWER, 0, 0, 0]
    assert padding.strip([4, 5], 0).tolist() == [4, 5]


def test_refusals():
    with pytest.raises(ValueError, match="use at least 6"):
        padding.rainbow(ANSWER, 5, 0, PADS)
    for pads in ([], [1, 1], [0, 1]):
        with pytest.raises(ValueError, match="distinct"):
            padding.rainbow(ANSWER, 16, 0, pads)
