"""Rotary wavelengths for texts longer than those that a model was trained on, as plain functions of numbers.

R is the rotated width of a head; every function gives the R/2 rates (radians a token) of its pairs, in numpy's float64
unless a length is traced. `KINDS` names what `model.attention.rope_scaling.kind` may say.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("none", "linear", "dynamic", "yarn", "llama3", "longrope")
STEADY = ("none", "linear", "llama3")  # Rates that depend on no length, with cos and sin as they are.


def rates(R: int, theta: float) -> np.ndarray:
    """theta^(-2i / R), i = 0 .. R/2 - 1 (Su et al. 2021)."""
    return theta ** (-np.arange(0, R, 2, dtype=np.float64) / R)


def linear(R: int, theta: float, *, factor: float) -> np.ndarray:
    """rates / factor: positions are interpolated (Chen et al. 2023, arXiv:2306.15595)."""
    return rates(R, theta) / factor


def dynamic(R: int, theta: float, *, factor: float, original: int, length: Any) -> Any:
    """Rates of the base theta (factor n / original - (factor - 1))^(R / (R - 2)), n = max(length, original).

    NTK-aware interpolation that follows the length of the text (the form that transformers releases); `length` may be
    traced, and is then computed with in float32 or wider. R is at least 4.
    """
    traced = isinstance(length, jax.Array)
    n = jnp.maximum(length, original) if traced else max(length, original)
    stretch = (factor * n / original - (factor - 1)) ** (R / (R - 2))
    exponent = -np.arange(0, R, 2, dtype=np.float64) / R
    return (theta * stretch) ** (jnp.asarray(exponent, stretch.dtype) if traced else exponent)


def yarn(
    R: int,
    theta: float,
    *,
    factor: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> np.ndarray:
    """Rates that turn more than `beta_fast` times in `original` tokens stay, less than `beta_slow` are / factor.

    Between them a ramp that is linear in the number i of the pair, whose ends `truncate` rounds outwards (YaRN, Peng et
    al. 2023, arXiv:2309.00071, section 3.2). `yarn_factor` is the other half of it.
    """
    pair = lambda turns: R * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))  # noqa: E731
    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(R // 2) - low) / (high - low), 0, 1)
    plain = rates(R, theta)
    return plain / factor * ramp + plain * (1 - ramp)


def yarn_factor(factor: float, *, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """What multiplies cos and sin: m(1) with m(s) = 0.1 s ln(factor) + 1; m(mscale) / m(mscale_all_dim) if both are.

    m is 1 where factor <= 1. The quotient is DeepSeek-V2's.
    """
    m = lambda s: 1.0 if factor <= 1 else 0.1 * s * math.log(factor) + 1.0  # noqa: E731
    return m(mscale) / m(mscale_all_dim) if mscale and mscale_all_dim else m(1.0)


def llama3(R: int, theta: float, *, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """Rates that turn less than `low` times in `original` tokens are / factor, more than `high` stay (Llama 3.1).

    Between them s rate + (1 - s) rate / factor, s = (turns - low) / (high - low).
    """
    plain = rates(R, theta)
    share = np.clip((original * plain / (2 * math.pi) - low) / (high - low), 0, 1)
    return share * plain + (1 - share) * plain / factor


def longrope(R: int, theta: float, *, factors: Sequence[float]) -> np.ndarray:
    """rates / factors, R/2 of them, found by search (LongRoPE, Ding et al. 2024, arXiv:2402.13753)."""
    return rates(R, theta) / np.asarray(factors, np.float64)


def longrope_factor(factor: float, original: int) -> float:
    """What multiplies cos and sin: sqrt(1 + ln(factor) / ln(original)), 1 where factor <= 1."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


@dataclasses.dataclass(frozen=True)
class Scaling:
    """One of `KINDS` with its options, as the group `model.attention.rope_scaling` says them."""

    kind: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Scaling | None":
        """From the option group; None where nothing is scaled."""
        return None if options["kind"] == "none" else cls(options["kind"], dict(options))

    @property
    def steady(self) -> bool:
        """Whether a token is turned by its position times rates that no text changes, and by nothing else."""
        return self.kind in STEADY

    def __call__(self, R: int, theta: float, positions: jax.Array) -> tuple[Any, float]:
        """(rates [R/2], what multiplies cos and sin) for tokens at `positions`.

        dynamic and longrope go by `length`, or where it is 0 by the last position of the call.
        """
        given = lambda *names: {name: self.options[name] for name in names}  # noqa: E731
        told, factor, original = self.options["attention_factor"], self.options["factor"], self.options["original"]
        length = self.options["length"] or jnp.max(positions).astype(float) + 1
        if self.kind == "linear":
            return linear(R, theta, factor=factor), 1.0
        if self.kind == "dynamic":
            return dynamic(R, theta, factor=factor, original=original, length=length), 1.0
        if self.kind == "llama3":
            return llama3(R, theta, **given("factor", "low", "high", "original")), 1.0
        if self.kind == "yarn":
            found = yarn(R, theta, **given("factor", "original", "beta_fast", "beta_slow", "truncate"))
            return found, told or yarn_factor(factor, **given("mscale", "mscale_all_dim"))
        short, long = (
            longrope(R, theta, factors=[float(number) for number in self.options[f"{name}_factors"]])
            for name in ("short", "long")
        )
        found = jnp.where(length > original, long, short)
        return found, told or longrope_factor(factor, original)
