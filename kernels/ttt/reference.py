"""The inner model of TTT-Linear and TTT-MLP, its gradient, and the dual form of one mini-batch. Plain jnp.

The inner model is f(k) = k + LN(z(k)) with z one linear map (TTT-Linear) or two with gelu between (TTT-MLP), trained on
1/2 ||LN(z(k)) - (v - k)||^2 per token. All gradients of a mini-batch are taken at its first weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.lact.reference import product

EPSILON = 1e-6

# One (w [B, N, H, F], b [B, N, F]) per linear map of the inner model.
Layers = tuple[tuple[jax.Array, jax.Array], ...]


class TTTParams(NamedTuple):
    """Parameters of the inner model.

    layers: one (w `[B|1, N, H, F]`, b `[B|1, N, F]`) for TTT-Linear (F = H), for TTT-MLP also (w `[B|1, N, F, H]`,
        b `[B|1, N, H]`); row vectors, x w + b.
    scale, shift: `[N, H]`, of the layer norm.
    position: `[K]`, learned offset to the rate 1/(i+1) at place i of a mini-batch of K, or None for no offset.
    """

    layers: Layers
    scale: jax.Array
    shift: jax.Array
    position: jax.Array | None = None


def rates(params: TTTParams, mini_batch: int, dtype: jnp.dtype) -> jax.Array:
    """`[K]`: max(0, 1/(i+1) + position_i), how much of every earlier token's step token i applies."""
    base = 1 / jnp.arange(1, mini_batch + 1, dtype=dtype)
    return base if params.position is None else jnp.maximum(0, base + params.position.astype(dtype))


def _standardise(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(z minus its mean) / std over the last axis, and the std; biased variance."""
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + EPSILON)
    return centred / std, std


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def gradients(layers: Layers, norm: tuple[jax.Array, jax.Array], k: jax.Array, v: jax.Array) -> tuple:
    """Per linear map (input x `[B, C, N, H]`, d loss / d output G `[B, C, N, F]`) of every token, at these weights.

    Token j's gradient of that map's w is x_j^T G_j, and of its b is G_j.
    """
    dtype, wide = jnp.result_type(k, v), layers[0][0].dtype
    x, inputs, outputs = k.astype(wide), [], []
    for w, b in layers:
        if outputs:
            x = _gelu(outputs[-1])
        inputs.append(x)
        outputs.append(product("bcnh,bnhf->bcnf", x, w, dtype) + b[:, None])
    hat, std = _standardise(outputs[-1])
    scale, shift = norm
    error = (scale * hat + shift - (v.astype(wide) - k.astype(wide))) * scale
    mean = lambda x: jnp.mean(x, axis=-1, keepdims=True)  # noqa: E731
    grads = [(error - mean(error) - hat * mean(error * hat)) / std]
    for (w, _), z in zip(reversed(layers[1:]), reversed(outputs[:-1]), strict=True):
        back = product("bcnf,bnhf->bcnh", grads[0], w, dtype)
        _, pull = jax.vjp(_gelu, z)
        grads.insert(0, pull(back)[0])
    return tuple(zip(inputs, grads, strict=True))


def read(
    layers: Layers, norm: tuple[jax.Array, jax.Array], q: jax.Array, steps: tuple, eta: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """q + LN(z(q)) where query i sees each map moved by - sum_j eta_ij x_j^T G_j: matmuls only (the dual form).

    q `[B, C, N, H]`; steps: (x, G) per map of S tokens; eta `[B, N, C, S]`, 0 where j is not yet learned from.
    """
    x = q.astype(layers[0][0].dtype)
    for i, ((w, b), (keys, grads)) in enumerate(zip(layers, steps, strict=True)):
        x = _gelu(x) if i else x
        match = (product("bcnh,bsnh->bncs", x, keys, dtype) + 1) * eta  # the 1 is the bias
        moved = product("bncs,bsnf->bcnf", match, grads, dtype)
        x = product("bcnh,bnhf->bcnf", x, w, dtype) + b[:, None] - moved
    return q.astype(x.dtype) + norm[0] * _standardise(x)[0] + norm[1]


def update(layers: Layers, steps: tuple, eta: jax.Array, dtype: jnp.dtype) -> Layers:
    """The weights after a mini-batch: each map minus sum_j eta_j x_j^T G_j, eta `[B, C, N]`."""
    moved = []
    for (w, b), (keys, grads) in zip(layers, steps, strict=True):
        weighed = grads * eta[..., None]
        moved.append((w - product("bcnh,bcnf->bnhf", keys, weighed, dtype), b - jnp.sum(weighed, axis=1)))
    return tuple(moved)
