"""Which parameters of a law a set of runs determines, which it does not and why, and which further run would help.

Errors here are those of the law made linear at the fit (its Jacobian). They hold even where a bootstrap stands still at
a boundary and shows an interval of zero width.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from experiments.scaling.fit import Fit
from experiments.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Law

_WIDE = 10.0  # An amplitude known to less than a factor of 10 either way is not determined.
_ALIKE = 0.99  # Exponents whose errors are so correlated move together: only their combination is known.
_NULL = 1e-10  # Singular values below this share of the largest are zero in float64.
_STILL = 1e-6  # An interval narrower than this share of its value is no measurement, whatever the runs.
_STEPS = 9  # Sizes that are tried for the next run, from the smallest to four times the largest compute.


@dataclasses.dataclass(frozen=True)
class Identified:
    """P parameters.

    errors: the standard error of each, as a share for an amplitude; inf if the runs do not determine it at all.
    determined: whether the 95% interval of an exponent lies above 0, and that of an amplitude within a factor of 10
        either way.
    correlation: of the errors of each two exponents, "alpha, beta" -> number.
    spans: decades that the runs cover of each input.
    remarks: the degeneracies, a sentence each.
    next_run: the run of at most four times the largest compute that narrows the worst exponent most: `parameters`,
        `tokens`, `flops`, `parameter`, and its error `before` and `after`. None if no run narrows it, or if sizes and
        tokens are not inputs of the law.
    """

    errors: dict[str, float]
    determined: dict[str, bool]
    correlation: dict[str, float]
    spans: dict[str, float]
    remarks: tuple[str, ...]
    next_run: dict[str, float | str] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a number that is not finite is None."""
        return _plain(dataclasses.asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def identify(fit: Fit, columns: Mapping[str, np.ndarray]) -> Identified:
    """The `Identified` of a fit and its own runs; `columns`: the inputs of its law, `[R]` each."""
    law, inputs = fit.law, fit.law.columns(columns)
    _, jacobian = law.evaluate(law.theta(_safe(fit)), *inputs)
    freedom = max(len(jacobian) - len(law.parameters), 1)
    scale = fit.residual * math.sqrt(len(jacobian) / freedom)
    covariance, seen = _covariance(jacobian)
    wide = np.where(seen, scale * np.sqrt(np.maximum(np.diag(covariance), 0.0)), math.inf)
    errors = dict(zip(law.parameters, wide.tolist(), strict=True))
    t = float(stats.t.ppf(0.975, freedom))
    determined = {name: _is_determined(law, fit, name, t * error) for name, error in errors.items()}
    exponents = [name for name in law.parameters if name not in law.logged]
    correlation = _correlations(law, exponents, covariance, seen)
    spans = {name: float(np.log10(x.max() / x.min())) for name, x in zip(law.inputs, inputs, strict=True)}
    remarks = _remarks(fit, jacobian, errors, determined, correlation)
    following = _next_run(fit, jacobian, scale, exponents, errors, columns)
    return Identified(errors, determined, correlation, spans, tuple(remarks), following)


def _safe(fit: Fit) -> dict[str, float]:
    """The values, an amplitude that underflowed being the smallest number instead of zero, which has no log."""
    tiny = np.finfo(float).tiny
    return {name: max(value, tiny) if name in fit.law.logged else value for name, value in fit.values.items()}


def _covariance(jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((J^T J)^-1 `[P, P]` without the directions that no run sees, and which parameters have no part in those)."""
    _, singular, axes = np.linalg.svd(jacobian, full_matrices=True)
    singular = np.concatenate([singular, np.zeros(len(axes) - len(singular))])
    blind = singular <= _NULL * singular[0]
    inside = axes[~blind].T / singular[~blind]
    return inside @ inside.T, (axes[blind] ** 2).sum(0) < _NULL


def _is_determined(law: Law, fit: Fit, name: str, half: float) -> bool:
    low, high = fit.intervals().get(name, (math.nan, math.nan))
    value = fit.values[name]
    if name in law.logged:
        known = math.isnan(low) or (low > 0 and high / low < _WIDE**2)
        return half < math.log(_WIDE) and known and value > 0
    return value - half > 0 and not low <= 0


def _correlations(law: Law, exponents: list[str], covariance: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    found = {}
    for a, b in itertools.combinations(exponents, 2):
        i, j = law.parameters.index(a), law.parameters.index(b)
        whole = math.sqrt(covariance[i, i] * covariance[j, j])
        found[f"{a}, {b}"] = float(covariance[i, j] / whole) if seen[i] and seen[j] and whole > 0 else math.nan
    return found


def _remarks(
    fit: Fit, jacobian: np.ndarray, errors: dict[str, float], determined: dict[str, bool], correlation: dict[str, float]
) -> list[str]:
    law, said = fit.law, []
    for k, name in enumerate(law.parameters):
        value = fit.values[name]
        low, high = fit.intervals().get(name, (math.nan, math.nan))
        # For the log of an amplitude the derivative of the log of the loss is the share of its term in the loss.
        share = float(jacobian[:, k].max()) if law.log_target and name in law.logged else math.inf
        if share < fit.residual:
            said.append(
                f"{name}={value:.3g} is not measured: its term is at most {100 * share:.2g}% of a loss, below the "
                f"residual of {100 * fit.residual:.2g}%."
            )
        elif name not in law.logged and value <= 0:
            said.append(f"{name}={value:.3g} is not positive: in these runs the loss does not fall with its input.")
        elif high - low <= _STILL * abs(value):
            said.append(
                f"the interval of {name} has no width: every resample stayed where the fit is, which measures nothing."
            )
        elif not math.isfinite(errors[name]):
            said.append(f"{name}={value:.3g} is not measured: no loss of these runs depends on it.")
        elif not determined[name]:
            said.append(f"{name}={value:.3g} is not determined: its interval is too wide to tell it from others.")
    for pair, value in correlation.items():
        if abs(value) >= _ALIKE:
            said.append(f"{pair} cannot be separated: these runs change what they act on together.")
    return said


def _next_run(
    fit: Fit, jacobian: np.ndarray, scale: float, exponents: list[str], errors: dict[str, float], columns: Mapping
) -> dict[str, float | str] | None:
    """The best of a grid of runs, by the error of the exponent that is known worst in relation to itself."""
    law = fit.law
    if law.inputs != ("parameters", "tokens"):
        return None
    worst = max(exponents, key=lambda name: errors[name] / max(abs(fit.values[name]), 1e-3))
    k = law.parameters.index(worst)
    sizes, tokens = (np.asarray(columns[name], float) for name in law.inputs)
    limit = 4 * float((FLOPS_PER_PARAMETER_TOKEN * sizes * tokens).max())
    grid = [np.geomspace(x.min() / 2, x.max() * 4, _STEPS) for x in (sizes, tokens)]
    tried = [(N, D) for N in grid[0] for D in grid[1] if FLOPS_PER_PARAMETER_TOKEN * N * D <= limit]
    _, rows = law.evaluate(law.theta(_safe(fit)), *(np.array(x) for x in zip(*tried, strict=True)))
    after = []
    for row in rows:
        covariance, seen = _covariance(np.vstack([jacobian, row]))
        after.append(scale * math.sqrt(max(covariance[k, k], 0.0)) if seen[k] else math.inf)
    best = int(np.argmin(after))
    if not after[best] < errors[worst]:
        return None
    N, D = tried[best]
    flops = FLOPS_PER_PARAMETER_TOKEN * N * D
    return {
        "parameters": float(N), "tokens": float(D), "flops": float(flops), "parameter": worst,
        "before": errors[worst], "after": float(after[best]),
    }  # fmt: skip
