"""Block-sparse prefill (MInference, Jiang et al. 2024, arXiv:2407.02490): what each head sees, found online.

Plain functions of arrays; docs/cache.md lists them. T tokens, N query heads over K key heads, H their width.
"""

import jax
import jax.numpy as jnp
import numpy as np

CANDIDATES = (  # what the search tries for each head: (pattern, columns or sinks, diagonals or window)
    ("a_shape", 100, 800), ("vertical_slash", 30, 800), ("vertical_slash", 100, 750), ("vertical_slash", 100, 800),
    ("vertical_slash", 500, 700), ("vertical_slash", 3500, 100), ("vertical_slash", 1000, 4096),
    ("block_sparse", 100, 64),
)  # fmt: skip


def a_shape(T: int, sinks: int, window: int) -> np.ndarray:
    """bool `[T, T]`: causal, and the key is one of the first `sinks` or of the `window` last ones, the query's
    included."""
    i, j = np.arange(T)[:, None], np.arange(T)
    return (j <= i) & ((j < sinks) | (i - j < window))


def a_shape_pairs(T: int, sinks: int, window: int) -> int:
    """Pairs that `a_shape` sees: m (m + 1) / 2 + (T - m) m with m = min(sinks + window, T)."""
    m = min(sinks + window, T)
    return m * (m + 1) // 2 + (T - m) * m


