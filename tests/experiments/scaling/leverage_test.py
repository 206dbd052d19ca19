"""The efficiency leverage law: its published figures, its shape, and a fit that finds its constants again."""

import dataclasses

import numpy as np
import pytest

from experiments.scaling import leverage
from experiments.scaling.leverage import PUBLISHED, Law


def test_published_figures():
    assert leverage.leverage(0.031, 12, 1e22) == pytest.approx(7.24, abs=5e-3)
    assert leverage.best_granularity() == pytest.approx(11.3, abs=0.05)
    assert leverage.leverage(1.0, 12, 1e22) == pytest.approx(0.99, abs=5e-3)
    assert leverage.activation_ratio(12, 1, 384) == 13 / 385 == pytest.approx(0.0338, abs=5e-5)
    assert leverage.granularity(2048, 384) == pytest.approx(10.7, abs=0.05)
    assert leverage.saturated(0.1) == pytest.approx(0.1163, abs=1e-12)
    assert leverage.learning_rate(1e20) == pytest.approx(1.1576 * 10 ** (-0.1529 * 20), rel=1e-12)
    assert leverage.batch_tokens(1e20) == pytest.approx(0.0694 * 10 ** (0.3644 * 20), rel=1e-12)


def test_by_hand():
    law = Law(1.0, -0.05, 0.02, -0.1, 0.02, 4.0)
    hat = 1 / (1 / (0.1 + 1 / (1 / 0.02 - 1 / 4)) + 1 / 4)
    want = hat ** (1.0 - 0.05 * 21 + 0.02 * 9 - 0.1 * 3)
    assert leverage.leverage(0.1, 8, 1e21, law) == pytest.approx(want, rel=1e-13)


def test_it_falls_with_activation_and_rises_with_compute():
    A = np.geomspace(0.005, 1, 20)
    assert np.all(np.diff(leverage.leverage(A, 12, 1e22)) < 0)
    assert np.all(np.diff(leverage.leverage(0.05, 12, np.geomspace(1e18, 1e24, 9))) > 0)
    G = np.geomspace(2, 64, 400)
    best = G[np.argmax(leverage.leverage(0.05, G, 1e22))]
    assert best == pytest.approx(leverage.best_granularity(), rel=0.01)


def test_compute_at_equal_loss_by_hand():
    """The dense curve has 4 at 100, 3 at 1000 (and 3.5 and 3.2 later, which are no lower), 2 at 1e5."""
    dense = [100.0, 1000.0, 1e4, 3e4, 1e5], [4.0, 3.0, 3.5, 3.2, 2.0]
    found = leverage.at_equal_loss(*dense, [50.0, 100.0, 100.0, 10.0], [4.0, 3.5, 2.5, 3.0])
    np.testing.assert_allclose(found, [2.0, 10**2.5 / 100, 1e4 / 100, 100.0], rtol=1e-12)
    assert np.isnan(leverage.at_equal_loss(*dense, [1.0, 1.0], [4.1, 1.9])).all()


def test_the_fit_finds_the_constants_again():
    rng = np.random.default_rng(0)
    A, G, C = rng.uniform(0.01, 0.6, 60), 2.0 ** rng.uniform(1, 5, 60), 10 ** rng.uniform(18, 22, 60)
    truth = dataclasses.replace(PUBLISHED, a_max=np.inf)
    found = leverage.fit(A, G, C, leverage.leverage(A, G, C, truth))
    for name in ("a", "d", "gamma", "beta", "a_start"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-6), name
