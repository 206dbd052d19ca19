"""What the last `window` queries said of each token: query i stands at i mod window."""

import jax
import jax.numpy as jnp

BITS = 32  # of a word of votes
LAST = jnp.iinfo(jnp.int32).max  # a position behind all others


def in_order(kept: jax.Array, position: jax.Array, size: int) -> tuple[jax.Array, int]:
    """(`[B, J, s]` the slots of the tokens that stay, in the order of the text, then others; size - s), s <= size."""
    order = jnp.argsort(jnp.where(kept, position, LAST), axis=-1)[..., :size]
    return order, size - order.shape[-1]


def put_last(ring: jax.Array, said: jax.Array, query: jax.Array, newest: jax.Array) -> jax.Array:
    """`ring [J, S, window]` with what the queries of a pass said, as far as they are among the last `window`.

    Args:
      ring: `[J, S, window]`.
      said: `[J, T, S]`.
      query: `[T]` their positions, side by side from the first on, -1 behind the last.
      newest: `[]` position of the newest token.
    """
    T = query.shape[0]
    index = asked(ring.shape[-1], newest) - query[0]
    new = jnp.take(said, jnp.clip(index, 0, T - 1), axis=1)  # [J, window, S]
    here = (index >= 0) & (index < T) & (query[0] >= 0)
    return jnp.where(here, new.swapaxes(1, 2).astype(ring.dtype), ring)


def asked(window: int, newest: jax.Array) -> jax.Array:
    """`[window]` position of the last query that stands at each place, negative where none did yet."""
    return newest - (newest - jnp.arange(window)) % window


def put_rows(rows: jax.Array, said: jax.Array, query: jax.Array, newest: jax.Array) -> jax.Array:
    """As `put_last`, of `rows [J, window, S]`: a step writes one row, side by side."""
    if query.shape[0] > 1:
        return put_last(rows.swapaxes(1, 2), said, query, newest).swapaxes(1, 2)
    at = newest % rows.shape[1]
    old = jax.lax.dynamic_slice_in_dim(rows, at, 1, axis=1)
    new = jnp.where(query[0] >= 0, said.astype(rows.dtype), old)
    return jax.lax.dynamic_update_slice_in_dim(rows, new, at, axis=1)


def sums(rows: jax.Array, position: jax.Array, newest: jax.Array) -> jax.Array:
    """`[J, S]`: what the last queries, `rows [J, window, S]`, said of the tokens at `position [J, S]` from when they
    were there. One loop over S: a compiler that reduces over `window` does not do several sums at once."""
    at = asked(rows.shape[1], newest)
    return sum(jnp.where(at[i] >= position, rows[:, i], 0) for i in range(rows.shape[1]))


def put_votes(bits: jax.Array, votes: jax.Array, query: jax.Array, newest: jax.Array, window: int) -> jax.Array:
    """As `put_last`, of yes and no: `bits [K, S, G, W]` uint32, that of query i is bit i mod window, 32 in a word.

    Args:
      bits: `[K, S, G, W]`, W words for `window` bits.
      votes: `[K, G, T, S]`, 0 or 1.
      query: `[T]` their positions, side by side from the first on, -1 behind the last.
      newest: `[]` position of the newest token.
      window: queries that are remembered.
    """
    (K, S, G, W), T = bits.shape, query.shape[0]
    if T == 1:
        place = (newest % window).astype(jnp.uint32)
        one = jnp.where(jnp.arange(W) == place // BITS, jnp.uint32(1) << (place % BITS), 0).astype(jnp.uint32)
        one = jnp.where(query[0] >= 0, one, 0).astype(jnp.uint32)
        return jnp.where(votes[:, :, 0].swapaxes(1, 2)[..., None] > 0, bits | one, bits & ~one)
    shift = jnp.arange(BITS, dtype=jnp.uint32)
    flags = (bits[..., None] >> shift & 1).reshape(K, S, G, W * BITS)[..., :window]
    flags = flags.swapaxes(1, 2).reshape(K * G, S, window)
    flags = put_last(flags, votes.reshape(K * G, T, S), query, newest)
    flags = jnp.pad(flags, ((0, 0), (0, 0), (0, W * BITS - window))).reshape(K, G, S, W, BITS)
    return (flags << shift).sum(-1, dtype=jnp.uint32).swapaxes(1, 2)
