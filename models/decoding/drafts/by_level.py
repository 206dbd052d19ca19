"""Trees that something writes level by level: the builders `template`, `eagle2` and `dyspec` under jit.

`template` is a tree of known shape (Sequoia's among them, `templates.named`), `eagle2` the likeliest paths, as of
`trees.eagle2`, and `dyspec` the slots that the walk reaches likeliest, as of `trees.dyspec`; `beam` nodes a level have
children. What writes is a `Reader`: it says the law behind each node that it is shown.

For a verifier that reads the laws of drafts, children are drawn; else the best candidates of the verifier are taken.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import keys
from models.decoding.drafts import Drafter, Tree, templates
from models.decoding.drafts.none import last_token
from models.decoding.verify.siblings import without_replacement


class Reader(Protocol):
    """Laws of the tokens behind the text and behind the nodes of a tree.

    Attributes:
      p, parts: as of `Drafter.propose`.
      first: `[B, 1, V]` logits behind the text, after those controls that read logits and dials alone.
    """

    p: Any
    parts: Any
    first: jax.Array

    def read(self, token: jax.Array, parent: jax.Array, last: int) -> jax.Array:
        """Logits `[B, last, V]` behind the last nodes of a tree below the root: token `[B, n]`, parent `[1|B, n]`.

        Every call has the nodes of the one before in front; the parents of the others are among these; -1: the root.
        """
        ...


class Children(NamedTuple):
    """K children of each of M nodes a row, the one that was drawn first, or is likeliest, in front."""

    token: jax.Array  # [B, M, K]
    chance: jax.Array  # [B, M, K] of each in the law that it was drawn from; 0: there is no such child
    law: jax.Array | None  # [B, M, K, V] that law; None: they were not drawn


def ranked(scores: jax.Array, K: int) -> Children:
    """The K best tokens of scores `[B, M, V]`, with their softmax as chances."""
    best, token = jax.lax.top_k(scores, K)
    chance = jnp.exp(best - jax.nn.logsumexp(scores, axis=-1, keepdims=True))
    return Children(token, jnp.where(jnp.isfinite(best), chance, 0), None)


def drawn(law: jax.Array, noise: jax.Array) -> Children:
    """K children drawn from law `[B, M, V]` with standard Gumbel noise `[B, M, K, V]`, each by itself."""
    logs = jnp.where(law > 0, jnp.log(jnp.where(law > 0, law, 1)), -jnp.inf)
    token = jnp.argmax(logs[:, :, None] + noise, axis=-1)
    each = jnp.broadcast_to(law[:, :, None], noise.shape)
    return Children(token, jnp.take_along_axis(each, token[..., None], axis=-1)[..., 0], each)


def drawn_distinct(law: jax.Array, noise: jax.Array, K: int) -> Children:
    """K children drawn one after another from law `[B, M, V]` without repetition: the K largest log law + noise."""
    logs = jnp.where(law > 0, jnp.log(jnp.where(law > 0, law, 1)), -jnp.inf)
    token = jax.lax.top_k(logs + noise, K)[1]
    each = jax.vmap(jax.vmap(without_replacement))(law, token)
    return Children(token, jnp.take_along_axis(each, token[..., None], axis=-1)[..., 0], each)


def slot_values(value: jax.Array, chance: jax.Array) -> jax.Array:
    """DySpec's values of the slots of K siblings, v prod_{i<j} (1 - R_i(y_i)): v `[..., M]`, R_i(y_i) `[..., M, K]`."""
    left = jnp.cumprod(1 - chance, axis=-1)
    before = jnp.concatenate([jnp.ones_like(left[..., :1]), left[..., :-1]], axis=-1)
    return value[..., None] * before


