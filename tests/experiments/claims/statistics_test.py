"""Repeated looks, power and seeds against published tables, enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from experiments.claims import statistics


@pytest.mark.parametrize(
    ("level", "published"),
    [  # Pocock 1977, table 1; Jennison and Turnbull 2000, table 2.1: looks -> constant, as printed, to three decimals
        (0.05, {1: 1.960, 2: 2.178, 3: 2.289, 4: 2.361, 5: 2.413, 6: 2.453, 8: 2.512, 10: 2.555}),
        (0.01, {1: 2.576, 2: 2.772, 3: 2.873, 4: 2.939, 5: 2.986, 10: 3.117}),
        (0.10, {1: 1.645, 2: 1.875, 3: 1.992, 4: 2.067, 5: 2.122, 10: 2.270}),
    ],
)
def test_bounds_are_those_that_pocock_printed(level, published):
    for looks, constant in published.items():
        fractions, near = [(k + 1) / looks for k in range(looks)], 0.0006  # half of the last place printed
        low, high = (statistics.crossing([constant + e] * looks, fractions) for e in (-near, near))
        assert high < level < low, looks
    for looks in (2, 5):
        assert abs(statistics.pocock(looks, level) - published[looks]) < near


def test_two_looks_are_an_integral_of_the_bivariate_normal():
    """P(|Z1| <= c, |Z2| <= c) by quadrature of phi(z1) (Phi(..) - Phi(..)), for unequal steps and with drift."""
    for fraction, drift in ((0.5, 0.0), (0.25, 0.0), (0.3, 1.7)):
        c = 2.1
        root, rest = math.sqrt(fraction), math.sqrt(1 - fraction)

        def stays(z, drift=drift, root=root, rest=rest, c=c):
            mean = root * z + drift * rest**2
            return stats.norm.pdf(z - drift * root) * (
                stats.norm.cdf((c - mean) / rest) - stats.norm.cdf((-c - mean) / rest)
            )

        wanted = 1 - integrate.quad(stays, -c, c, epsabs=1e-12)[0]
        assert statistics.crossing((c, c), (fraction, 1.0), drift) == pytest.approx(wanted, abs=1e-9)


def test_crossings_of_walks_with_drift_and_unequal_looks():
    rng, fractions, bounds = np.random.default_rng(0), np.array([0.2, 0.5, 1.0]), np.array([2.4, 2.0, 2.2])
    steps = np.sqrt(np.diff(fractions, prepend=0))
    for drift in (0.0, 2.5):
        walk = np.cumsum(drift * steps**2 + steps * rng.normal(size=(200_000, 3)), axis=1)
        share = (np.abs(walk / np.sqrt(fractions)) > bounds).any(1).mean()
        found = statistics.crossing(bounds, fractions, drift)
        assert abs(share - found) < 4.5 * math.sqrt(found * (1 - found) / 200_000)


def test_the_level_of_a_look_is_that_of_its_bound():
    assert statistics.look_level(1) == pytest.approx(0.05, abs=1e-9)
    assert statistics.look_level(5) == pytest.approx(0.0158, abs=5e-5)  # Jennison and Turnbull 2000, section 2.2
    assert statistics.look_level((0.25, 0.5, 1)) < statistics.look_level(3)  # looks with less in common cost more
    for bounds, fractions in (((2.0,), (0.5, 1)), ((2.0, 2.0), (1.0, 0.5)), ((0.0,), (1,)), ((), ())):
        with pytest.raises(ValueError, match="rising fractions"):
            statistics.crossing(bounds, fractions)
    with pytest.raises(ValueError, match=r"level=1\.5"):
        statistics.pocock(3, 1.5)


def test_power_is_that_of_the_noncentral_t_and_of_published_sample_sizes():
    # Cohen 1988, table 2.4.1 and G*Power: paired differences of d standard deviations, 0.05 two-sided, power 0.8.
    assert [statistics.seeds_for_power(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert statistics.seeds_for_power(0.5, 1.0, 0.9) == 44
    assert statistics.seeds_for_power(0.05, 0.1) == 34  # only their ratio counts
    assert statistics.power(0.0, 1.0, 7, 0.05) == pytest.approx(0.05, abs=1e-9)
    assert statistics.power(2.0, 0.9, 40, 0.02) == pytest.approx(1.0, abs=1e-9)
    for effect, seeds, level in ((0.9, 4, 0.05), (1.5, 8, 0.02)):
        # T = (Z + d) / sqrt(Q / v): the mean over the density of Q of what a normal variable does.
        v, d = seeds - 1, effect * math.sqrt(seeds)
        bound = stats.t.isf(level / 2, v)

        def beyond(q, v=v, d=d, b=bound):
            ratio = b * math.sqrt(q / v)
            return stats.chi2.pdf(q, v) * (stats.norm.sf(ratio - d) + stats.norm.cdf(-ratio - d))

        wanted = integrate.quad(beyond, 0, 200, epsabs=1e-11, limit=200)[0]
        assert statistics.power(effect, 1.0, seeds, level) == pytest.approx(wanted, abs=1e-8)


def test_the_seeds_of_a_decision_are_the_least_that_make_the_interval_narrow():
    for effect, deviation, level in ((1.0, 1.0, 0.05), (0.3, 1.0, 0.02), (1.0, 0.01, 0.05)):
        wanted = next(
            n for n in itertools.count(2) if 2 * stats.t.ppf(1 - level / 2, n - 1) * deviation / math.sqrt(n) < effect
        )
        assert statistics.seeds_for_width(effect, deviation, level) == wanted
    assert statistics.seeds_for_width(1.0, 0.0) == 2
    values = [0.1, 0.4, 0.2, 0.9]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert statistics.half_width(np.std(values, ddof=1), 4) == pytest.approx((high - low) / 2)
    for effect, deviation in ((0.0, 1.0), (1.0, -1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="no seeds decide that"):
            statistics.seeds_for_width(effect, deviation)
    with pytest.raises(ValueError, match="at least 2"):
        statistics.half_width(1.0, 1)
