"""The bootstrap of a fit by hand: resampled runs, weighed least squares, and the widening for the parameters."""

import math

import numpy as np
import pytest

from experiments import scaling
from experiments.scaling.laws import Law

LINE = Law(
    "line", ("a", "b"), frozenset(), ("x",), "y", False,
    lambda theta, x: (theta[0] + theta[1] * x, np.stack([np.ones_like(x), x], 1)),
    lambda y, x: np.array([[y.mean(), 0.0], [y.mean(), 1.0]]),
)  # fmt: skip


def runs(n, seed=0):
    rng = np.random.default_rng(seed)
    x = np.linspace(1, 3, n)
    return {"x": x, "y": 5 + 2 * x + 0.1 * rng.normal(size=n)}


def least_squares(columns, weights=None):
    x, y = columns["x"], columns["y"]
    root = np.sqrt(np.ones_like(x) if weights is None else weights)
    return np.linalg.lstsq(np.stack([root, root * x], 1), root * y, rcond=None)[0]


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 2, 3, 3, 4]])
def test_resamples_are_spread_for_the_parameters(groups):
    """n groups, P = 2: each resample stands sqrt(n / (n - 2)) as far from the fit as its own least squares."""
    columns, count = runs(8), 40
    found = scaling.fit(LINE, columns, delta=math.inf, bootstrap=count, groups=groups, seed=3)
    best = least_squares(columns)
    np.testing.assert_allclose([found.values["a"], found.values["b"]], best, rtol=1e-7)
    labels = np.arange(8) if groups is None else np.array(groups)
    n, rng, want = labels.max() + 1, np.random.default_rng(3), []
    while len(want) < count:
        weights = np.bincount(rng.integers(0, n, n), minlength=n)[labels]
        if (weights > 0).sum() >= 2:
            want.append(best + math.sqrt(n / (n - 2)) * (least_squares(columns, weights) - best))
    np.testing.assert_allclose(found.samples, want, rtol=1e-5, atol=1e-5)
    low, high = found.intervals(0.9)["b"]
    np.testing.assert_allclose([low, high], np.percentile(np.array(want)[:, 1], [5, 95]), atol=1e-5)
    residual = columns["y"] - best[0] - best[1] * columns["x"]
    assert found.residual == pytest.approx(math.sqrt((residual**2).mean()), rel=1e-6)
    assert found.runs == 8
