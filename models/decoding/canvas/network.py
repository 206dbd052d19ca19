"""An `LM` as the plain network of `models.decoding.canvas.caches`: keys and values of a canvas, each in its column."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding.canvas.caches import Network
from models.mixers.slots import Slots

Array = jax.Array


def cached(model, mask: masks.Mask, places: Array, classes: int) -> Network:
    """`network(tokens [B, Q], positions [Q], cache) -> (logits [B, Q, classes], cache)`, Q columns in a row.

    Args:
      model: an `LM` of attention layers that is told no time, inside a trace.
      mask: of the objective, by place: `Full()`, `BlockCausal(4)`, `Causal()`.
      places: `[B, T]` place of every column in its document; -1 is padding, which no token sees.
      classes: ids that can be predicted.
    """
    model = model.for_decoding()

    def network(tokens: Array, positions: Array, cache: Any) -> tuple[Array, Any]:
        here = jax.lax.dynamic_slice_in_dim(places, positions[0], len(positions), 1)
        # Column c lies in slot c, so that reading a column again writes over its old keys and values.
        start = jnp.full(len(tokens), positions[0], cache["slots"].length.dtype)
        state = {**cache, "slots": Slots(cache["slots"].position, start)}
        features, after, _ = model(tokens, mask=mask, positions=here, state=state)
        return model.logits(features)[..., :classes], after

    return network


def empty(model, batch: int, length: int) -> dict:
    """The empty cache of a canvas `[batch, length]`."""
    return model.for_decoding().init_state(batch, length)
