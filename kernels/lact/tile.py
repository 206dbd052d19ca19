"""LaCT's network on a tile of tokens and of hidden units, in two dimensions: what the kernels of every chip compute.

Both functions are sums over hidden units or fall apart along them, so a kernel may take some units at a time; their
`jax.vjp` are the backward kernels.
"""

import jax
import jax.numpy as jnp

from kernels.tiles import column, product


def applied(low: jnp.dtype, x: jax.Array, w0: jax.Array, w1: jax.Array, w2: jax.Array) -> jax.Array:
    """`reference.apply_fast_weights` of a tile x `[c, H]`, one head: the sum over the hidden units of the weights."""
    gate, up = product(x, w0, "nt", low), product(x, w2, "nt", low)
    return product(gate * jax.nn.sigmoid(gate) * up, w1, "nt", low)


def learned(low: jnp.dtype, k: jax.Array, v: jax.Array, lr: tuple, w0: jax.Array, w1: jax.Array, w2: jax.Array):
    """`reference.fast_weight_gradient` of a tile k, v `[c, H]`, lr three of `[1, c]`, one head.

    The gradients of some hidden units need the weights of these alone.
    """
    lr0, lr1, lr2 = map(column, lr)
    gate, up, d_hidden = product(k, w0, "nt", low), product(k, w2, "nt", low), product(v, w1, "nn", low)
    sigma = jax.nn.sigmoid(gate)
    act = gate * sigma
    d_gate = d_hidden * up * sigma * (1 + gate * (1 - sigma))
    d0 = product(lr0 * d_gate, k, "tn", low)
    d1 = product(v, lr1 * (act * up), "tn", low)
    return d0, d1, product(lr2 * (d_hidden * act), k, "tn", low)
