"""Fits by hand: weighed least squares for Huber and bootstrap with its widening, and isoFLOP curves with known ends."""

import math

import numpy as np
import pytest

from experiments import scaling
from experiments import workdir as files
from experiments.scaling import io
from experiments.scaling.fit import Residuals
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
    found = scaling.fit(LINE, columns, delta=math.inf, bootstrap=count, resample="runs", groups=groups, seed=3)
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
    ordered = np.sort(np.array(want)[:, 1])  # The ends are the 0.05 and 0.95 of 41 steps between and around 40 draws.
    ends = [np.interp(q * (count + 1), np.arange(1, count + 1), ordered) for q in (0.05, 0.95)]
    np.testing.assert_allclose([low, high], ends, atol=1e-5)
    residual = columns["y"] - best[0] - best[1] * columns["x"]
    assert found.residual == pytest.approx(math.sqrt((residual**2).mean()), rel=1e-6)
    assert found.runs == 8


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 2, 2, 3, 3, 4], [4, 4, 4, 0, 1, 2, 3, 3]])
def test_residuals_are_drawn_smoothed_and_studentised(groups):
    """Each step by hand, with loops: pool, bandwidth, the group that a group takes, the scale, the ratio."""
    columns, count = runs(8), 30
    found = scaling.fit(LINE, columns, delta=math.inf, bootstrap=count, groups=groups, seed=3)  # 8 < 40 x 2: residuals
    x, y, best = columns["x"], columns["y"], least_squares(columns)
    line = best[0] + best[1] * x
    pool = y - line - np.median(y - line)
    labels = list(range(8)) if groups is None else groups
    n = max(labels) + 1
    spread = math.sqrt(np.mean((pool - pool.mean()) ** 2))
    low, high = np.percentile(pool, [25, 75])
    h = min(spread, (high - low) / 1.349)
    rng, want = np.random.default_rng(3), []
    for _ in range(count):
        source, z = rng.integers(0, n, n), rng.normal(size=n)
        again = np.empty(8)
        for i in range(8):
            theirs = [k for k in range(8) if labels[k] == source[labels[i]]]
            nth = [k for k in range(8) if labels[k] == labels[i]].index(i)
            noise = pool[theirs[nth % len(theirs)]] + h * z[labels[i]]
            again[i] = line[i] + noise * math.sqrt(n / (n - 2)) / math.sqrt(1 + h**2 / spread**2)
        a, b = least_squares({"x": x, "y": again})
        ratio = np.mean(np.abs(y - line)) / np.mean(np.abs(again - a - b * x))
        want.append(best + ratio * (np.array([a, b]) - best))
    np.testing.assert_allclose(found.samples, want, rtol=1e-5, atol=1e-5)


def test_runs_are_drawn_where_there_are_many_for_each_parameter():
    for n, resample in ((79, "residuals"), (80, "runs")):  # 40 for each of two
        columns = runs(n)
        auto = scaling.fit(LINE, columns, delta=math.inf, bootstrap=3)
        named = scaling.fit(LINE, columns, delta=math.inf, bootstrap=3, resample=resample)
        np.testing.assert_array_equal(auto.samples, named.samples)
    grouped = scaling.fit(LINE, columns, delta=math.inf, bootstrap=3, groups=np.arange(80) // 2)
    named = scaling.fit(LINE, columns, delta=math.inf, bootstrap=3, groups=np.arange(80) // 2, resample="residuals")
    np.testing.assert_array_equal(grouped.samples, named.samples)  # 40 groups are no 80 runs
    with pytest.raises(ValueError, match="resample='pairs' is unknown; use one of auto, residuals, runs"):
        scaling.fit(LINE, columns, resample="pairs")
    exact = {"x": columns["x"], "y": 5 + 2 * columns["x"]}
    still = scaling.fit(LINE, exact, delta=math.inf, bootstrap=5, resample="residuals")
    np.testing.assert_allclose(still.samples, [[5, 2]] * 5, atol=1e-5)  # without noise every resample is the fit


@pytest.mark.parametrize("delta", [0.02, 0.3])
def test_huber_is_least_squares_weighed_by_its_own_residuals(delta):
    """At the minimum a run weighs min(1, delta / |r|): the fixed point of that, found by repeating it."""
    columns = runs(12)
    columns["y"][[2, 7]] += (3.0, -1.0)
    weights = np.ones(12)
    for _ in range(3000):
        a, b = least_squares(columns, weights)
        r = columns["y"] - a - b * columns["x"]
        weights = np.minimum(1, delta / np.abs(r))
    found = scaling.fit(LINE, columns, delta=delta)
    np.testing.assert_allclose([found.values["a"], found.values["b"]], [a, b], atol=1e-4 * delta)
    loss = np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2))
    assert found.objective == pytest.approx(loss.mean() / delta**2, rel=1e-6)
    assert (np.abs(r) > delta).any() and (np.abs(r) < delta).any()


