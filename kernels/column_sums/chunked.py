"""Column sums by tiles in pure JAX: linear memory and no empty tile on any platform; the default on CPU.

Tiles, lanes and scores are those of `kernels.attention.tiling`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels.attention import tiling
from kernels.attention.scoring import Scoring
from kernels.attention.tiling import Lane, Tiling
from kernels.column_sums.noisy import Noise, noisy


def columns(
    q: jax.Array, k: jax.Array, lse: jax.Array, weights: jax.Array, scoring: Scoring, noise: Noise | None
) -> jax.Array:
    """As `reference.columns`, in memory linear in T and S."""
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, jnp.float32), k.dtype)
    per_query = [x.swapaxes(1, 2)[..., None].astype(dtype) for x in (lse, weights)]

    def row(cut: Tiling, here: Lane, q: tuple, k: jax.Array, i: Any, carry: jax.Array) -> tuple:
        q, lse, weight = q[0], q[1][..., 0], q[2][..., 0]

        def visit(partial: bool) -> Callable:
            def step(n, total):
                j = here.columns[i][n]
                score = _scores(cut, here, q, k, i, j, partial, noise)
                p = jnp.exp(score - lse[..., None]) * weight[..., None]
                return tiling.add(total, p.sum(2)[..., None], j)

            return step

        carry = tiling.each(0, here.full[i], visit(False), carry)
        return tiling.each(here.full[i], here.total[i], visit(True), carry), None

    lanes, cut = _by_lanes(q, k, scoring, dtype, row, per_query, sums=True)
    return tiling.from_keys(cut, lanes[0])[..., 0].swapaxes(1, 2)


def rows(q: jax.Array, k: jax.Array, scoring: Scoring, noise: Noise | None) -> jax.Array:
    """As `reference.rows`, in memory linear in T and S."""
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, jnp.float32), k.dtype)

    def row(cut: Tiling, here: Lane, q: tuple, k: jax.Array, i: Any, carry: None) -> tuple:
        def visit(partial: bool) -> Callable:
            def step(n, carry):
                top, total = carry
                score = _scores(cut, here, q[0], k, i, here.columns[i][n], partial, noise)
                new = jnp.maximum(top, score.max(-1))
                pivot = jnp.where(new == -jnp.inf, 0, new)
                return new, total * jnp.exp(top - pivot) + jnp.exp(score - pivot[..., None]).sum(-1)

            return step

        shape = q[0].shape[:3]
        start = jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype)
        start = tiling.each(0, here.full[i], visit(False), start)
        top, total = tiling.each(here.full[i], here.total[i], visit(True), start)
        some = total > 0
        return carry, jnp.where(some, top + jnp.log(jnp.where(some, total, 1)), -jnp.inf)

    lanes, cut = _by_lanes(q, k, scoring, dtype, row, [], sums=False)
    return tiling.from_queries(cut, lanes[1][..., None])[..., 0].swapaxes(1, 2)


def _by_lanes(
    q: jax.Array, k: jax.Array, scoring: Scoring, dtype: Any, row: Callable, per_query: list, *, sums: bool
) -> tuple[tuple, Tiling]:
    """(what a walk over all lanes carries `[lanes, b, k, S, 1]` and returns by block of queries, how it is cut)."""
    cut = tiling.plan(q.shape, k.shape, scoring.mask, scoring.softcap)
    extra, lists = tiling.extra_of(cut, None, dtype), tiling.visits(cut)
    queries = [tiling.to_queries(cut, x) for x in (q.astype(dtype) * scoring.scale, *per_query)]
    keys = tiling.to_keys(cut, k.astype(dtype))

    def lane(_, args):
        at, queries, k = args
        here = tiling.lane_of(cut, extra, lists, at)
        start = jnp.zeros((*k.shape[:3], 1), dtype) if sums else None
        step = lambda carry, i: row(cut, here, [x[i] for x in queries], k, i, carry)  # noqa: E731
        return None, tiling.scan_rows(cut, here, step, start)

    at = jnp.arange(keys.shape[0])
    return lax.scan(lane, None, (at, queries, keys))[1], cut


def _scores(cut: Tiling, here: Lane, q: jax.Array, k: jax.Array, i: Any, j: Any, partial: bool, noise: Noise | None):
    """Scores of a tile [b, k, G block_q, block_k] with their noise, -inf where a key is not seen."""
    tile = tiling.part(k, 2, j, cut.block_k)
    score, _, _ = tiling.scores(cut, here, q, tile, i, j, partial)
    if noise is None:
        return score
    head = (here.at_k * cut.lane_k + jnp.arange(cut.lane_k))[:, None] * cut.group + jnp.arange(cut.group)
    query = cut.S - cut.T + i * cut.block_q + jnp.arange(cut.block_q)
    at = jnp.repeat(head, cut.block_q, axis=1)[..., None], jnp.tile(query, cut.group)[:, None]
    return noisy(noise, score, *at, j * cut.block_k + jnp.arange(cut.block_k))
