"""Drafter `none`: the last token alone; each round draws one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.drafts import Drafter, Tree


def last_token(text: jax.Array, length: jax.Array) -> jax.Array:
    """The last token of each row, `[B, 1]`: text `[B, R]` of `length [B]` tokens; the first where there is none."""
    return jnp.take_along_axis(text, jnp.maximum(length - 1, 0)[:, None], axis=1)


@dataclasses.dataclass(frozen=True)
class Nothing(Drafter):
    """See the module's docstring."""

    nodes = 1

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        token = last_token(p.text, p.length)
        return Tree.chain(token, jnp.ones(token.shape, bool)), p.side["none"]


PARTS = {"none": Nothing}