def test_isoflop_curves_with_known_minima():
    """loss = 2 + C^-0.1 + 0.3 log(N / N*)^2 with N* = 3 C^0.6, five sizes a budget: all of it comes back."""
    budgets = np.array([1e6, 1e7, 1e8])
    best = 3 * budgets**0.6
    sizes = best[:, None] * np.array([0.3, 0.6, 1.1, 2.0, 3.5])
    loss = 2 + budgets[:, None] ** -0.1 + 0.3 * np.log(sizes / best[:, None]) ** 2
    flops = np.broadcast_to(budgets[:, None], sizes.shape)
    found = scaling.isoflop({"parameters": sizes.ravel(), "flops": flops.ravel(), "loss": loss.ravel()}, flops_per=5.0)
    np.testing.assert_allclose(found.budgets, budgets, rtol=1e-9)
    np.testing.assert_allclose(found.parameters, best, rtol=1e-6)
    np.testing.assert_allclose(found.tokens, budgets / (5 * best), rtol=1e-6)
    np.testing.assert_allclose(found.loss, 2 + budgets**-0.1, rtol=1e-9)
    np.testing.assert_allclose(found.curves[:, 0], 0.3, rtol=1e-6)
    assert found.exponents["a"] == pytest.approx(0.6, rel=1e-6) and found.exponents["b"] == pytest.approx(0.4, rel=1e-6)
    assert found.constants["n"] == pytest.approx(3, rel=1e-5) and found.constants["d"] == pytest.approx(
        1 / 15, rel=1e-5
    )


def test_compute_optimal_sizes_by_hand():
    """E 1, A 400, B 900, alpha 0.4, beta 0.3, C = 6 N D: the slope of the loss along C is 0, and its numbers."""
    values = {"E": 1.0, "A": 400.0, "B": 900.0, "alpha": 0.4, "beta": 0.3}
    found = scaling.compute_optimal(values, np.array([1e15, 1e20]))
    N, D = found["parameters"], found["tokens"]
    np.testing.assert_allclose(6 * N * D, [1e15, 1e20], rtol=1e-12)
    # dL/dlogN at fixed N D: alpha A N^-alpha = beta B D^-beta.
    np.testing.assert_allclose(0.4 * 400 * N**-0.4, 0.3 * 900 * D**-0.3, rtol=1e-9)
    np.testing.assert_allclose(found["loss"], 1 + 400 * N**-0.4 + 900 * D**-0.3, rtol=1e-12)
    assert found["a"] == pytest.approx(3 / 7) and found["b"] == pytest.approx(4 / 7)


def test_drawn_noise_has_the_variance_before_the_fit():
    """n residuals after P parameters are too small by sqrt(n / (n - P)); smoothing leaves their variance as it is."""
    residuals = np.array([0.3, -0.1, 0.2, -0.5, 0.1, 0.05, -0.2, 0.4, -0.3, 0.15])
    noise = Residuals(residuals, np.arange(10), 3)
    rng = np.random.default_rng(0)
    draws = np.concatenate([noise.draw(rng) for _ in range(20_000)])
    centred = residuals - np.median(residuals)
    wanted = np.mean(centred**2) - np.mean(centred) ** 2
    # 200,000 draws know a variance to 0.3%, twice that with heavier tails; the factor of P = 3 is 43%.
    assert np.var(draws) == pytest.approx(wanted * 10 / 7, rel=0.02)
    assert len(np.unique(draws)) == len(draws)


def test_what_is_read_of_workdirs(tmp_path):
    """Runs that were started over are left out; a selection takes its own names, numbers and labels."""
    for name, size in (("a", 10), ("b", 12), (f"{files.REPLACED}-a", 14)):
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / files.CONFIG, {"hash": f"hash of {name}"})
        files.write_json(tmp_path / name / files.RESULT, {"tokens": 20, "flops": 30.0, "eval/loss": 2.0})
        files.write_json(tmp_path / name / files.RUN, {"parameters": {"total": size, "embedding": 4}})
    found = io.read_workdirs(tmp_path, count="non_embedding")
    assert found.names == ("a", "b") and found["parameters"].tolist() == [6, 8]
    assert found["tokens_per_parameter"].tolist() == [20 / 6, 20 / 8] and found["loss"].tolist() == [2, 2]
    second = found.select(np.array([False, True]))
    assert (second.names, second.labels, second["parameters"].tolist()) == (("b",), {"hash": ("hash of b",)}, [8])
