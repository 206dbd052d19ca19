"""Masked (absorbing) diffusion: SUBS parameterisation, weighted losses, exact and estimated likelihood bounds.

A model is a plain function `denoise(z, t) -> logits [B, T, C]` of tokens z [B, T] and times t [B]. Real tokens are
0..V-1; the mask is `mask_id`, usually V. Logits have C = V columns, or more, in which case column `mask_id` is the
mask's and never gets probability. Losses are in nats; every NELBO is an upper bound of -log P(x), to be labelled "<=".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.objectives import schedules
from models.objectives.schedules import Schedule

Array = jax.Array
Denoiser = Callable[[Array, Array], Array]
ROWS_PER_CALL = 1 << 15  # rows given to a denoiser at once in the enumerations


class Corruption(NamedTuple):
    """A noised batch: tokens z [B, T], times t [B] (or [B, T]), loss weights [B, T], zero where nothing is learned."""

    z: Array
    t: Array
    weight: Array


def per_token(value: Array | float, like: Array) -> Array:
    """A scalar, [B], [B, 1] or [B, T] value made to broadcast against tokens `like` [B, T]."""
    value = jnp.asarray(value)
    return value[..., None] if value.ndim == like.ndim - 1 and value.ndim > 0 else value


def mask_logits(logits: Array, mask_id: int) -> Array:
    """Logits in at least float32, the mask's column (if there is one) at -inf. [..., C] -> [..., C]."""
    logits = jnp.asarray(logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.where(jnp.arange(logits.shape[-1]) == mask_id, -jnp.inf, logits)


def log_probs(logits: Array, z: Array, mask_id: int) -> Array:
    """SUBS log-probabilities (MDLM): zero mask probability, and visible tokens carried over.

    Args:
      logits: [..., T, C].
      z: [..., T] tokens, `mask_id` where masked.
      mask_id: the mask.

    Returns:
      [..., T, C] in float32 or wider: log-softmax at masked rows, 0 at z and -inf elsewhere at visible rows.
    """
    z = jnp.asarray(z)
    rows = jax.nn.log_softmax(mask_logits(logits, mask_id), -1)
    carried = jnp.where(jnp.arange(rows.shape[-1]) == z[..., None], 0.0, -jnp.inf)
    return jnp.where((z == mask_id)[..., None], rows, carried.astype(rows.dtype))


def cross_entropy(logits: Array, x: Array, z: Array, mask_id: int) -> Array:
    """-log p(x_l | z) at masked positions, 0 at visible ones: [..., T]. Gradients are finite at visible rows."""
    x, masked = jnp.asarray(x), jnp.asarray(z) == mask_id
    # Visible rows are replaced BEFORE the softmax: a -inf there would turn the gradient of `where` into NaN.
    logits = jnp.where(masked[..., None], mask_logits(logits, mask_id), 0.0)
    target = jnp.clip(x, 0, logits.shape[-1] - 1)
    chosen = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
    return jnp.where(masked, jax.nn.logsumexp(logits, -1) - chosen, 0.0)


def weight(t: Array | float, schedule: Schedule | str, steps: int | None = None) -> Array:
    """Loss weight at time t: -alpha'/(1-alpha), or T (m_t - m_s) / m_t with s = t - 1/T when `steps` = T is given."""
    schedule = schedules.resolve(schedule)
    if steps is None:
        return schedule.weight(t)
    mask = schedule.mask(t)
    return steps * (mask - schedule.mask(jnp.maximum(jnp.asarray(t) - 1 / steps, 0.0))) / mask


def token_loss(
    logits: Array, x: Array, z: Array, t: Array, schedule: Schedule | str, mask_id: int, steps: int | None = None
) -> Array:
    """Weighted loss per token; its sum over T estimates the NELBO of a sequence.

    Args:
      logits: [B, T, C].
      x: clean tokens [B, T].
      z: noised tokens [B, T].
      t: scalar, [B] or [B, T] in (0, 1]; with `steps` = T one of 1/T, 2/T, ..., 1.
      schedule: a schedule or its name.
      mask_id: the mask.
      steps: T of the T-step loss; None: continuous time.

    Returns:
      [B, T]: w(t) * -log p(x | z) at masked positions (MDLM eq. 10; MD4 eq. 5 and, with steps, its T-step form).
    """
    ce = cross_entropy(logits, x, z, mask_id)
    return per_token(weight(t, schedule, steps), ce) * ce


def d3pm_token_loss(logits: Array, x: Array, z: Array, t: Array, steps: int, mask_id: int) -> Array:
    """T-step loss of D3PM under alpha = 1 - t for a model that may give the mask a probability p_m: [B, T].

    As in MDLM: T 1[masked] {(dt/t)(log(alpha_t p_m/t + 1) - log p_x) + (1-dt/t)(log(alpha_t p_m/t + 1)
    - log(alpha_s p_m/(t-dt) + 1))}, dt = 1/T. Logits need the mask's column; with p_m = 0 it is -log p_x / t.
    """
    x, masked = jnp.asarray(x), jnp.asarray(z) == mask_id
    logits = jnp.asarray(logits)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), -1)
    p_mask = jnp.exp(log_p[..., mask_id])
    log_x = jnp.take_along_axis(log_p, x[..., None], -1)[..., 0]
    t, dt = per_token(t, x), 1 / steps
    s = t - dt
    now = jnp.log1p((1 - t) * p_mask / t)
    # At the first step s = 0 and its factor 1 - dt/t is 0; the quotient only has to stay finite.
    before = jnp.log1p((1 - s) * p_mask / jnp.where(s > dt / 2, s, 1.0))
    loss = dt / t * (now - log_x) + jnp.where(s > dt / 2, 1 - dt / t, 0.0) * (now - before)
    return jnp.where(masked, steps * loss, 0.0)


