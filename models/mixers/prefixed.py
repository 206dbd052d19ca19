"""Prefix linear attention: the first tokens of a document are read both ways, by a memory with keys of its own.

Source: Arora et al. 2024, "Just read twice: closing the recall gap for recurrent language models", arXiv:2407.05483
(JRT-RNN, section 4.1), there without decay and with the quotient of `prefix_linear_attention`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.linear_attention import linear_attention
from models import projections
from models.mixers import fast
from models.mixers.context import Context
from models.spec import Spec


def prefix_linear_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, k_prefix: jax.Array, v_prefix: jax.Array, *, normalise: bool = True
) -> jax.Array:
    """y_i = q_i (S_i + P) / (q_i (s_i + p)) of one document a row, `[B, T, N, P]`.

    S_i = sum_{j <= i} k_j v_j^T and s_i = sum_{j <= i} k_j; P = sum_{j <= M} k'_j v'_j^T and p = sum_{j <= M} k'_j.

    Args:
      q, k: `[B, T, N, H]` behind the feature map.
      v: `[B, T, N, P]`.
      k_prefix: `[B, M, N, H]`, k' of the first M tokens behind the feature map.
      v_prefix: `[B, M, N, P]`, v'.
      normalise: whether the quotient is taken; without it the sum of two reads of memories.
    """
    exact = jax.lax.Precision.HIGHEST
    seen = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    near = jnp.where(seen, jnp.einsum("btnh,bsnh->bnts", q, k, precision=exact), 0)
    far = jnp.einsum("btnh,bsnh->bnts", q, k_prefix, precision=exact)
    y = jnp.einsum("bnts,bsnp->btnp", near, v, precision=exact)
    y = y + jnp.einsum("bnts,bsnp->btnp", far, v_prefix, precision=exact)
    return y / jnp.swapaxes(near.sum(-1) + far.sum(-1), 1, 2)[..., None] if normalise else y


def whole_document(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, chunk_size: int) -> jax.Array:
    """out_t = q_t sum_j k_j v_j^T over all tokens j of t's document, `[B, T, N, P]`, in time linear in T.

    A causal pass, one from the end, and the token itself, which both have read, once less.
    """
    turned = lambda x: jnp.flip(x, axis=1)  # noqa: E731
    options = {"chunk_size": chunk_size}
    ahead, _ = linear_attention(q, k, v, segment_ids=segment_ids, **options)
    behind, _ = linear_attention(*map(turned, (q, k, v)), segment_ids=turned(segment_ids), **options)
    return ahead + turned(behind) - (jnp.sum(q * k, axis=-1, keepdims=True) * v).astype(ahead.dtype)


class Prefixed(NamedTuple):
    """The state of a memory with a prefix.

    Args:
      behind: as without.
      prefix: `[B, N, H, H]`, sum of k' v'^T over the tokens of the prefix that were read.
    """

    behind: Any
    prefix: jax.Array


class Prefix(nnx.Module):
    """What is read of the first `length` tokens of a document, those behind the reader included.

    In decoding these are the tokens at such positions that were read so far: a prompt is read in one piece, and a text
    goes on as a whole row would where the prompt is as long as the prefix.
    """

    def __init__(self, spec: Spec, length: int, chunk_size: int, *, rngs: nnx.Rngs):
        self.k, self.v = (
            projections.make(spec, spec.D, spec.N * spec.H, axes=("embed", "heads"), name=name, rngs=rngs)
            for name in "kv"
        )
        self.length, self.chunk_size, self.partition, self.dtype = length, chunk_size, spec.partition, spec.dtype
        self.N, self.H = spec.N, spec.H

    def __call__(
        self, q: jax.Array, x: jax.Array, context: Context, memory: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """(out `[B, T, N, H]`, the memory with the tokens of the prefix among x): q behind the feature map."""
        positions, ids = jnp.broadcast_to(context.positions, x.shape[:2]), context.segment_ids
        inside = (positions >= 0) & (positions < self.length)
        split = lambda y: y.reshape(*y.shape[:2], self.N, self.H)  # noqa: E731
        k = jnp.where(inside[..., None, None], jax.nn.elu(split(self.k(x))) + 1, 0)
        v = split(self.v(x))
        if memory is None and ids is not None:
            run = lambda q, k, v, ids: whole_document(q, k, v, ids, self.chunk_size)  # noqa: E731
            axes = ((fast.TOKENS,) * 3 + (("batch", "sequence"),), fast.TOKENS)
            return self.partition.run(run, (q, k, v, ids), *axes), None
        wide = jnp.promote_types(x.dtype, jnp.float32)
        total = jnp.einsum("btnh,btnp->bnhp", k, v, preferred_element_type=wide)
        total = total if memory is None else memory + total
        out = jnp.einsum("btnh,bnhp->btnp", q, total.astype(q.dtype), preferred_element_type=wide)
        return out.astype(v.dtype), None if memory is None else total

    def start(self, batch: int) -> jax.Array:
        """The memory before the first token."""
        return jnp.zeros((batch, self.N, self.H, self.H), jnp.promote_types(self.dtype, jnp.float32))

    def flops(self, length: int) -> int:
        """Forward FLOPs a token beyond the projections: two passes of a memory, and the token itself."""
        size = min(self.chunk_size, length)
        return self.N * (2 * (4 * size * self.H + 4 * self.H**2) + 4 * self.H)
