"""Socket Verifier: which drafts stay, and which token follows them?

`generate.verifier` names one: a frozen dataclass in a module of this folder that says `PARTS = {"mine": Mine}`; its
fields are the knobs of `generate.mine`. A verifier is a pure function of tables, so that its law can be enumerated.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from models import tables
from models.decoding import keys as key_scheme
from models.decoding.drafts import Tree


class Verdict(NamedTuple):
    """What a verifier says of each row."""

    path: jax.Array  # [B, D] nodes that stay, in order of depth; path[:, 0] = 0, the last token; anything beyond count
    count: jax.Array  # [B] in 1..D
    next: jax.Array  # [B] the token behind the last node that stays


class Verifier:
    """Base of all verifiers.

    Attributes:
      needs_q: whether the rule reads `Tree.q`: it then goes with drafters that draw.
      exact: whether the text has the law that it has without drafts.
      chains: whether it judges one draft behind the other alone, and no tree.
      independent: whether the children of a node must be drawn independently of each other.
    """

    needs_q: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    chains: ClassVar[bool] = False
    independent: ClassVar[bool] = False

    def __call__(self, keys: jax.Array, logits: jax.Array, tree: Tree, position: jax.Array, depth: int) -> Verdict:
        """Judges one round.

        Args:
          keys: `[B]` of the requests. The bits of a decision are `keys.fold(keys, position, purpose)` with the position
            of the token that is decided, so that they depend on neither batch nor schedule.
          logits: `[B, N, V]` float32 of the token behind each node, after the control: log p + a constant, -inf for
            what is ruled out. Of a row at temperature 0 one token is finite.
          tree: the drafts; a node has at most N - depth + 1 children.
          position: `[B]` position of node 0 in the text; a node's is that plus its depth.
          depth: D, nodes of the longest path.
        """
        raise NotImplementedError

    def draw(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """How a drafter draws, so that its drafts are likely to stay: keys `[B]`, logits `[B, V]` -> tokens `[B]`."""
        return key_scheme.sample(keys, logits).astype(jnp.int32)

    def candidates(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """Numbers `[B, V]` by which a drafter ranks tokens, the likeliest to stay largest: that one is `draw`'s."""
        noise = jax.vmap(lambda key: key_scheme.gumbel(key, logits.shape[-1:], logits.dtype))(keys)
        return logits + noise


VERIFIERS: dict[str, type[Verifier]] = tables.found(__name__)
