"""Fits with intervals: Huber loss from many starts, bootstrap over runs, held-out extrapolation, isoFLOP minima.

The minimiser is scipy's L-BFGS-B with the analytic gradient, in coordinates whitened by the Jacobian at the start: the
amplitude and the exponent of a power law are nearly collinear, and unscaled descents stop early.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import threadpoolctl
from scipy import optimize

from experiments.scaling.laws import LAWS, Law, positive

Columns = Mapping[str, np.ndarray]
HUBER = 1e-3  # Hoffmann et al. 2022, section 3.3
MANY = (
    40  # runs a parameter, from which a bootstrap of runs is as calibrated as one of residuals, and asks less of them
)
_POLISHED = 3  # best descents that are run again in freshly whitened coordinates


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law. P parameters, B bootstrap resamples.

    values: parameters by name.
    objective: mean Huber loss over delta^2.
    residual: root mean square residual (of log target where the law fits logs).
    samples: `[B, P]`, bootstrap values in the order of `law.parameters`, whose quantiles are the ends of intervals;
        empty without bootstrap.
    starts_agreed: share of the starts that came within 1e-6 (relative) of the best objective.
    """

    law: Law
    values: dict[str, float]
    objective: float
    residual: float
    runs: int
    samples: np.ndarray
    starts_agreed: float

    def predict(self, columns: Columns) -> np.ndarray:
        """The target `[R]` at `columns`."""
        return self.law.predict(self.values, columns)

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """The bootstrap interval of each parameter at `level`, by name; empty without bootstrap."""
        return {p: _interval(self.samples[:, k], level) for k, p in enumerate(self.law.parameters) if len(self.samples)}

    def derived(self, function: Callable[[dict[str, float]], np.ndarray], level: float = 0.95):
        """(value, low, high) of any function of the parameters: predictions, frontiers, ratios of exponents."""
        drawn = [np.asarray(function(dict(zip(self.law.parameters, s, strict=True)))) for s in self.samples]
        value = np.asarray(function(self.values))
        if not drawn:
            return value, np.full_like(value, np.nan, float), np.full_like(value, np.nan, float)
        low, high = _interval(np.array(drawn), level)
        return value, low, high

    def band(self, columns: Columns, level: float = 0.95):
        """(prediction, low, high), `[R]` each, of the law itself at `columns`; the noise of a run is not in it."""
        return self.derived(lambda values: self.law.predict(values, columns), level)


def _interval(samples: np.ndarray, level: float):
    tail = (1 - level) / 2
    # (B + 1) q: what a quantile of B draws is on average; others are too near the middle.
    low, high = np.quantile(samples, [tail, 1 - tail], axis=0, method="weibull")
    return (float(low), float(high)) if samples.ndim == 1 else (low, high)


def fit(
    law: Law | str,
    columns: Columns,
    *,
    delta: float = HUBER,
    bootstrap: int = 0,
    resample: str = "auto",
    groups: Sequence | np.ndarray | None = None,
    seed: int = 0,
) -> Fit:
    """Fits `law` to runs, and with `bootstrap` > 0 resamples for intervals.

    Args:
      law: a law of `laws.LAWS` or its name.
      columns: the law's inputs and target by name, `[R]` each, all positive.
      delta: where the Huber loss turns from square to linear, in units of the residual (of log loss: a share);
        `math.inf` is least squares.
      bootstrap: resamples; 200 give an interval to look at, 1000 one to print.
      resample: what is drawn, "residuals" or "runs"; "auto" draws runs where there are MANY for each parameter.
      groups: `[R]` labels; those of one label (checkpoints of one run) are drawn together. None: each row is a run.
      seed: of the resampling.

    Errors: ValueError where there are fewer runs than parameters, or a column is missing or not positive.

    All resamples start at the fit. One of residuals keeps the inputs of all runs and adds `Residuals` to what the fit
    predicts; its distance from the fit is divided by its own mean absolute residual and multiplied by that of the runs,
    as Student's t is (Hall 1988 on the bootstrap-t). The noise of all runs is taken to be alike. One of runs draws them
    anew with replacement, and widens its distance by sqrt(n / (n - P)) (Hesterberg 2015): it asks nothing of the noise,
    but draws designs that hardly fix the law, and its intervals are 1.6 times too wide with four runs a parameter.
    """
    law = LAWS[law] if isinstance(law, str) else law
    if resample not in ("auto", *RESAMPLES):
        raise ValueError(f"resample={resample!r} is unknown; use one of auto, {', '.join(RESAMPLES)}.")
    inputs, target = law.columns(columns), positive(columns, law.target, law.name)
    count, free = len(target), len(law.parameters)
    if count < free:
        raise ValueError(f"{count} runs cannot fix the {free} parameters of the law {law.name!r}; use {free} or more.")
    if not delta > 0:
        raise ValueError(f"delta={delta!r} is not positive; use one such as {HUBER}, or math.inf for least squares.")
    y = np.log(target) if law.log_target else target
    labels = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    # The arrays are tiny: threads of BLAS, which L-BFGS-B calls at every step, cost up to 30 times what they save.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        objective, theta, agreed = _best(law, law.starts(target, *inputs), inputs, y, delta)
        samples = np.empty((0, free))
        if bootstrap:
            if resample == "auto":
                resample = "runs" if labels.max() + 1 >= MANY * free else "residuals"
            samples = RESAMPLES[resample](law, theta, inputs, y, delta, bootstrap, labels, seed)
    residual = float(np.sqrt(np.mean((law.evaluate(theta, *inputs)[0] - y) ** 2)))
    values = dict(zip(law.parameters, law.natural(theta).tolist(), strict=True))
    return Fit(law, values, objective, residual, count, law.natural(samples), agreed)


