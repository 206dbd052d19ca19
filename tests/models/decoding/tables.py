"""Models that are tables: the law of the next token is a row, so that what decoding writes has a known law."""

import types

import jax
import jax.numpy as jnp

from models.block import Pass
from models.mixers.slots import Slots


class Table:
    """`logits [V, V]` of the token behind each token. It keeps nothing but slots, and drafts may be a tree."""

    def __init__(self, logits):
        self.table = jnp.asarray(logits)
        self.spec = types.SimpleNamespace(D=len(logits), V=len(logits), dtype=self.table.dtype)

    def init_state(self, batch, length, memory=None):
        return {"slots": Slots.empty(batch, length), "layers": ()}

    def __call__(self, tokens, *, mask, positions, state, **_):
        after = {"slots": state["slots"].append(positions), "layers": ()}
        return Pass(jax.nn.one_hot(tokens, len(self.table), dtype=self.table.dtype), after, {})

    def logits(self, features):
        return features @ jnp.where(jnp.isfinite(self.table), self.table, -1e9)

    def head_weights(self):
        return self.table
