"""What a report computes and draws: means, intervals, tests, thinned curves, axes, headline numbers."""

import math
import re

import numpy as np
import pytest

from experiments.report import data, page, plots
from experiments.workdir import writers
from tests.experiments.report.made_up import Page


def test_intervals_and_tests_against_known_numbers():
    from scipy import stats

    a = {("0",): 2.0, ("1",): 2.2, ("2",): 2.1}
    b = {("2",): 2.05, ("0",): 1.9, ("1",): 2.12}
    test = data.contrast(a, b)
    expected = stats.ttest_rel([1.9, 2.12, 2.05], [2.0, 2.2, 2.1])
    low, high = expected.confidence_interval(0.95)
    assert (test.kind, test.pairs) == ("paired", 3)
    # A sum of three numbers near 2 in float64, then divided by a spread of about 0.015: 3 * 2 * 2^-52 / 0.015.
    assert test.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert (test.mean - test.half_width, test.mean + test.half_width) == pytest.approx((low, high), rel=1e-12)
    welch = data.contrast(a, {("7",): 1.9, ("8",): 2.12})
    assert welch.kind == "unpaired" and welch.p == pytest.approx(
        stats.ttest_ind([1.9, 2.12], [2.0, 2.2, 2.1], equal_var=False).pvalue, rel=1e-12
    )
    ends = stats.ttest_ind([1.9, 2.12], [2.0, 2.2, 2.1], equal_var=False).confidence_interval(0.95)
    assert (welch.mean - welch.half_width, welch.mean + welch.half_width) == pytest.approx(ends, rel=1e-12)
    assert data.contrast(a, {("0",): 1.9}).kind == "none"
    same = data.contrast(a, dict(a))
    assert (same.kind, same.mean, same.half_width, same.p) == ("paired", 0.0, 0.0, 1.0)
    # t(0.975, 3) = 3.182446 (any table); the values 1..4 have mean 2.5 and standard deviation sqrt(5/3).
    assert data.mean_interval([1, 2, 3, 4]) == pytest.approx((2.5, 3.182446 * math.sqrt(5 / 3) / 2), rel=1e-6)
    assert math.isnan(data.mean_interval([1.0])[1]) and math.isnan(data.mean_interval([])[0])


@pytest.mark.parametrize("log", [False, True])
def test_thinning_keeps_extremes_ends_and_gaps(log):
    noise = np.random.default_rng(0)
    x = np.arange(1, 50_001, dtype=np.float64)
    y = noise.normal(size=50_000)
    y[31_234], y[77], y[40_000] = 1e6, -1e6, np.nan
    kept_x, kept_y = data.decimate(x, y, 1000, log)
    assert len(kept_x) <= 1250 and (np.diff(kept_x) > 0).all()
    assert np.isin(kept_x, x).all() and np.array_equal(kept_y, y[kept_x.astype(int) - 1], equal_nan=True)
    assert np.nanmax(kept_y) == 1e6 and np.nanmin(kept_y) == -1e6 and np.isnan(kept_y).sum() == 1
    assert kept_x[0] == 1 and kept_x[-1] == 50_000
    short = data.decimate(x[:900], y[:900], 1000, log)
    assert short[0] is not None and len(short[0]) == 900


def test_smoothing_is_a_mean_that_skips_gaps_and_does_not_lag():
    y = np.full(500, 2.0)
    y[7] = np.nan
    assert (data.smooth(y) == 2.0).all()
    line = np.linspace(5, 1, 500)
    inner = slice(0, 480)  # the last windows are cut off on one side
    assert np.abs(data.smooth(line) - line)[inner].max() < 1e-12
    noisy = np.random.default_rng(0).normal(size=10_000)
    assert data.smooth(noisy)[2000:8000].std() < 3 / math.sqrt(300)
    assert np.isnan(data.smooth(np.array([np.nan, 1.0]))[0])


def test_the_mean_curve_of_seeds_is_read_where_all_are_defined():
    first = (np.array([1.0, 2.0, 4.0]), np.array([4.0, 3.0, 1.0]))
    second = (np.array([2.0, 3.0, 9.0]), np.array([5.0, 4.0, 4.0]))
    x, mean, low, high = data.mean_curve([first, second])
    assert x.tolist() == [2, 3, 4]
    assert mean.tolist() == [4, 3, 2.5] and low.tolist() == [3, 2, 1] and high.tolist() == [5, 4, 4]
    assert len(data.mean_curve([])[0]) == 0