def _best(law: Law, starts: np.ndarray, inputs, y: np.ndarray, delta: float) -> tuple[float, np.ndarray, float]:
    """(objective, theta, share of the starts that came to it) of the best descent, the first few polished."""
    ones = np.ones(len(y))
    found = sorted((_descend(law, theta, inputs, y, ones, delta) for theta in starts), key=lambda result: result[0])
    again = [_descend(law, theta, inputs, y, ones, delta) for _, theta in found[:_POLISHED]]
    objective, theta = min(again, key=lambda result: result[0])
    return objective, theta, float(np.mean([value <= objective * (1 + 1e-6) + 1e-12 for value, _ in found]))


def _of_runs(law, theta, inputs, y, delta, count: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Thetas `[count, P]` of resampled groups, spread about `theta` for the degrees of freedom."""
    rng, groups = np.random.default_rng(seed), int(labels.max()) + 1
    free, drawn = len(theta), []
    while len(drawn) < count:
        times = np.bincount(rng.integers(0, groups, groups), minlength=groups)[labels].astype(float)
        if np.count_nonzero(times) >= free:  # fewer distinct runs than parameters fix nothing
            drawn.append(_descend(law, theta, inputs, y, times, delta)[1])
    return theta + math.sqrt(groups / max(groups - free, 1)) * (np.array(drawn) - theta)


def _of_residuals(law, theta, inputs, y, delta, count: int, labels: np.ndarray, seed: int) -> np.ndarray:
    """Thetas `[count, P]`, fits to targets made anew of what `theta` predicts and drawn residuals; see `fit`."""
    rng, ones = np.random.default_rng(seed), np.ones(len(y))
    predicted = law.evaluate(theta, *inputs)[0]
    # Least squares pass through no run: a fit by absolute values has P residuals that are 0, which no noise has.
    squares = _descend(law, theta, inputs, y, ones, math.inf)[1]
    noise = Residuals(y - law.evaluate(squares, *inputs)[0], labels, len(theta))
    own, drawn = np.mean(np.abs(y - predicted)), []
    for _ in range(count):
        again = predicted + noise.draw(rng)
        found = _descend(law, theta, inputs, again, ones, delta)[1]
        theirs = np.mean(np.abs(again - law.evaluate(found, *inputs)[0]))
        drawn.append(theta + (own / theirs if theirs > 0 else 1.0) * (found - theta))
    return np.array(drawn)


RESAMPLES = {"residuals": _of_residuals, "runs": _of_runs}


class Residuals:
    """Noise like the residuals of a fit: theirs drawn with replacement, smoothed, of the variance before the fit.

    A draw is (r_i + h z) / sqrt(1 + h^2 / s^2) sqrt(n / (n - P)), r_i a residual about their median, z normal, s their
    standard deviation and h the smaller of s and their interquartile range over 1.349 (De Angelis, Hall and Young 1993
    on why residuals of absolute fits need smoothing). Residuals of one group move together, with one z.

    Args:
      residuals: `[R]`.
      labels: `[R]` whole numbers from 0: the group of each.
      free: P, parameters that were fitted.
    """

    def __init__(self, residuals: np.ndarray, labels: np.ndarray, free: int):
        self.pool, self.labels = residuals - np.median(residuals), labels
        self.order, self.sizes = np.argsort(labels, kind="stable"), np.bincount(labels)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.place = np.empty(len(labels), int)
        self.place[self.order] = np.arange(len(labels)) - np.repeat(self.starts, self.sizes)
        groups, spread = len(self.sizes), float(np.std(self.pool))
        low, high = np.percentile(self.pool, [25, 75])
        self.smooth = min(spread, (high - low) / 1.349)
        widened = groups / max(groups - free, 1)
        self.scale = math.sqrt(widened / (1 + (self.smooth / spread) ** 2)) if spread > 0 else 0.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Noise `[R]`; a group takes the residuals of one group, again from its first where it has more rows."""
        groups = len(self.sizes)
        source = rng.integers(0, groups, groups)[self.labels]
        rows = self.order[self.starts[source] + self.place % self.sizes[source]]
        return self.scale * (self.pool[rows] + self.smooth * rng.normal(size=groups)[self.labels])


def _descend(law: Law, start, inputs, y: np.ndarray, weights: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """(objective, theta) of one L-BFGS-B descent of the weighted mean of Huber(residual) / delta^2 from `start`.

    Divided by delta^2 the objective is of order one, which the stopping rules of the minimiser take for granted.
    """
    scale = delta if math.isfinite(delta) else HUBER
    share = weights / weights.sum()
    _, jacobian = law.evaluate(start, *inputs)
    _, singular, axes = np.linalg.svd(jacobian * np.sqrt(share)[:, None], full_matrices=False)
    # Directions that the runs hardly see keep a bounded step.
    to_theta = axes.T / np.maximum(singular, 1e-4 * singular[0] + np.finfo(float).tiny)

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        predicted, jacobian = law.evaluate(start + to_theta @ z, *inputs)
        r = (predicted - y) / scale
        bend = delta / scale
        inside = np.abs(r) <= bend
        value = np.where(inside, 0.5 * r * r, bend * (np.abs(r) - 0.5 * bend)) if bend < math.inf else 0.5 * r * r
        slope = np.clip(r, -bend, bend) * share / scale
        return float(share @ value), (slope @ jacobian) @ to_theta

    options = {"maxiter": 500, "maxfun": 2000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20}
    with np.errstate(over="ignore", invalid="ignore"):  # a wild first step overflows and is then shortened
        result = optimize.minimize(objective, np.zeros(len(start)), jac=True, method="L-BFGS-B", options=options)
    return (float(result.fun) if math.isfinite(result.fun) else math.inf), start + to_theta @ result.x


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A fit on small runs, held to H larger ones. `error` `[H]`: (predicted - measured) / measured of each."""

    fit: Fit
    held_out: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray
    error: np.ndarray

    @property
    def median(self) -> float:
        """Median absolute relative error."""
        return float(np.median(np.abs(self.error)))

    @property
    def largest(self) -> float:
        """Largest absolute relative error."""
        return float(np.max(np.abs(self.error)))


def extrapolate(
    law: Law | str, columns: Columns, *, share: float = 0.75, max_flops: float | None = None, **options
) -> Extrapolation:
    """Fits on the runs of smaller compute and predicts the rest.

    Args:
      law, options: as for `fit`.
      columns: as for `fit`, and `flops` `[R]`, by which runs are ordered.
      share: of the runs, those of least compute, that are fitted; 0 < share < 1.
      max_flops: fits the runs of at most this compute instead.

    Errors: ValueError where nothing is left to fit or to predict.
    """
    law = LAWS[law] if isinstance(law, str) else law
    flops = positive(columns, "flops", law.name)
    if max_flops is None:
        if not 0 < share < 1:
            raise ValueError(f"share={share!r} leaves nothing to fit or to predict; use a share such as 0.75.")
        fitted = np.zeros(len(flops), bool)
        fitted[np.argsort(flops, kind="stable")[: max(1, math.floor(share * len(flops)))]] = True
    else:
        fitted = flops <= max_flops
        if fitted.all() or not fitted.any():
            middle = float(np.median(flops))
            raise ValueError(f"max_flops={max_flops!r} does not divide the runs; use one such as {middle:.3g}.")
    chosen = {name: np.asarray(columns[name])[fitted] for name in (*law.inputs, law.target)}
    if options.get("groups") is not None:
        options["groups"] = np.asarray(options["groups"])[fitted]
    small = fit(law, chosen, **options)
    rest = {name: np.asarray(columns[name], np.float64)[~fitted] for name in (*law.inputs, law.target)}
    predicted, measured = small.predict(rest), rest[law.target]
    return Extrapolation(small, np.flatnonzero(~fitted), predicted, measured, predicted / measured - 1)
