"""Laws of ways to draw tokens."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.laws.law import Law
from models.decoding.canvas import assd

TOLERANCE = 1e-12  # Total variation: sums of at most a few hundred products in float64.
ORDERS = ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0))


def any_subset() -> Law:
    """Any-subset speculative decoding draws strings with the probabilities of drawing token after token.

    Every round is walked on tables of 3 symbols and 4 tokens, whose conditionals fit a joint law or none, in three
    orders, for drafts of 1 to 4. Error: total variation.

    Source: Guo and Ermon 2025, arXiv:2504.20456
    """
    far, _, cases = enumerated(symbols=3, length=4, count=1, orders=ORDERS, drafts=(1, 2, 3, 4))
    return Law(far, TOLERANCE, cases)


def enumerated(
    *, symbols: int, length: int, count: int, orders: Sequence[tuple[int, ...]], drafts: Sequence[int]
) -> tuple[float, dict[int, list[float]], int]:
    """(largest total variation, mean calls of each case by draft, cases) over `count` tables of either kind.

    Args:
      symbols: V of the alphabet.
      length: T, tokens of a string; each of `orders` is a permutation of them.
      count: tables of each kind, those of one joint law and those of none.
      drafts: tokens drafted in one call.
    """
    far, calls = 0.0, {draft: [] for draft in drafts}
    cases = list(itertools.product(range(count), (consistent, arbitrary), orders, drafts))
    with jax.enable_x64(True):
        for seed, make, order, draft in cases:
            table = make(np.random.default_rng(seed), symbols, length)
            options = {"order": np.asarray(order), "draft": draft, "vocab_size": symbols}
            got, mean = assd.exact_law(conditionals(table), **options)
            far = max(far, 0.5 * float(np.abs(got - sequential(table, order)).sum()))
            calls[draft].append(mean)
    return far, calls, len(cases)


def arbitrary(rng: np.random.Generator, V: int, T: int) -> np.ndarray:
    """Conditionals of no joint law: probabilities `[V + 1] * T + [T, V]`, by what stands where (V: nothing)."""
    weight = np.exp(1.5 * rng.normal(size=(V + 1,) * T + (T, V)))
    return weight / weight.sum(-1, keepdims=True)


def consistent(rng: np.random.Generator, V: int, T: int) -> np.ndarray:
    """The conditionals of one joint law, likewise."""
    joint = rng.dirichlet(np.ones(V**T)).reshape((V,) * T)
    table = np.zeros((V + 1,) * T + (T, V))
    for z in itertools.product(range(V + 1), repeat=T):
        given = joint[tuple(slice(None) if v == V else slice(v, v + 1) for v in z)]
        for place in range(T):
            if z[place] == V:
                marginal = given.sum(tuple(axis for axis in range(T) if axis != place))
                table[z][place] = marginal / marginal.sum()
            else:
                table[z][place] = 1 / V  # Never read.
    return table


def conditionals(table: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The table as a model: tokens `[B, T]` to logits `[B, T, V]`."""
    log_p = jnp.log(jnp.asarray(table))
    return lambda z, t: log_p[tuple(jnp.moveaxis(z, -1, 0))]


def sequential(table: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """The law of strings drawn token by token in `order`, `[V] * T`."""
    V, T = table.shape[-1], table.shape[-2]
    law = np.zeros((V,) * T)
    for string in np.ndindex(law.shape):
        z, p = np.full(T, V), 1.0
        for place in order:
            p *= table[tuple(z)][place, string[place]]
            z[place] = string[place]
        law[string] = p
    return law
