"""What a trace tells of texts and experts, by sums over its choices."""

import math

import numpy as np
import pytest

from experiments.routing import traces

RNG = np.random.default_rng(11)
COUNTED = RNG.integers(0, 9, (5, 4))
COUNTED[2] = 0


def test_information_is_the_sum_over_pairs():
    n, want = COUNTED.sum(), 0.0
    for m in range(5):
        for e in range(4):
            if COUNTED[m, e]:
                alone = COUNTED[m].sum() * COUNTED[:, e].sum()
                want += COUNTED[m, e] / n * math.log(COUNTED[m, e] * n / alone)
    assert traces.information(COUNTED) == pytest.approx(want, rel=1e-12)
    assert traces.information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0, abs=1e-15)
    assert traces.information(np.diag([7, 7, 7])) == pytest.approx(math.log(3), rel=1e-12)
    assert traces.information(np.zeros((2, 2))) == 0.0


def test_texts_of_an_expert_are_those_that_say_most_of_it():
    n = COUNTED.sum()
    for e, found in enumerate(traces.telling(COUNTED, 3)):
        said = []
        for m in range(5):
            count = int(COUNTED[m, e])
            alone = COUNTED[m].sum() * COUNTED[:, e].sum()
            said.append(count * math.log(count * n / alone) if count else 0.0)
        assert found == [m for m in sorted(range(5), key=lambda m: -said[m])[:3] if said[m] > 0]
        assert all(said[m] > 0 for m in found)
    assert traces.telling(np.zeros((3, 2)), 4) == [[], []]


def test_texts_are_counted_by_expert_and_layer():
    """Three tokens of two texts, two choices each; -1 is none."""
    trace = np.array([[[0, 2], [1, -1]], [[2, 0], [1, 2]], [[1, 2], [0, 2]]])
    np.testing.assert_array_equal(traces.by_text(trace, [1, 0, 1], 2, 3, 0), [[1, 0, 1], [1, 1, 2]])
    np.testing.assert_array_equal(traces.by_text(trace, [1, 0, 1], 2, 3, 1), [[0, 1, 1], [1, 1, 1]])
