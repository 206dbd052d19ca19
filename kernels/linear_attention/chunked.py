"""Linear attention and the gated delta rule, a chunk of tokens at a time, as matmuls."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels import choices
from kernels.lact.reference import product
from kernels.linear_attention.dispatch import over_chunks


class Ratios(NamedTuple):
    """The share of a memory that is left between two places of a chunk, 0 across a document boundary.

    pair: `[B, N, C, C]`, from after token j to token i >= j.
    entering: `[B, N, C]`, from before the chunk to token i.
    leaving: `[B, N, C]`, from after token j to the end of the chunk.
    whole: `[B, N]`, across the chunk.
    """

    pair: jax.Array
    entering: jax.Array
    leaving: jax.Array
    whole: jax.Array


def ratios(decay: jax.Array, begins: jax.Array) -> Ratios:
    """decay `[B, C, N]` (logarithms), begins `[B, C]` bool."""
    run = jnp.cumsum(begins, axis=1)
    total = jnp.cumsum(jnp.moveaxis(decay, 2, 1), axis=-1)
    order = jnp.arange(decay.shape[1])
    seen = (order[:, None] >= order) & (run[:, :, None] == run[:, None, :])
    gap = jnp.where(seen[:, None], total[..., :, None] - total[..., None, :], 0)  # masked before exp: no overflow
    pair = jnp.where(seen[:, None], jnp.exp(gap), 0)
    entering = jnp.where((run == 0)[:, None], jnp.exp(total), 0)
    return Ratios(pair, entering, pair[..., -1, :], entering[..., -1])


def inverse(below: jax.Array) -> jax.Array:
    """(I + below)^-1 `[..., C, C]`; below is zero on and above the diagonal. By inverses of ever larger blocks:

    [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]]. Only matmuls: XLA may run two of LAPACK's batched
    triangular solvers at once, and on a CPU of two cores they wait for each other's threads for ever (jaxlib 0.10).
    """
    *batch, size, _ = below.shape
    whole, half = choices.length(size), 1
    below = jnp.pad(below, (*[(0, 0)] * len(batch), (0, whole - size), (0, whole - size)))
    found = jnp.ones((*batch, whole, 1, 1), below.dtype)
    while half < whole:
        pairs = whole // (2 * half)
        blocks = jnp.diagonal(below.reshape(*batch, pairs, 2 * half, pairs, 2 * half), axis1=-4, axis2=-2)
        corner = jnp.moveaxis(blocks, -1, -3)[..., half:, :half]
        first, second = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -jnp.matmul(jnp.matmul(second, corner, precision="highest"), first, precision="highest")
        found = jnp.block([[first, jnp.zeros_like(first)], [corner, second]])
        half *= 2
    return found[..., 0, :size, :size]


def one_chunk(delta_rule: bool, memory: jax.Array, begins: jax.Array, tokens: tuple) -> tuple[jax.Array, jax.Array]:
    """(memory after the chunk, out). With the delta rule each token writes a correction d_i, all solved at once:

    d_i + beta_i sum_{j<i} pair_ij (k_i.k_j) d_j = beta_i (v_i - entering_i k_i^T S), a triangular system.
    """
    q, k, v, decay, beta = tokens
    dtype, wide = q.dtype, memory.dtype
    rest = ratios(decay.astype(wide), begins)
    written = jnp.moveaxis(v, 2, 1).astype(wide)  # [B, N, C, P]
    if delta_rule:
        beta = jnp.moveaxis(beta, 2, 1).astype(wide)[..., None]
        overlap = jnp.tril(product("bcnh,bsnh->bncs", k, k, dtype) * rest.pair * beta, -1)
        known = product("bcnh,bnhp->bncp", k, memory, dtype) * rest.entering[..., None]
        written = jnp.matmul(inverse(overlap), beta * (written - known), precision="highest")
    scores = product("bcnh,bsnh->bncs", q, k, dtype) * rest.pair
    inside = product("bncs,bnsp->bcnp", scores, written, dtype)
    before = product("bcnh,bnhp->bcnp", q, memory, dtype) * jnp.moveaxis(rest.entering, 1, 2)[..., None]
    added = product("bcnh,bncp->bnhp", k, written * rest.leaving[..., None], dtype)
    return memory * rest.whole[..., None, None] + added, (inside + before).astype(v.dtype)


def chunked(
    tokens: tuple,
    memory: jax.Array,
    begins: jax.Array,
    chunk_size: int,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `reference.recurrent`, with one step per chunk; whole chunks by the kernel of the platform, if it has one.

    implementation, interpret: see `dispatch.over_chunks`.
    """
    q, k, v, beta, decay = tokens
    length = q.shape[1]
    decay = jnp.zeros(q.shape[:3], memory.dtype) if decay is None else decay
    tokens, whole = (q, k, v, decay, beta), length // chunk_size
    out = jnp.zeros_like(v)
    if whole:
        body = _with_delta if beta is not None else _without
        memory, out = over_chunks(body, memory, begins, tokens, chunk_size, implementation, interpret)
    if length % chunk_size:
        tail = jax.tree.map(lambda x: x[:, whole * chunk_size :], tokens)
        memory, end = one_chunk(beta is not None, memory, begins[:, whole * chunk_size :], tail)
        out = jax.lax.dynamic_update_slice_in_dim(out, end, whole * chunk_size, axis=1)
    return out, memory


def _with_delta(params, memory, begins, chunk):
    return one_chunk(True, memory, begins, chunk[0])


def _without(params, memory, begins, chunk):
    return one_chunk(False, memory, begins, chunk[0])
