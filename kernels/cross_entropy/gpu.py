"""Cross-entropy of a linear head on an NVIDIA GPU: Pallas (Triton) products with the softmax in their epilogue.

statistics   grid (token tiles, slabs of the vocabulary): a program walks through its slab; the largest logit of each
             token, the sum of exponentials below it and the target's logit stay in registers.
logits       grid (token tiles, vocabulary tiles) of one block of the vocabulary: the gradient of the logits,
             `[M, block]` in the features' type, of products computed again.

A tile `[tokens, D]` does not fit in registers as a sum, so the last two products of a block are the library's: the
head's gradient of the block, and what the block adds to the features' in float32. Four products for loss and gradients,
where three are the least. Not measured.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels import choices
from kernels.cross_entropy.reference import Options, Rows, shape_logits
from kernels.tiles import value

BLOCK_BYTES = 32 * 2**20  # of the logits' gradient of one block
SLAB = 8  # vocabulary tiles that one program of the statistics walks through
NOTHING = -1e30  # the logit of a class that does not exist: exponentials of its differences stay finite


def too_large(features: Any, head: Any) -> str | None:
    """Why features `[M, D]` and a head `[V, D]` are not taken, or None: operands are read in one type."""
    if max(features.shape[0] * features.shape[1], head.shape[0] * head.shape[1]) >= 1 << 31:
        return "its offsets are 32 bits wide, and an array has 2^31 numbers or more"
    return None


def _tiles(dtype: jnp.dtype) -> tuple[int, int, int]:
    """Tile lengths along tokens, classes and the summed width, as measured for Pattention's products."""
    default = (128, 128, 64) if dtype.itemsize <= 2 else (64, 64, 32)
    tried = tuple((tokens, classes, width) for tokens in (64, 128) for classes in (64, 128) for width in (32, 64))
    return choices.chosen("cross_entropy", f"pallas_gpu, {dtype.itemsize} bytes", "gpu", default, tried)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a b^T of two tiles; sums are float32 or wider."""
    exact = jax.lax.Precision.DEFAULT if a.dtype.itemsize <= 2 else jax.lax.Precision.HIGHEST
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=exact, preferred_element_type=wide)


def _both(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return rows[:, None] & columns[None, :]


def _logits(x: Any, head: Any, rows: tuple, columns: tuple, step: int, options: Options) -> jax.Array:
    """A tile of logits; rows and columns are (slice, which of them exist)."""
    width, low = x.shape[1], x.dtype

    def body(k, sums):
        at = pl.ds(k * step, step)
        live = k * step + jnp.arange(step) < width
        a = plgpu.load(x.at[rows[0], at], mask=_both(rows[1], live), other=0)
        b = plgpu.load(head.at[columns[0], at], mask=_both(columns[1], live), other=0)
        return sums + _dot(a, b.astype(low))

    zeros = jnp.zeros((rows[0].size, columns[0].size), jnp.promote_types(low, jnp.float32))
    raw = jax.lax.fori_loop(0, pl.cdiv(width, step), body, zeros)
    return value(lambda raw: shape_logits(raw, options.scale, options.softcap), raw)


def _side(start: Any, tile: int, size: int) -> tuple:
    """(slice, which of its positions exist)."""
    return pl.ds(start, tile), start + jnp.arange(tile) < size


def _read(ref: Any, rows: tuple) -> jax.Array:
    """A number of each token."""
    return plgpu.load(ref.at[rows[0]], mask=rows[1], other=0)


def _statistics_body(x, head, targets, peak, total, label, *, tiles: tuple, options: Options) -> None:
    rows, slab = _side(pl.program_id(0) * tiles[0], tiles[0], x.shape[0]), pl.program_id(1)
    target = _read(targets, rows)

    def one(i, state):
        before, sums, at_target = state
        start = (slab * SLAB + i) * tiles[1]
        columns = _side(start, tiles[1], head.shape[0])
        logits = _logits(x, head, rows, columns, tiles[2], options)
        hit = (start + jnp.arange(tiles[1]))[None, :] == target[:, None]
        at_target += jnp.sum(jnp.where(hit, logits, 0), axis=1)
        logits = jnp.where(columns[1][None, :], logits, NOTHING)
        after = jnp.maximum(before, jnp.max(logits, axis=1))
        sums = sums * jnp.exp(before - after) + jnp.sum(jnp.exp(logits - after[:, None]), axis=1)
        return after, sums, at_target

    zeros = jnp.zeros((tiles[0],), peak.dtype)
    turns = jnp.minimum(SLAB, pl.cdiv(head.shape[0], tiles[1]) - slab * SLAB)
    found = jax.lax.fori_loop(0, turns, one, (jnp.full_like(zeros, NOTHING), zeros, zeros))
    for ref, x in zip((peak, total, label), found, strict=True):
        plgpu.store(ref.at[slab, rows[0]], x, mask=rows[1])


def _gradient_body(*refs: Any, tiles: tuple, count: int, options: Options) -> None:
    """out `[M, block]`; head: the block's rows, `count` of which exist; first `[1]`: the number of its first class."""
    x, head, targets, *each, first, out = refs
    rows = _side(pl.program_id(0) * tiles[0], tiles[0], x.shape[0])
    start = pl.program_id(1) * tiles[1]
    columns = _side(start, tiles[1], count)
    logits = _logits(x, head, rows, columns, tiles[2], options)
    log_z, mass, weight = (_read(ref, rows)[:, None] for ref in each)
    hit = (first[0] + start + jnp.arange(tiles[1]))[None, :] == _read(targets, rows)[:, None]
    d = mass * jnp.exp(logits - log_z) - jnp.where(hit, weight, 0)
    if options.softcap:
        d = d * (1 - (logits / options.softcap) ** 2)
    d = d * options.scale if options.scale != 1.0 else d
    plgpu.store(out.at[rows[0], columns[0]], d.astype(out.dtype), mask=_both(rows[1], columns[1]))


