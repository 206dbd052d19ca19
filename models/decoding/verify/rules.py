"""Verifiers that judge drafts by a rule among siblings (`siblings`), along the tree (`walk`): one walk a row.

Which drafts stay is random, from numbers that belong to the request and to the position that is decided: a position is
decided once, so that these numbers are fresh whatever was drafted before. The text has the law that it has without
drafts (but for `typical`), and is another text of that law: `same_draw` keeps the text itself.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.drafts import Tree
from models.decoding.verify import Verdict, Verifier, siblings, walk


def judge(
    rule: siblings.Rule, p: jax.Array, tree: Tree, uniform: jax.Array, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(path `[B, D]`, count `[B]`, law `[B, V]` of the token that follows) of every row of `tree`, by one walk each.

    Args:
      rule: one of `siblings.RULES`.
      p: `[B, N, V]`, the target's law of the token behind each node.
      tree: the drafts; its q is not read by rules that need none.
      uniform: `[B, D, K]`, K = `width`; the path is one of at most D drafts, -1 behind the last that stays.
      width: the most children that a node has, at least 1.
    """
    B, N = tree.token.shape
    parent = jnp.broadcast_to(tree.parent, (B, N))
    children = jax.vmap(functools.partial(walk.children_of, width=width))(parent, tree.valid)
    q = None if tree.q is None else tree.q.astype(p.dtype)
    one = functools.partial(walk.along, rule)
    return jax.vmap(one, (0, 0, 0, None if q is None else 0, 0))(p, tree.token, children, q, uniform)


@dataclasses.dataclass(frozen=True)
class ByRule(Verifier):
    """Base of the verifiers of this module: `rule` among the children of a node."""

    rule: ClassVar[siblings.Rule]

    def chosen(self) -> siblings.Rule:
        """The rule with the options of this verifier."""
        return type(self).rule

    def candidates(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """See `Verifier.candidates`: a rule does not know what will be drawn."""
        return logits

    def __call__(self, keys: jax.Array, logits: jax.Array, tree: Tree, position: jax.Array, depth: int) -> Verdict:
        """See `Verifier.__call__`."""
        B, N = tree.token.shape
        D, width = max(1, depth - 1), max(1, N - depth + 1)  # A path takes `depth` nodes; the others may be siblings.
        p = jax.nn.softmax(logits, axis=-1)
        places = position[:, None] + 1 + jnp.arange(D)
        number = lambda key, at: key_scheme.uniform(  # noqa: E731
            key_scheme.fold(jnp.broadcast_to(key, at.shape), at, key_scheme.ACCEPT), (width,), p.dtype
        )
        path, count, law = judge(self.chosen(), p, tree, jax.vmap(number)(keys, places), width)
        last = key_scheme.fold(keys, position + 1 + count, key_scheme.RESIDUAL)
        noise = jax.vmap(lambda key: key_scheme.gumbel(key, law.shape[-1:], law.dtype))(last)
        nodes = jnp.pad(jnp.maximum(path, 0), ((0, 0), (1, 0)))[:, :depth]
        return Verdict(nodes.astype(jnp.int32), count + 1, jax.vmap(walk.drawn)(law, noise))


@dataclasses.dataclass(frozen=True)
class Token(ByRule):
    """A chain of drafts: each stays with chance min(1, p / q), the first that does not is drawn from norm(max(p - q,
    0)).

    Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318.
    """

    rule = staticmethod(siblings.recursive)
    needs_q = True
    chains = True


@dataclasses.dataclass(frozen=True)
class Recursive(ByRule):
    """The token rule child after child (SpecInfer; Sequoia and DySpec where drafts differ): see `siblings.recursive`.

    The drafter says what each child was drawn from, so that it is exact with and without replacement.
    """

    rule = staticmethod(siblings.recursive)
    needs_q = True


@dataclasses.dataclass(frozen=True)
class KSeq(ByRule):
    """k-SEQ at its smallest valid rho, for children drawn independently of one law (SpecTr): see `siblings.kseq`."""

    rule = staticmethod(siblings.kseq)
    needs_q = True
    independent = True


@dataclasses.dataclass(frozen=True)
class Children(ByRule):
    """Draws from the target and goes on where that is a child: for drafts of any origin (sample-target)."""

    rule = staticmethod(siblings.children)


@dataclasses.dataclass(frozen=True)
class Typical(ByRule):
    """Typical acceptance (Cai et al. 2024, Medusa, arXiv:2401.10774), which changes the law: see `siblings.typical`."""

    rule = staticmethod(siblings.typical)
    exact = False

    epsilon: float
    delta: float

    def chosen(self) -> siblings.Rule:
        """The rule at this threshold."""
        return functools.partial(siblings.typical, epsilon=self.epsilon, delta=self.delta)


PARTS = {"token": Token, "recursive": Recursive, "kseq": KSeq, "children": Children, "typical": Typical}
