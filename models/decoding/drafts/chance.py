"""Drafter `random`: tokens drawn evenly from all ids; a control, whose drafts stay as often as chance has it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding import keys
from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.none import last_token


@dataclasses.dataclass(frozen=True)
class Chance(Drafter):
    """See the module's docstring. `length` drafts a round, each of law 1 / V."""

    draws = True

    length: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        V, request = models["model"].head_weights().shape[0], jax.random.wrap_key_data(p.key)
        places = p.length[:, None] + jnp.arange(self.length)
        own = jax.vmap(keys.fold, (1, 1, None), 1)(jnp.broadcast_to(request[:, None], places.shape), places, keys.DRAFT)
        drafts = jax.vmap(jax.vmap(lambda key: jax.random.randint(key, (), 0, V)))(own)
        token = jnp.concatenate([last_token(p.text, p.length), drafts], axis=1)
        q = None
        if parts.verifier.needs_q:
            q = jnp.full((*token.shape, V), 1 / V)
        return Tree.chain(token, jnp.ones(token.shape, bool), q), p.side["random"]


PARTS = {"random": Chance}
