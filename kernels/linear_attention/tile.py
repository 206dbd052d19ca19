"""The chunk of one head, in two dimensions: what the kernels of every chip compute, and whose `jax.vjp` they run.

The same formulas as `chunked.one_chunk`, which has them for all heads at once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.tiles import column, inverse, inverted, last, places, product


class Chunk(NamedTuple):
    """What the tokens of a chunk bring to one head.

    q, k: `[C, H]`.
    v: `[C, P]`.
    total: `[1, C]`, logarithm of what is left at each token of a memory that enters the chunk, as if it were one
        document.
    beta: `[1, C]`, or None without the delta rule.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    total: jax.Array
    beta: jax.Array | None


class Shares(NamedTuple):
    """The share of a memory that is left: `chunked.Ratios` of one head, turned as its products need them.

    pair: `[C, C]`, entering, leaving: `[C, 1]`, whole: `[1, 1]`.
    """

    pair: jax.Array
    entering: jax.Array
    leaving: jax.Array
    whole: jax.Array


def shares(total: jax.Array, run: jax.Array) -> Shares:
    """total as in `Chunk`; run `[1, C]`, in its dtype, how many documents have begun in the chunk."""
    i, j = places(total.shape[1])
    after, at = column(total), column(run)
    end, ends = last(total), last(run)
    seen = (i >= j) & (at == run)
    pair = jnp.where(seen, jnp.exp(jnp.where(seen, after - total, 0)), 0)  # masked before exp: no overflow
    leaving = jnp.where(at == ends, jnp.exp(jnp.where(at == ends, end - after, 0)), 0)
    return Shares(
        pair,
        jnp.where(at == 0, jnp.exp(after), 0),
        leaving,
        jnp.where(ends == 0, jnp.exp(end), 0),
    )


def overlap(chunk: Chunk, rest: Shares) -> jax.Array:
    """`[C, C]`, the triangular system of the delta rule without its diagonal: beta_i pair_ij (k_i . k_j), j < i."""
    i, j = places(rest.pair.shape[0])
    return jnp.where(i > j, product(chunk.k, chunk.k, "nt", chunk.k.dtype) * rest.pair * column(chunk.beta), 0)


def written(memory: jax.Array, chunk: Chunk, rest: Shares, found: jax.Array | None = None) -> jax.Array:
    """`[C, P]`, what each token adds at its key; found: the inverse of the delta rule's system where it is known."""
    values = chunk.v.astype(memory.dtype)
    if chunk.beta is None:
        return values
    system = overlap(chunk, rest)
    solve = inverse(system) if found is None else inverted(system, found)
    known = product(chunk.k, memory, "nn", chunk.k.dtype) * rest.entering
    return product(solve, column(chunk.beta) * (values - known), "nn", memory.dtype)


def one_chunk(
    memory: jax.Array, chunk: Chunk, run: jax.Array, found: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(memory `[H, P]` after the chunk, out `[C, P]` in the dtype of the memory)."""
    low, rest = chunk.q.dtype, shares(chunk.total, run)
    new = written(memory, chunk, rest, found)
    scores = product(chunk.q, chunk.k, "nt", low) * rest.pair
    out = product(scores, new, "nn", low) + product(chunk.q, memory, "nn", low) * rest.entering
    return memory * rest.whole + product(chunk.k, new * rest.leaving, "tn", low), out


def affine(chunk: Chunk, run: jax.Array, wide: jnp.dtype) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """What a chunk makes of any memory: S -> whole S - taken S + added. Returns (added, taken, inverse).

    added `[H, P]`; taken `[H, H]` and the inverse of the system `[C, C]`, None without the delta rule.
    """
    low, rest = chunk.k.dtype, shares(chunk.total, run)
    values = chunk.v.astype(wide)
    if chunk.beta is None:
        return product(chunk.k, values * rest.leaving, "tn", low), None, None
    beta, found = column(chunk.beta), inverse(overlap(chunk, rest))
    values = product(found, beta * values, "nn", wide)
    keys = product(found, beta * rest.entering * chunk.k.astype(wide), "nn", wide)
    added = product(chunk.k, values * rest.leaving, "tn", low)
    return added, product(chunk.k, keys * rest.leaving, "tn", low), found
