"""Noise schedules of discrete diffusion: how the keep probability alpha(t) falls from 1 (clean) to 0 (all masked)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
NAMES = ("linear", "loglinear", "cosine_md4", "cosine_mdlm", "poly", "geometric")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule, stated by its mask and its keep probability so that nothing cancels at either end.

    `mask_of(t)` is m = 1 - alpha, `slope_of(t)` is dm/dt > 0, `time_of(m)` inverts the first. With `clip` = e > 0 the
    keep probability becomes (1 - 2e) alpha + e (MD4). All methods are elementwise on t in [0, 1] and keep its dtype.
    """

    name: str
    alpha_of: Callable[[Array], Array]
    mask_of: Callable[[Array], Array]
    slope_of: Callable[[Array], Array]
    time_of: Callable[[Array], Array]
    clip: float = 0.0

    def mask(self, t: Array | float) -> Array:
        """Mask probability m(t) = 1 - alpha(t)."""
        return (1 - 2 * self.clip) * self.mask_of(_float(t)) + self.clip

    def alpha(self, t: Array | float) -> Array:
        """Keep probability alpha(t)."""
        return (1 - 2 * self.clip) * self.alpha_of(_float(t)) + self.clip

    def dalpha(self, t: Array | float) -> Array:
        """Derivative alpha'(t), negative."""
        return -(1 - 2 * self.clip) * self.slope_of(_float(t))

    def weight(self, t: Array | float) -> Array:
        """Loss weight -alpha'(t) / (1 - alpha(t)), positive; equal to sigma'(t) / expm1(sigma(t))."""
        return -self.dalpha(t) / self.mask(t)

    def sigma(self, t: Array | float) -> Array:
        """Total noise sigma(t) = -log alpha(t)."""
        alpha, mask = self.alpha(t), self.mask(t)
        return jnp.where(mask < 0.5, -jnp.log1p(-jnp.minimum(mask, 0.5)), -jnp.log(alpha))

    def dsigma(self, t: Array | float) -> Array:
        """Noise rate sigma'(t) = -alpha'(t) / alpha(t)."""
        return -self.dalpha(t) / self.alpha(t)

    def time(self, mask: Array | float) -> Array:
        """The time t in [0, 1] at which the mask probability is `mask`; values out of reach give the nearest end."""
        inner = (_float(mask) - self.clip) / (1 - 2 * self.clip)
        return jnp.clip(self.time_of(jnp.clip(inner, 0.0, 1.0)), 0.0, 1.0)


def get(name: str, clip: float = 0.0, **kw: float) -> Schedule:
    """The schedule called `name`.

    Args:
      name: linear (alpha = 1 - t); loglinear (alpha = 1 - (1 - eps) t, eps = 1e-3; MDLM, SEDD); cosine_md4
        (alpha = 1 - cos(pi/2 (1 - t))); cosine_mdlm (alpha = eps + (1 - eps) cos(pi t / 2)); poly (alpha = 1 - t^k,
        k = 2); geometric (sigma = sigma_min^(1-t) sigma_max^t, 1e-4 to 20; SEDD). The two cosines are different
        functions.
      clip: e of MD4, alpha~ = (1 - 2e) alpha + e.
      **kw: eps, k, or sigma_min and sigma_max, where the schedule has them.

    Raises:
      ValueError: unknown name, unknown parameter, or clip outside [0, 0.5).
    """
    makers = {
        "linear": _linear,
        "loglinear": _loglinear,
        "cosine_md4": _cosine_md4,
        "cosine_mdlm": _cosine_mdlm,
        "poly": _poly,
        "geometric": _geometric,
    }
    if name not in makers:
        raise ValueError(f"schedule {name!r} is unknown; use one of {', '.join(NAMES)}")
    if not 0.0 <= clip < 0.5:
        raise ValueError(f"clip={clip} must lie in [0, 0.5), for example 1e-4")
    try:
        parts = makers[name](**kw)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} does not take {sorted(kw)}: {error}") from None
    return Schedule(name, *parts, clip=clip)


