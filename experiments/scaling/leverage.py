"""Efficiency leverage: how much more compute a dense model needs than a mixture of experts for the same loss.

EL = A^(a + d log10 C + gamma (log2 G)^2 + beta log2 G), with the activation ratio A saturated at both ends,
A^ = 1 / (1 / (A + 1 / (1 / A_s - 1 / A_m)) + 1 / A_m).

Source: Tian et al. 2025, arXiv:2507.17702 (Ling). Its text states no bases of the logarithms; 10 and 2 reproduce its
figures (EL 7.2 at 3.1%, G 12, 1e22 FLOPs; the best G 11.3), e and 10 do not.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from experiments import scaling


@dataclasses.dataclass(frozen=True)
class Law:
    """The constants; the defaults are those published."""

    a: float = 1.23
    d: float = -7.61e-2
    gamma: float = 1.67e-2
    beta: float = -1.17e-1
    a_start: float = 1.63e-2
    a_max: float = 5.28e16


PUBLISHED = Law()


def activation_ratio(k: int, shared: int, experts: int) -> float:
    """A = (K + S) / (E + S) with S shared experts."""
    return (k + shared) / (experts + shared)


def granularity(d: int, expert: int) -> float:
    """G = 2 d / h of experts of hidden width h: how finely a feed-forward of 2 d is cut."""
    return 2 * d / expert


def saturated(A: Any, law: Law = PUBLISHED) -> np.ndarray:
    """A^ of an activation ratio."""
    shift = 1 / (1 / law.a_start - 1 / law.a_max)
    return 1 / (1 / (np.asarray(A, float) + shift) + 1 / law.a_max)


def exponent(G: Any, C: Any, law: Law = PUBLISHED) -> np.ndarray:
    """a + d log10 C + gamma (log2 G)^2 + beta log2 G."""
    g = np.log2(np.asarray(G, float))
    return law.a + law.d * np.log10(np.asarray(C, float)) + law.gamma * g**2 + law.beta * g


def leverage(A: Any, G: Any, C: Any, law: Law = PUBLISHED) -> np.ndarray:
    """EL of activation ratio A, granularity G and compute C (FLOPs: non-embedding FLOPs a token times tokens)."""
    return saturated(A, law) ** exponent(G, C, law)


def best_granularity(law: Law = PUBLISHED) -> float:
    """The G with the largest EL where A^ < 1: 2^(-beta / (2 gamma))."""
    return float(2 ** (-law.beta / (2 * law.gamma)))


def learning_rate(C: Any) -> np.ndarray:
    """1.1576 C^-0.1529, Ling's rate for mixtures of experts."""
    return 1.1576 * np.asarray(C, float) ** -0.1529


def batch_tokens(C: Any) -> np.ndarray:
    """0.0694 C^0.3644, Ling's batch size for mixtures of experts."""
    return 0.0694 * np.asarray(C, float) ** 0.3644


def at_equal_loss(dense_C: Any, dense_loss: Any, C: Any, loss: Any) -> np.ndarray:
    """EL = C_dense / C of losses `[n]` that cost C: C_dense is where the dense curve first has that loss.

    The curve `[m]`, in the order of its compute, is taken for its lowest loss so far; between points log C is linear in
    the loss. NaN where the dense curve begins below a loss or ends above it.
    """
    at, low = np.log(np.asarray(dense_C, float)), np.minimum.accumulate(np.asarray(dense_loss, float))
    first = np.concatenate([[True], np.diff(low) < 0])  # of points with one loss the cheapest
    there = np.interp(-np.asarray(loss, float), -low[first], at[first], left=np.nan, right=np.nan)
    return np.exp(there) / np.asarray(C, float)


def fit(A: Any, G: Any, C: Any, EL: Any) -> Law:
    """The constants by least squares in log EL, A_m left out: no data can tell the published 5e16 from infinity.

    `experiments.scaling.fit` of the same law ("leverage" of `LAWS`) has intervals and other losses.

    Args:
      A, G, C, EL: `[n]` each, n >= 5, with at least two different C, three different G and three different A.
    """
    columns = {"activation_ratio": A, "granularity": G, "flops": C, "leverage": EL}
    found = scaling.fit("leverage", columns, delta=math.inf).values
    return Law(*(found[name] for name in ("a", "d", "gamma", "beta", "A_start")), a_max=math.inf)