def best_nodes(priority: jax.Array, parent: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(index `[B, count]`, parent `[B, count]`, valid `[B, count]`) of the nodes of largest priority, parents in front.

    Args:
      priority: `[B, S]`, no node's above its parent's; of equal ones the earlier is taken. 0: there is no such node.
      parent: `[B, S]` 1 + the index of each node's parent, which stands before it; 0: the root.

    Returns:
      parent: 1 + the place among those chosen, 0: the root.
    """
    index = jnp.sort(jax.lax.top_k(priority, count)[1], axis=-1)
    old = jnp.take_along_axis(parent, index, axis=-1)
    place = jnp.sum(index[:, None, :] < old[:, :, None], axis=-1, dtype=jnp.int32)
    return index, place, jnp.take_along_axis(priority, index, axis=-1) > 0


@dataclasses.dataclass(frozen=True)
class ByLevel(Drafter):
    """Base of the drafters of such trees.

    `template`: of the builder of that name (`templates.named`); the others have `size` nodes in `levels` levels, at
    most `width` children a node. `independent_draws`: children of a node are drawn each by itself, as k-SEQ needs it.
    """

    NAME: ClassVar[str]
    branches = True

    builder: str
    template: str
    size: int
    levels: int
    width: int
    beam: int
    independent_draws: bool

    @property
    def draws(self) -> bool:
        """EAGLE-2 takes the likeliest children."""
        return self.builder != "eagle2"

    @property
    def independent(self) -> bool:
        """See `Drafter`."""
        return self.independent_draws and self.builder == "template"

    @property
    def tree(self) -> Any:
        """The tree of the builder `template`."""
        return templates.named(self.template)

    @property
    def nodes(self) -> int:
        """See `Drafter`."""
        return len(self.tree.parent) if self.builder == "template" else self.size + 1

    @property
    def depth(self) -> int:
        """See `Drafter`."""
        return 1 + (int(self.tree.depth.max()) if self.builder == "template" else self.levels)

    @property
    def room(self) -> int:
        """Slots that a reader needs beyond those of `nodes`: nodes that have children may not be among the best."""
        return 0 if self.builder == "template" else max(0, self.beam * (self.levels - 1) - self.size)

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if self.builder == "template":
            yield from templates.problems(f"generate.{self.NAME}.template", self.template)
        elif self.size < self.levels + self.width - 1:
            yield (
                f"generate.{self.NAME}.size={self.size} nodes hold no path of {self.levels} and {self.width} children; "
                f"use generate.{self.NAME}.size={self.levels + self.width - 1}."
            )

    def tree_of(self, reader: Reader) -> Tree:
        """The tree, its root the last token of the text."""
        below = self._template(reader) if self.builder == "template" else self._grown(reader)
        token = jnp.concatenate([last_token(reader.p.text, reader.p.length), below.token], axis=1)
        parent = jnp.concatenate([jnp.full_like(below.parent[:, :1], -1), below.parent], axis=1)
        q = None if below.q is None else jnp.pad(below.q, ((0, 0), (1, 0), (0, 0)))
        return Tree(token, parent, q, jnp.pad(below.valid, ((0, 0), (1, 0)), constant_values=True))

    def _children(self, reader: Reader, logits: jax.Array, level: int, K: int) -> Children:
        """Of the nodes with logits `[B, M, V]`, for tokens of depth `level`."""
        p, verifier = reader.p, reader.parts.verifier
        request = jax.random.wrap_key_data(p.key)
        if not (verifier.needs_q and self.draws):
            own = keys.fold(request, p.length + level - 1, keys.TOKEN)
            return ranked(jax.vmap(verifier.candidates, (None, 1), 1)(own, logits), K)
        # By the round and the node: whether a node is there must not depend on numbers that later decide.
        own = jax.vmap(jax.random.fold_in, (0, None))(keys.fold(request, p.length, keys.DRAFT), level)
        shape = (logits.shape[1], K, logits.shape[2]) if self.independent_draws else logits.shape[1:]
        noise = jax.vmap(lambda key: keys.gumbel(key, shape, logits.dtype))(own)
        law = jax.nn.softmax(logits, axis=-1)
        return drawn(law, noise) if self.independent_draws else drawn_distinct(law, noise, K)

    def _template(self, reader: Reader) -> Tree:
        """The nodes below the root; level by level."""
        tree, B = self.tree, reader.p.text.shape[0]
        token, laws, valid = [], [], []
        logits, above = reader.first, np.zeros(1, int)
        for level in range(1, self.depth):
            nodes = np.flatnonzero(tree.depth == level)
            children = self._children(reader, logits, level, int(tree.rank[nodes].max()) + 1)
            pick = np.searchsorted(above, tree.parent[nodes]), tree.rank[nodes]
            token.append(children.token[:, *pick])
            valid.append(children.chance[:, *pick] > 0)
            laws += [] if children.law is None else [children.law[:, *pick]]
            if level + 1 < self.depth:
                parent = jnp.asarray(tree.parent[1 : 1 + sum(x.shape[1] for x in token)] - 1)[None]
                logits, above = reader.read(jnp.concatenate(token, axis=1), parent, len(nodes)), nodes
        there = jnp.concatenate(valid, axis=1)
        for node, parent in enumerate(tree.parent[1:]):  # A child of what is not there is not there.
            there = there if parent == 0 else there.at[:, node].set(there[:, node] & there[:, parent - 1])
        parent = jnp.broadcast_to(jnp.asarray(tree.parent[1:]), (B, len(tree.parent) - 1))
        return Tree(jnp.concatenate(token, axis=1), parent, jnp.concatenate(laws, axis=1) if laws else None, there)

    def _grown(self, reader: Reader) -> Tree:
        """The nodes below the root; the best of all that were scored."""
        B, K = reader.p.text.shape[0], self.width
        tokens, parents, priorities, laws = [], [], [], []  # of all scored nodes, by level
        beams = jnp.zeros((B, 0), jnp.int32), jnp.zeros((B, 0), jnp.int32)  # what was read: token, parent among them
        logits, value = reader.first, jnp.ones((B, 1), jnp.float32)
        above, first, offset = jnp.zeros((B, 1), jnp.int32), 0, 0  # 1 + index of each node of the beam; 0: the root
        for level in range(1, self.depth):
            children = self._children(reader, logits, level, K)
            slots = slot_values(value, children.chance)
            own = (slots if children.law is not None else value[..., None]) * children.chance
            flat = lambda x: x.reshape(B, -1, *x.shape[3:])  # noqa: E731
            tokens.append(flat(children.token))
            parents.append(jnp.repeat(above, K, axis=1))
            by = slots * (children.chance > 0) if children.law is not None else own
            priorities.append(flat(by))
            laws += [] if children.law is None else [flat(children.law)]
            if level + 1 == self.depth:
                break
            n, M = tokens[-1].shape[1], logits.shape[1]
            value, index = jax.lax.top_k(flat(own), min(self.beam, n))
            above = 1 + offset + index
            before = jnp.full_like(index, -1) if level == 1 else first - M + index // K
            beams = tuple(
                jnp.concatenate([old, new.astype(jnp.int32)], axis=1)
                for old, new in zip(beams, (jnp.take_along_axis(tokens[-1], index, axis=1), before), strict=True)
            )
            first, offset = beams[0].shape[1], offset + n
            logits = reader.read(*beams, index.shape[1])
        joined = lambda xs: jnp.concatenate(xs, axis=1)  # noqa: E731
        priority, room = joined(priorities), self.size - sum(x.shape[1] for x in tokens)
        priority = jnp.pad(priority, ((0, 0), (0, max(0, room))))
        token, parent = (jnp.pad(joined(xs), ((0, 0), (0, max(0, room)))) for xs in (tokens, parents))
        index, place, valid = best_nodes(priority, parent, self.size)
        q = None
        if laws:
            q = jnp.pad(joined(laws), ((0, 0), (0, max(0, room)), (0, 0)))
            q = jnp.take_along_axis(q, index[..., None], axis=1)
        return Tree(jnp.take_along_axis(token, index, axis=1), place, q, valid)
