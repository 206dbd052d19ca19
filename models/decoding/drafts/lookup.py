"""Drafter `lookup`: the text itself, behind the newest place where its last n tokens stood before.

Source: Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference" (LLMA), section 3.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.none import last_token


def continuation(text: jax.Array, length: jax.Array, ngram: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Up to `count` tokens that stood behind the newest earlier place of a row's last n tokens, n = ngram, ..., 1.

    The largest n that has an earlier place counts, and of its places the newest one; places may overlap the end.

    Args:
      text: `[B, R]` ids; length: `[B]` tokens of each row.
      ngram: the largest n.
      count: tokens to return.

    Returns:
      tokens `[B, count]` and whether each stands in the text `[B, count]`; none do where no n has an earlier place.
    """
    R = text.shape[1]
    at = jnp.arange(R)
    best = jnp.zeros(length.shape, jnp.int32)  # score of a place: first n, then how new; 0: no place
    same = jnp.ones(text.shape, bool)  # [B, R] whether the n tokens that end at `at` are the last n
    for n in range(1, ngram + 1):
        own = jnp.take_along_axis(text, jnp.maximum(length - n, 0)[:, None], axis=1)
        behind = jnp.pad(text, ((0, 0), (n - 1, 0)))[:, :R]  # [B, R] the token n - 1 before `at`
        same = same & (behind == own) & (at >= n - 1)
        place = same & (at < (length - 1)[:, None]) & (length > n)[:, None]
        newest = jnp.max(jnp.where(place, at + 1, 0), axis=1)
        best = jnp.where(newest > 0, newest, best)
    index = best[:, None] + jnp.arange(count)
    found = (best > 0)[:, None] & (index < length[:, None])
    return jnp.take_along_axis(text, jnp.minimum(index, R - 1), axis=1), found


@dataclasses.dataclass(frozen=True)
class Lookup(Drafter):
    """See the module's docstring. `length` drafts a round; the last `ngram` tokens are looked for, then fewer."""

    length: int
    ngram: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        drafts, found = continuation(p.text, p.length, self.ngram, self.length)
        token = jnp.concatenate([last_token(p.text, p.length), drafts], axis=1)
        return Tree.chain(token, jnp.pad(found, ((0, 0), (1, 0)), constant_values=True)), p.side["lookup"]


PARTS = {"lookup": Lookup}
