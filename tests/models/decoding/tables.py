"""Models that are tables: the law of the next token is a row, so that what decoding writes has a known law."""

import types

import jax
import jax.numpy as jnp

from models.block import Pass
from models.mixers.slots import Slots
from models.partition import Partition


class Table:
    """`logits [V, V]` of the token behind each token. It keeps nothing but slots, and drafts may be a tree."""

    def __init__(self, logits):
        self.table = jnp.asarray(logits)
        self.spec = types.SimpleNamespace(D=len(logits), V=len(logits), dtype=self.table.dtype, partition=Partition())

    def init_state(self, batch, length, memory=None):
        return {"slots": Slots.empty(batch, length), "layers": ()}

    def __call__(self, tokens, *, mask, positions, state, **_):
        after = {"slots": state["slots"].append(positions), "layers": ()}
        return Pass(jax.nn.one_hot(tokens, len(self.table), dtype=self.table.dtype), after, {})

    def logits(self, features):
        return features @ jnp.where(jnp.isfinite(self.table), self.table, -1e9)

    def head_weights(self):
        return self.table


class Headed(Table):
    """A table with a head `eagle` that drafts by another one, whatever the feature before. Features are of both."""

    def __init__(self, logits, drafts):
        super().__init__(logits)
        self.spec.D = 2 * self.spec.V
        self.table = jnp.concatenate([self.table, jnp.asarray(drafts)])
        self.heads = {"eagle": self}

    def embed(self, tokens):
        return jax.nn.one_hot(tokens, self.spec.D, dtype=self.table.dtype)

    def init_state(self, batch, length, memory=None):
        return super().init_state(batch, length) if memory else ()

    def __call__(self, tokens, before=None, context=None, state=None, **kw):
        if before is None:
            return super().__call__(tokens, state=state, **kw)._replace(features=self.embed(tokens))
        return jnp.roll(tokens, self.spec.V, axis=-1), state
