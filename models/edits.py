"""Edits of activations, for `LM(..., edits={site: edit})`: an edit maps `(x [B, T, D], layers) -> x`.

`layers` holds this layer's values of what the model was given as `layers={name: [L, ...]}`. Any function of both will
do; these two are a steering or in-context vector (Liu et al. 2023, arXiv:2311.06668) and an activation patch (Meng et
al. 2022, arXiv:2202.05262).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.mixers.context import Edit


def add(name: str) -> Edit:
    """Adds `layers[name]`, which broadcasts to `[B, T, D]`: of a model `[L, D]`, or `[L, B, 1, D]` by row."""

    def edit(x: jax.Array, layers: Mapping[str, Any]) -> jax.Array:
        return x + layers[name].astype(x.dtype)

    return edit


def patch(name: str, where: str) -> Edit:
    """Puts `layers[name]` in the place of x where the bool `layers[where]` holds; both broadcast to `[B, T, D]`."""

    def edit(x: jax.Array, layers: Mapping[str, Any]) -> jax.Array:
        return jnp.where(layers[where], layers[name].astype(x.dtype), x)

    return edit
