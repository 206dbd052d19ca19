"""What the Hopper kernels share: tile sizes, the tensor cores, rings of tiles, masks in their register layout.

A program has two warpgroups that compute, each with its own 64 queries (or keys), and one that only copies tiles
from memory into rings of buffers. All walk the same runs of tiles, so a tile that is EMPTY is neither copied nor
computed. The layout of registers is that of the tensor cores (`WGMMA`): a value [64, block] lies over the 128 threads
of a warpgroup, values per row [64] and per column [block] lie as its sums over the other axis.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.lib import cuda_versions  # None where jax has no CUDA
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import schedule
from kernels.attention.flash import LOG2_E, NN, NT, TN, Call, Sizes, dot

WARPGROUPS = 2
# Rows of one tensor core instruction, and so of one warpgroup's tile.
ROWS = 64
# Rows of one program.
BLOCK = WARPGROUPS * ROWS
WIDTHS = (64, 128)
WGMMA = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = WGMMA.reduce(1), WGMMA.reduce(0)
# Registers of a thread: two computing warpgroups and a copying one share 65,536.
COMPUTE_REGISTERS, COPY_REGISTERS = 240, 24
# Above this many pairs it is not worked out whether all are seen: the arrays are cleared instead.
MOST_PAIRS = 1 << 27
# CUDA from the first to before the second compiles masks in registers wrongly (jax's own Hopper kernel refuses it too).
BROKEN_CUDA = 12080, 12091
# jax before 0.12 wants an index beside the reference.
_WHOLE = (...,) if "idx" in inspect.signature(plgpu.load).parameters else ()


def check(q: jax.Array, k: jax.Array, v: jax.Array, scale: float, bias: Any) -> None:
    """Refuses what the Hopper kernels cannot do, in one sentence each."""
    name, H = "implementation='pallas_gpu_hopper'", q.shape[3]
    if bias is not None:
        raise NotImplementedError(f"{name} takes no bias; use implementation='chunked' or 'reference'.")
    if q.dtype not in (jnp.bfloat16, jnp.float16) or not q.dtype == k.dtype == v.dtype:
        raise NotImplementedError(
            f"{name} takes q, k, v of one type, bfloat16 or float16, not {q.dtype}, {k.dtype}, {v.dtype}; "
            "use implementation='pallas_gpu'."
        )
    if H not in WIDTHS:
        raise NotImplementedError(f"{name} takes heads 64 or 128 wide, not H={H}; use implementation='pallas_gpu'.")
    if scale <= 0:
        raise NotImplementedError(f"{name} takes a positive scale, not {scale}; use implementation='pallas_gpu'.")
    version = cuda_versions.cuda_runtime_get_version() if cuda_versions else 0
    if BROKEN_CUDA[0] <= version < BROKEN_CUDA[1]:
        raise NotImplementedError(
            f"{name} is refused with CUDA {version // 1000}.{version % 1000 // 10}, whose compiler breaks masks; "
            "use CUDA 13 or implementation='pallas_gpu'."
        )


class Cores(NamedTuple):
    """Operations of a warpgroup on tensor cores and register layouts; `simulated` where there are none.

    The simulator of jax 0.10 has memory, copies and barriers, but no layouts and no product of an operand from
    registers or of a transposed one. Simulated operands are read from its shared memory and then multiplied.
    """

    simulated: bool

    def lay(self, x: jax.Array, layout: Any = WGMMA) -> jax.Array:
        """x in a register layout."""
        return x if self.simulated else plgpu.layout_cast(x, layout)

    def load(self, ref: Any, where: tuple, layout: Any = WGMMA) -> jax.Array:
        """Registers read from device memory."""
        return ref[where] if self.simulated else plgpu.load(ref.at[where], *_WHOLE, layout=layout, optimized=False)  # ty: ignore

    def full(self, shape: tuple, value: Any, layout: Any = WGMMA) -> jax.Array:
        """float32 registers that all hold `value`."""
        return self.lay(jnp.full(shape, value, jnp.float32), layout)

    def index(self, shape: tuple, axis: int, start: Any) -> jax.Array:
        """int32 [a, b]: the place along `axis`, counted from `start`."""
        return self.lay(lax.broadcasted_iota(jnp.int32, shape, axis)) + start

    def scores(self, x: Any, y: Any, issued: Callable = lambda: None) -> jax.Array:
        """x [a, H] against y [b, H], both in shared memory; `issued()` runs while the tensor cores work."""
        if self.simulated:
            issued()
            return dot(_fenced(x), _fenced(y), NT)

        def compute(total):
            plgpu.wgmma(total, x, plgpu.transpose_ref(y, (1, 0)))
            issued()
            return total[...]

        return pl.run_scoped(compute, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))

    def accumulate(self, total: jax.Array, x: jax.Array, y: Any) -> jax.Array:
        """total [a, H] + x [a, b] @ y [b, H]: x and the total in registers, y in shared memory."""
        if self.simulated:
            return total + dot(x, _fenced(y), NN)
        return pl.run_state(lambda total: plgpu.wgmma(total, x, y))(plgpu.ACC.init(total))

    def weigh(self, total: jax.Array, x: Any, y: Any, first: Callable, then: Callable) -> jax.Array:
        """total [a, H] + w @ y [b, H], with x [a, H] and y in shared memory and (w, held) = first().

        `first` runs while the tensor cores have x y^T, then(held, x y^T) while they have w @ y.
        """
        if self.simulated:
            weights, held = first()
            then(held, self.scores(x, y))
            return self.accumulate(total, weights, y)

        def compute(sums, products):
            sums[...] = total
            plgpu.wgmma(products, x, plgpu.transpose_ref(y, (1, 0)))
            weights, held = first()
            plgpu.wgmma(sums, weights, y)
            then(held, plgpu.wgmma_accumulator_load(products, wait_n=1))
            return sums[...]

        shapes = total.shape, (ROWS, y.shape[0])
        return pl.run_scoped(compute, *(plgpu.ACC(x, jnp.float32) for x in shapes))

    def spread(
        self, total: jax.Array, x: Any, y: Any, pairs: Callable, following: Callable, then: Callable
    ) -> tuple[jax.Array, jax.Array]:
        """total [a, H] + x [a, b] @ y [b, H] and the scores [a, b] of a pair; then(the sum of l^T r over pairs).

        All in shared memory but the total. pairs() gives the l [k, a], r [k, c]; it runs while the tensor cores have
        the first product, following() while they have the sum and `then` while they have the scores.
        """
        if self.simulated:
            total = total + dot(_fenced(x), _fenced(y), NN)
            then(sum(dot(_fenced(left), _fenced(right), TN) for left, right in pairs()))
            return total, self.scores(*following())

        def compute(sums, sides, scores):
            sums[...] = total
            plgpu.wgmma(sums, x, y)
            for left, right in pairs():
                plgpu.wgmma(sides, plgpu.transpose_ref(left, (1, 0)), right)
            left, right = following()
            plgpu.wgmma(scores, left, plgpu.transpose_ref(right, (1, 0)))
            then(plgpu.wgmma_accumulator_load(sides, wait_n=1))
            return sums[...], scores[...]

        shapes = total.shape, (ROWS, ROWS), (ROWS, y.shape[0])
        return pl.run_scoped(compute, *(plgpu.ACC(x, jnp.float32) for x in shapes))

    def add(self, tiles: Any, into: Any, first: Any) -> None:
        """Adds `tiles` in shared memory to `into` in device memory, or writes them if they are the `first`.

        The simulator cannot add: there they are always written.
        """
        if self.simulated:
            plgpu.copy_smem_to_gmem(tiles, into)
            return
        pl.when(first)(lambda: plgpu.copy_smem_to_gmem(tiles, into))
        pl.when(~first)(lambda: plgpu.copy_smem_to_gmem(tiles, into, reduction_op="add"))


def _fenced(ref: Any) -> jax.Array:
    """An operand of the simulated tensor cores. They read by ordinary loads, which need a fence before a copy."""
    value = ref[...]
    plgpu.commit_smem()
    return value


def tile(shape: tuple, dtype: Any) -> Any:
    """Shared memory for tiles [.., rows, H] as the tensor cores read them."""
    columns = 128 // jnp.dtype(dtype).itemsize
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128)))


class Ring(NamedTuple):
    """Buffers for arriving tiles, with barriers: a buffer is filled; both computing warpgroups have freed it.

    terms: one number for each row of each tile, or None.
    """

    tiles: Any
    terms: Any
    ready: Any
    freed: Any

    def slot(self, step: Any) -> Any:
        """The buffer of a step."""
        return lax.rem(step, jnp.int32(self.tiles.shape[0]))


def ring(stages: int, rows: int, H: int, dtype: Any, terms: bool = False) -> Ring:
    """The memory and barriers of a ring of `stages` tiles [rows, H], with float32 `terms` [rows] or without."""
    return Ring(
        tile((stages, rows, H), dtype),
        plgpu.SMEM((stages, rows), jnp.float32) if terms else None,
        plgpu.Barrier(num_arrivals=1 + terms, num_barriers=stages),
        plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=stages),
    )


def keep_filled(walk: Callable, rings: list[tuple[Ring, list[Callable]]]) -> None:
    """Copies every tile of a walk into each ring, as soon as there is room.

    walk(visit, step) folds visit(tile, step) over the tiles. Each ring comes with source(tile), the place of a tile in
    device memory; a ring with terms comes with a second source for them.
    """

    def copy(tile: Any, step: Any) -> Any:
        for into, sources in rings:
            slot = into.slot(step)

            @pl.when(step >= into.tiles.shape[0])
            def _wait(into=into, slot=slot):
                plgpu.barrier_wait(into.freed.at[slot])

            for source, ref in zip(sources, into[:2], strict=False):
                plgpu.copy_gmem_to_smem(source(tile), ref.at[slot], into.ready.at[slot])
        return step + 1

    steps = walk(copy, jnp.int32(0))

    # Every barrier ends with all its arrivals seen.
    for into, _ in rings:

        @pl.loop(jnp.maximum(steps - into.tiles.shape[0], 0), steps)
        def _drain(step, into=into):
            plgpu.barrier_wait(into.freed.at[into.slot(step)])


def along(x: jax.Array, shape: tuple, axis: int = 0) -> jax.Array:
    """x, one value for each place along `axis`, as [a, b]."""
    return lax.broadcast_in_dim(x, shape, (axis,))


def capped(call: Call, raw: jax.Array) -> tuple[jax.Array, float, jax.Array | None]:
    """Scores up to a factor, that factor in base 2, and with a softcap the derivative of capping, else None.

    tanh is computed to float32 accuracy: the chip's approximation is off by 2^-11, and a softcap multiplies that.
    """
    if call.softcap is None:
        return raw, call.scale * LOG2_E, None
    tanh = 1.0 - 2.0 / (jnp.exp2(raw * (2 * LOG2_E * call.scale / call.softcap)) + 1.0)
    return tanh, call.softcap * LOG2_E, 1.0 - tanh * tanh


class MaskRefs(NamedTuple):
    """The arrays that `mask.evaluate` reads beside indices, in device memory; with q_axis 1 rows of a tile are keys."""

    call: Call
    cores: Cores
    q_axis: int
    vectors: tuple
    tiles: tuple

    def own(self, batch: Any, start: Any) -> list[jax.Array]:
        """The values of a warpgroup's rows, each [64], read once."""
        return self._read(self.q_axis, batch, start, ROWS, PER_ROW)

    def _read(self, side: int, batch: Any, start: Any, block: int, layout: Any) -> list[jax.Array]:
        ref = self.vectors[side]
        at = () if ref is None else range(ref.shape[1])
        return [self.cores.load(ref, (_row(ref, 0, batch), i, pl.ds(start, block)), layout) for i in at]

    def visible(self, own: list, batch: Any, head: Any, start: Any, other: Any, block: int) -> jax.Array:
        """bool [64, block]: rows from `start`, whose values are `own`, columns from `other`."""
        sizes, shape, q_axis = self.call.sizes, (ROWS, block), self.q_axis
        rows = self.cores.index(shape, 0, start), [along(x, shape, 0) for x in own]
        values = self._read(1 - q_axis, batch, other, block, PER_COLUMN)
        columns = self.cores.index(shape, 1, other), [along(x, shape, 1) for x in values]
        (q_index, q_values), (k_index, k_values) = (columns, rows) if q_axis else (rows, columns)
        square = pl.ds(start, ROWS), pl.ds(other, block)
        tiles = [self.cores.load(ref, (_row(ref, 0, batch), _row(ref, 1, head), *square)) for ref in self.tiles]
        seen = self.call.mask.evaluate(q_index, k_index, q_values, k_values, tiles, sizes.T, sizes.S)
        return seen & (k_index < sizes.S) if sizes.S % sizes.block_k else seen


