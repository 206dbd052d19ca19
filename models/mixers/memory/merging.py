"""Tokens that leave are merged into tokens that stay: one class per kept token, class 0 for what is dropped.

`classes [..., n]` int says into which of the places 1 .. C a token goes, 0 = nowhere. Every rule is a function to
classes; one mean over classes does the rest, with static shapes. docs/cache.md lists the functions.
"""

import jax
import jax.numpy as jnp

from models.mixers.memory.scores import keep_best

_FAR = jnp.iinfo(jnp.int32).max  # from what is no anchor


def merge(
    x: jax.Array, classes: jax.Array, places: int, counts: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(means `[..., C, H]`, counts `[..., C]`) of `x [..., n, H]` over classes 1 .. C: M x / count, M the one-hot
    matrix.

    Args:
      x: keys or values.
      classes: `[..., n]` integers, 0 = dropped.
      places: C.
      counts: `[..., n]`, of how many tokens each row of x is already the mean (1 unless given); an empty class is 0.
    """
    counts = jnp.ones(classes.shape, x.dtype) if counts is None else counts.astype(x.dtype)
    one_hot = (classes[..., None, :] == jnp.arange(1, places + 1)[:, None]).astype(x.dtype) * counts[..., None, :]
    total = one_hot.sum(-1)
    summed = jnp.einsum("...cn,...nh->...ch", one_hot, x, precision="highest")
    return summed / jnp.maximum(total, 1)[..., None], total


def kept_classes(kept: jax.Array) -> jax.Array:
    """`[..., n]`: kept tokens are classes 1, 2, ... in their order, the others 0."""
    return jnp.where(kept, jnp.cumsum(kept, axis=-1), 0)


def nearest(kept: jax.Array, anchors: jax.Array, moved: jax.Array, position: jax.Array | None = None) -> jax.Array:
    """`[..., n]`: the index of the anchor nearest to each moved token by place; itself where kept; -1 elsewhere.

    Of two equally near anchors the earlier one. All are bool `[..., n]`; anchors are kept tokens. `position [..., n]`:
    the places, the indices unless given.
    """
    index = jnp.arange(kept.shape[-1])
    position = index if position is None else position
    far = jnp.abs(position[..., :, None] - position[..., None, :])
    target = jnp.where(moved, jnp.argmin(jnp.where(anchors[..., None, :], far, _FAR), axis=-1), -1)
    return jnp.where(kept, index, target)


def to_classes(target: jax.Array, kept: jax.Array) -> jax.Array:
    """Classes of tokens that each go to the token with index `target [..., n]` (-1: dropped)."""
    found = jnp.take_along_axis(kept_classes(kept), jnp.maximum(target, 0), axis=-1)
    return jnp.where(target >= 0, found, 0)


def elastic(
    score: jax.Array, forget: jax.Array | int, sinks: int = 4, position: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(kept bool `[n]`, target `[n]`) of Elastic Cache's prompt (Liu et al. 2024, arXiv:2407.18121), as intended.

    Kept are the sinks, the last token, and the best of the rest, n - forget in all; each of the others is averaged into
    the kept token that is nearest by position. `score [n]`: column sums of the mean over heads. `position [n]`: of
    each, -1 = no token, in any order; 0 .. n - 1 unless given. Those that are not there had their turn.
    """
    position = jnp.arange(score.shape[-1]) if position is None else position
    held, newest = position >= 0, position.max(-1)
    middle = held & (position >= sinks) & (position < newest)
    kept = (held & ~middle) | keep_best(score, middle, jnp.maximum(newest - sinks - forget, 0), position)
    return kept, nearest(kept, kept, held & ~kept, position)


def elastic_released(score: jax.Array, forget: int, sinks: int = 4) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(kept bool `[n]`, thrown `[m]` indices, anchors `[m]`) of the released code, which differs in three ways.

    With o = argsort of the middle's scores, the place i of the middle is kept where o_i > forget (o is read as if it
    were a rank). The indices i with o_i <= forget are averaged without the shift by `sinks`, so other tokens than those
    dropped go into the anchors. Anchors are kept middle tokens only.
    """
    n = score.shape[-1]
    order = jnp.argsort(score[sinks : n - 1], stable=True)
    chosen = jnp.nonzero(order > forget)[0] + sinks
    thrown = jnp.nonzero(order <= forget)[0]
    if chosen.size == 0:
        raise ValueError(f"forget={forget} leaves no anchor among {n - sinks - 1} tokens; use {(n - sinks) // 2}.")
    anchors = chosen[jnp.argmin(jnp.abs(chosen[None] - thrown[:, None]), axis=1)]
    kept = jnp.zeros(n, bool).at[:sinks].set(True).at[chosen].set(True).at[n - 1].set(True)
    return kept, thrown, anchors


def elastic_released_targets(
    score: jax.Array, forget: jax.Array | int, sinks: int = 4, count: jax.Array | int | None = None
) -> tuple[jax.Array, jax.Array]:
    """`elastic_released` with shapes that do not depend on the scores: (kept bool `[n]`, target `[n]`).

    Target: which anchor each thrown token is added to, -1: none. The tokens are the first `count` of `score [n]`, all
    unless given. An anchor that is thrown, too, is added to itself.
    """
    n = score.shape[-1]
    index = jnp.arange(n)
    count = n if count is None else count
    size = count - sinks - 1
    middle = jnp.where(index < size, score[jnp.minimum(index + sinks, n - 1)], jnp.inf)
    order = jnp.argsort(middle, stable=True)
    inside = (index >= sinks) & (index < count - 1)
    chosen = inside & (order[jnp.maximum(index - sinks, 0)] > forget)
    thrown = (index < size) & (order <= forget)
    target = nearest(chosen, chosen, ~chosen)
    kept = chosen | (index < sinks) | (index == count - 1)
    return kept & (index < count), jnp.where(thrown, target, -1)


def elastic_released_means(x: jax.Array, thrown: jax.Array, anchors: jax.Array) -> jax.Array:
    """`x [n, H]` with each anchor the mean of itself and of the thrown rows that go to it, unweighted."""
    x = jnp.asarray(x)
    sums = x.at[anchors].add(x[thrown])
    counts = jnp.ones(x.shape[0], x.dtype).at[anchors].add(1)
    return sums / counts[:, None]


def ems(
    score: jax.Array,
    k: jax.Array,
    *,
    budget: jax.Array | int,
    recent: jax.Array | int,
    least: float = 0.5,
    position: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(kept bool `[n]`, target `[n]`) of one key head's prompt, evict then merge (Li et al. 2024, arXiv:2412.08521).

    The instantiation that we fix, since the paper's constants are not public. Important: the `recent` last tokens and
    the best of the rest, `budget` in all. Of the others the better half (rounded down) is to be merged, each into the
    kept token whose key has the largest cosine with its own, where that is at least `least`; all else is class zero.
    `score [n]` is `scores.ems`, `k [n, H]` the keys, `position [n]` of each, -1 = no token, in any order; 0 .. n - 1
    unless given.
    """
    index = jnp.arange(score.shape[-1])
    position = index if position is None else position
    held = position >= 0
    near = held & (position > position.max() - recent)
    kept = near | keep_best(score, held & ~near, jnp.maximum(budget - near.sum(), 0), position)
    others = held & ~kept
    moved = keep_best(score, others, others.sum() // 2, position)
    target, cosine = most_similar(k, k, kept)
    return kept, jnp.where(kept, index, jnp.where(moved & (cosine >= least), target, -1))


def most_similar(
    k: jax.Array, centres: jax.Array, kept: jax.Array, norm: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(index, cosine) `[..., n]` of the kept centre whose key is most similar to each key; `k [..., n, H]`.

    `centres [..., C, H]`, `kept` bool `[..., C]`, `norm [..., C]` of the centres where it is known.
    """
    length = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=-1), 1e-30)  # noqa: E731
    product = jnp.einsum("...nh,...ch->...nc", k / length(k)[..., None], centres, precision="highest")
    cosine = product / (length(centres) if norm is None else jnp.maximum(norm, 1e-30))[..., None, :]
    cosine = jnp.where(kept[..., None, :], cosine, -jnp.inf)
    if k.shape[-2] > 1:
        return jnp.argmax(cosine, axis=-1), cosine.max(-1)
    return first_highest(cosine), cosine.max(-1)


def first_highest(x: jax.Array) -> jax.Array:
    """`argmax(x [..., S], -1)` as int32, of plain reductions, which are faster on a CPU; x has no NaN."""
    S, best = x.shape[-1], x.max(-1, keepdims=True)
    place = jnp.arange(S, dtype=jnp.int32)
    first = lambda hit: jnp.min(jnp.where(hit, place, S), axis=-1)  # noqa: E731
    # A compiler may compute x a second time and round it otherwise, so that none is the highest.
    near = first(x >= best - 64 * jnp.finfo(x.dtype).eps * jnp.abs(best))
    exact = first(x >= best)
    return jnp.minimum(jnp.where(exact < S, exact, near), S - 1)


def added(x: jax.Array, count: jax.Array, new: jax.Array) -> jax.Array:
    """The mean of `count` tokens, `x [..., H]`, with one more: (count x + new) / (count + 1)."""
    return (count[..., None] * x + new) / (count[..., None] + 1)


def lococo_weights(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    score: jax.Array,
    gate: jax.Array | float,
    seen: jax.Array | None = None,
) -> jax.Array:
    """`[C, n]`: W = (1 - g) OneHot(the C best scored, in their order) + g softmax_tokens(relu(conv([K; V]))).

    Args:
      x: `[n, 2H]`, keys beside values of the tokens that are no heavy hitters.
      kernel: `[C, 2H, w]`, w odd; the convolution is a cross-correlation over tokens with zeros beyond the ends.
      bias: `[C]`.
      score: `[n]`, attention that the tokens got.
      gate: g; 0.5 at the start of training, and 0 is eviction.
      seen: bool `[n]`, which of the tokens there are (all unless given), at least C; x is zero in the others.

    Source: Cai et al. 2024, arXiv:2406.05317; new keys are W K and new values W V.
    """
    (C, _, w), n = kernel.shape, x.shape[0]
    wide = jnp.pad(x, ((w // 2, w // 2), (0, 0)))
    mixed = sum(jnp.einsum("ch,nh->cn", kernel[:, :, i], wide[i : i + n], precision="highest") for i in range(w))
    seen = jnp.ones(n, bool) if seen is None else seen
    soft = jax.nn.softmax(jnp.where(seen, jax.nn.relu(mixed + bias[:, None]), -jnp.inf), axis=-1)
    best = keep_best(score, seen, C)
    hard = (kept_classes(best) == jnp.arange(1, C + 1)[:, None]).astype(x.dtype)
    return (1 - gate) * hard + gate * soft


def lococo_kept(score: jax.Array, count: int, local: int = 0, length: jax.Array | int | None = None) -> jax.Array:
    """bool `[n]`: the `count` tokens that LoCoCo keeps as they are: the `local` last ones and the best of the rest.

    `score [n]`; the tokens are its first `length`, all unless given.
    """
    index, length = jnp.arange(score.shape[-1]), score.shape[-1] if length is None else length
    near = (index >= length - local) & (index < length)
    return near | keep_best(score, (index < length) & ~near, count - local)


def lococo_cache(
    k: jax.Array,
    v: jax.Array,
    score: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array | float],
    *,
    slots: int,
    local: int = 0,
    length: jax.Array | int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(k', v') `[slots, H]` of one key head: kept tokens in their order, then W K and W V of the rest.

    Args:
      k, v: `[n, H]`, keys as they were rotated; score: `[n]`, the attention that the last chunk gave each.
      weights: (kernel `[C, 2H, w]`, bias `[C]`, gate) of `lococo_weights`; slots - C tokens are kept as they are.
      slots: M; local: how many of the last tokens are kept whatever their score.
      length: the tokens are the first so many, all unless given; up to `slots` of them stay as they are.
    """
    n, kernel = k.shape[0], weights[0]
    heavy = slots - kernel.shape[0]
    length = n if length is None else length
    index = jnp.arange(n)
    kept = lococo_kept(score, heavy, local, length)
    stay = jnp.argsort(~kept, stable=True)[:heavy]
    rest = jnp.argsort(kept | (index >= length), stable=True)[: n - heavy]
    seen = index[: n - heavy] < length - heavy
    k_rest, v_rest = (jnp.where(seen[:, None], x[rest], 0) for x in (k, v))
    x = jnp.concatenate([k_rest, v_rest], axis=-1)
    W = lococo_weights(x, *weights[:2], score[rest], weights[2], seen)
    mix = lambda x: jnp.einsum("cn,nh->ch", W, x, precision="highest")  # noqa: E731
    made = (jnp.concatenate([x[stay], mix(y)]) for x, y in ((k, k_rest), (v, v_rest)))
    few = length <= slots
    k_made, v_made = (jnp.where(few, x[:slots], y) for x, y in zip((k, v), made, strict=True))
    return k_made, v_made