def test_a_metric_at_equal_compute_is_linear_in_the_logarithm_of_flops(tmp_path):
    path = tmp_path / "run"
    with writers.Writer(path, tensorboard=False) as writer:
        for step, flops, bits in ((1, 1e3, 4.0), (2, 1e5, 2.0)):
            writer.scalars(step, {"flops": flops, data.BITS: bits})
    run = data.load(path)
    assert data.at_compute(run, 1e4) == pytest.approx(3.0, rel=1e-12)  # half of the way from 10^3 to 10^5
    assert math.isnan(data.at_compute(run, 2e5)) and data.shared_compute([run]) == 1e5


def test_wall_time_comes_from_the_timing_lines(tmp_path):
    path = tmp_path / "run"
    with writers.Writer(path, tensorboard=False) as writer:
        for step in (5, 10, 20, 30):
            writer.scalars(step, {"train/loss": float(step)})
        writer.timing(10, {"seconds": 4.0})
        writer.timing(20, {"seconds": 6.0})
    x, y = data.series(data.load(path), "train/loss", "seconds")
    assert x.tolist() == [2.0, 4.0, 6.0] and y.tolist() == [5.0, 10.0, 20.0]  # step 30 has no time yet


def test_a_chart_draws_the_points_that_it_is_given():
    x, y = np.array([0.0, 50.0, 100.0]), np.array([1.0, 3.0, 2.0])
    svg = plots.chart("c", [plots.Curve(x, y, "a <b>")], plots.Axis("step"), plots.Axis("loss", "plain"))
    found = Page(svg)
    (root,) = [attributes for tag, attributes in found.tags if tag == "svg"]
    left, right, low, high, log = map(float, root["data-x"].split())
    bottom, top, floor, ceiling, _ = map(float, root["data-y"].split())
    labels = [i for i, (_, attributes) in enumerate(found.tags) if attributes.get("data-label") == "a <b>"]
    path = next(attributes["d"] for tag, attributes in found.tags[labels[0] :] if tag == "path")
    drawn = np.array(re.findall(r"-?[\d.]+", path), float).reshape(-1, 2)
    back_x = low + (drawn[:, 0] - left) / (right - left) * (high - low)
    back_y = floor + (drawn[:, 1] - bottom) / (top - bottom) * (ceiling - floor)
    # Coordinates are kept to a tenth of a point: half of that, and half of the hundredth in the box's own edges.
    assert log == 0
    np.testing.assert_allclose(back_x, x, atol=0.06 * (high - low) / (right - left))
    np.testing.assert_allclose(back_y, y, atol=0.06 * (ceiling - floor) / (bottom - top))


@pytest.mark.parametrize(
    ("value", "kind", "log", "text"),
    [
        (0, "count", False, "0"),
        (2500, "count", False, "2.5k"),
        (2500, "plain", False, "2500"),
        (0.002, "plain", False, "0.002"),
        (0.001, "plain", True, "10⁻³"),
        (2e12, "flops", True, "2×10¹²"),
        (1e15, "flops", True, "10¹⁵"),
        (-3, "plain", False, "−3"),
    ],
)
def test_axis_numbers(value, kind, log, text):
    assert plots.tick_text(value, kind, log) == text


def test_headline_numbers():
    assert page.with_error(2.2413, 0.0123) == "2.241 <small>± 0.012</small>"
    assert page.with_error(2.2413, 0.00123) == "2.2413 <small>± 0.0012</small>"
    assert page.with_error(2.2413, math.nan) == "2.241" and page.with_error(math.nan, 1) == "–"
    assert [page.duration(s) for s in (5.04, 185, 7500, 200_000)] == ["5.0 s", "3 min 05 s", "2 h 05 min", "2 d 7 h"]
    assert [page.count(n) for n in (1234, 1.95e6, 7e9, math.nan)] == ["1,234", "1.95 M", "7 B", "–"]
    assert (
        page.memory(3 * 2**30) == "3 GiB"
        and page.memory(1020 * 2**20) == "1,020 MiB"
        and page.count(9.999e8) == "1,000 M"
        and page.power(1.3e13) == "1.30&nbsp;×&nbsp;10<sup>13</sup>"
    )
    assert page.power(9.999e12) == "1.00&nbsp;×&nbsp;10<sup>13</sup>"
    assert page.shown(["cpu"] * 8) == "8 × cpu" and page.shown([1, 2, 1]) == "1, 2, 1" and page.shown(True) == "True"
