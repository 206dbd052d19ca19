"""Scaling laws as data: what each predicts, its analytic gradient, and where a fit of it may start.

A law knows its parameters by name and works on an unconstrained vector theta, in which parameters that must be positive
stand as logs. It predicts the log of its target where errors are relative (losses, leverage), else the target itself.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import optimize

FLOPS_PER_PARAMETER_TOKEN = 6.0  # C = 6 N D: forward 2, backward 4 (Kaplan et al. 2020, section 2.1)
_EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8)
_FLOOR = 1e-12  # of an amplitude, as a share of the median target: a start may not be log(0)


@dataclasses.dataclass(frozen=True)
class Law:
    """One functional form. R below is runs, P parameters, S starts.

    logged: the parameters that theta holds as logs.
    inputs: the columns that `evaluate` takes, each `[R]`.
    target: the column that it predicts.
    evaluate: (theta, *inputs) -> (y [R], dy/dtheta [R, P]), y being the log of the target when `log_target`.
    starts: (target, *inputs) -> theta [S, P].
    """

    name: str
    parameters: tuple[str, ...]
    logged: frozenset[str]
    inputs: tuple[str, ...]
    target: str
    log_target: bool
    evaluate: Callable[..., tuple[np.ndarray, np.ndarray]]
    starts: Callable[..., np.ndarray]

    def theta(self, values: Mapping[str, float]) -> np.ndarray:
        """`[P]`, from parameters by name."""
        return np.array([math.log(values[p]) if p in self.logged else values[p] for p in self.parameters])

    def natural(self, theta: np.ndarray) -> np.ndarray:
        """`[..., P]` parameters as they stand in the formula."""
        is_log = np.array([p in self.logged for p in self.parameters])
        with np.errstate(over="ignore"):  # a resample that does not fix a parameter may run away with it
            return np.where(is_log, np.exp(np.where(is_log, theta, 0.0)), theta)

    def predict(self, values: Mapping[str, float], columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The target `[R]` of runs whose inputs are `columns`, each `[R]`."""
        y, _ = self.evaluate(self.theta(values), *self.columns(columns))
        return np.exp(y) if self.log_target else y

    def columns(self, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """The inputs of this law, float64 `[R]` each. Errors: ValueError naming a column that is missing or <= 0."""
        return tuple(positive(columns, name, self.name) for name in self.inputs)


def positive(columns: Mapping[str, np.ndarray], name: str, law: str) -> np.ndarray:
    """Column `name` as float64 `[R]`. Errors: ValueError where it is missing, not finite or not above zero."""
    if name not in columns:
        raise ValueError(f"column {name!r} is missing for the law {law!r}; the columns given are {sorted(columns)}.")
    column = np.atleast_1d(np.asarray(columns[name], np.float64))
    bad = ~(np.isfinite(column) & (column > 0))
    if bad.any():
        raise ValueError(f"{name}={float(column[bad][0])!r} is not a positive number; leave such runs out of the fit.")
    return column


def absolute(law: Law) -> Law:
    """`law` fitted by absolute instead of relative residuals: its predictions and gradients in the target's own units.

    Errors: ValueError for a law that is fitted so already.
    """
    if not law.log_target:
        raise ValueError(f"law={law.name!r} has absolute residuals already; use it as it is.")

    def evaluate(theta: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, jacobian = law.evaluate(theta, *columns)
        return np.exp(y), np.exp(y)[:, None] * jacobian

    return dataclasses.replace(law, log_target=False, evaluate=evaluate)


def _power_sum(name: str, amplitudes: Sequence[str], exponents: Sequence[str], inputs: Sequence[str], features) -> Law:
    """The law L = sum_k exp(log amplitude_k + sum_j features[k, :, j] exponent_j), fitted as log L by log-sum-exp.

    `features(*inputs) -> [K, R, J]` is constant in the parameters, so each term is linear in theta and the gradient of
    the log-sum-exp is the softmax of the terms times (1, features).
    """
    count = len(amplitudes)

    def evaluate(theta: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        f = features(*columns)
        terms = theta[:count, None] + f @ theta[count:]
        top = terms.max(axis=0)
        weights = np.exp(terms - top)
        total = weights.sum(axis=0)
        weights /= total
        return top + np.log(total), np.concatenate([weights.T, np.einsum("kr,krj->rj", weights, f)], axis=1)

    def starts(target: np.ndarray, *columns: np.ndarray) -> np.ndarray:
        f = features(*columns)
        found = []
        for chosen in itertools.product(_EXPONENTS, repeat=len(exponents)):
            # With the exponents given the amplitudes are linear: non-negative least squares of relative errors.
            terms = f @ np.array(chosen)
            scale = terms.max(axis=1)
            basis = np.exp(terms - scale[:, None]).T / target[:, None]
            amplitude, _ = optimize.nnls(basis, np.ones(len(target)))
            amplitude = np.log(np.maximum(amplitude, _FLOOR * np.median(target))) - scale
            found.append(np.concatenate([amplitude, chosen]))
        return np.array(found)

    parameters = (*amplitudes, *exponents)
    return Law(name, parameters, frozenset(amplitudes), tuple(inputs), "loss", True, evaluate, starts)


def _features_chinchilla(parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    f = np.zeros((3, len(parameters), 2))
    f[1, :, 0], f[2, :, 1] = -np.log(parameters), -np.log(tokens)
    return f


def _features_overtraining(tokens_per_parameter: np.ndarray, flops: np.ndarray) -> np.ndarray:
    f = np.zeros((3, len(flops), 1))
    f[1, :, 0] = np.log(tokens_per_parameter) - np.log(flops)
    f[2, :, 0] = -np.log(tokens_per_parameter) - np.log(flops)
    return f


def _features_power(flops: np.ndarray) -> np.ndarray:
    f = np.zeros((2, len(flops), 1))
    f[1, :, 0] = -np.log(flops)
    return f


def _evaluate_downstream(theta: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gamma = np.exp(theta[2])  # inf, as in other laws, where a wild step overflows
    gain = np.exp(theta[1] - gamma * loss)
    return theta[0] - gain, np.stack([np.ones_like(loss), -gain, gain * gamma * loss], axis=1)


def _starts_downstream(error: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """For each rate gamma, epsilon and k by least squares."""
    found = []
    for gamma in (0.1, 0.3, 0.6, 1.0, 2.0, 4.0):
        decay = np.exp(-gamma * (loss - loss.min()))
        (epsilon, k), *_ = np.linalg.lstsq(np.stack([np.ones_like(loss), -decay], axis=1), error, rcond=None)
        found.append((epsilon, math.log(max(k, 1e-3 * np.ptp(error) + _FLOOR)) + gamma * loss.min(), math.log(gamma)))
    return np.array(found)


def _leverage_exponent(granularity: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """The factors of (a, d, gamma, beta) in the exponent, `[R, 4]`."""
    g = np.log2(granularity)
    return np.stack([np.ones_like(g), np.log10(flops), g**2, g], axis=1)


def _evaluate_leverage(theta, activation: np.ndarray, granularity: np.ndarray, flops: np.ndarray):
    basis = _leverage_exponent(granularity, flops)
    exponent, start = basis @ theta[:4], np.exp(theta[4])  # inf, as in other laws, where a wild step overflows
    saturated = np.log(activation + start)
    slope = exponent * start / (activation + start)
    return exponent * saturated, np.concatenate([basis * saturated[:, None], slope[:, None]], axis=1)


def _starts_leverage(leverage: np.ndarray, activation: np.ndarray, granularity: np.ndarray, flops: np.ndarray):
    """For each saturation A_start, the four coefficients of the exponent by least squares."""
    basis, found = _leverage_exponent(granularity, flops), []
    for start in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        design = basis * np.log(activation + start)[:, None]
        coefficients, *_ = np.linalg.lstsq(design, np.log(leverage), rcond=None)
        found.append((*coefficients, math.log(start)))
    return np.array(found)


CHINCHILLA = _power_sum(
    "chinchilla", ("E", "A", "B"), ("alpha", "beta"), ("parameters", "tokens"), _features_chinchilla
)
"""L = E + A N^-alpha + B D^-beta (Hoffmann et al. 2022, section 3.3). N `parameters`, D `tokens`."""

OVERTRAINING = _power_sum(
    "overtraining", ("E", "a", "b"), ("eta",), ("tokens_per_parameter", "flops"), _features_overtraining
)
"""L = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024). M = D/N tokens per parameter, C FLOPs.

It is the Chinchilla form with alpha = beta = 2 eta and C = 6 N D: a = A 6^eta, b = B 6^eta."""

POWER = _power_sum("power", ("E", "A"), ("alpha",), ("flops",), _features_power)
"""L = E + A C^-alpha: one curve of loss against compute `flops`."""

DOWNSTREAM = Law(
    "downstream", ("epsilon", "k", "gamma"), frozenset({"k", "gamma"}), ("loss",), "error", False,
    _evaluate_downstream, _starts_downstream,
)  # fmt: skip
"""Err = epsilon - k exp(-gamma L) (Gadre et al. 2024): mean top-1 error from loss, absolute residuals."""

LEVERAGE = Law(
    "leverage", ("a", "d", "gamma", "beta", "A_start"), frozenset({"A_start"}),
    ("activation_ratio", "granularity", "flops"), "leverage", True, _evaluate_leverage, _starts_leverage,
)  # fmt: skip
"""EL = (A + A_start)^(a + d log C + gamma (log G)^2 + beta log G): dense compute over mixture-of-experts compute at
equal loss (Tian et al. 2025, arXiv 2507.17702, equations 10 and 13). A activation ratio, G granularity, C FLOPs.

The published saturation has a second constant A_max, whose fitted value 5e16 drops out; it is left out here. The paper
does not state the bases of its logs: with log10 C and log2 G its coefficients (table 2) give its own statements, an EL
above 7 at 1e22 FLOPs, A 3.1% and G 12, and the best granularity between 8 and 12; other bases do not."""

LAWS = {law.name: law for law in (CHINCHILLA, OVERTRAINING, POWER, DOWNSTREAM, LEVERAGE)}


def compute_optimal(
    values: Mapping[str, float], flops, *, flops_per=FLOPS_PER_PARAMETER_TOKEN
) -> dict[str, np.ndarray]:
    """The parameters and tokens that minimise the Chinchilla form at a compute budget.

    Args:
      values: E, A, B, alpha, beta.
      flops: compute C, a number or an array of any shape.
      flops_per: FLOPs per parameter and token; C = flops_per N D.

    Returns: `parameters` N*, `tokens` D*, `loss`, each of the shape of `flops`; and the exponents `a` of N* and `b` of
      D* in C; all NaN where alpha or beta is not positive. Source: Hoffmann et al. 2022, equation 4.
    """
    alpha, beta = values["alpha"], values["beta"]
    if alpha <= 0 or beta <= 0:  # as a resample may have it: the loss then falls for ever along one axis
        nothing = np.full(np.shape(flops), math.nan)
        no_power = np.array(math.nan)
        return {"parameters": nothing, "tokens": nothing, "loss": nothing, "a": no_power, "b": no_power}
    budget = np.log(np.asarray(flops, np.float64) / flops_per)
    a, b = beta / (alpha + beta), alpha / (alpha + beta)
    shift = (math.log(alpha * values["A"]) - math.log(beta * values["B"])) / (alpha + beta)
    n, d = shift + a * budget, b * budget - shift
    with np.errstate(invalid="ignore"):  # A or B may be infinite, the loss is NaN then
        loss = values["E"] + values["A"] * np.exp(-alpha * n) + values["B"] * np.exp(-beta * d)
    return {"parameters": np.exp(n), "tokens": np.exp(d), "loss": loss, "a": np.asarray(a), "b": np.asarray(b)}
