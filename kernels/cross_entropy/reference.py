"""The specification: logits of a linear head, their log-partition, and the negative log-likelihood of the targets."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Options(NamedTuple):
    """The static part of a call: see `kernels.cross_entropy.cross_entropy`."""

    z_loss: float = 0.0
    scale: float = 1.0
    softcap: float = 0.0


class Rows(NamedTuple):
    """What the gradient of a token's logits l_v is made of: mass e^(l_v - log_z) - weight at the target.

    Arrays `[M]`; weight is the token's weight w, mass w (1 + 2 z_loss log_z).
    """

    log_z: jax.Array
    mass: jax.Array
    weight: jax.Array


def rows_of(log_z: jax.Array, weights: jax.Array, z_loss: float) -> Rows:
    """`Rows` of tokens with log-partitions and weights `[M]`."""
    weights = weights.astype(log_z.dtype)
    return Rows(log_z, weights * (1 + 2 * z_loss * log_z), weights)


def statistics(
    features: jax.Array, head: jax.Array, targets: jax.Array, *, scale: float = 1.0, softcap: float = 0.0
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, Callable]]:
    """`(nll [M], log_z [M], (logits [M, V], vjp))` of features `[M, D]`, head `[V, D]`, targets `[M]`.

    `vjp` maps a gradient of the shaped logits to one of the raw products (scale and softcap undone).
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    raw = jnp.einsum("md,vd->mv", features, head.astype(features.dtype), preferred_element_type=dtype)
    logits, vjp = jax.vjp(lambda raw: shape_logits(raw, scale, softcap), raw)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return log_z - at_target, log_z, (logits, vjp)


def shape_logits(logits: jax.Array, scale: float, softcap: float) -> jax.Array:
    """`scale * logits`, then `cap * tanh(. / cap)` when a cap is set (Gemma 2)."""
    if scale != 1.0:
        logits = logits * scale
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
