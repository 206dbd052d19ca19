"""MrT5: a gate that deletes bytes, softly in training, truly afterwards (Kallini et al. 2025, arXiv:2410.20771)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


def rms_norm(hidden: jax.Array, scale: jax.Array, eps: float = 1e-6) -> jax.Array:
    """hidden / sqrt(mean hidden^2 + eps) * scale, `[..., D]`."""
    return hidden * jax.lax.rsqrt(jnp.mean(jnp.square(hidden), axis=-1, keepdims=True) + eps) * scale


def gate_logits(hidden: jax.Array, scale: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """w . rms(hidden) + b, `[...]`; hidden `[..., D]`, scale and weight `[D]`. Kept where large."""
    return rms_norm(hidden, scale) @ weight + bias


def gate(logits: jax.Array, k: float = -30.0, padding: jax.Array | None = None) -> jax.Array:
    """G = k sigmoid(-logits), between k (deleted) and 0 (kept), `[...]`; G = k where `padding` is true.

    k is -30 in the paper, -10 by default in the released code.
    """
    values = k * jax.nn.sigmoid(-logits)
    return values if padding is None else jnp.where(padding, jnp.asarray(k, values.dtype), values)


def soft_delete(scores: jax.Array, gates: jax.Array) -> jax.Array:
    """Attention logits `[B, N, T, S]` with each key's gate `[B, S]` added."""
    return scores + gates[:, None, None, :]


def softmax1(logits: jax.Array) -> jax.Array:
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last axis: all keys may be left alone."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - top)
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + jnp.exp(-top))


class Kept(NamedTuple):
    """Rows packed to the left after deletion."""

    index: jax.Array  # [B, S] old place of each kept byte; 0 beyond the last
    mask: jax.Array  # [B, S] added to logits: 0 where a byte stands, -1e9 beyond the last
    count: jax.Array  # [B]


def hard_delete(gates: jax.Array, threshold: float, length: int | None = None) -> Kept:
    """Keeps the bytes whose gate is ABOVE `threshold` (k / 2: logits above 0), in order.

    Args:
      gates: `[B, T]`.
      threshold: of the gate's value.
      length: S, columns of the result; None: T. The released code takes the longest row. Bytes beyond S are cut off.
    """
    keep = gates > threshold
    S = gates.shape[1] if length is None else length
    order = jnp.argsort(jnp.where(keep, 0, 1), axis=1, stable=True)[:, :S]
    count = jnp.sum(keep, axis=1)
    valid = jnp.arange(S) < count[:, None]
    return Kept(jnp.where(valid, order, 0), jnp.where(valid, 0.0, -1e9), count)


def gather(rows: jax.Array, index: jax.Array) -> jax.Array:
    """`rows [B, T, ...]` at `index [B, S]`, `[B, S, ...]`."""
    return jnp.take_along_axis(rows, index.reshape(*index.shape, *(1,) * (rows.ndim - 2)), axis=1)


def gate_mean_loss(gates: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of G over the bytes of `mask [B, T]`: the lower, the more is deleted."""
    return jnp.sum(jnp.where(mask, gates, 0)) / jnp.sum(mask)


def logits_mean_loss(logits: jax.Array, mask: jax.Array, least: float | None = None) -> jax.Array:
    """Mean of the gate's logits over the bytes of `mask`, from below cut at `least` (released: 2 * threshold)."""
    logits = logits if least is None else jnp.maximum(logits, least)
    return jnp.sum(jnp.where(mask, logits, 0)) / jnp.sum(mask)


def gate_variance_loss(gates: jax.Array, mask: jax.Array) -> jax.Array:
    """-variance (divisor n - 1) of G over the bytes of `mask`."""
    count = jnp.sum(mask)
    mean = jnp.sum(jnp.where(mask, gates, 0)) / count
    return -jnp.sum(jnp.where(mask, jnp.square(gates - mean), 0)) / (count - 1)


def gate_entropy(log_keep: jax.Array) -> jax.Array:
    """-(p log p + (1 - p) log(1 - p)) of p = exp(log_keep), 1 - p from below cut at float eps, as released; `[...]`."""
    p = jnp.exp(log_keep)
    eps = jnp.finfo(p.dtype).eps
    return -(p * log_keep + (1 - p) * jnp.log1p(-jnp.minimum(p, 1 - eps)))


def entropy_terms(log_keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean over bytes of a byte's entropy, entropy of the mean over bytes), `[B]` each; log_keep `[B, T]`."""
    T = log_keep.shape[1]
    mean = jax.nn.logsumexp(log_keep, axis=1) - jnp.log(T)
    return jnp.mean(gate_entropy(log_keep), axis=1), gate_entropy(mean)


def deleted_share(gates: jax.Array, threshold: float, mask: jax.Array) -> jax.Array:
    """Share of the bytes of `mask` whose gate is BELOW `threshold`."""
    return jnp.sum((gates < threshold) & mask) / jnp.sum(mask)


def scores_loss(scores: jax.Array, least: float = 5.0) -> jax.Array:
    """mean(max(scores, least)) - least: attention logits above 5 are what it costs to outweigh a gate."""
    return jnp.mean(jnp.maximum(scores, least)) - least


class Controller(NamedTuple):
    """What the coefficient of the gate's loss has gathered."""

    proportional: float | jax.Array = 0.0
    integral: float | jax.Array = 0.0


def pi_controller(
    state: Controller, target: float, rate: float, p: float = 0.5, i: float = 1e-5
) -> tuple[Controller, jax.Array]:
    """(new state, coefficient): e = target - rate; P <- 0.9 P + 0.1 p e; I <- I + i e; max(0, P + I)."""
    error = target - rate
    state = Controller(0.9 * state.proportional + 0.1 * p * error, state.integral + i * error)
    return state, jnp.maximum(0.0, state.proportional + state.integral)


def i_controller(coefficient: float, target: float, rate: float, i: float = 1e-5) -> jax.Array:
    """max(0, coefficient + i (target - rate))."""
    return jnp.maximum(0.0, coefficient + i * (target - rate))
