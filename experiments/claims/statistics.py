"""What decides a claim, as plain functions of numbers: repeated looks, power, and the seeds that a decision needs.

Differences are paired by seed and taken for normal. A look is an analysis of all seeds so far. The more looks, the
larger the chance that one of them is beyond a fixed bound by luck; Pocock's bound is the one, equal for all looks, at
which that chance is the level in all.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import integrate, optimize, stats

_POINTS = 401  # of the grid between two bounds; Simpson's rule then errs by less than 1e-9


def crossing(bounds: Sequence[float], fractions: Sequence[float], drift: float = 0.0) -> float:
    """The probability that `|Z_k| > bounds[k]` at one look k or more, Z_k being standardised sums of normal variables.

    Z_k has mean drift sqrt(t_k) and variance 1; cov(Z_j, Z_k) = sqrt(t_j / t_k) for t_j <= t_k. The density of
    S_k = sqrt(t_k) Z_k on the paths that crossed no bound before is carried from look to look by Simpson's rule.

    Args:
      bounds: one a look, positive.
      fractions: t_k of each look, rising: its seeds over those of the last look.
      drift: mean of Z where t = 1; 0 is the null hypothesis.

    Source: Armitage, McPherson and Rowe 1969; Jennison and Turnbull 2000, chapter 19.
    """
    rate, stay = np.asarray(fractions, float), np.asarray(bounds, float)
    if rate.shape != stay.shape or not len(rate) or (np.diff(rate, prepend=0.0) <= 0).any() or (stay <= 0).any():
        raise ValueError(f"bounds={bounds!r}, fractions={fractions!r}: give as many, rising fractions; e.g. (0.5, 1).")
    crossed, places, density, before = 0.0, np.zeros(1), np.ones(1), 0.0
    for bound, t in zip(stay, rate, strict=True):
        sd, end = math.sqrt(t - before), bound * math.sqrt(t)
        mean = places + drift * (t - before)
        crossed += float(density @ (stats.norm.sf((end - mean) / sd) + stats.norm.cdf((-end - mean) / sd)))
        grid, weights = _simpson(-end, end)
        density = weights * (stats.norm.pdf((grid[:, None] - mean) / sd) / sd @ density)
        places, before = grid, t
    return crossed


def _simpson(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """(points, weights) of Simpson's rule."""
    grid = np.linspace(low, high, _POINTS)
    weights = np.where(np.arange(_POINTS) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return grid, weights * (high - low) / (_POINTS - 1) / 3


def pocock(looks: int | Sequence[float], level: float = 0.05) -> float:
    """The bound c with P(|Z_k| > c at any of the looks) = level without an effect.

    Args:
      looks: how many, at equal steps; or the fraction of all seeds at each look, rising, e.g. (0.25, 0.5, 1).
      level: of the whole, two-sided.

    Source: Pocock 1977, table 1 (2.178 for two looks at 0.05, 2.413 for five).
    """
    fractions = [(k + 1) / looks for k in range(looks)] if isinstance(looks, int) else list(looks)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r} is no probability between 0 and 1; use e.g. 0.05.")
    one = float(stats.norm.isf(level / 2))
    if len(fractions) == 1:
        return one
    highest = float(stats.norm.isf(level / 2 / len(fractions)))  # Bonferroni's is never below it.
    return float(optimize.brentq(lambda c: crossing([c] * len(fractions), fractions) - level, one, highest, xtol=1e-9))


def look_level(looks: int | Sequence[float], level: float = 0.05) -> float:
    """The level of each single look, 2 (1 - Phi(c)) with c of `pocock`: what Student's t is read at for few seeds."""
    return float(2 * stats.norm.sf(pocock(looks, level)))


def half_width(deviation: float, seeds: int, level: float = 0.05) -> float:
    """Half of Student's interval of a mean: t(1 - level / 2, n - 1) s / sqrt(n).

    Args:
      deviation: s, the standard deviation over seeds, n - 1 below.
      seeds: n, two or more.
      level: 1 minus the probability that the interval covers.
    """
    if seeds < 2:
        raise ValueError(f"seeds={seeds!r} give no interval; use at least 2.")
    return float(stats.t.isf(level / 2, seeds - 1) * deviation / math.sqrt(seeds))


def power(effect: float, deviation: float, seeds: int, level: float = 0.05) -> float:
    """The probability that the two-sided paired t-test of `seeds` differences is significant, on either side.

    With d = effect sqrt(n) / s and t0 = t(1 - level / 2, n - 1): P(T > t0) + P(T < -t0), T being noncentral t of n - 1
    degrees of freedom and noncentrality d: (Z + d) / R with Z normal and R^2 (n - 1) chi-square, by quadrature over R
    (scipy's noncentral t has no tails far out).
    """
    bound, free = float(stats.t.isf(level / 2, seeds - 1)), seeds - 1
    shift = effect * math.sqrt(seeds) / deviation

    def found(ratio: float) -> float:
        beyond = stats.norm.sf(bound * ratio - shift) + stats.norm.cdf(-bound * ratio - shift)
        return math.sqrt(free) * stats.chi.pdf(ratio * math.sqrt(free), free) * beyond

    ends = stats.chi.ppf(1e-13, free) / math.sqrt(free), stats.chi.isf(1e-13, free) / math.sqrt(free)
    return float(integrate.quad(found, *ends, epsabs=1e-11, limit=200)[0])


def seeds_for_power(effect: float, deviation: float, wanted: float = 0.8, level: float = 0.05) -> int:
    """The least number of pairs of seeds whose t-test finds `effect` with probability `wanted`."""
    return _least(lambda n: power(effect, deviation, n, level) >= wanted, effect, deviation)


def seeds_for_width(effect: float, deviation: float, level: float = 0.05) -> int:
    """The least number of pairs of seeds whose interval is narrower than `effect` from end to end.

    Such an interval decides: it cannot hold both 0 and `effect`.
    """
    return _least(lambda n: 2 * half_width(deviation, n, level) < effect, effect, deviation)


def _least(enough, effect: float, deviation: float) -> int:
    """The least n >= 2 that is enough, by doubling and halving; ValueError for what no number of seeds can give."""
    if not (effect > 0 and 0 <= deviation < math.inf):
        raise ValueError(f"effect={effect!r}, deviation={deviation!r}: no seeds decide that; use e.g. 0.1 and 0.2.")
    if deviation == 0 or enough(2):
        return 2
    low, high = 2, 4
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
