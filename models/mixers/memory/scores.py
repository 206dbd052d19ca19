"""What a cached token is worth, by policy. Plain functions of arrays; docs/cache.md lists them.

Letters: T queries, S keys, N query heads over K key heads (query head n reads key head n // (N/K)), H their width. p is
a row's attention probability. A score of a key head adds up the query heads that read it. Everything follows the dtype
of what it is given (float64 under `jax.enable_x64`).
"""

import jax
import jax.numpy as jnp

from kernels.attention.noise import gumbel


def logits(q: jax.Array, k: jax.Array, scale: float | None = None) -> jax.Array:
    """`[N, T, S]`: scale q . k, q `[T, N, H]`, k `[S, K, H]`; scale is 1/sqrt(H) unless given."""
    (T, N, H), (S, K, _) = q.shape, k.shape
    grouped = jnp.einsum("tkgh,skh->kgts", q.reshape(T, K, N // K, H), k, precision="highest")
    return grouped.reshape(N, T, S) * (H**-0.5 if scale is None else scale)


def softmax(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Softmax of x over its last axis among the entries that are seen; 0 elsewhere, and in a row that sees nothing."""
    x = jnp.where(seen, x, -jnp.inf)
    top = jnp.max(x, axis=-1, keepdims=True)
    e = jnp.where(seen, jnp.exp(x - jnp.where(jnp.isfinite(top), top, 0)), 0)
    return e / jnp.maximum(e.sum(-1, keepdims=True), jnp.finfo(e.dtype).tiny)


def by_key_head(p: jax.Array, K: int) -> jax.Array:
    """`[K, ...]`: sums of `p [N, ...]` over the N/K query heads that read one key head."""
    return p.reshape(K, -1, *p.shape[1:]).sum(1)


def column_sums(p: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """`[N, S]`: c_j = sum_i w_i p_ij of `p [N, T, S]`, with `weights [T]` (ones unless given)."""
    return p.sum(1) if weights is None else jnp.einsum("nts,t->ns", p, weights, precision="highest")


def h2o(score: jax.Array, row: jax.Array) -> jax.Array:
    """S_j <- S_j + p_nj (Zhang et al. 2023, arXiv:2306.14048): `score`, `row` `[K, S]`, row summed over its group."""
    return score + row


def a2sf(score: jax.Array, row: jax.Array, alpha: float) -> jax.Array:
    """S_j <- alpha S_j + p_nj (Jo et al. 2024, arXiv:2407.20485); alpha = 1 is `h2o`, 0 the last row alone."""
    return alpha * score + row


def a2sf_weights(alpha: float, count: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """`[count]`: alpha^(count-1-i), with 0^0 = 1, so that `column_sums(p, weights)` is `a2sf` after `count` rows."""
    return a2sf_decay(alpha, jnp.arange(count - 1, -1, -1), dtype)


def a2sf_decay(alpha: float, age: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """alpha^age of the ages of rows, in steps, with 0^0 = 1; the shape of `age`."""
    return jnp.where(age == 0, 1.0, jnp.asarray(alpha, dtype) ** age).astype(dtype)


def a2sf_released_weights(slope: float, shift: float, count: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """`[count]`: 1 / exp(-slope (i - (count - shift - 1))), what the released code calls its sigmoid weight."""
    return jnp.exp(slope * (jnp.arange(count, dtype=dtype) - (count - shift - 1)))


def keyformer_temperature(step: jax.Array | int, steps: int, end: float = 2.0, start: float = 1.0) -> jax.Array:
    """tau_t = start + t (end - start) / steps; t = 0 is the prompt, 1 the first new token (Adnan et al. 2024)."""
    return start + jnp.asarray(step) * ((end - start) / steps)


def keyformer_noise(seed: int, heads: int, query: jax.Array, key: jax.Array, dtype=jnp.float32) -> jax.Array:
    """`[N, T, S]`: Gumbel noise by (seed, head, query position, key position); `query [T]`, `key [S]`."""
    head = jnp.arange(heads)[:, None, None]
    return gumbel(seed, head, query[None, :, None], key[None, None, :], dtype=dtype)


def keyformer(x: jax.Array, noise: jax.Array, tau: jax.Array | float, seen: jax.Array) -> jax.Array:
    """`[N, T, S]`: softmax_j((x_ij + g_ij) / tau), x the raw logits, over the keys that are seen.

    What is added to a token's score is the sum over queries (and the group) of this, in place of p.
    Source: Adnan et al. 2024, arXiv:2403.09054; the output of attention itself has no noise.
    """
    return softmax((x + noise) / tau, seen)


def scissorhands(p: jax.Array, seen: jax.Array) -> jax.Array:
    """`[..., S]`: 1 where a seen key has p_ij < 1/n_i, n_i the number of keys that query i sees: a vote against it.

    The score of a key is minus the votes of the last `window` queries, added over the group. A query that does not see
    a key has no vote on it. Source: Liu et al. 2023, arXiv:2305.17118 (persistence of importance).
    """
    count = seen.sum(-1, keepdims=True)
    return (seen & (p * count < 1)).astype(p.dtype)


def tova(row: jax.Array) -> jax.Array:
    """`[S]`: mean over all query heads of the newest row `[N, S]`; all heads keep the same tokens, none is protected.

    Source: Oren et al. 2024, arXiv:2401.06104, and the released cache: the best `budget` of all, the newest included.
    """
    return row.mean(0)


def pool(score: jax.Array, kernel: int, kind: str = "mean") -> jax.Array:
    """`[..., S]`: mean (zeros beyond the ends count: always divided by `kernel`) or max over `kernel` places around j.

    Errors: ValueError for an even kernel or another kind.
    """
    if kernel % 2 == 0 or kind not in ("mean", "max"):
        raise ValueError(
            f"pool takes an odd kernel and 'mean' or 'max'; kernel={kernel}, kind={kind!r}; use 5, 'mean'."
        )
    reach, S = kernel // 2, score.shape[-1]
    empty = 0.0 if kind == "mean" else -jnp.inf
    wide = jnp.pad(score, [(0, 0)] * (score.ndim - 1) + [(reach, reach)], constant_values=empty)
    stack = jnp.stack([wide[..., i : i + S] for i in range(kernel)])
    return stack.sum(0) / kernel if kind == "mean" else stack.max(0)


def snap(p: jax.Array, window: int, kernel: int = 5, kind: str = "mean") -> jax.Array:
    """`[N, n - window]`: pooled column sums of the last `window` queries over the keys before them (Li et al. 2024).

    p is `[N, n, n]` or its last `window` rows `[N, window, n]`. Source: arXiv:2404.14469; the window itself is kept.
    """
    n = p.shape[-1]
    return pool(p[:, -window:, : n - window].sum(1), kernel, kind)


def ems(total: jax.Array, local: jax.Array) -> jax.Array:
    """`[..., S]`: (total / sum(total) + local / sum(local)) / 2, all-query and recent-window column sums, aligned.

    The one instantiation that we fix of EMS's global-local score (Li et al. 2024, arXiv:2412.08521).
    """
    share = lambda x: x / jnp.maximum(x.sum(-1, keepdims=True), jnp.finfo(x.dtype).tiny)  # noqa: E731
    return (share(total) + share(local)) / 2


def keep_best(score: jax.Array, candidates: jax.Array, count: jax.Array | int, position: jax.Array | None = None):
    """bool `[..., S]`: the `count` candidates of the highest scores; of equal ones the latest stay.

    Args:
      score: `[..., S]`.
      candidates: bool `[..., S]`.
      count: how many stay, `[...]` or one number; all stay where there are no more.
      position: `[..., S]`, which of two equal ones is later; their order in the array unless given.
    """
    S = score.shape[-1]
    score = jnp.where(candidates, score, -jnp.inf)
    candidates = jnp.broadcast_to(candidates, score.shape)
    position = jnp.broadcast_to(jnp.arange(S) if position is None else position, score.shape)
    rank = jnp.argsort(jnp.lexsort((position, candidates, score), axis=-1), axis=-1)
    return candidates & (rank >= S - jnp.asarray(count)[..., None])


def protected(position: jax.Array, newest: jax.Array | int, recent: jax.Array | int, sinks: int = 0) -> jax.Array:
    """bool `[..., S]`: the `recent` last tokens and the first `sinks`; arguments as in `keep`."""
    return (position > newest - recent) | (position < sinks)


def keep(
    score: jax.Array, position: jax.Array, newest: jax.Array | int, *, budget: jax.Array | int, recent: int, sinks=0
) -> jax.Array:
    """bool `[..., S]`: what stays of the held tokens: `sinks`, the `recent` last ones, and the best of the rest.

    Args:
      score: `[..., S]`.
      position: `[..., S]` integers, -1 = an empty slot.
      newest: position of the newest token; positions above newest - recent are recent, those below `sinks` are sinks.
      budget: how many tokens stay in all.
      recent: how many of the last tokens are not asked for their score.
      sinks: how many of the first tokens are not.
    """
    held = position >= 0
    sure = held & protected(position, newest, recent, sinks)
    return sure | keep_best(score, held & ~sure, jnp.maximum(budget - sure.sum(-1), 0), position)


def weakest(score: jax.Array, candidates: jax.Array, position: jax.Array) -> jax.Array:
    """bool `[..., S]`: the candidate that `keep_best` drops first: the lowest score, of equal ones the earliest.

    Nothing is sorted. No entry holds where there is no candidate. Arguments as in `keep_best`, each `[..., S]`.
    """
    lowest = jnp.min(jnp.where(candidates, score, jnp.inf), axis=-1, keepdims=True)
    equal = candidates & (score <= lowest)
    # A compiler may compute the scores a second time and round them otherwise, so that none is the lowest.
    near = candidates & (score <= lowest + 64 * jnp.finfo(score.dtype).eps * jnp.abs(lowest))
    equal = jnp.where(jnp.any(equal, axis=-1, keepdims=True), equal, near)
    first = jnp.min(jnp.where(equal, position, jnp.iinfo(position.dtype).max), axis=-1, keepdims=True)
    return equal & (position == first)


def keep_but_one(
    score: jax.Array, position: jax.Array, newest: jax.Array | int, *, budget: jax.Array | int, recent: int, sinks=0
) -> jax.Array:
    """bool `[..., S]`: `keep` where at most one token is too many, as after each new token: no sort. Arguments of
    `keep`."""
    held = position >= 0
    sure = held & protected(position, newest, recent, sinks)
    over = (held.sum(-1) > jnp.maximum(budget, sure.sum(-1)))[..., None]
    return held & ~(weakest(score, held & ~sure, position) & over)


def kept_mass(p: jax.Array, kept: jax.Array) -> jax.Array:
    """`[...]`: the share of attention that falls on what is kept: sum_j p_j over `kept`, both `[..., S]`."""
    return jnp.where(kept, p, 0).sum(-1)


def oracle(p: jax.Array, candidates: jax.Array, count: int) -> jax.Array:
    """bool `[..., S]`: the `count` candidates of the largest true p: no other choice of as many keeps more mass."""
    return keep_best(p, candidates, count)
