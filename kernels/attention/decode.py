"""Few queries against many keys: the keys are split, all splits are attended at once, and the parts are merged by lse.

Source: Dao et al. 2023, "Flash-Decoding for long-context inference" (split over the cache, then rescale and sum).
"""

import functools

import jax
import jax.numpy as jnp

from kernels.attention.chunked import accumulator
from kernels.attention.scoring import Scoring

# Float32 stays float32 on chips that would round it.
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# Keys of one split: enough that the merge is small beside it, few enough that a long cache fills a chip.
SPLIT = 512


def merge(out1: jax.Array, lse1: jax.Array, out2: jax.Array, lse2: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over the union of two disjoint sets of keys, from attention over each.

    out [B, T, N, H] in any float type, lse [B, N, T] natural log; -inf says that a row saw nothing in that set. Returns
    (out, lse) in the type of out1 and of lse1; rows that saw nothing in either give 0 and -inf, with finite gradients.
    """
    out, lse = merge_parts(jnp.stack([out1.astype(lse1.dtype), out2.astype(lse1.dtype)]), jnp.stack([lse1, lse2]))
    return out.astype(out1.dtype), lse


def merge_parts(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `merge` for any number of parts: out [P, B, T, N, H], lse [P, B, N, T]."""
    top = jax.lax.stop_gradient(lse.max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weight = jnp.exp(lse - top)
    total = weight.sum(0)
    some = total > 0
    total = jnp.where(some, total, 1)
    out = einsum("pbnt,pbtnh->btnh", weight / total, out)
    return out, jnp.where(some, top + jnp.log(total), -jnp.inf)


def forward(q: jax.Array, k: jax.Array, v: jax.Array, scoring: Scoring) -> tuple[jax.Array, jax.Array]:
    """As `reference.forward`, for T of a few tokens: memory T * S, read once, in parallel over splits of the keys.

    A cache with a length per row is a mask: `Positions(q_pos, kv_pos)` with kv_pos -1 in empty slots, or `Prefix(n)`.
    """
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    out_type, dtype, parts = q.dtype, accumulator(q, k, v), -(-S // SPLIT)
    seen = scoring.mask.traced(T, S)
    k, v = (jnp.where(seen.any((1, 2))[..., None, None], x, 0) for x in (k, v))
    k, v = (_split(x, parts, 1).reshape(B, parts, -1, K, x.shape[-1]).astype(dtype) for x in (k, v))

    q = (q.astype(dtype) * scoring.scale).reshape(B, T, K, N // K, H)
    score = einsum("btkgh,bpskh->pbkgts", q, k).reshape(parts, B, N, T, -1)
    if scoring.bias is not None:
        score = score + _to_parts(scoring.bias.astype(dtype), S, parts)
    if (softcap := scoring.softcap) is not None:
        score = softcap * jnp.tanh(score / softcap)
    score = jnp.where(_to_parts(seen, S, parts), score, -jnp.inf)
    top = score.max(-1, keepdims=True)
    weight = jnp.exp(score - jnp.where(top == -jnp.inf, 0, top))
    total = weight.sum(-1)
    lse = jnp.where(total > 0, top[..., 0] + jnp.log(total), -jnp.inf)
    weight = weight / jnp.where(total > 0, total, 1)[..., None]
    out = einsum("pbkgts,bpskh->pbtkgh", weight.reshape(parts, B, K, N // K, T, -1), v)
    out = out.reshape(parts, B, T, N, -1)
    if scoring.sinks is not None:
        sink = jnp.broadcast_to(scoring.sinks.astype(dtype)[:, None], (1, B, N, T))
        out, lse = jnp.concatenate([out, jnp.zeros_like(out[:1])]), jnp.concatenate([lse, sink])
    merged, lse = merge_parts(out, lse)
    return merged.astype(out_type), lse


def _split(x: jax.Array, parts: int, axis: int) -> jax.Array:
    """Pads an axis of keys to a multiple of `parts`."""
    missing = -x.shape[axis] % parts
    return jnp.pad(x, [(0, missing if a == axis else 0) for a in range(x.ndim)]) if missing else x


def _to_parts(x: jax.Array, S: int, parts: int) -> jax.Array:
    """[.., T|1, S|1] -> [parts|1, .., T|1, keys of a part|1]; padding is not seen."""
    if x.shape[-1] == 1 and S > 1:
        return x[None]
    x = _split(x, parts, x.ndim - 1)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], parts, -1), -2, 0)