def corrupt(
    key: Array,
    x: Array,
    *,
    mask_id: int,
    schedule: Schedule | str = "linear",
    how: str = "bernoulli",
    times: str = "stratified",
    limits: tuple[float, float] = (0.0, 1.0),
    steps: int | None = None,
    frozen: Array | None = None,
) -> Corruption:
    """Masks a batch and gives each token its loss weight.

    Args:
      key: of the whole batch.
      x: [B, T].
      mask_id: the mask.
      schedule: a schedule or its name.
      how: "bernoulli" draws t per row and masks each token with m(t); "fixed_count" (LLaDA's likelihood form) masks a
        uniform subset of k ~ U{1..n} of the n free tokens, weight n/k: same mean, 29.7 -> 2.1 in variance on a toy.
      times: see `schedules.sample_times`.
      limits: range of t; the mean over it is returned, as in MDLM (loglinear, 1e-3..1) and LLaDA (linear, 1e-3..1),
        without the factor (high - low).
      steps: T of the T-step loss; None: continuous time.
      frozen: [B, T] bool, tokens that are neither masked nor scored: the prompt of supervised fine-tuning, padding.
    """
    schedule, x = schedules.resolve(schedule), jnp.asarray(x)
    batch, length = x.shape
    free = jnp.ones((batch, length), bool) if frozen is None else ~jnp.asarray(frozen)
    time_key, mask_key = jax.random.split(key)
    if how == "fixed_count":
        n = free.sum(-1)
        k = 1 + jnp.floor(jax.random.uniform(time_key, (batch,)) * n).astype(int)
        k = jnp.minimum(k, n)
        score = jnp.where(free, jax.random.uniform(mask_key, x.shape), 2.0)
        masked = (jnp.argsort(jnp.argsort(score, -1), -1) < k[:, None]) & free
        rate = jnp.where(n > 0, k / jnp.maximum(n, 1), 0.0)
        t, scale = schedule.time(rate), jnp.where(n > 0, n / jnp.maximum(k, 1), 0.0)
    elif how == "bernoulli":
        t = schedules.sample_times(time_key, batch, times, *limits)
        if steps is not None:
            t = jnp.ceil(t * steps) / steps
        masked = (jax.random.uniform(mask_key, x.shape) < schedule.mask(t)[:, None]) & free
        scale = weight(t, schedule, steps)
    else:
        raise ValueError(f"how={how!r} is unknown; use bernoulli or fixed_count")
    return Corruption(jnp.where(masked, mask_id, x), t, jnp.where(masked, scale[:, None], 0.0))


