"""What the last `window` queries said of each token: query i stands at i mod window."""

import jax
import jax.numpy as jnp


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
    if T == 1:  # A step: one pass over the ring.
        here = (place == newest % window) & (query[0] >= 0)
        return jnp.where(here, said[:, 0, :, None].astype(ring.dtype), ring)
    asked = newest - (newest - place) % window  # the last query that stands at each place
    index = asked - query[0]
    new = jnp.take(said, jnp.clip(index, 0, T - 1), axis=1)  # [J, window, S]
    here = (index >= 0) & (index < T) & (query[0] >= 0)
    return jnp.where(here, new.swapaxes(1, 2).astype(ring.dtype), ring)
