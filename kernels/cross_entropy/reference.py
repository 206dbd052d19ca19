"""The specification: logits of a linear head, their log-partition, and the negative log-likelihood of the targets."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


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
