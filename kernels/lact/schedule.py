"""Which chunk is learned from when, for rows that hold several documents.

A row is a stream: first the tokens kept from earlier calls (up to C of them), then the T new ones. A document is a
maximal run of equal consecutive segment ids; its chunk grid starts at its first token. A chunk is learned from when it
is complete AND its document goes on, so a row holds at most (kept + T - 1) // C such chunks however many documents it
has: that bound makes all shapes static.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class UpdateSchedule(NamedTuple):
    """Where things are in a row. Positions count new tokens from 0; tokens kept from earlier calls are negative.

    read: `[B, T]` int32, which update a token reads: -1 = none yet, it is in the first chunk of its document here.
    offset: `[B, T]` int32, place of the token in its chunk.
    fresh: `[B, T]` bool, the token's document began in this call.
    when: `[B, U]` int32, position of the first token after update u's chunk, or T for an update that does not happen.
    happens: `[B, U]` bool, update u happens in this call.
    reset: `[B, U]` bool, update u is the first of a document that began in this call.
    """

    read: jax.Array
    offset: jax.Array
    fresh: jax.Array
    when: jax.Array
    happens: jax.Array
    reset: jax.Array


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
    origin = jax.lax.cummax(jnp.where(begins, position, -fill[:, None]), axis=1)
    index, offset = jnp.divmod(position - origin, chunk_size)
    fresh = jnp.cumsum(begins, axis=1) > 0
    event = (offset == 0) & (index > 0)
    if lengths is not None:
        event &= position < lengths[:, None]
    read = jnp.where(index > 0, jnp.cumsum(event, axis=1, dtype=jnp.int32) - 1, -1)
    updates = (most_kept + length - 1) // chunk_size
    when = jnp.sort(jnp.where(event, position, length), axis=1)[:, :updates]
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


def windows(x: jax.Array, begin: jax.Array, size: int) -> jax.Array:
    """`[B, U * size, ...]`: x `[B, S, ...]` from each begin `[B, U]` on. Places outside of x hold its edge tokens."""
    index = jnp.clip(begin[:, :, None] + jnp.arange(size), 0, x.shape[1] - 1).reshape(x.shape[0], -1)
    return x[jnp.arange(x.shape[0])[:, None], index]


def select_rows(rows: jax.Array, on_true: Any, on_false: Any) -> Any:
    """Row by row, `[B]` bool against axis 0 of every leaf, one tree or the other."""
    return jax.tree.map(lambda a, b: jnp.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b), on_true, on_false)


def mask_tail(chunk: Any, fill: jax.Array) -> Any:
    """Zeros in every slot of `[B, C, ...]` leaves from `fill` `[B]` on."""

    def one(x):
        held = jnp.arange(x.shape[1]) < fill[:, None]
        return jnp.where(held.reshape(*held.shape, *[1] * (x.ndim - 2)), x, 0)

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
