"""Nothing is evicted, and a query attends to a part: TokenSelect and Quest. Plain functions; docs/cache.md lists
them."""

import jax
import jax.numpy as jnp
import numpy as np

from models.mixers.memory.scores import keep_best, pool, softmax


def token_select_votes(
    q: jax.Array, k: jax.Array, candidates: jax.Array, *, smooth: int = 0, released: bool = False, dtype=None
) -> jax.Array:
    """`[S]`: vote_j = sum_n softmax_j(q_n . k_j / sqrt(H)) over the candidates (Wu et al. 2024, arXiv:2411.02886).

    Args:
      q: `[N, H]`, queries of a chunk, rotated and averaged over its tokens.
      k: `[S, K, H]`, keys without their rotation.
      candidates: bool `[S]`, neither first nor local tokens.
      smooth: odd width of a max pool over the candidates' votes, 0 = none.
      released: as the authors' kernel: no 1/sqrt(H), and query head n reads key head n mod K.
      dtype: what the products are rounded to before the softmax; the authors' is bfloat16.
    """
    (N, H), (S, K, _) = q.shape, k.shape
    grouped = q.reshape(N // K, K, H).swapaxes(0, 1) if released else q.reshape(K, N // K, H)
    x = jnp.einsum("kgh,skh->kgs", grouped, k, precision="highest").reshape(N, S)
    if not released:
        x = x * H**-0.5
    if dtype is not None:
        x = x.astype(dtype).astype(q.dtype)
    votes = softmax(x, candidates).sum(0)
    if not smooth:
        return votes
    return jnp.where(candidates, pool(jnp.where(candidates, votes, -jnp.inf), smooth, "max"), 0)


def token_select(votes: jax.Array, candidates: jax.Array, held: jax.Array, count: int) -> jax.Array:
    """bool `[S]`: what a query attends to: held tokens that are no candidates, and the `count` of the most votes."""
    return (held & ~candidates) | keep_best(votes, candidates, count)


DIGIT = 2  # bits of a number that one pass of `nth_largest` finds


def nth_largest(x: jax.Array, n: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """(whole numbers `[S]` in the order of x, equal where x is; that of its n-th largest entry, ties counted singly).

    A search by digits, from the highest on: passes that compare and count, and no sort. `x [S]` floats without NaN;
    n within 1 .. S.
    """
    bits = jnp.finfo(x.dtype).bits
    whole = jnp.dtype(f"uint{bits}")
    sign = jnp.asarray(1 << (bits - 1), whole)
    raw = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x).astype(x.dtype), whole)  # -0 is 0
    order = jnp.where(raw >= sign, ~raw, raw | sign)
    digits = jnp.arange(1, 1 << DIGIT, dtype=whole)[:, None]

    def digit(i: jax.Array, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        order, found = carried
        place = (bits - DIGIT - DIGIT * i).astype(whole)
        # A product with ones: XLA on a CPU adds up the last axis of an array number by number. Exact below 2^24.
        as_large = (order >= found + (digits << place)).astype(jnp.float32)
        enough = jnp.dot(as_large, jnp.ones(order.shape, jnp.float32), precision="highest") >= n
        return order, found + (jnp.sum(enough, dtype=whole) << place)  # true of the first so many digits

    # In a loop `order` is one array: a compiler that computes scores a second time may round them otherwise.
    return jax.lax.fori_loop(0, bits // DIGIT, digit, (order, jnp.zeros((), whole)))


def same_query(q: jax.Array, cached: jax.Array, least: float = 0.9) -> jax.Array:
    """Whether the last selection may be used again: cosine of the flat `q` and `cached` `[N, H]` at least `least`."""
    q, cached = q.reshape(-1), cached.reshape(-1)
    return q @ cached >= least * jnp.linalg.norm(q) * jnp.linalg.norm(cached)


def ranks(attended: jax.Array) -> jax.Array:
    """`[..., S]`: how many attended tokens stand before each: its rotary position where rank is the position."""
    return counts(attended) - attended


BLOCK = 64  # places of which `counts` takes the sums by a product


def counts(flags: jax.Array) -> jax.Array:
    """int32 `[..., S]`: how many of `flags`, bool `[..., S]`, hold up to each place, that one included.

    Within blocks by a product with a triangle of ones, which costs a CPU a third of cumulative sums.
    """
    S = flags.shape[-1]
    wide = jnp.pad(flags.astype(jnp.float32), [(0, 0)] * (flags.ndim - 1) + [(0, -S % BLOCK)])
    wide = wide.reshape(*flags.shape[:-1], -1, BLOCK)
    within = jnp.matmul(wide, np.triu(np.ones((BLOCK, BLOCK), np.float32)), precision="highest").astype(jnp.int32)
    whole = within[..., -1]
    before = jnp.cumsum(whole, axis=-1) - whole
    return (within + before[..., None]).reshape(*flags.shape[:-1], -1)[..., :S]


def quest_pages(k: jax.Array, held: jax.Array, page: int = 16) -> tuple[jax.Array, jax.Array]:
    """(least, greatest) `[P, K, H]` of each channel over the held keys of each page of `page` places; `k [S, K, H]`.

    An empty page has (inf, -inf). `held` is bool `[S]`. Source: Tang et al. 2024, arXiv:2406.10774.
    """
    S = k.shape[0]
    pad = -S % page

    def wide(empty):
        return jnp.pad(
            jnp.where(held[:, None, None], k, empty), ((0, pad), (0, 0), (0, 0)), constant_values=empty
        ).reshape(-1, page, *k.shape[1:])

    return wide(jnp.inf).min(1), wide(-jnp.inf).max(1)


def quest_bound(q: jax.Array, least: jax.Array, greatest: jax.Array) -> jax.Array:
    """`[N, P]`: sum_c max(q_c least_c, q_c greatest_c), no less than any q . k in the page; -inf for an empty page.

    `q [N, H]`; least and greatest `[P, K, H]` of `quest_pages`.
    """
    (N, H), K = q.shape, least.shape[1]
    grouped = q.reshape(K, N // K, H)
    # max(q a, q b) with a <= b is q b where q is positive, else q a: two products, which read every page once.
    # Pages are the rows of the products: a compiler then reads them where they lie.
    dot = lambda q, x: jnp.einsum("pkh,kgh->kpg", x, q, precision="highest")  # noqa: E731
    bound = dot(jnp.maximum(grouped, 0), greatest) + dot(jnp.minimum(grouped, 0), least)
    empty = least[:, 0, 0] > greatest[:, 0, 0]
    return jnp.where(empty, -jnp.inf, bound.swapaxes(1, 2).reshape(N, -1))


def quest(bound: jax.Array, held: jax.Array, budget: int, page: int = 16, least: int = 3) -> jax.Array:
    """bool `[N, S]`: held tokens in the max(least, budget // page) pages of the largest bound of each head.

    `bound [N, P]`, `held` bool `[S]`; of equal bounds the later page.
    """
    some = ~jnp.isneginf(bound)
    chosen = keep_best(bound, some, max(least, budget // page))
    return jnp.repeat(chosen, page, axis=-1)[:, : held.shape[0]] & held
