"""Cross-entropy of a linear head that never holds `[tokens, V]` in float32 when that is large.

Letters: M tokens, D width, V vocabulary. The training form computes the gradients of features and head in the forward
pass, chunk by chunk, so that no logits are kept or recomputed (the idea of Liger Kernel's fused linear cross-entropy,
Hsu et al. 2024; written here for XLA).
"""

import functools

import jax
import jax.numpy as jnp

from kernels.cross_entropy import reference

MAX_LOGITS = 1 << 25  # Elements of one chunk of logits: 128 MiB in float32.


def token_nll(
    features: jax.Array, head: jax.Array, targets: jax.Array, *, scale: float = 1.0, softcap: float = 0.0
) -> jax.Array:
    """Negative log-likelihood of every token, in nats, chunk by chunk.

    Args:
      features: `[M, D]`.
      head: `[V, D]`.
      targets: `[M]` ids in 0..V-1.
      scale: multiplies the logits.
      softcap: `cap * tanh(logits / cap)`; 0 = off.

    Returns:
      `[M]` float32 (float64 for float64 features).
    """
    chunks = _chunks(features, targets, num_classes=head.shape[0])
    nll = jax.lax.map(lambda c: reference.statistics(c[0], head, c[1], scale=scale, softcap=softcap)[0], chunks)
    return nll.reshape(-1)[: targets.shape[0]]


def cross_entropy(
    features: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """`sum_i weights_i (nll_i + z_loss log(Z_i)^2)`, differentiable in features and head.

    Args:
      features: `[M, D]`.
      head: `[V, D]`.
      targets: `[M]` ids in 0..V-1 (any value where the weight is 0).
      weights: `[M]` not differentiated.
      z_loss: weight of the squared log-partition (PaLM, Chowdhery et al. 2022, section 5).
      scale: multiplies the logits.
      softcap: `cap * tanh(logits / cap)`; 0 = off.

    Returns:
      The weighted sum, and without gradient `sum_i weights_i nll_i`; both float32 (float64 for float64 features).
    """
    options = (float(z_loss), float(scale), float(softcap))
    return _cross_entropy(features, head, targets, jax.lax.stop_gradient(weights), options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(features, head, targets, weights, options):
    z_loss, scale, softcap = options

    def chunk(total, inputs):
        x, y, w = inputs
        nll, log_z, _ = reference.statistics(x, head, y, scale=scale, softcap=softcap)
        return (total[0] + jnp.sum(w * (nll + z_loss * log_z**2)), total[1] + jnp.sum(w * nll)), None

    zero = jnp.zeros((), jnp.promote_types(features.dtype, jnp.float32))
    return jax.lax.scan(chunk, (zero, zero), _chunks(features, targets, weights, num_classes=head.shape[0]))[0]


def _forward(features, head, targets, weights, options):
    z_loss, scale, softcap = options
    dtype = jnp.promote_types(features.dtype, jnp.float32)

    def chunk(carry, inputs):
        loss, sum_nll, d_head = carry
        x, y, w = inputs
        nll, log_z, (logits, shape_vjp) = reference.statistics(x, head, y, scale=scale, softcap=softcap)
        probabilities = jnp.exp(logits - log_z[:, None])
        hit = jax.lax.broadcasted_iota(y.dtype, logits.shape, 1) == y[:, None]
        d_logits = w[:, None] * (probabilities * (1 + 2 * z_loss * log_z[:, None]) - hit)
        (d_logits,) = shape_vjp(d_logits)
        d_logits = d_logits.astype(x.dtype)
        d_x = jnp.einsum("mv,vd->md", d_logits, head.astype(x.dtype), preferred_element_type=dtype)
        d_head = d_head + jnp.einsum("mv,md->vd", d_logits, x, preferred_element_type=dtype)
        loss = loss + jnp.sum(w * (nll + z_loss * log_z**2))
        return (loss, sum_nll + jnp.sum(w * nll), d_head), d_x.astype(x.dtype)

    chunks = _chunks(features, targets, weights, num_classes=head.shape[0])
    zero = jnp.zeros((), dtype)
    carry = (zero, zero, jnp.zeros(head.shape, dtype))
    if chunks[0].shape[0] == 1:
        carry, d_features = chunk(carry, jax.tree.map(lambda c: c[0], chunks))
    else:
        carry, d_features = jax.lax.scan(chunk, carry, chunks)
    loss, sum_nll, d_head = carry
    d_features = d_features.reshape(-1, features.shape[-1])[: features.shape[0]]
    return (loss, sum_nll), (d_features, d_head.astype(head.dtype))


def _backward(options, residuals, cotangents):
    d_features, d_head = residuals
    g = cotangents[0]
    return (g * d_features).astype(d_features.dtype), (g * d_head).astype(d_head.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _chunks(*arrays: jax.Array, num_classes: int) -> tuple[jax.Array, ...]:
    """Cuts `[M, ...]` arrays into `[chunks, m, ...]` with m * V <= MAX_LOGITS; padding has weight and target 0."""
    M = arrays[0].shape[0]
    count = max(1, -(-M * num_classes // MAX_LOGITS))
    size = -(-M // count)
    pad = count * size - M
    return tuple(jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(count, size, *a.shape[1:]) for a in arrays)
