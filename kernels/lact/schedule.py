"""Which chunk is learned from when, for rows that hold several documents.

A row is a stream: first the tokens kept from earlier calls (up to C of them), then the T new ones. A document is a
maximal run of equal consecutive segment ids; its chunk grid starts at its first token. A chunk is learned from when it
is complete AND its document goes on, so a row holds at most (kept + T - 1) // C such chunks however many documents it
has: that bound makes all shapes static.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

NEVER = 2**30  # a place behind every row


class UpdateSchedule(NamedTuple):
    """Where things are in a row. Positions count new tokens from 0; tokens kept from earlier calls are negative.

    read: `[B, T]` int32, which update a token reads: -1 = none yet, it is in the first chunk of its document here.
    offset: `[B, T]` int32, place of the token in its chunk.
    fresh: `[B, T]` bool, the token's document began in this call.
    when: `[B, U]` int32, position of the first token after update u's chunk, or T for an update that does not happen.
    happens: `[B, U]` bool, update u happens in this call.
    reset: `[B, U]` bool, update u is the first of a document that began in this call.

    Updates that happen are C and more places apart, so that windows of C places that begin there have none in common.
    """

    read: jax.Array
    offset: jax.Array
    fresh: jax.Array
    when: jax.Array
    happens: jax.Array
    reset: jax.Array

    def begins(self, shift: int = 0) -> jax.Array:
        """`[B, U]`: `when` moved by so many places; of an update that does not happen, behind all of them."""
        return jnp.where(self.happens, self.when + shift, NEVER)


def boundaries(segment_ids: jax.Array, last: jax.Array | None) -> jax.Array:
    """True where a document begins, `[B, T]`; `last` `[B]` is the id of the token before, None = no such token."""
    first = jnp.zeros_like(segment_ids[:, :1], bool) if last is None else segment_ids[:, :1] != last[:, None]
    return jnp.concatenate([first, segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1)


def plan(
    begins: jax.Array, fill: jax.Array, chunk_size: int, most_kept: int, lengths: jax.Array | None
) -> UpdateSchedule:
    """The plan for document starts `begins` `[B, T]` after `fill` `[B]` kept tokens (at most `most_kept`).

    lengths: `[B]` tokens of each row that count, or None for all; padding behind them completes no chunk.
    """
    length = begins.shape[1]
    position = jnp.arange(length, dtype=jnp.int32)
    latest = jax.lax.cummax(jnp.where(begins, position, -1), axis=1)  # start of a document in this call
    fresh = latest >= 0
    place = position - jnp.where(fresh, latest, -fill[:, None])  # in the document, never negative
    index, offset = jax.lax.div(place, jnp.int32(chunk_size)), jax.lax.rem(place, jnp.int32(chunk_size))
    event = (offset == 0) & (index > 0)
    if lengths is not None:
        event &= position < lengths[:, None]
    updates = (most_kept + length - 1) // chunk_size
    when = jnp.sort(jnp.where(event, position, length), axis=1)[:, :updates]
    read = jnp.where(index > 0, started(when, length) - 1, -1)
    at = jnp.minimum(when, length - 1)
    happens = when < length
    reset = jnp.take_along_axis(fresh & (index == 1), at, axis=1) & happens
    return UpdateSchedule(read, offset, fresh, when, happens, reset)


def whole_row(x: jax.Array, axis: str) -> jax.Array:
    """`[B, T]` of which the device of rank r on mesh axis `axis` holds r, r + P, r + 2P, ... as `[B, T / P]`."""
    return jnp.moveaxis(jax.lax.all_gather(x, axis), 0, 2).reshape(x.shape[0], -1)


def striped(where: UpdateSchedule, axis: str) -> UpdateSchedule:
    """The plan of a whole row in the places of this device of `axis`, whose tokens are those that `whole_row` says.

    The number of devices divides C, so each device holds equally many tokens of every chunk, side by side: only places
    change.
    """
    rank, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
    mine = lambda x: jax.lax.dynamic_index_in_dim(x.reshape(x.shape[0], -1, size), rank, 2, keepdims=False)  # noqa: E731
    before = lambda place: -((rank - place) // size)  # noqa: E731  tokens held of those in front of a place
    read, offset = mine(where.read), mine(where.offset)
    first = mine(jnp.arange(where.read.shape[1])[None]) - offset  # of the token's chunk, in the row
    held = jnp.arange(read.shape[1]) - before(first)
    return UpdateSchedule(read, held, mine(where.fresh), before(where.when), where.happens, where.reset)


class End(NamedTuple):
    """The position of each row after its last token that counts; unchanged for a row without such tokens.

    begun: `[B]` bool, its document began in this call and has not been learned from.
    fill: `[B]` int32, tokens in the open chunk.
    first: `[B, 1]` int32, place of the chunk's first token in the stream.
    segment: `[B]` int32, id of the document.
    """

    begun: jax.Array
    fill: jax.Array
    first: jax.Array
    segment: jax.Array


def end(
    where: UpdateSchedule,
    fill: jax.Array,
    kept: int,
    lengths: jax.Array | None,
    ids: jax.Array | None,
    last: jax.Array | None,
) -> End:
    """The end of a call over `where`, in a stream of `kept` places and the new tokens; other arguments as for `plan`.

    ids: `[B, T]` segment ids or None.
    last: `[B]` the id before this call, None = no such token.
    """
    batch, length = where.read.shape
    lengths = jnp.full((batch,), length, jnp.int32) if lengths is None else lengths.astype(jnp.int32)
    some, at = lengths > 0, jnp.maximum(lengths - 1, 0)[:, None]
    pick = lambda x: jnp.take_along_axis(x, at, axis=1)[:, 0]  # noqa: E731
    begun = some & pick(where.fresh) & (pick(where.read) < 0)
    fill = jnp.where(some, pick(where.offset) + 1, fill)
    segment = jnp.zeros((batch,), jnp.int32) if last is None else last
    segment = segment if ids is None else jnp.where(some, pick(ids).astype(jnp.int32), segment)
    return End(begun, fill, (lengths + kept - fill)[:, None], segment)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def windows(x: jax.Array, begin: jax.Array, size: int, length: int) -> jax.Array:
    """`[B, U * size, ...]`: x `[B, length, ...]` from each begin `[B, U]` on, 0 outside of x.

    begin: increasing, `size` and more apart, or from `length` on for a window that holds nothing. So each place is in
    one window at most, and the gradient is `unwindowed`: a gather as well, where autodiff would scatter.
    """
    place = (begin[:, :, None] + jnp.arange(size)).reshape(x.shape[0], -1)
    inside = (place >= 0) & (place < length)
    return _masked(inside, row_by_row(x, jnp.clip(place, 0, length - 1)))


def windows_of(tree: Any, begin: jax.Array, size: int) -> Any:
    """`windows` of every leaf `[B, S, ...]`."""
    return jax.tree.map(lambda x: windows(x, begin, size, x.shape[1]), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def unwindowed(y: jax.Array, begin: jax.Array, size: int, length: int) -> jax.Array:
    """`[B, length, ...]`: what stands in `windows` y `[B, U * size, ...]` at each place, 0 where none holds it."""
    found = started(begin, length) - 1
    offset = jnp.arange(length) - jnp.take_along_axis(begin, jnp.maximum(found, 0), axis=1)
    inside = (found >= 0) & (offset < size)
    return _masked(inside, row_by_row(y, jnp.where(inside, found * size + offset, 0)))


windows.defvjp(
    lambda x, begin, size, length: (windows(x, begin, size, length), begin),
    lambda size, length, begin, g: (unwindowed(g, begin, size, length), None),
)
unwindowed.defvjp(
    lambda y, begin, size, length: (unwindowed(y, begin, size, length), begin),
    lambda size, length, begin, g: (windows(g, begin, size, length), None),
)


def started(begin: jax.Array, length: int) -> jax.Array:
    """`[B, length]` int32: how many of begin `[B, U]` stand at each place or before it."""
    return jnp.sum(begin[:, None] <= jnp.arange(length)[:, None], axis=2, dtype=jnp.int32)


def row_by_row(x: jax.Array, places: jax.Array) -> jax.Array:
    """`[B, n, ...]`: of each row of x `[B, S, ...]` what stands at its places `[B, n]`, all of 0 .. S - 1.

    One index over rows and places: pairs of them are arrays of their own, and so are tests of what is in bounds.
    """
    B, S = x.shape[:2]
    index = jnp.arange(B)[:, None] * S + places
    return x.reshape(B * S, *x.shape[2:]).at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _masked(inside: jax.Array, x: jax.Array) -> jax.Array:
    """x `[B, n, ...]` where inside `[B, n]`, else 0."""
    return jnp.where(inside.reshape(*inside.shape, *[1] * (x.ndim - 2)), x, 0)


def select_rows(rows: jax.Array, on_true: Any, on_false: Any) -> Any:
    """Row by row, `[B]` bool against axis 0 of every leaf, one tree or the other."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), on_true, on_false)


def mask_tail(chunk: Any, fill: jax.Array) -> Any:
    """Zeros in every slot of `[B, C, ...]` leaves from `fill` `[B]` on."""

    def one(x):
        return _masked(jnp.arange(x.shape[1]) < fill[:, None], x)

    return jax.tree.map(one, chunk)


def join(kept: Any, fill: jax.Array, new: Any) -> Any:
    """`[B, C + T, ...]`: the first `fill` slots of `kept` `[B, C, ...]`, ending where the `new` tokens begin."""

    def one(kept, new):
        slot = jnp.arange(kept.shape[1]) + fill[:, None] - kept.shape[1]  # below 0: any slot, all are masked
        return jnp.concatenate([kept[jnp.arange(kept.shape[0])[:, None], slot], new.astype(kept.dtype)], axis=1)

    return jax.tree.map(one, mask_tail(kept, fill), new)


def open_chunk(tokens: Any, begin: int, size: int) -> Any:
    """Tokens `[B, T, ...]` from `begin` on, padded with zeros to `size` slots."""
    pad = size - (jax.tree.leaves(tokens)[0].shape[1] - begin)
    return jax.tree.map(lambda x: jnp.pad(x[:, begin:], ((0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2))), tokens)
