"""An all-gather made of transfers between pairs of devices, which a TPU sends beside other work.

Its compiler runs an all-gather in steps of a fusion that it can share with a matmul, never with a kernel: the kernel
waits for all of it, and a scatter whose parts are no multiple of 128 lanes becomes a sum on every device, at twice the
bytes. A permute is a copy that any work may run beside; on more than `MOST` chips of a v5e only between places that lie
1, 2, 4, ... apart along one side of the torus. So devices whose ranks differ in one bit exchange all that they hold,
bit by bit.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 16
Bits = tuple[int, ...]


def orders(mesh: Any, axis_name: str) -> tuple[Bits, ...]:
    """In which order the devices along an axis exchange by `all_gather`, one order for each part of an array.

    An order has every bit of a rank, far places first, while little is held. The orders begin along different sides of
    the torus, so that two parts seldom want the same link. (): the devices are no power of two; or they are more than
    `MOST`, and some whose ranks differ in one bit do not lie a power of two apart along one side.
    """
    rows = np.moveaxis(mesh.devices, list(mesh.axis_names).index(axis_name), -1).reshape(-1, mesh.shape[axis_name])
    ways = rows.shape[1]
    if ways & (ways - 1) or not hasattr(rows[0, 0], "coords"):
        return ()
    places = np.array([[device.coords for device in row] for row in rows])
    moves = {}
    for bit in (1 << i for i in range(ways.bit_length() - 1)):
        apart = np.abs(places - places[:, np.arange(ways) ^ bit]).reshape(-1, places.shape[-1])
        far = int(apart.sum(-1).max())
        along = (apart == apart[0]).all() and apart[0].max() == far and not far & (far - 1)
        if mesh.devices.size > MOST and not along:
            return ()
        moves[bit] = far, int(apart[0].argmax())
    sides = sorted({side for _, side in moves.values()})
    turn = lambda bit, first: (-moves[bit][0], (sides.index(moves[bit][1]) - first) % len(sides))  # noqa: E731
    return tuple(tuple(sorted(moves, key=lambda bit, n=n: turn(bit, n))) for n in range(len(sides)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def all_gather(x: jax.Array, axis_name: str, dimension: int, orders: tuple[Bits, ...]) -> jax.Array:
    """`jax.lax.all_gather(x, axis_name, axis=dimension, tiled=True)` inside `jax.shard_map`, by recursive doubling.

    After each exchange a device holds twice as much. The gradient is the reduce-scatter by recursive halving (Thakur,
    Rabenseifner and Gropp 2005, "Optimization of Collective Communication Operations in MPICH"): its first exchange,
    more than half of all bytes, has the type of the gradient; what is added and sent after it has float32 or a wider
    type.

    Args:
      x: each device's own part.
      axis_name: the mesh axis that the devices lie along.
      dimension: of x, along which parts are put together in the order of the devices.
      orders: see the function of that name. x is cut along `dimension` into as many parts where that divides.
    """
    mine, parts = jax.lax.axis_index(axis_name), []
    for part, bits in zip(_parts(jnp.moveaxis(x, dimension, 0), 1, orders), orders, strict=False):
        held = part
        for bit in bits:
            other = jax.lax.ppermute(held, axis_name, _across(bits, bit))
            held = jnp.where(mine & bit, jnp.concatenate([other, held]), jnp.concatenate([held, other]))
        parts.append(_in_order(held, _axes(bits)))
    whole = jnp.stack(parts, 1)
    return jnp.moveaxis(whole.reshape(-1, *whole.shape[3:]), 0, dimension)


def _parts(x: jax.Array, ways: int, orders: tuple[Bits, ...]) -> list[jax.Array]:
    """`[ways W, ...]`, W of each device, as parts `[ways, W / parts, ...]`, one for each order where W divides."""
    cut = x.reshape(ways, math.gcd(x.shape[0] // ways, len(orders)), -1, *x.shape[1:])
    return [cut[:, part] for part in range(cut.shape[1])]


def _axes(bits: Bits) -> list[int]:
    """Where in a rank, read from its highest bit, each bit stands, of what comes together in the order of `bits`."""
    return [len(bits) - 1 - bits.index(1 << i) for i in reversed(range(len(bits)))]


def _in_order(x: jax.Array, axes: list[int]) -> jax.Array:
    """`[ways, ...]` with the bits of the index in another order."""
    n = len(axes)
    cut = x.reshape(*(2,) * n, *x.shape[1:])
    return cut.transpose(*axes, *range(n, cut.ndim)).reshape(x.shape)


def _forward(x: jax.Array, axis_name: str, dimension: int, orders: tuple[Bits, ...]) -> tuple[jax.Array, None]:
    return all_gather(x, axis_name, dimension, orders), None


def _backward(
    axis_name: str, dimension: int, orders: tuple[Bits, ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    mine, wide, sums = jax.lax.axis_index(axis_name), jnp.promote_types(gradient.dtype, jnp.float32), []
    parts = _parts(jnp.moveaxis(gradient, dimension, 0), 1 << len(orders[0]), orders)
    for part, bits in zip(parts, orders, strict=False):
        held = _in_order(part, np.argsort(_axes(bits)).tolist())
        for bit in reversed(bits):
            low, high = jnp.split(held, 2)
            sent = jax.lax.ppermute(jnp.where(mine & bit, low, high), axis_name, _across(bits, bit))
            held = jnp.where(mine & bit, high, low).astype(wide) + sent.astype(wide)
        sums.append(held[0])
    return (jnp.moveaxis(jnp.concatenate(sums), 0, dimension).astype(gradient.dtype),)


all_gather.defvjp(_forward, _backward)


def _across(bits: Bits, bit: int) -> list[tuple[int, int]]:
    """Each device with the one whose rank differs in `bit`."""
    return [(rank, rank ^ bit) for rank in range(1 << len(bits))]
