"""Which of the children of one node stays: rules as functions of tables.

A rule maps the target's law p `[V]`, the laws q `[K, V]` that the K drafts were drawn from, the drafts `[K]` and which
of them are there, valid `[K]`, to `Siblings`: the chance of each draft, given that none before it was accepted, and the
law of the token where none is. The chances are all there is to a rule: `walk` compares them with uniform numbers,
`laws` sums over them, so that what is proven is what runs. One node each; `jax.vmap` maps over more.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.decoding.verify import kseq as coefficients

Array = jax.Array


class Siblings(NamedTuple):
    """accept `[K]`: chance of draft i, given that no draft before it stays; rest `[V]`: law of the token if none
    does."""

    accept: Array
    rest: Array


Rule = Callable[[Array, Array, Array, Array], Siblings]


def normalised(weight: Array, otherwise: Array) -> Array:
    """weight / sum(weight) over the last axis; `otherwise` where the sum is 0."""
    total = jnp.sum(weight, axis=-1, keepdims=True)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), otherwise)


def ratio(p: Array, q: Array) -> Array:
    """min(1, p / q); 0 where q is 0, since a law cannot have drawn what it forbids."""
    return jnp.where(q > 0, jnp.minimum(1, p / jnp.where(q > 0, q, 1)), 0)


def without_replacement(q: Array, drafts: Array) -> Array:
    """Laws `[K, V]` of drafts `[K]` drawn one after another from q `[V]` without repetition.

    Row i is q without the drafts before i, normalised; zeros once q has no mass left.
    """
    drafts = jnp.asarray(drafts)
    before = jnp.tril(jnp.ones((len(drafts),) * 2, bool), -1)
    gone = jnp.any(before[:, :, None] & (drafts[None, :, None] == jnp.arange(q.shape[-1])), axis=1)
    left = jnp.where(gone, 0, q)
    return normalised(left, jnp.zeros_like(left))


def recursive(p: Array, q: Array, drafts: Array, valid: Array) -> Siblings:
    """The token rule again and again: after each rejection the target is norm(max(p - q, 0)).

    accept_i = min(1, p_i(x) / q_i(x)), p_{i+1} = norm(max(p_i - q_i, 0)), rest = p_{K+1}. The rows of q must be the
    laws that the drafts were really drawn from: all the same with replacement (SpecInfer, Miao et al. 2023,
    arXiv:2305.09781), those of `without_replacement` without (Sequoia, Chen et al. 2024, arXiv:2402.12374; DySpec).
    With one draft it is the token rule (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).
    """

    def one(p: Array, each: tuple) -> tuple[Array, Array]:
        q, draft, there = each
        there = there & (q[draft] > 0)
        rest = normalised(jnp.maximum(p - q, 0), p)
        return jnp.where(there, rest, p), jnp.where(there, ratio(p[draft], q[draft]), 0)

    rest, accept = jax.lax.scan(one, p, (q, drafts, valid))
    return Siblings(accept, rest)


def kseq(p: Array, q: Array, drafts: Array, valid: Array) -> Siblings:
    """k-SEQ at its smallest valid rho, for drafts that were drawn independently of q[0]: see `kseq`."""
    q, most = q[0], len(drafts)
    k = jnp.sum(valid)
    rho = coefficients.smallest_rho(p, q, k, most)
    accept = jnp.where(valid, ratio(p[drafts] / rho, q[drafts]), 0)
    return Siblings(accept, normalised(coefficients.residual(p, q, k, rho, most), p))


def children(p: Array, q: Array | None, drafts: Array, valid: Array) -> Siblings:
    """For children that were not drawn: draw y from p and go on if y is one of them. q is not read.

    accept_i = p(x_i) / (1 - sum of p over the children before i); rest = p without the children. This is the token rule
    with all of q on the child.
    """
    return recursive(p, jax.nn.one_hot(drafts, len(p), dtype=p.dtype), drafts, valid)


def greedy(p: Array, q: Array | None, drafts: Array, valid: Array) -> Siblings:
    """The token rule at temperature 0: the child that is the likeliest token stays. q is not read."""
    best = jnp.argmax(p)
    return Siblings(
        jnp.where(valid & (drafts == best), 1, 0).astype(p.dtype), jax.nn.one_hot(best, len(p), dtype=p.dtype)
    )


def typical_threshold(p: Array, epsilon: float = 0.3, delta: float = 0.09, offset: float = 1e-5) -> Array:
    """min(epsilon, delta exp(-H)), H = -sum p log(p + offset): p `[..., V]` -> `[...]` (Cai et al. 2024, Medusa).

    The offset is that of the authors' code; 0 gives the entropy itself.
    """
    terms = jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1) + offset), 0)
    return jnp.minimum(epsilon, delta * jnp.exp(jnp.sum(terms, axis=-1)))


def typical(
    p: Array, q: Array | None, drafts: Array, valid: Array, epsilon: float = 0.3, delta: float = 0.09
) -> Siblings:
    """Typical acceptance, which is NOT lossless: a child stays iff p(x) > min(epsilon, delta exp(-H)). q is not read.

    The token where none does follows p, cut to the tokens that reach the threshold (Cai et al. 2024, arXiv:2401.10774).
    """
    threshold = typical_threshold(p, epsilon, delta)
    return Siblings(
        jnp.where(valid & (p[drafts] > threshold), 1, 0).astype(p.dtype),
        normalised(jnp.where(p >= threshold, p, 0), p),
    )


# By the name of the verifier. All but "typical" give tokens that follow p; "greedy" those of temperature 0.
RULES: dict[str, Rule] = {
    "greedy": greedy,
    "recursive": recursive,
    "kseq": kseq,
    "children": children,
    "typical": typical,
}