def _call(body: Callable, inputs: list, outputs: list, grid: tuple, tiles: tuple, interpret: bool, name: str) -> list:
    """`pallas_call`; kernels read whole arrays at the places they compute."""
    return pl.pallas_call(
        body,
        grid=grid,
        out_shape=outputs,
        compiler_params=plgpu.CompilerParams(num_warps=8 if tiles[0] == 128 else 4, num_stages=3),
        interpret=interpret,
        name=f"cross_entropy_{name}",
    )(*inputs)


def statistics(
    features: jax.Array, head: jax.Array, targets: jax.Array, *, options: Options, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(nll `[M]`, log_z `[M]`) of features `[M, D]`, head `[V, D]` and targets `[M]`."""
    length, tiles = features.shape[0], _tiles(features.dtype)
    slabs = pl.cdiv(pl.cdiv(head.shape[0], tiles[1]), SLAB)
    part = jax.ShapeDtypeStruct((slabs, length), jnp.promote_types(features.dtype, jnp.float32))
    peak, total, label = _call(
        functools.partial(_statistics_body, tiles=tiles, options=options),
        [features, head, targets.astype(jnp.int32)],
        [part] * 3,
        (pl.cdiv(length, tiles[0]), slabs),
        tiles,
        interpret,
        "statistics",
    )
    log_z = jax.nn.logsumexp(peak, axis=0, b=total)
    return log_z - jnp.sum(label, axis=0), log_z


def _block(length: int, count: int, dtype: jnp.dtype) -> int:
    """Classes of a block: whole tiles, as many as BLOCK_BYTES hold, at least one."""
    tile = _tiles(dtype)[1]
    most = max(1, BLOCK_BYTES // (length * tile * dtype.itemsize)) * tile
    return min(most, -(-count // tile) * tile)


def gradients(
    features: jax.Array, head: jax.Array, targets: jax.Array, rows: Rows, *, options: Options, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The gradients of features and head, each in its own type."""
    (length, count), low, tiles = (features.shape[0], head.shape[0]), features.dtype, _tiles(features.dtype)
    wide, block = jnp.promote_types(low, jnp.float32), min(_block(length, count, low), count)
    given = [features, targets.astype(jnp.int32), *(x.astype(wide) for x in rows)]

    def one(start: Any, size: int, state: tuple) -> tuple:
        d_features, d_head = state
        part = jax.lax.dynamic_slice_in_dim(head, start, size).astype(low)
        (d,) = _call(
            functools.partial(_gradient_body, tiles=tiles, count=size, options=options),
            [given[0], part, *given[1:], jnp.asarray(start, jnp.int32).reshape(1)],
            [jax.ShapeDtypeStruct((length, size), low)],
            (pl.cdiv(length, tiles[0]), pl.cdiv(size, tiles[1])),
            tiles,
            interpret,
            "logits",
        )
        exact = {"preferred_element_type": wide}
        d_part = jnp.einsum("mv,md->vd", d, features, **exact).astype(head.dtype)
        d_head = jax.lax.dynamic_update_slice_in_dim(d_head, d_part, start, axis=0)
        return d_features + jnp.einsum("mv,vd->md", d, part, **exact), d_head

    state = jnp.zeros(features.shape, wide), jnp.zeros(head.shape, head.dtype)
    whole, rest = divmod(count, block)
    state = jax.lax.fori_loop(0, whole, lambda i, state: one(i * block, block, state), state)
    if rest:
        state = one(whole * block, rest, state)
    return state[0].astype(low), state[1]
