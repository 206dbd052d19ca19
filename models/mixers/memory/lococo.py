"""LoCoCo's cache of fixed size: M slots that a convolution fills, and the chunk that is read now. Of plain arrays.

    empty -> read (up to C tokens of a chunk) -> compress (the chunk is full) -> read ...

Tokens attend to the slots and to those of their chunk up to themselves. Behind a chunk the slots and its C tokens are
merged into M slots (`merging.lococo_cache`), by the attention that this chunk's queries gave to each. Cai et al. 2024,
arXiv:2406.05317. docs/cache.md lists the functions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from models.mixers.memory.merging import lococo_cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Held:
    """Keys and values of B rows: place j < M is a slot, place M + i the i-th token of the chunk."""

    k: jax.Array  # [B, K, M + C, H] rotated where their tokens stood
    v: jax.Array  # [B, K, M + C, H]
    score: jax.Array  # [B, K, M + C] attention from the queries of this chunk, float32 or wider
    slots: jax.Array  # [B] slots in use, from the first
    used: jax.Array  # [B] tokens of the chunk


def empty(rows: int, *, slots: int, chunk: int, heads: int, width: int, dtype: jnp.dtype) -> Held:
    """Rows without a token: M = `slots`, C = `chunk`, K = `heads`, H = `width`."""
    shape, none = (rows, heads, slots + chunk), jnp.zeros((rows,), jnp.int32)
    k, v = (jnp.zeros((*shape, width), dtype) for _ in range(2))
    return Held(k, v, jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)), none, none)


def read(held: Held, q: jax.Array, k: jax.Array, v: jax.Array, count: jax.Array, chunk: int) -> tuple[jax.Array, Held]:
    """Attention of tokens that fit into the open chunk; (outputs `[B, T, N, H]`, the rows with them).

    Args:
      held: the rows; used + count is at most C.
      q: `[B, T, N, H]`; k, v: `[B, T, K, H]`, q and k rotated.
      count: `[B]`, how many of the T tokens there are; outputs of the others mean nothing.
      chunk: C.
    """
    (B, T, N, H), (K, S) = q.shape, held.k.shape[1:3]
    M = S - chunk
    place = jnp.arange(S) - M
    own = place[None] - held.used[:, None]  # [B, S] which of the T stands there
    new = (own >= 0) & (own < count[:, None])
    at = jnp.clip(own, 0, T - 1)[:, :, None, None]

    def put(old: jax.Array, x: jax.Array) -> jax.Array:
        there = jnp.take_along_axis(x, at, axis=1).swapaxes(1, 2).astype(old.dtype)
        return jnp.where(new[:, None, :, None], there, old)

    keys, values = put(held.k, k), put(held.v, v)
    wide = held.score.dtype
    scores = jnp.einsum("btkgh,bksh->bkgts", q.reshape(B, T, K, N // K, H), keys, preferred_element_type=wide)
    last = held.used[:, None] + jnp.minimum(jnp.arange(T), jnp.maximum(count[:, None] - 1, 0))  # [B, T]
    seen = jnp.where(place < 0, (place + M < held.slots[:, None])[:, None], place <= last[..., None])  # [B, T, S]
    p = jax.nn.softmax(jnp.where(seen[:, None, None], scores / math.sqrt(H), -jnp.inf), axis=-1)
    out = jnp.einsum("bkgts,bksh->btkgh", p.astype(values.dtype), values, preferred_element_type=wide)
    real = jnp.arange(T) < count[:, None]
    score = held.score + jnp.sum(jnp.where(real[:, None, None, :, None], p, 0), axis=(2, 3))
    after = dataclasses.replace(held, k=keys, v=values, score=score, used=held.used + count)
    return out.reshape(B, T, N, H).astype(q.dtype), after


def compress(
    held: Held,
    weights: tuple[jax.Array, jax.Array, jax.Array],
    full: jax.Array,
    *,
    chunk: int,
    local: int = 0,
    detach: bool = False,
) -> Held:
    """Rows whose chunk is full with M slots of all they hold, and an empty chunk.

    Args:
      held: the rows.
      weights: (kernel `[M - heavy, 2H, w]`, bias `[M - heavy]`, gate `[]`), as `merging.lococo_cache` reads them.
      full: `[B]` bool, which rows; the others stay as they are.
      chunk: C; local: tokens at the end that are kept whatever their score.
      detach: no gradient goes through keys and values of the past, as released.
    """
    M, S = held.k.shape[2] - chunk, held.k.shape[2]
    place, slots = jnp.arange(S), held.slots[:, None]
    order = jnp.minimum(jnp.where(place < slots, place, M + place - slots), S - 1)  # [B, S] without the empty slots
    wide = jnp.promote_types(held.k.dtype, jnp.float32)
    k, v = (jnp.take_along_axis(x, order[:, None, :, None], axis=2).astype(wide) for x in (held.k, held.v))
    k, v = (jax.lax.stop_gradient(x) if detach else x for x in (k, v))
    score = jax.lax.stop_gradient(jnp.take_along_axis(held.score, order[:, None], axis=2))
    length = held.slots + chunk
    weights = tuple(x.astype(wide) for x in weights)

    def one(k: jax.Array, v: jax.Array, score: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lococo_cache(k, v, score, weights, slots=M, local=local, length=length)

    made = jax.vmap(jax.vmap(one, (0, 0, 0, None)))(k, v, score, length)
    rows = full[:, None, None, None]
    k, v = (
        jnp.where(rows, old.at[:, :, :M].set(new.astype(old.dtype)), old)
        for old, new in zip((held.k, held.v), made, strict=True)
    )
    score = jnp.where(full[:, None, None], 0, held.score)
    return Held(k, v, score, jnp.where(full, jnp.minimum(length, M), held.slots), jnp.where(full, 0, held.used))


def whole(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    weights: tuple[jax.Array, jax.Array, jax.Array],
    *,
    slots: int,
    chunk: int,
    local: int = 0,
) -> jax.Array:
    """Outputs `[T, N, H]` of one row, chunk by chunk: softmax over the slots and over the chunk up to each token.

    `q [T, N, H]`, `k`, `v` `[T, K, H]`, q and k rotated; `weights` as in `compress`.
    """
    T, (K, H) = len(q), k.shape[1:]
    held, out = empty(1, slots=slots, chunk=chunk, heads=K, width=H, dtype=k.dtype), []
    for at in range(0, T, chunk):
        part = slice(at, min(at + chunk, T))
        if at:
            held = compress(held, weights, jnp.ones((1,), bool), chunk=chunk, local=local)
        made, held = read(
            held, q[None, part], k[None, part], v[None, part], jnp.full((1,), part.stop - at, jnp.int32), chunk
        )
        out.append(made[0])
    return jnp.concatenate(out)
