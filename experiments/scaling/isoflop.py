"""IsoFLOP minima: at each compute budget a parabola in log N, then a power law through its lowest points.

Hoffmann et al. 2022, section 3.2. The parabola is a second-order expansion of a curve that is not one: with unequal
exponents, wide or off-centre grids shift the minima (Czech et al. 2026, arXiv 2603.22339), so keep grids narrow and
compare with `compute_optimal` of the Chinchilla fit.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.scaling.fit import Residuals
from experiments.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, positive


@dataclasses.dataclass(frozen=True)
class IsoFLOP:
    """Minima of B budgets and the power laws through them.

    budgets: `[B]` FLOPs.
    parameters, tokens, loss: `[B]`, at each minimum.
    curves: `[B, 3]`, the coefficients of (log N)^2, log N and 1.
    exponents: a of N* = n C^a and b of D* = d C^b.
    constants: n and d.
    intervals: of a and b at 95%, empty without bootstrap.
    left_out: budgets without a minimum inside their grid, and why.
    """

    budgets: np.ndarray
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    curves: np.ndarray
    exponents: dict[str, float]
    constants: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    left_out: tuple[str, ...]


def budgets_of(flops: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
    """The budget of each run, `[R]`: the geometric mean of its group.

    In order of compute, a group holds the runs within a share `tolerance` of its smallest, so groups cannot chain.
    """
    logs = np.log(np.asarray(flops, np.float64))
    which, group, first = np.empty(len(logs), int), -1, -np.inf
    for run in np.argsort(logs, kind="stable").tolist():
        if logs[run] > first + np.log1p(tolerance):
            group, first = group + 1, logs[run]
        which[run] = group
    return np.exp(np.bincount(which, logs) / np.bincount(which))[which]


def isoflop(
    columns: Mapping[str, np.ndarray], *, tolerance: float = 0.1, bootstrap: int = 0, seed: int = 0,
    flops_per: float = FLOPS_PER_PARAMETER_TOKEN,
) -> IsoFLOP:  # fmt: skip
    """Minima over budgets of `columns` `parameters`, `flops`, `loss`, `[R]` each, and their power laws in compute.

    Budgets with fewer than 4 sizes, or whose parabola has no minimum among the sizes tried, are left out. `bootstrap`
    resamples residuals, relative to the parabolas and of all budgets together, as `fit` does. Errors: ValueError where
    fewer than two budgets have a minimum.
    """
    size, flops, loss = (positive(columns, name, "isoflop") for name in ("parameters", "flops", "loss"))
    budget = budgets_of(flops, tolerance)
    groups, left_out = [], []
    for value in np.unique(budget):
        rows = np.flatnonzero(budget == value)
        reason = _reason(np.log(size[rows]), loss[rows])
        if reason:
            left_out.append(f"{value:.3g} FLOPs: {reason}")
        else:
            groups.append((value, rows))
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} budgets have a minimum among their sizes ({'; '.join(left_out)}); use two.")
    logs = np.log([value for value, _ in groups])
    curves = np.array([np.polyfit(np.log(size[rows]), loss[rows], 2) for _, rows in groups])
    (a, n), best = _power_law(logs, curves)
    intervals = {}
    if bootstrap:
        rows = [rows for _, rows in groups]
        low, high = _resampled(
            logs, [np.log(size[r]) for r in rows], [loss[r] for r in rows], float(a), bootstrap, seed
        )
        intervals = {"a": (low, high), "b": (1 - high, 1 - low)}
    return IsoFLOP(
        np.exp(logs), np.exp(best), np.exp(logs - best) / flops_per,
        np.array([np.polyval(c, x) for c, x in zip(curves, best, strict=True)]), curves,
        {"a": float(a), "b": float(1 - a)}, {"n": float(np.exp(n)), "d": float(np.exp(-n) / flops_per)},
        intervals, tuple(left_out),
    )  # fmt: skip


def _resampled(
    logs: np.ndarray, sizes: list[np.ndarray], losses: list[np.ndarray], slope: float, count: int, seed: int
) -> tuple[float, float]:
    """The 95% interval of the exponent a: `count` slopes of losses made anew, studentised as in `fit`."""
    rng, drawn = np.random.default_rng(seed), []
    fitted = [np.polyval(np.polyfit(x, y, 2), x) for x, y in zip(sizes, losses, strict=True)]
    relative = np.concatenate([y / f - 1 for y, f in zip(losses, fitted, strict=True)])
    noise = Residuals(relative, np.arange(len(relative)), 3 * len(fitted))
    own, ends = np.mean(np.abs(relative)), np.cumsum([len(f) for f in fitted])[:-1]
    while len(drawn) < count:
        parts = np.split(noise.draw(rng), ends)
        again = [f * (1 + e) for f, e in zip(fitted, parts, strict=True)]
        kept = [i for i, x in enumerate(sizes) if not _reason(x, again[i])]
        if len(kept) < 2:
            continue
        curves = np.array([np.polyfit(sizes[i], again[i], 2) for i in kept])
        far = [again[i] / np.polyval(c, sizes[i]) - 1 for i, c in zip(kept, curves, strict=True)]
        theirs = np.mean(np.abs(np.concatenate(far)))
        drawn.append(slope + (own / theirs if theirs > 0 else 1.0) * (_power_law(logs[kept], curves)[0][0] - slope))
    low, high = np.quantile(drawn, [0.025, 0.975], method="weibull")
    return float(low), float(high)


def _reason(log_size: np.ndarray, loss: np.ndarray) -> str:
    """Why a budget has no minimum that can be trusted; empty where it has one."""
    if len(np.unique(log_size)) < 4:
        return "fewer than 4 sizes"
    curve = np.polyfit(log_size, loss, 2)
    if curve[0] <= 0:
        return "the parabola opens downwards"
    lowest = -curve[1] / (2 * curve[0])
    return "" if log_size.min() <= lowest <= log_size.max() else "the minimum is outside the sizes tried"


def _power_law(log_budget: np.ndarray, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((slope, intercept) of log N* in log C, log N* `[B]`)."""
    best = -curves[:, 1] / (2 * curves[:, 0])
    return np.polyfit(log_budget, best, 1), best