def corrupted_loss(logits: Array, x: Array, noised: Corruption, mask_id: int) -> Array:
    """Weighted loss per token [B, T] of a batch from `corrupt`; summed over T it estimates the NELBO in nats."""
    ce = cross_entropy(logits, x, noised.z, mask_id)
    return noised.weight.astype(ce.dtype) * ce


def nelbo(
    denoise: Denoiser,
    x: Array,
    key: Array,
    samples: int,
    vocab_size: int | None = None,
    mask_id: int | None = None,
    *,
    how: str = "fixed_count",
    **options,
) -> tuple[Array, Array]:
    """Estimated NELBO and its standard error, nats per sequence: [B], [B] (scalars for x of shape [T]).

    Each of `samples` draws is an independent `corrupt(..., how=how, **options)`; fixed counts need no clip of t and
    have by far the smaller variance (LLaDA appendix B.5). `mask_id` defaults to `vocab_size`. At least 2 samples.
    """
    mask_id = resolve_mask_id(vocab_size, mask_id)
    if samples < 2:
        raise ValueError(f"samples={samples} gives no standard error; use at least 2, for example 128")
    rows = jnp.atleast_2d(jnp.asarray(x))
    batch, draws, size = rows.shape[0], [], max(1, ROWS_PER_CALL // rows.shape[0])
    frozen = options.pop("frozen", None)
    for start in range(0, samples, size):
        count = min(size, samples - start)
        tiled = jnp.tile(rows, (count, 1))
        fixed = None if frozen is None else jnp.tile(jnp.atleast_2d(jnp.asarray(frozen)), (count, 1))
        # Times of one call are iid, or the standard error would not be that of independent draws.
        settings = {"times": "iid", **options, "frozen": fixed, "mask_id": mask_id, "how": how}
        noised = corrupt(jax.random.fold_in(key, start), tiled, **settings)
        loss = corrupted_loss(denoise(noised.z, noised.t), tiled, noised, mask_id)
        draws.append(loss.sum(-1).reshape(count, batch))
    draws = jnp.concatenate(draws)
    mean, error = draws.mean(0), draws.std(0, ddof=1) / math.sqrt(samples)
    return (mean[0], error[0]) if jnp.ndim(x) == 1 else (mean, error)


def set_weights(
    length: int, schedule: Schedule | str | None = None, steps: int | None = None, limits: tuple[float, float] = (0, 1)
) -> np.ndarray:
    """Weight c_k of one masked set of size k in the NELBO of a time-free model: float64 [length + 1], c_0 = 0.

    Continuous time over all mask rates gives c_k = (k-1)! (L-k)! / L!, the mean over random orders, whatever the
    schedule. A range of t (with its schedule) gives the integral of m^(k-1) (1-m)^(L-k) dm over its mask rates;
    `steps` = T gives sum_i (m_i - m_(i-1)) / m_i * m_i^k (1-m_i)^(L-k).
    """
    k = np.arange(1, length + 1)
    if steps is not None:
        rate = _mask_rates(schedule or "linear", np.linspace(0, 1, steps + 1))
        share = (rate[1:] - rate[:-1]) / rate[1:]
        terms = share[:, None] * rate[1:, None] ** k * (1 - rate[1:, None]) ** (length - k)
        return np.concatenate([[0.0], terms.sum(0)])
    low, high = _mask_rates(schedule or "linear", np.array(limits, float))
    if (low, high) == (0.0, 1.0):
        return np.array([0.0] + [1 / (n * math.comb(length, n)) for n in k])
    nodes, share = np.polynomial.legendre.leggauss(length // 2 + 1)  # exact: the integrand is a polynomial
    rate, share = low + (high - low) * (nodes + 1) / 2, share * (high - low) / 2
    return np.concatenate(
        [[0.0], (share[:, None] * rate[:, None] ** (k - 1) * (1 - rate[:, None]) ** (length - k)).sum(0)]
    )


def nelbo_exact(
    denoise: Denoiser,
    x: Array,
    vocab_size: int | None = None,
    mask_id: int | None = None,
    *,
    schedule: Schedule | str | None = None,
    steps: int | None = None,
    limits: tuple[float, float] = (0, 1),
) -> Array:
    """NELBO by summing over all 2^L - 1 masked sets, nats per sequence: [B] for x [B, L], a scalar for [L].

    sum over S of c_|S| sum_{l in S} -log p(x_l | x masked at S), with c of `set_weights`; without schedule, steps or
    limits this is the continuous-time bound, the same for every schedule. The denoiser must not depend on t (it is
    given |S|/L). A clipped schedule covers only its own mask rates: add `boundary` for the rest.
    """
    mask_id, rows = resolve_mask_id(vocab_size, mask_id), jnp.atleast_2d(jnp.asarray(x))
    total = sum_over_sets(denoise, rows, mask_id, set_weights(rows.shape[1], schedule, steps, limits))
    return total[0] if jnp.ndim(x) == 1 else total


def sum_over_sets(denoise: Denoiser, x: Array, mask_id: int, weights: np.ndarray, region: range | None = None) -> Array:
    """sum over nonempty S within `region` of weights[|S|] sum_{l in S} -log p(x_l | x masked at S): [B].

    Positions after the region stay masked and unscored, those before it visible; without a region all are in.
    """
    x = np.asarray(x)
    batch, length = x.shape
    region = range(length) if region is None else region
    if len(region) > 20:
        raise ValueError(f"{len(region)} tokens have 2^{len(region)} masked sets; enumerate at most 20, or use nelbo()")
    sets = np.array([s for s in itertools.product([False, True], repeat=len(region)) if any(s)])
    scored = np.zeros((len(sets), length), bool)
    scored[:, region.start : region.stop] = sets
    hidden = scored.copy()
    hidden[:, region.stop :] = True
    total, size = 0.0, max(1, ROWS_PER_CALL // batch)
    # Plain numpy in float64: every set size would be another shape to compile, and any callable will do.
    for start in range(0, len(sets), size):
        part, mask = scored[start : start + size, None], hidden[start : start + size, None]
        z = np.where(mask, mask_id, x[None]).reshape(-1, length)
        t = np.repeat(mask.mean((1, 2)), batch)
        logits = np.array(denoise(jnp.asarray(z), jnp.asarray(t, jnp.result_type(float))), np.float64)
        logits[..., mask_id:][..., :1] = -np.inf
        logits = logits.reshape(len(part), batch, length, -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            top = logits.max(-1, keepdims=True)
            norm = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
            ce = norm - np.take_along_axis(logits, np.broadcast_to(x[None, ..., None], (*norm.shape, 1)), -1)[..., 0]
        total = total + (weights[part.sum(-1)][..., None] * np.where(part, ce, 0.0)).sum((0, 2))
    return jnp.asarray(total)


def boundary(schedule: Schedule | str, length: int, vocab_size: int) -> tuple[float, float]:
    """What a clipped schedule leaves out, in nats: reconstruction L m(0) log V, and prior L alpha(1) log V.

    The first is MD4's constant for tokens already masked at t = 0 guessed uniformly; MD4 adds it and drops the second.
    """
    low, high = _mask_rates(schedule, np.array([0.0, 1.0]))
    return float(length * low * math.log(vocab_size)), float(length * (1 - high) * math.log(vocab_size))


def bits_per_token(nats: Array | float, tokens: Array | float) -> Array | float:
    """Bits per token (or per byte, per character: whatever `tokens` counts) of a total in nats."""
    return nats / (tokens * math.log(2))


def perplexity(nats: Array | float, tokens: Array | float) -> Array | float:
    """exp(nats / tokens)."""
    return jnp.exp(nats / tokens)


def _mask_rates(schedule: Schedule | str, t: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(schedules.resolve(schedule).mask(jnp.asarray(t, jnp.float64)))


def resolve_mask_id(vocab_size: int | None, mask_id: int | None) -> int:
    """The mask's id: `mask_id`, or `vocab_size` where that is None."""
    if mask_id is None and vocab_size is None:
        raise ValueError("mask_id=None needs vocab_size to stand in for it, for example vocab_size=256")
    return vocab_size if mask_id is None else mask_id
