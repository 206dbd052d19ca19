"""Newton-Schulz on a CUDA GPU (Triton): one matrix per program, all steps in registers and shared memory.

A program holds all of X and A = XX^T, so it takes sides up to 128, in float32 up to 64: tensor cores have no exact
float32 product, and Triton, which writes out every multiplication, took minutes to compile longer ones. Larger matrices
take batched matmuls, which keep a GPU busy.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kernels.newton_schulz.reference import EPSILON, Triple, one_step

LONGEST = {2: 128, 4: 64}  # sides, by the bytes of a number


def too_large(m: int, n: int, dtype: jnp.dtype) -> str | None:
    """Why an m x n matrix does not fit on chip, or None."""
    longest = LONGEST[jnp.dtype(dtype).itemsize]
    if max(m, n) <= longest:
        return None
    return f"the {m} x {n} iteration in {dtype} does not fit one program; sides up to {longest} do"


def _side(n: int) -> int:
    """The power of two, at least 16, that Triton's products want."""
    return max(16, pl.next_power_of_2(n))


def newton_schulz_kernel(g: jax.Array, schedule: tuple[Triple, ...], interpret: bool = False) -> jax.Array:
    """`newton_schulz_reference` for `[..., m, n]` as one Pallas program per matrix."""
    *batch, m, n = g.shape
    x = jnp.swapaxes(g, -1, -2) if m > n else g
    x = x.reshape(-1, *x.shape[-2:])
    short, long = x.shape[1:]
    rows, columns = _side(short), _side(long)
    x = jnp.pad(x, ((0, 0), (0, rows - short), (0, columns - long)))  # zero rows and columns stay zero at every step

    def kernel(x_ref, out_ref):
        x = x_ref[...].astype(jnp.float32)
        x = x / (jnp.sqrt(jnp.sum(x * x)) + EPSILON)
        for abc in schedule:
            x = one_step(x, abc, x_ref.dtype)
        out_ref[...] = x.astype(out_ref.dtype)

    block = pl.BlockSpec((None, rows, columns), lambda i: (i, 0, 0))
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0],),
        in_specs=[block],
        out_specs=block,
        compiler_params=plgpu.CompilerParams(num_warps=8 if columns > 64 else 4, num_stages=1),
        interpret=interpret,
        name="newton_schulz",
    )(x)
    out = out[:, :short, :long]
    return (jnp.swapaxes(out, -1, -2) if m > n else out).reshape(*batch, m, n)
