"""k-SEQ: one rule for k independent drafts of one law, scanned in order (Sun et al. 2023, SpecTr, arXiv:2310.15141).

A draft x is accepted with chance min(1, p(x) / (rho q(x))). With beta = sum_x min(q(x), p(x) / rho), the chance that
one draft is accepted, a token is accepted with chance 1 - (1 - beta)^k = beta G, where G = sum_{j<k} (1 - beta)^j. The
output
follows p iff rho beta >= beta G. G is summed, not divided out, so that beta = 0 needs no care and k = 1 is exact.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
HALVINGS = 64  # Of an interval of length k - 1: below the spacing of float64.


def chance(p: Array, q: Array, rho: Array | float) -> Array:
    """beta = sum_x min(q(x), p(x) / rho), the chance that one draft is accepted: p, q `[..., V]` -> `[...]`."""
    return jnp.sum(jnp.minimum(q, p / jnp.asarray(rho)[..., None]), axis=-1)


def geometric(beta: Array, k: int | Array, most: int | None = None) -> Array:
    """G = sum_{j<k} (1 - beta)^j, which is (1 - (1 - beta)^k) / beta and k at beta = 0: beta `[...]` -> `[...]`.

    k may be an array if `most` bounds it.
    """
    beta = jnp.asarray(beta)
    power, total = jnp.ones_like(beta), jnp.zeros_like(beta)
    for j in range(int(k) if most is None else most):
        total = total + jnp.where(j < jnp.asarray(k), power, 0)
        power = power * (1 - beta)
    return total


def smallest_rho(p: Array, q: Array, k: int | Array, most: int | None = None) -> Array:
    """The smallest valid rho of [1, k], by bisection: p, q `[..., V]` -> `[...]`.

    rho = k is always valid, k = 1 gives 1. rho beta rises with rho and beta G falls, so that there is one root.
    """
    p, q = jnp.asarray(p), jnp.asarray(q)

    def valid(rho: Array) -> Array:
        beta = chance(p, q, rho)
        return rho * beta >= beta * geometric(beta, k, most)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        good = valid(middle)
        return jnp.where(good, low, middle), jnp.where(good, middle, high)

    low = jnp.ones(p.shape[:-1], p.dtype)
    high = jnp.maximum(low, jnp.asarray(k, p.dtype))
    found = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))[1]
    return jnp.where(valid(low), low, found)


def acceptance(p: Array, q: Array, k: int, rho: Array | float | None = None) -> Array:
    """1 - (1 - beta)^k, the chance that one of k drafts is accepted, at the smallest valid rho by default: `[...]`."""
    beta = chance(p, q, smallest_rho(p, q, k) if rho is None else rho)
    return beta * geometric(beta, k)


def residual(p: Array, q: Array, k: int | Array, rho: Array | float, most: int | None = None) -> Array:
    """p(x) - min(q(x), p(x) / rho) G, not normalised: of mass 1 - (1 - (1 - beta)^k) at a valid rho. `[..., V]`."""
    taken = jnp.minimum(q, p / jnp.asarray(rho)[..., None])
    return jnp.maximum(p - taken * geometric(jnp.sum(taken, axis=-1), k, most)[..., None], 0)
