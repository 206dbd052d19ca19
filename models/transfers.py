"""An all-gather made of transfers between pairs of devices, which a TPU sends beside other work.

Its compiler runs an all-gather in steps of a fusion that it can share with a matmul, never with a kernel: the kernel
waits for all of it, and a scatter whose parts are no multiple of 128 lanes becomes a sum on every device, at twice the
bytes. A permute is a copy that any work may run beside. All pieces leave at once, so that one kernel can hide them.
"""

import functools

import jax
import jax.numpy as jnp

MOST = 16  # devices; of 63 transfers at once or in two stages the compiler hid 2 and 14 %.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def all_gather(x: jax.Array, axis_name: str, dimension: int, ways: int) -> jax.Array:
    """`jax.lax.all_gather(x, axis_name, axis=dimension, tiled=True)` inside `jax.shard_map`.

    Its gradient is the reduce-scatter, which sends as many bytes and adds in float32, or in x's type where that is
    wider.

    Args:
      x: each device's own part.
      axis_name: the mesh axis that the devices lie along.
      dimension: of x, along which parts are put together in the order of the devices.
      ways: devices along the axis.
    """
    width, mine = x.shape[dimension], jax.lax.axis_index(axis_name)
    whole = jnp.zeros((*x.shape[:dimension], ways * width, *x.shape[dimension + 1 :]), x.dtype)
    for step in range(ways):
        piece = jax.lax.ppermute(x, axis_name, _ahead(ways, step)) if step else x
        whole = jax.lax.dynamic_update_slice_in_dim(whole, piece, (mine - step) % ways * width, dimension)
    return whole


def _forward(x: jax.Array, axis_name: str, dimension: int, ways: int) -> tuple[jax.Array, None]:
    return all_gather(x, axis_name, dimension, ways), None


def _backward(axis_name: str, dimension: int, ways: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    width, mine = gradient.shape[dimension] // ways, jax.lax.axis_index(axis_name)
    total = 0.0
    for step in range(ways):
        piece = jax.lax.dynamic_slice_in_dim(gradient, (mine + step) % ways * width, width, dimension)
        piece = jax.lax.ppermute(piece, axis_name, _ahead(ways, step)) if step else piece
        total += piece.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return (total.astype(gradient.dtype),)


all_gather.defvjp(_forward, _backward)


def _ahead(ways: int, step: int) -> list[tuple[int, int]]:
    """Each device with the one `step` places ahead of it."""
    return [(rank, (rank + step) % ways) for rank in range(ways)]
