"""What the forward and backward GPU kernels share: tile sizes, operands in the layout of the caller, masks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import choices
from kernels.attention.flash import Call, Sizes, pad_to, stack

# (block_q, block_k, warps, stages) by the width of a head: what fits registers and shared memory of sm_80 and later.
# 64 and 128: the fastest of four to seven on an H100, causal, T 8192. 256: not measured.
FORWARD_TILES = {64: (128, 128, 4, 2), 128: (64, 64, 4, 3), 256: (64, 32, 4, 2)}
BACKWARD_TILES = {64: (64, 64, 4, 3), 128: (64, 64, 4, 2), 256: (32, 32, 4, 2)}

# What a search tries beside them: those that do not fit are refused by the compiler.
_BLOCKS = (128, 128), (128, 64), (64, 128), (64, 64), (64, 32)
TRIED = tuple((*blocks, warps, stages) for blocks in _BLOCKS for warps in (4, 8) for stages in (2, 3))


def sizes_of(q: jax.Array, k: jax.Array, backward: bool = False) -> tuple[Sizes, Any]:
    """Sizes of q [B, T, N, H] against k [B, S, K, H] and compiler parameters; H is padded to a power of two."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if H > 256:
        raise NotImplementedError(f"implementation='pallas_gpu' takes heads up to 256 wide, not H={H}; use 'chunked'.")
    width = max(16, choices.length(H))
    default = (BACKWARD_TILES if backward else FORWARD_TILES)[max(64, width)]
    of = f"pallas_gpu {'backward' if backward else 'forward'}, H {max(64, width)}, S {choices.length(S)}"
    block_q, block_k, warps, stages = choices.chosen("attention", of, "gpu", default, TRIED)
    if q.dtype == jnp.float32:  # twice the bytes per element
        block_q, block_k, stages = max(16, block_q // 2), max(16, block_k // 2), 2
    parameters = plgpu.CompilerParams(num_warps=warps, num_stages=stages)
    return Sizes(B, T, S, N, K, width, block_q, block_k), parameters


def padded(x: jax.Array, sizes: Sizes, block: int) -> jax.Array:
    """x [B, T, N, H] with T padded to whole blocks and H to `sizes.H`; no copy where nothing is missing."""
    return pad_to(pad_to(x, 1, block), 3, sizes.H)


def mask_arrays(mask: Any, sizes: Sizes) -> list[jax.Array]:
    """The arrays that `mask.evaluate` reads: vectors [B|1, how many, T or S], tiles [B|1, N|1, T, S]; all padded."""
    q_vectors, k_vectors, tiles = mask.operands(sizes.T, sizes.S)
    vectors = [stack(q_vectors, sizes.block_q), stack(k_vectors, sizes.block_k)]
    tiles = [pad_to(pad_to(tile, 2, sizes.block_q), 3, sizes.block_k) for tile in tiles]
    return [x for x in vectors if x is not None] + tiles


def mask_specs(arrays: list[jax.Array], heads: int = 1) -> list[pl.BlockSpec]:
    """The blocks of them that one program of a grid (row, head, batch) reads; a grid head is `heads` query heads."""

    def spec(x: jax.Array) -> pl.BlockSpec:
        batch = x.shape[0] > 1
        if x.ndim == 3:
            return pl.BlockSpec((None, *x.shape[1:]), lambda row, n, b: (b if batch else 0, 0, 0))
        head = x.shape[1] > 1
        shape = (None, heads if head else 1, *x.shape[2:])
        return pl.BlockSpec(shape, lambda row, n, b: (b if batch else 0, n if head else 0, 0, 0))

    return [spec(x) for x in arrays]


def run_specs(runs: Any) -> list[pl.BlockSpec]:
    """The runs of one row of the tile table, for a grid (row, head, batch)."""
    batch = runs.bounds.shape[0] > 1
    return [
        pl.BlockSpec((None, None, *runs.bounds.shape[2:]), lambda row, n, b: (b if batch else 0, row, 0, 0)),
        pl.BlockSpec((None, None, 2), lambda row, n, b: (b if batch else 0, row, 0)),
    ]


def over_tiles(bounds_ref: Any, counts_ref: Any, tile: Callable, carry: Any) -> Any:
    """Folds `tile(masked, other block, carry)` over the tiles of this program's row: FULL ones, then PARTIAL ones."""

    def over_run(masked: bool, i: Any, carry: Any) -> Any:
        return jax.lax.fori_loop(bounds_ref[i, 0], bounds_ref[i, 1], functools.partial(tile, masked), carry)

    full, total = counts_ref[0], counts_ref[1]
    carry = jax.lax.fori_loop(0, full, functools.partial(over_run, False), carry)
    return jax.lax.fori_loop(full, total, functools.partial(over_run, True), carry)


def visible(call: Call, refs: Any, row: Any, column: Any, member: Any = 0, transposed: bool = False) -> jax.Array:
    """The mask of one tile, [block_q, block_k], or [block_k, block_q] when `transposed`, keys beyond S being masked.

    `member` is the query head among those that the program's refs hold.
    """
    sizes = call.sizes
    q_axis, k_axis = (1, 0) if transposed else (0, 1)
    q_slice = pl.ds(row * sizes.block_q, sizes.block_q)
    k_slice = pl.ds(column * sizes.block_k, sizes.block_k)
    q_index = jnp.expand_dims(row * sizes.block_q + jnp.arange(sizes.block_q, dtype=jnp.int32), 1 - q_axis)
    k_index = jnp.expand_dims(column * sizes.block_k + jnp.arange(sizes.block_k, dtype=jnp.int32), 1 - k_axis)
    refs = list(refs)
    n_q, n_k, _ = call.mask.counts()

    def vectors(ref: Any, how_many: int, where: Any, axis: int) -> list[jax.Array]:
        return [jnp.expand_dims(ref[i, where], 1 - axis) for i in range(how_many)]

    q_vectors = vectors(refs.pop(0), n_q, q_slice, q_axis) if n_q else []
    k_vectors = vectors(refs.pop(0), n_k, k_slice, k_axis) if n_k else []
    tiles = [ref[member if ref.shape[0] > 1 else 0, q_slice, k_slice].astype(jnp.int32) for ref in refs]
    tiles = [tile.T for tile in tiles] if transposed else tiles
    seen = call.mask.evaluate(q_index, k_index, q_vectors, k_vectors, tiles, sizes.T, sizes.S)
    shape = (sizes.block_k, sizes.block_q) if transposed else (sizes.block_q, sizes.block_k)
    if sizes.S % sizes.block_k:
        seen = seen & (k_index < sizes.S)
    return jnp.broadcast_to(seen, shape)
