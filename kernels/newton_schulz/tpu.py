"""Newton-Schulz on a TPU: one matrix at a time, all steps in VMEM. HBM sees the matrix once in and once out."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.lengths import norm
from kernels.newton_schulz.reference import EPSILON, Triple, one_step

LANES = 128
MOST_BYTES = 48 * 2**20  # of the 64 (v5p) or 128 MiB of VMEM, leaving room for what the compiler spills


def _padded(m: int, n: int) -> tuple[int, int]:
    short, long = sorted((m, n))
    return -(-short // LANES) * LANES, -(-long // LANES) * LANES


def _bytes(m: int, n: int) -> int:
    """VMEM: working copies of X and A, their bf16 parts for exact float32 products, and double-buffered blocks."""
    short, long = _padded(m, n)
    return 4 * (5 * short * long + 4 * short * short) + 2 * 2 * 4 * short * long


def too_large(m: int, n: int, dtype: jnp.dtype) -> str | None:
    """Why an m x n matrix does not fit on chip, or None. The iterate is float32 whatever the type."""
    if _bytes(m, n) <= MOST_BYTES:
        return None
    return f"the {m} x {n} iteration needs {_bytes(m, n) / 2**20:.0f} MiB of VMEM, at most {MOST_BYTES >> 20} are taken"


def newton_schulz_kernel(g: jax.Array, schedule: tuple[Triple, ...], interpret: bool = False) -> jax.Array:
    """`newton_schulz_reference` for `[..., m, n]` as one Pallas program per matrix."""
    *batch, m, n = g.shape
    x = jnp.swapaxes(g, -1, -2) if m > n else g
    x = x.reshape(-1, *x.shape[-2:])
    rows, columns = _padded(m, n)
    short, long = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (0, rows - short), (0, columns - long)))  # zero rows and columns stay zero at every step

    def kernel(table, x_ref, out_ref, iterate):
        x = x_ref[...].astype(jnp.float32)
        iterate[...] = x / (norm(x, (-2, -1)) + EPSILON)

        @pl.loop(0, len(schedule))  # a loop, because unrolled steps take minutes to compile at 768
        def _(i):
            iterate[...] = one_step(iterate[...], [table[i, j] for j in range(3)], x_ref.dtype)

        out_ref[...] = iterate[...].astype(out_ref.dtype)

    block = pl.BlockSpec((None, rows, columns), lambda i: (i, 0, 0))
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0],),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block],
        out_specs=block,
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=max(16 * 2**20, _bytes(m, n) * 5 // 4)
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        name="newton_schulz",
    )(jnp.asarray(schedule, jnp.float32), x)
    out = out[:, :short, :long]
    return (jnp.swapaxes(out, -1, -2) if m > n else out).reshape(*batch, m, n)
