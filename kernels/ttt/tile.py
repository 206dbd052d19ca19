"""A mini-batch of one head in two dimensions: what the kernels compute, and whose `jax.vjp` they run.

The same formulas as `reference.gradients`, `read` and `update`, which have them for all heads at once.
"""

import jax
import jax.numpy as jnp

from kernels.tiles import column, last, places, product
from kernels.ttt.reference import EPSILON

Norm = tuple[jax.Array, jax.Array]
Layers = tuple[tuple[jax.Array, jax.Array], ...]  # (w [H, F], b [1, F]) of each map


def _standardise(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred / std, std


def _gelu(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tanh form of gelu, and its slope."""
    c, k = 0.7978845608028654, 0.044715  # c = sqrt(2 / pi)
    t = jnp.tanh(c * z * (1 + k * z * z))
    half = 0.5 * (1 + t)
    return z * half, half + 0.5 * c * z * (1 - t * t) * (1 + 3 * k * z * z)


def _steps(low: jnp.dtype, layers: Layers, norm: Norm, k: jax.Array, v: jax.Array) -> list:
    """(input, gradient of the output) of each map at every token."""
    x, inputs, outputs, slopes = k, [], [], []
    for w, b in layers:
        if outputs:
            x, slope = _gelu(outputs[-1])
            slopes.append(slope)
        inputs.append(x)
        outputs.append(product(x, w, "nn", low) + b)
    hat, std = _standardise(outputs[-1])
    error = (norm[0] * hat + norm[1] - (v - k)) * norm[0]
    mean = lambda x: jnp.mean(x, axis=-1, keepdims=True)  # noqa: E731
    grads = [(error - mean(error) - hat * mean(error * hat)) / std]
    for (w, _), slope in zip(reversed(layers[1:]), reversed(slopes), strict=True):
        grads.insert(0, product(grads[0], w, "nt", low) * slope)
    return list(zip(inputs, grads, strict=True))


def mini_batch(
    low: jnp.dtype, layers: Layers, norm: Norm, rate: jax.Array, tokens: tuple[jax.Array, ...]
) -> tuple[jax.Array, Layers]:
    """(out `[K, H]`, the maps after the mini-batch).

    Everything is in the accumulator's type; products round to `low`.

    norm: scale and shift `[1, H]`.
    rate: `[1, K]`.
    tokens: q, k, v `[K, H]` and eta `[1, K]`.
    """
    q, k, v, eta = tokens
    steps = _steps(low, layers, norm, k, v)
    i, j = places(rate.shape[1])
    pairs = jnp.where(i >= j, column(rate) * eta, 0)
    weight, x, after = column(last(rate) * eta), q, []
    for number, ((w, b), (keys, grads)) in enumerate(zip(layers, steps, strict=True)):
        x = _gelu(x)[0] if number else x
        match = (product(x, keys, "nt", low) + 1) * pairs  # the 1 is the bias
        x = product(x, w, "nn", low) + b - product(match, grads, "nn", low)
        moved = grads * weight
        after.append((w - product(keys, moved, "tn", low), b - jnp.sum(moved, axis=0, keepdims=True)))
    return q + norm[0] * _standardise(x)[0] + norm[1], tuple(after)
