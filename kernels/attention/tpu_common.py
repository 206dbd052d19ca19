"""Shared by the forward and backward TPU kernels: padded operands, their blocks, scores and mask inside a kernel."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels import choices
from kernels.attention import schedule
from kernels.attention.flash import Call, Sizes, pad_to, stack

LANES = 128
# Codes of all rows of the batch that are in scalar memory at once; larger batches run in several calls.
MOST_CODES = 1 << 16
VMEM_LIMIT = 64 * 1024 * 1024


def blocks(T: int, S: int, H: int = LANES) -> tuple[int, int]:
    """(block_q, block_k): whole lanes of keys, and few enough tiles that their list fits scalar memory."""
    default = 512, 1024 if S > 16384 else 512
    tried = tuple((q, k) for q in (256, 512, 1024) for k in (512, 1024, 2048) if S <= 16384 or k >= 1024)
    most = choices.chosen("attention", f"pallas_tpu, H {H}, S {choices.length(S)}", "tpu", default, tried)
    return _block(T, most[0]), _block(S, most[1])


def _block(length: int, most: int) -> int:
    return min(most, -(-length // LANES) * LANES)


def sizes_of(q: jax.Array, k: jax.Array) -> Sizes:
    """The sizes of q [B, T, N, H] against k [B, S, K, H]; heads wider than the lanes are padded to whole lanes."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    return Sizes(B, T, S, N, K, H if H <= LANES else -(-H // LANES) * LANES, *blocks(T, S, H))


def head_major(x: jax.Array, sizes: Sizes, block: int) -> jax.Array:
    """[B, T, N, H] -> [B, N, T padded to `block`, H padded]; the padding is part of the transposing copy."""
    x = x.swapaxes(1, 2)
    x = pad_to(x, 2, block)
    return pad_to(x, 3, sizes.H) if x.shape[3] != sizes.H else x


def token_major(x: jax.Array, length: int, width: int) -> jax.Array:
    """The inverse of `head_major`."""
    return x[:, :, :length, :width].swapaxes(1, 2)


def stride_of(codes: Any) -> int | None:
    """How far apart rows of the batch lie in the flat codes; None where all rows walk the same tiles."""
    return None if codes.shape[0] == 1 else codes.shape[1]


def place(stride: int | None, b: Any, step: Any) -> Any:
    """Where the code of a step of row `b` lies in the flat codes."""
    return step if stride is None else b * stride + step


def block_specs(sizes: Sizes, where: Callable) -> tuple[pl.BlockSpec, pl.BlockSpec, pl.BlockSpec]:
    """Blocks of a query array, of a key array, and of one number per query; `where` as in `mask_specs`."""

    def at_query(*at: Any) -> tuple:
        b, n, row, _ = where(*at)
        return b, n, row, 0

    def at_key(*at: Any) -> tuple:
        b, n, _, column = where(*at)
        return b, jax.lax.div(n, jnp.int32(sizes.group)), column, 0

    def at_row(*at: Any) -> tuple:
        b, n, row, _ = where(*at)
        return b, n, 0, row

    return (
        pl.BlockSpec((1, 1, sizes.block_q, sizes.H), at_query),
        pl.BlockSpec((1, 1, sizes.block_k, sizes.H), at_key),
        pl.BlockSpec((1, 1, 1, sizes.block_q), at_row),
    )


class MaskOperands(NamedTuple):
    """Arrays that `mask.evaluate` reads: vectors [B|1, how many, T or S] or None, tiles [B|1, N|1, T, S]; padded."""

    q: jax.Array | None
    k: jax.Array | None
    tiles: tuple[jax.Array, ...]


def mask_operands(mask: Any, sizes: Sizes, transposed: bool = False) -> MaskOperands:
    """The mask's arrays, padded to whole blocks; tiles as [.., S, T] when `transposed`."""
    q_vectors, k_vectors, tiles = mask.operands(sizes.T, sizes.S)
    padded = []
    for tile in tiles:
        tile = pad_to(pad_to(tile, 2, sizes.block_q), 3, sizes.block_k)
        padded.append(tile.swapaxes(2, 3) if transposed else tile)
    return MaskOperands(stack(q_vectors, sizes.block_q), stack(k_vectors, sizes.block_k), tuple(padded))


def mask_specs(operands: MaskOperands, sizes: Sizes, where: Callable, transposed: bool = False) -> list[pl.BlockSpec]:
    """Block specs of `operands`; `where(*grid indices and prefetched refs) -> (b, n, q block, k block)`."""

    def vector(x: jax.Array, block: int, axis: int) -> pl.BlockSpec:
        def index(*at: Any) -> tuple:
            place = where(*at)
            return (place[0] if x.shape[0] > 1 else 0), 0, place[axis]

        return pl.BlockSpec((1, x.shape[1], block), index)

    def tile(x: jax.Array) -> pl.BlockSpec:
        def index(*at: Any) -> tuple:
            b, n, row, column = where(*at)
            corner = (column, row) if transposed else (row, column)
            return (b if x.shape[0] > 1 else 0), (n if x.shape[1] > 1 else 0), *corner

        shape = (sizes.block_k, sizes.block_q) if transposed else (sizes.block_q, sizes.block_k)
        return pl.BlockSpec((1, 1, *shape), index)

    specs = []
    if operands.q is not None:
        specs.append(vector(operands.q, sizes.block_q, 2))
    if operands.k is not None:
        specs.append(vector(operands.k, sizes.block_k, 3))
    return specs + [tile(x) for x in operands.tiles]


