"""Noise of an evaluation: every row draws from a key of its own, so that one model has one number for a set of rows,
whatever the batch size and the number of devices. In training a step's key is that of the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def row_keys(key: Array, first: Array | int, count: int) -> Array:
    """Keys `[count]` of the rows `first`, `first` + 1, ... of all rows that are evaluated."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))


def by_row(draw: Callable[..., Any], keys: Array, *arrays: Any) -> Any:
    """`draw(key, *arrays)` of a batch, called for every row alone.

    Args:
      draw: from a key and arrays `[1, ...]` to arrays `[1, ...]`.
      keys: `[B]`.
      arrays: trees of `[B, ...]`.

    Returns:
      What `draw` returns, `[B, ...]`.
    """

    def one(key: Array, *row: Any) -> Any:
        return jax.tree.map(lambda x: x[0], draw(key, *jax.tree.map(lambda x: x[None], row)))

    return jax.vmap(one)(keys, *arrays)


def mean_of_draws(estimate: Callable[[Array], Array], key: Array, draws: int, tokens: Array, dtype: Any) -> Array:
    """Mean of `draws` estimates `[B]`, each `estimate(keys [B])`.

    Args:
      estimate: from a key of each row to a number of each row.
      key: one key of each row, `[B]`; or one of the batch, which is split among its rows.
      draws: the number of estimates.
      tokens: `[B, T]`.
      dtype: of the model; the sum is in float32 or wider.
    """
    rows = tokens.shape[0]
    keys = key if key.ndim else jax.random.split(key, rows)
    each = jax.vmap(lambda key: jax.random.split(key, draws), out_axes=1)(keys)
    start = jnp.zeros(rows, jnp.promote_types(dtype, jnp.float32))
    return jax.lax.scan(lambda total, keys: (total + estimate(keys), None), start, each)[0] / draws
