"""An all-gather made of transfers between pairs of devices, which a TPU sends beside other work.

Its compiler runs an all-gather in steps of a fusion that it can share with a matmul, never with a kernel: the kernel
waits for all of it, and a scatter whose parts are no multiple of 128 lanes becomes a sum on every device, at twice the
bytes. A permute is a copy that any work may run beside: on at most `MOST` chips between any two of them, so that all
pieces leave at once and one kernel can hide them; on more chips between neighbours alone, so that pieces go round a
ring in both directions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 16  # chips; of v5e:8x8's compiler, between others than neighbours nothing runs beside anything else.


def ring(mesh: Any, axis_name: str) -> bool:
    """Whether each device of every row along the axis lies beside the next one, and the last beside the first."""
    rows = np.moveaxis(mesh.devices, list(mesh.axis_names).index(axis_name), -1).reshape(-1, mesh.shape[axis_name])
    if not hasattr(rows[0, 0], "coords"):
        return False
    places = np.array([[device.coords for device in row] for row in rows])
    return bool((np.abs(places - np.roll(places, 1, axis=1)).sum(-1) <= 1).all())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def all_gather(x: jax.Array, axis_name: str, dimension: int, ways: int) -> jax.Array:
    """`jax.lax.all_gather(x, axis_name, axis=dimension, tiled=True)` inside `jax.shard_map`: all pieces at once.

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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def ring_gather(x: jax.Array, axis_name: str, dimension: int, ways: int) -> jax.Array:
    """The same between neighbours: each sends on what it was sent, ways // 2 times, in both directions.

    In the reduce-scatter sums go round, in float32 or wider: twice the bytes of a bfloat16 gradient.
    """
    width, mine = x.shape[dimension], jax.lax.axis_index(axis_name)
    whole = jnp.zeros((*x.shape[:dimension], ways * width, *x.shape[dimension + 1 :]), x.dtype)
    put = lambda whole, piece, of: jax.lax.dynamic_update_slice_in_dim(whole, piece, of % ways * width, dimension)  # noqa: E731
    whole, ahead, back = put(whole, x, mine), x, x
    for step in range(1, ways // 2 + 1):
        ahead = jax.lax.ppermute(ahead, axis_name, _ahead(ways, 1))
        whole = put(whole, ahead, mine - step)
        if step <= (ways - 1) // 2:  # Of an even ring the device on the other side is met once.
            back = jax.lax.ppermute(back, axis_name, _ahead(ways, -1))
            whole = put(whole, back, mine + step)
    return whole


def _ring_forward(x: jax.Array, axis_name: str, dimension: int, ways: int) -> tuple[jax.Array, None]:
    return ring_gather(x, axis_name, dimension, ways), None


def _ring_backward(axis_name: str, dimension: int, ways: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    width, mine = gradient.shape[dimension] // ways, jax.lax.axis_index(axis_name)
    wide = jnp.promote_types(gradient.dtype, jnp.float32)

    def piece(of: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(gradient, of % ways * width, width, dimension).astype(wide)

    total = piece(mine)
    for way, far in ((1, ways // 2), (-1, (ways - 1) // 2)):  # The sum for a device begins `far` places from it.
        moved = piece(mine + way * far) if far else jnp.zeros_like(total)
        for left in range(far - 1, -1, -1):
            moved = jax.lax.ppermute(moved, axis_name, _ahead(ways, way))
            moved += piece(mine + way * left) if left else 0
        total += moved
    return (total.astype(gradient.dtype),)


ring_gather.defvjp(_ring_forward, _ring_backward)


def _ahead(ways: int, step: int) -> list[tuple[int, int]]:
    """Each device with the one `step` places ahead of it."""
    return [(rank, (rank + step) % ways) for rank in range(ways)]
