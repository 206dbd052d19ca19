"""Which chunk is learned from when, for rows that hold several documents, and the scan that runs it.

A row is a stream: first the tokens kept from earlier calls (up to C of them), then the T new ones. A document is a
maximal run of equal consecutive segment ids; its chunk grid starts at its first token. A chunk is learned from when it
is complete AND its document goes on, so a row holds at most (kept + T - 1) // C such chunks however many documents it
has: that bound makes all shapes static.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Plan(NamedTuple):
    """Where things are in a row. Positions count new tokens from 0; tokens kept from earlier calls are negative.

    read: `[B, T]` int32, which update a token reads: -1 = none yet, it is in the first chunk of its document here.
    offset: `[B, T]` int32, place of the token in its chunk.
    fresh: `[B, T]` bool, the token's document began in this call.
    when: `[B, U]` int32, position of the first token after update u's chunk, or T for an update that does not happen.
    reset: `[B, U]` bool, update u is the first of a document that began in this call.
    """

    read: jax.Array
    offset: jax.Array
    fresh: jax.Array
    when: jax.Array
    reset: jax.Array


def boundaries(segment_ids: jax.Array, last: jax.Array | None) -> jax.Array:
    """True where a document begins, `[B, T]`; `last` `[B]` is the id of the token before, None = no such token."""
    first = jnp.zeros_like(segment_ids[:, :1], bool) if last is None else segment_ids[:, :1] != last[:, None]
    return jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)


def plan(begins: jax.Array, fill: jax.Array, chunk_size: int, most_kept: int) -> Plan:
    """The plan for document starts `begins` `[B, T]` after `fill` `[B]` kept tokens (at most `most_kept`)."""
    length = begins.shape[1]
    position = jnp.arange(length, dtype=jnp.int32)
    origin = jax.lax.cummax(jnp.where(begins, position, -fill[:, None]), axis=1)
    index, offset = jnp.divmod(position - origin, chunk_size)
    fresh = jnp.cumsum(begins, axis=1) > 0
    event = (offset == 0) & (index > 0)
    read = jnp.where(index > 0, jnp.cumsum(event, axis=1, dtype=jnp.int32) - 1, -1)
    updates = (most_kept + length - 1) // chunk_size
    when = jnp.sort(jnp.where(event, position, length), axis=1)[:, :updates]
    at = jnp.minimum(when, length - 1)
    reset = jnp.take_along_axis(fresh & (index == 1), at, axis=1) & (when < length)
    return Plan(read, offset, fresh, when, reset)


def windows(x: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    """`[U, B, size, ...]`: x `[B, S, ...]` from each begin `[B, U]` on. Places outside of x hold its edge tokens."""
    index = jnp.clip(begin.T[:, :, None] + jnp.arange(size), 0, x.shape[1] - 1)
    return x[jnp.arange(x.shape[0])[None, :, None], index]


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def rematerialised_scan(body: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`lax.scan` whose backward pass recomputes each step from its carry.

    The carries of all steps are kept for the backward pass when together they are no larger than `xs`. Otherwise
    only those of every sqrt(steps)-th step are, at the price of one more forward pass: memory then grows with the
    root of the number of steps.
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    body = jax.checkpoint(body, prevent_cse=False)
    if steps < 4 or steps * nbytes(carry) <= nbytes(xs):
        return jax.lax.scan(body, carry, xs)
    group = math.isqrt(steps)
    whole = steps // group * group

    @jax.checkpoint
    def run(carry, xs):
        return jax.lax.scan(body, carry, xs)

    grouped = jax.tree.map(lambda x: x[:whole].reshape(-1, group, *x.shape[1:]), xs)
    carry, ys = jax.lax.scan(run, carry, grouped)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole < steps:
        carry, rest = run(carry, jax.tree.map(lambda x: x[whole:], xs))
        ys = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, rest)
    return carry, ys
