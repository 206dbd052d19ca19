"""In-context vectors: demonstrations as one direction per layer that is added to every token's state.

u_l is the first principal direction of the differences between the states of targets and of inputs, in layer l (Liu et
al. 2023, arXiv:2311.06668, whose released form keeps the length of the state; the paper "Efficient Knowledge Feeding",
arXiv:2508.05234, adds lam u).
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def direction(inputs: Array, targets: Array) -> Array:
    """First right singular vector of targets - inputs less their mean over demonstrations, `[L, D]`: `[N, L, D]` each.

    Its sign is such that the mean difference points along it; one demonstration gives its own direction. Length 1.
    """
    change = jnp.moveaxis(jnp.asarray(targets) - inputs, 0, 1)  # [L, N, D]
    mean = jnp.mean(change, axis=1)
    centred = change - mean[:, None] if change.shape[1] > 1 else change
    first = jnp.linalg.svd(centred, full_matrices=False)[2][:, 0]
    sign = jnp.where(jnp.sum(first * mean, axis=-1, keepdims=True) < 0, -1.0, 1.0)
    return sign * first


def released_direction(inputs: Array, targets: Array) -> Array:
    """The released direction `[L, D]`: mean plus first principal direction of targets - inputs, all layers as one
    vector: `[N, L, D]` each.

    The sign of the principal direction is such that its largest score (in size) among the demonstrations is positive.
    """
    N, L, D = jnp.shape(inputs)
    change = jnp.reshape(jnp.asarray(targets) - inputs, (N, L * D))
    mean = jnp.mean(change, axis=0)
    scores, _, directions = jnp.linalg.svd(change - mean, full_matrices=False)
    sign = jnp.sign(scores[jnp.argmax(jnp.abs(scores[:, 0])), 0])
    return jnp.reshape(sign * directions[0] + mean, (L, D))


def unit(x: Array) -> Array:
    """x over its length, along the last axis; zeros stay."""
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(length > 0, length, 1)


def added(h: Array, u: Array, strength: Array | float) -> Array:
    """h + strength u: states `[..., D]`, direction `[D]`; 0 changes nothing."""
    return h + strength * u


def released(h: Array, u: Array, strength: Array | float) -> Array:
    """|h| unit(unit(h) + strength (1 + max(0, cos(h, -u))) unit(u)), which keeps the length of the state: `[..., D]`.

    0 gives h exactly.
    """
    h = jnp.asarray(h)
    along = jnp.sum(unit(h) * unit(-u), axis=-1, keepdims=True)
    push = strength * (1 + jnp.maximum(0, along)) * unit(u)
    moved = jnp.linalg.norm(h, axis=-1, keepdims=True) * unit(unit(h) + push)
    return jnp.where(jnp.asarray(strength) == 0, h, moved)