def mask_refs(call: Call, cores: Cores, refs: list, q_axis: int = 0) -> MaskRefs:
    """The refs of `gpu_common.mask_arrays`; with q_axis 1 the tiles are [B|1, N|1, S, T]."""
    n_q, n_k, _ = call.mask.counts()
    refs = list(refs)
    vectors = tuple(refs.pop(0) if n else None for n in (n_q, n_k))
    return MaskRefs(call, cores, q_axis, vectors, tuple(refs))


def _row(ref: Any, axis: int, at: Any) -> Any:
    return at if ref.shape[axis] > 1 else 0


def all_seen(mask: Any, sizes: Sizes, table: Any, axis: int) -> bool:
    """Whether every query (axis 0) or key (axis 1) of a static mask is in a pair that is seen; False if not sure."""
    if not isinstance(table, np.ndarray):
        return False
    length, block = ((sizes.T, sizes.block_q), (sizes.S, sizes.block_k))[axis]
    unsure = np.flatnonzero(~(table == schedule.FULL).any((0, 2 - axis)))
    if len(unsure) * block * (sizes.T, sizes.S)[1 - axis] > MOST_PAIRS:
        return False
    for at in unsure:
        mine = np.arange(at * block, min(length, (at + 1) * block))
        q, k = (mine, np.arange(sizes.S)) if axis == 0 else (np.arange(sizes.T), mine)
        seen = mask.evaluate(q[:, None], k[None], (), (), (), sizes.T, sizes.S)
        if not np.broadcast_to(seen, (len(q), len(k))).any(1 - axis).all():
            return False
    return True
