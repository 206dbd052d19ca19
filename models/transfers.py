"""An all-gather made of transfers between pairs of devices, which a TPU sends beside other work.

Its compiler runs an all-gather in steps of a fusion that it can share with a matmul, never with a kernel: the kernel
waits for all of it, and a scatter whose parts are no multiple of 128 lanes becomes a sum on every device, at twice the
bytes. A permute is a copy that any work may run beside. All pieces leave at once, so that one kernel can hide them.
"""

import functools
import math

import jax
import jax.numpy as jnp

AT_ONCE = 16  # More devices than this are gathered in two stages of fewer transfers, of the same bytes.


def stages(ways: int) -> tuple[tuple[int, int], ...]:
    """(stride, size) of each stage that gathers over `ways` devices: those a multiple of the stride apart take part."""
    inner = max(n for n in range(1, math.isqrt(ways) + 1) if ways % n == 0)
    if ways <= AT_ONCE or inner == 1:
        return ((1, ways),)
    return ((1, inner), (inner, ways // inner))


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
    for stage in stages(ways):
        x = _gathered(x, axis_name, dimension, ways, *stage)
    return x


def _forward(x: jax.Array, axis_name: str, dimension: int, ways: int) -> tuple[jax.Array, None]:
    return all_gather(x, axis_name, dimension, ways), None


def _backward(axis_name: str, dimension: int, ways: int, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    for stage in reversed(stages(ways)):
        gradient = _scattered(gradient, axis_name, dimension, ways, *stage)
    return (gradient,)


all_gather.defvjp(_forward, _backward)


def _gathered(x: jax.Array, axis_name: str, dimension: int, ways: int, stride: int, size: int) -> jax.Array:
    """The parts of the `size` devices that lie `stride` apart, in their order."""
    width, mine = x.shape[dimension], jax.lax.axis_index(axis_name) // stride % size
    whole = jnp.zeros((*x.shape[:dimension], size * width, *x.shape[dimension + 1 :]), x.dtype)
    for step in range(size):
        piece = jax.lax.ppermute(x, axis_name, _ahead(ways, stride, size, step)) if step else x
        whole = jax.lax.dynamic_update_slice_in_dim(whole, piece, (mine - step) % size * width, dimension)
    return whole


def _scattered(x: jax.Array, axis_name: str, dimension: int, ways: int, stride: int, size: int) -> jax.Array:
    """This device's part of the sum of x over the `size` devices that lie `stride` apart."""
    width, mine = x.shape[dimension] // size, jax.lax.axis_index(axis_name) // stride % size
    total = 0.0
    for step in range(size):
        piece = jax.lax.dynamic_slice_in_dim(x, (mine + step) % size * width, width, dimension)
        piece = jax.lax.ppermute(piece, axis_name, _ahead(ways, stride, size, step)) if step else piece
        total += piece.astype(jnp.promote_types(x.dtype, jnp.float32))
    return total.astype(x.dtype)


def _ahead(ways: int, stride: int, size: int, step: int) -> list[tuple[int, int]]:
    """Each device with the one `step` places ahead of it among those that lie `stride` apart."""
    place = lambda rank: rank // stride % size  # noqa: E731
    return [(rank, rank + ((place(rank) + step) % size - place(rank)) * stride) for rank in range(ways)]
