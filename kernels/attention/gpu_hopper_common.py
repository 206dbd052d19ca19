"""What the Hopper kernels share: tile sizes, the tensor cores, masks in their register layout, what they refuse.

A program has two warpgroups that compute, each with its own 64 queries (or keys), and one that only copies tiles
from memory into a ring of buffers. Both walk the same runs of tiles, so a tile that is EMPTY is neither copied nor
computed. The layout of registers is that of the tensor cores (`WGMMA`): a value [64, block] lies over the 128 threads
of a warpgroup, per query values [64] and per key values [block] lie as its sums over the other axis.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.attention import schedule
from kernels.attention.flash import NN, NT, Call, Sizes, dot

WARPGROUPS = 2
# Rows of one tensor core instruction, and so of one warpgroup's tile.
ROWS = 64
BLOCK_Q = WARPGROUPS * ROWS
WGMMA = plgpu.Layout.WGMMA
PER_ROW, PER_COLUMN = WGMMA.reduce(1), WGMMA.reduce(0)
# Registers of a thread: two computing warpgroups and a copying one share 65,536.
COMPUTE_REGISTERS, COPY_REGISTERS = 232, 40
# Above this many pairs it is not worked out whether some key is seen by nobody: the keys are cleared instead.
MOST_PAIRS = 1 << 27


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
    if H not in (64, 128, 256):
        raise NotImplementedError(
            f"{name} takes heads 64, 128 or 256 wide, not H={H}; use implementation='pallas_gpu'."
        )
    if scale <= 0:
        raise NotImplementedError(f"{name} takes a positive scale, not {scale}; use implementation='pallas_gpu'.")


class Cores(NamedTuple):
    """What a warpgroup does with tensor cores and register layouts; `simulated` where there are none.

    The simulator of jax 0.10 knows memory, copies and barriers, but no layouts and no product that takes an operand
    from registers or transposed. There the operands are still read from its shared memory, and then multiplied.
    """

    simulated: bool

    def lay(self, x: jax.Array, layout: Any = WGMMA) -> jax.Array:
        """x in a register layout."""
        return x if self.simulated else plgpu.layout_cast(x, layout)

    def load(self, ref: Any, where: tuple, layout: Any = WGMMA) -> jax.Array:
        """Registers read from device memory."""
        return ref[where] if self.simulated else plgpu.load(ref, where, layout=layout, optimized=False)

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
            return dot(x[...], y[...], NT)

        def compute(total):
            plgpu.wgmma(total, x, plgpu.transpose_ref(y, (1, 0)))
            issued()
            return total[...]

        return pl.run_scoped(compute, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))

    def accumulate(self, total: jax.Array, x: jax.Array, y: Any) -> jax.Array:
        """total [a, H] + x [a, b] @ y [b, H]: x and the total in registers, y in shared memory."""
        if self.simulated:
            return total + dot(x, y[...], NN)
        return pl.run_state(lambda total: plgpu.wgmma(total, x, y))(plgpu.ACC.init(total))


def tile(shape: tuple, dtype: Any) -> Any:
    """Shared memory for tiles [.., rows, H] as the tensor cores read them."""
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def take_turns(turn: Any) -> None:
    """Waits for the other computing warpgroup: one has the tensor cores while the other has its softmax."""
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)


def along(x: jax.Array, shape: tuple, axis: int = 0) -> jax.Array:
    """x, one value for each place along `axis`, as [a, b]."""
    return lax.broadcast_in_dim(x, shape, (axis,))


def query_vectors(call: Call, cores: Cores, refs: Any, batch: Any, start: Any) -> list[jax.Array]:
    """The mask's values for a warpgroup's queries, each [64], read once."""
    n_q, _, _ = call.mask.counts()
    if not n_q:
        return []
    at = batch if refs[0].shape[0] > 1 else 0
    return [cores.load(refs[0], (at, i, pl.ds(start, ROWS)), PER_ROW) for i in range(n_q)]


def visible(call: Call, cores: Cores, refs: Any, vectors: list, batch: Any, n: Any, start: Any, column: Any) -> Any:
    """The mask of a warpgroup's tile, bool [64, block_k]: queries from `start`, keys of block `column`."""
    sizes = call.sizes
    shape, k_start = (ROWS, sizes.block_k), column * sizes.block_k
    n_q, n_k, _ = call.mask.counts()
    refs = list(refs[bool(n_q) :])
    q_index, k_index = cores.index(shape, 0, start), cores.index(shape, 1, k_start)
    q_values, k_values = [along(x, shape, 0) for x in vectors], []
    if n_k:
        ref = refs.pop(0)
        keys, at = pl.ds(k_start, sizes.block_k), batch if ref.shape[0] > 1 else 0
        k_values = [along(cores.load(ref, (at, i, keys), PER_COLUMN), shape, 1) for i in range(n_k)]
    square = pl.ds(start, ROWS), pl.ds(k_start, sizes.block_k)
    tiles = [
        cores.load(ref, (batch if ref.shape[0] > 1 else 0, n if ref.shape[1] > 1 else 0, *square)) for ref in refs
    ]
    seen = call.mask.evaluate(q_index, k_index, q_values, k_values, tiles, sizes.T, sizes.S)
    return seen & (k_index < sizes.S) if sizes.S % sizes.block_k else seen


def unseen_keys(mask: Any, sizes: Sizes, table: Any) -> bool:
    """Whether there may be a key that no query sees: worked out for static masks, assumed for the others."""
    if not isinstance(table, np.ndarray):
        return True
    unsure = np.flatnonzero(~(table == schedule.FULL).any((0, 1)))
    if len(unsure) * sizes.block_k * sizes.T > MOST_PAIRS:
        return True
    q = np.arange(sizes.T)[:, None]
    for column in unsure:
        k = np.arange(column * sizes.block_k, min(sizes.S, (column + 1) * sizes.block_k))[None]
        if not np.broadcast_to(mask.evaluate(q, k, (), (), (), sizes.T, sizes.S), (sizes.T, k.size)).any(0).all():
            return True
    return False