def resolve(schedule: Schedule | str) -> Schedule:
    """A schedule from a schedule or its name."""
    return get(schedule) if isinstance(schedule, str) else schedule


def _float(t: Array | float) -> Array:
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))


# Each maker returns alpha(t), m(t), dm/dt and the inverse of m.


def _linear():
    return (lambda t: 1 - t), (lambda t: t), jnp.ones_like, (lambda m: m)


def _loglinear(eps: float = 1e-3):
    keep = 1 - eps
    return (lambda t: 1 - keep * t), (lambda t: keep * t), (lambda t: jnp.full_like(t, keep)), (lambda m: m / keep)


def _cosine_md4():
    half = math.pi / 2
    return (
        lambda t: 2 * jnp.sin(half / 2 * (1 - t)) ** 2,  # 1 - cos(2a) = 2 sin(a)^2 keeps small values
        lambda t: jnp.sin(half * t),
        lambda t: half * jnp.sin(half * (1 - t)),
        lambda m: jnp.arcsin(m) / half,
    )


def _cosine_mdlm(eps: float = 1e-3):
    quarter, scale = math.pi / 4, 1 - eps
    return (
        lambda t: eps + scale * jnp.sin(2 * quarter * (1 - t)),
        lambda t: scale * 2 * jnp.sin(quarter * t) ** 2,
        lambda t: scale * 2 * quarter * jnp.sin(2 * quarter * t),
        lambda m: jnp.arcsin(jnp.sqrt(jnp.clip(m / (2 * scale), 0.0, 1.0))) / quarter,
    )


def _poly(k: float = 2.0):
    if k <= 0:
        raise ValueError(f"poly k={k} must be positive, for example k=2")
    return (lambda t: 1 - t**k), (lambda t: t**k), (lambda t: k * t ** (k - 1)), (lambda m: m ** (1 / k))


def _geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0):
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"geometric needs 0 < sigma_min < sigma_max, not {sigma_min}, {sigma_max}; try 1e-4, 20")
    low, span = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def sigma(t):
        return sigma_min ** (1 - t) * sigma_max**t

    def time(mask):
        reached = jnp.clip(-jnp.log1p(-mask), sigma_min, sigma_max)
        return (jnp.log(reached) - low) / span

    return (
        lambda t: jnp.exp(-sigma(t)),
        lambda t: -jnp.expm1(-sigma(t)),
        lambda t: span * sigma(t) * jnp.exp(-sigma(t)),
        time,
    )


def grid(steps: int, kind: str = "linear") -> list[float]:
    """Sampling times from 1 down to 0, `steps` + 1 of them.

    linear: 1 - i/steps. cosine (MD4): cos(pi/2 i/steps), which reveals few tokens first.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1, for example 16")
    if kind == "linear":
        return [1 - i / steps for i in range(steps)] + [0.0]
    if kind == "cosine":
        return [math.cos(math.pi / 2 * i / steps) for i in range(steps)] + [0.0]
    raise ValueError(f"grid {kind!r} is unknown; use linear or cosine")


def sample_times(
    key: Array, count: int, how: str = "stratified", low: float = 0.0, high: float = 1.0, dtype=jnp.float32
) -> Array:
    """`count` training times in (low, high]: shape [count].

    iid: independent. offset (MD4): one shared offset, (u + i/n) mod 1. stratified (MDLM, BD3): an independent offset in
    each of n equal strata; this one has the least variance. Times are 1 - u with u in [0, 1), so low itself, where the
    weight 1/t is infinite, is never drawn.
    """
    strata = jnp.arange(count, dtype=dtype) / count
    if how == "iid":
        u = jax.random.uniform(key, (count,), dtype)
    elif how == "offset":
        u = (jax.random.uniform(key, (), dtype) + strata) % 1
    elif how == "stratified":
        u = jax.random.uniform(key, (count,), dtype) / count + strata
        u = jnp.minimum(u, 1 - jnp.finfo(dtype).epsneg)
    else:
        raise ValueError(f"how={how!r} is unknown; use iid, offset or stratified")
    return low + (high - low) * (1 - u)