def last_rows(q: jax.Array, k: jax.Array, rows: int = 64) -> jax.Array:
    """`[N, R, T]`: exact causal probabilities of the last R = min(rows, T) queries; q `[T, N, H]`, k `[T, K, H]`."""
    (T, N, H), K = q.shape, k.shape[1]
    R = min(rows, T)
    x = jnp.einsum("rkgh,skh->kgrs", q[T - R :].reshape(R, K, N // K, H), k, precision="highest")
    seen = jnp.arange(T) <= jnp.arange(T - R, T)[:, None]
    return jax.nn.softmax(jnp.where(seen, x.reshape(N, R, T) * H**-0.5, -jnp.inf), axis=-1)


def diagonal_sums(p: jax.Array) -> jax.Array:
    """`[N, T]`: sums of `p [N, R, T]`, the last R rows, along i - j = 0, 1, ..., T - 1."""
    R, T = p.shape[1:]
    distance = jnp.arange(T - R, T)[:, None] - jnp.arange(T)
    at = jnp.where(distance >= 0, distance, T).reshape(-1)
    return jax.vmap(lambda rows: jnp.zeros(T + 1, p.dtype).at[at].add(rows.reshape(-1)))(p)[:, :T]


def vertical_slash(
    p: jax.Array, columns: int, diagonals: int, *, first: int = 30, near: int = 100
) -> tuple[jax.Array, jax.Array]:
    """(columns `[N, V]`, distances `[N, S]`), ascending, that a head sees, found from its last rows `p [N, R, T]`.

    Args:
      p: `last_rows`.
      columns: V; at least 30, at most T.
      diagonals: S; at least 50, at most T.
      first: so many first columns are always among them (as far as V goes).
      near: so many smallest distances are (100 in the kernel, 30 in the search).
    """
    T = p.shape[-1]
    V, S = min(max(columns, 30), T), min(max(diagonals, 50), T)
    top = lambda x, count, forced: jnp.sort(  # noqa: E731
        jax.lax.top_k(jnp.where(jnp.arange(T) < forced, jnp.inf, x), count)[1], axis=-1
    )
    return top(p.sum(1), V, first), top(diagonal_sums(p), S, near)


def vertical_slash_mask(columns: jax.Array, distances: jax.Array, T: int) -> jax.Array:
    """bool `[N, T, T]`: causal, and the key is one of `columns [N, V]` or i - j one of `distances [N, S]`."""
    i, j = jnp.arange(T)[:, None], jnp.arange(T)
    column = jax.vmap(lambda at: jnp.zeros(T, bool).at[at].set(True))(columns)
    slash = jax.vmap(lambda at: jnp.zeros(T, bool).at[at].set(True))(distances)
    return (j <= i) & (column[:, None, :] | slash[:, jnp.where(j <= i, i - j, 0)])


def vertical_slash_blocks(distances: jax.Array, T: int, block: int = 64) -> jax.Array:
    """bool `[N, nq, nk]`: tiles of `block` rows and keys that a diagonal of `distances [N, S]` passes through.

    Row block a meets distance d in keys a block - d .. a block + block - 1 - d: the one or two tiles that cover them,
    and all that tiles see is a superset of the diagonals. Single columns outside them are a gather.
    """
    n = -(-T // block)

    def of(d):
        row = jnp.arange(n)[:, None] * block
        low, high = (row - d) // block, (row + block - 1 - d) // block
        tile = jnp.arange(n)
        hit = (tile == low[..., None]) | (tile == high[..., None])
        return hit.any(1) & (tile <= jnp.arange(n)[:, None])

    return jax.vmap(of)(distances)


def expanded(blocks: jax.Array, T: int, block: int = 64) -> jax.Array:
    """bool `[..., T, T]`: what tiles `[..., nq, nk]` of `block` see, causally."""
    wide = jnp.repeat(jnp.repeat(blocks, block, axis=-2), block, axis=-1)[..., :T, :T]
    return wide & (jnp.arange(T) <= jnp.arange(T)[:, None])


def block_sparse(q: jax.Array, k: jax.Array, count: int = 100, block: int = 64) -> jax.Array:
    """bool `[N, n, n]`: each block of queries sees the `count` key blocks of the largest product of means.

    q `[T, N, H]` and k `[T, K, H]` are averaged over `block` tokens (the last block over what it has); the product is
    not scaled, and key blocks behind the query block are not seen. Each block sees itself only if it is chosen, unless
    no more than `count` are there.
    """
    (T, N, _), K = q.shape, k.shape[1]
    n = -(-T // block)
    size = jnp.minimum(block, T - jnp.arange(n) * block)[:, None, None]
    mean = lambda x: jnp.pad(x, ((0, n * block - T), (0, 0), (0, 0))).reshape(n, block, *x.shape[1:]).sum(1) / size  # noqa: E731
    score = jnp.einsum("anh,bnh->nab", mean(q), jnp.repeat(mean(k), N // K, axis=1), precision="highest")
    seen = jnp.arange(n) <= jnp.arange(n)[:, None]
    score = jnp.where(seen, score, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)
    return seen & (rank < count)


def kept(p: jax.Array, mask: jax.Array) -> jax.Array:
    """`[N]`: mean over queries of the attention mass that a mask keeps; `p [N, R, T]`, mask bool that broadcasts."""
    return jnp.where(mask, p, 0).sum(-1).mean(-1)


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`[T, N, H]`: dense attention under a mask `[N, T, T]`: the value that every sparse kernel must agree with."""
    (_, N, H), K = q.shape, k.shape[1]
    k, v = (jnp.repeat(x, N // K, axis=1) for x in (k, v))
    x = jnp.where(mask, jnp.einsum("tnh,snh->nts", q, k, precision="highest") * H**-0.5, -jnp.inf)
    return jnp.einsum("nts,snh->tnh", jax.nn.softmax(x, axis=-1), v, precision="highest")


def pattern_mask(q: jax.Array, k: jax.Array, kind: str, first: int, second: int) -> jax.Array:
    """bool `[N, T, T]` of a pattern of `CANDIDATES` found on these queries and keys.

    Errors: ValueError for another kind.
    """
    T, N = q.shape[:2]
    if kind == "a_shape":
        return jnp.broadcast_to(a_shape(T, first, second), (N, T, T))
    if kind == "vertical_slash":
        return vertical_slash_mask(*vertical_slash(last_rows(q, k), first, second), T)
    if kind == "block_sparse":
        return expanded(block_sparse(q, k, first, second), T, second)
    raise ValueError(f"kind={kind!r} is unknown; use a_shape, vertical_slash or block_sparse.")


def search(q: jax.Array, k: jax.Array, candidates: tuple = CANDIDATES) -> tuple[np.ndarray, np.ndarray]:
    """(index `[N]` of each head's best candidate, kept mass `[len(candidates), N]`): the offline search on one sample.

    The mass is of all queries' exact probabilities; of equal ones the earlier candidate.
    """
    p = last_rows(q, k, q.shape[0])
    mass = np.stack([np.asarray(kept(p, pattern_mask(q, k, *candidate))) for candidate in candidates])
    return mass.argmax(0), mass
