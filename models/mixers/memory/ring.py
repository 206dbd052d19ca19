"""What the last `window` queries said of each token: query i stands at i mod window."""

import jax
import jax.numpy as jnp

BITS = 32  # of a word of votes


def put_last(ring: jax.Array, said: jax.Array, query: jax.Array, newest: jax.Array) -> jax.Array:
    """`ring [J, S, window]` with what the queries of a pass said, as far as they are among the last `window`.

    Args:
      ring: `[J, S, window]`.
      said: `[J, T, S]`.
      query: `[T]` their positions, side by side from the first on, -1 behind the last.
      newest: `[]` position of the newest token.
    """
    window, T = ring.shape[-1], query.shape[0]
    place = jnp.arange(window)
    if T == 1:  # A step: one place of the ring is written.
        at = jnp.where(query[0] >= 0, newest % window, window)  # `window` is no place
        return ring.at[:, :, at].set(said[:, 0].astype(ring.dtype), mode="drop")
    asked = newest - (newest - place) % window  # the last query that stands at each place
    index = asked - query[0]
    new = jnp.take(said, jnp.clip(index, 0, T - 1), axis=1)  # [J, window, S]
    here = (index >= 0) & (index < T) & (query[0] >= 0)
    return jnp.where(here, new.swapaxes(1, 2).astype(ring.dtype), ring)


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