def visible(call: Call, refs: Any, row: Any, column: Any, transposed: bool = False) -> jax.Array:
    """The mask of one tile, [block_q, block_k], or [block_k, block_q] when `transposed`, keys beyond S being masked."""
    sizes = call.sizes
    q_axis, k_axis = (1, 0) if transposed else (0, 1)
    shape = (sizes.block_k, sizes.block_q) if transposed else (sizes.block_q, sizes.block_k)
    q_index = row * sizes.block_q + jax.lax.broadcasted_iota(jnp.int32, shape, q_axis)
    k_index = column * sizes.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, k_axis)
    refs = list(refs)
    n_q, n_k, n_tiles = call.mask.counts()

    def vectors(ref: Any, how_many: int, axis: int) -> list[jax.Array]:
        # Vectors arrive along lanes; those that run down the tile are turned here, for the few partial tiles only.
        return [jnp.expand_dims(ref[0, i], 1 - axis) for i in range(how_many)]

    q_vectors = vectors(refs.pop(0), n_q, q_axis) if n_q else []
    k_vectors = vectors(refs.pop(0), n_k, k_axis) if n_k else []
    tiles = [ref[0, 0].astype(jnp.int32) for ref in refs]
    seen = call.mask.evaluate(q_index, k_index, q_vectors, k_vectors, tiles, sizes.T, sizes.S)
    seen = jnp.broadcast_to(seen, shape)
    return seen & (k_index < sizes.S) if sizes.S % sizes.block_k else seen


def spread_lanes(x: jax.Array, width: int) -> jax.Array:
    """x [rows, LANES], equal in every lane, as [rows, width]."""
    return jnp.tile(x, (1, width // LANES)) if width >= LANES else x[:, :width]


def when_class(code: Any, tile: Callable[[bool], None]) -> None:
    """Runs `tile(masked)` for the class of the step: not at all, with the mask, or without."""
    kind = schedule.tile_class(code)
    pl.when(kind == schedule.PARTIAL)(functools.partial(tile, True))
    pl.when(kind == schedule.FULL)(functools.partial(tile, False))


class Beside(NamedTuple):
    """Work beside a kernel, such as copies to other chips: `start` runs before the first tile, `finish` after the last.

    operands: arrays that it reads.
    specs: where the operands lie.
    results: shapes of the arrays in HBM that it writes.
    scratch: its semaphores.
    start, finish: functions of the refs of operands, results and scratch, in this order.
    collective: number of its barrier.
    """

    operands: tuple[jax.Array, ...]
    specs: tuple[pl.BlockSpec, ...]
    results: tuple[jax.ShapeDtypeStruct, ...]
    scratch: tuple[Any, ...]
    start: Callable[..., None]
    finish: Callable[..., None]
    collective: int

    def around(self, kernel: Callable, num_in: int, num_out: int) -> Callable:
        """`kernel` on a grid of three axes, with the numbers of refs that it reads and writes itself."""
        counts = (num_in, len(self.operands), num_out, len(self.results))

        def run(*refs: Any) -> None:
            cuts = [0, *itertools.accumulate(counts), len(refs) - len(self.scratch), len(refs)]
            read, operands, written, results, mine, semaphores = (refs[a:b] for a, b in itertools.pairwise(cuts))
            ids, sizes = ([f(axis) for axis in range(3)] for f in (pl.program_id, pl.num_programs))
            begins = functools.reduce(jnp.logical_and, [i == 0 for i in ids])
            ends = functools.reduce(jnp.logical_and, [i == n - 1 for i, n in zip(ids, sizes, strict=True)])
            pl.when(begins)(lambda: self.start(*operands, *results, *semaphores))
            kernel(*read, *written, *mine)
            pl.when(ends)(lambda: self.finish(*operands, *results, *semaphores))

        return run


def compiler_params(*semantics: str, beside: Beside | None = None) -> Any:
    """Grid semantics and the memory that large tiles take. With something beside the tiles they run in order."""
    more = {}
    if beside is not None:
        semantics = ("arbitrary",) * len(semantics)
        more = {"collective_id": beside.collective, "has_side_effects": True}
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM_LIMIT, **more)


def interpret_params(interpret: Any) -> Any:
    """The `interpret` argument of `pallas_call`: the TPU simulator, by True or by its own parameters.

    The simulator fills fresh memory with NaN.
    """
    return pltpu.InterpretParams() if interpret is True else interpret


def cost(sizes: Sizes, batch: int, tiles: int, products: int) -> pl.CostEstimate:
    """The cost of a call: `products` over H for each score of its tiles. The scheduler lays transfers beside it.

    Without a stated cost ring attention's backward pass sent its next keys only after the kernels of the step.
    """
    scores = batch * sizes.N * tiles * sizes.block_q * sizes.block_k
    return pl.CostEstimate(flops=2 * products * sizes.H * scores, transcendentals=scores, bytes_accessed=0)


def batches(codes: Any, B: int) -> list[slice]:
    """Slices of the batch whose codes fit scalar memory together."""
    at_once = B if codes.shape[0] == 1 else max(1, MOST_CODES // codes.shape[1])
    return [slice(start, min(start + at_once, B)) for start in range(0, B, at_once)]
