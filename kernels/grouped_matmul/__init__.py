"""Grouped matmul: consecutive rows times the matrix of their group, groups of any sizes (mixtures of experts)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.grouped_matmul import gpu, tpu
from kernels.grouped_matmul.reference import grouped_matmul_reference, grouped_outer_reference
from kernels.grouped_matmul.tiled import grouped_matmul_tiled, grouped_outer_tiled
from kernels.lowering import by_platform

__all__ = ["IMPLEMENTATIONS", "grouped_matmul"]

MATMUL = {
    "reference": grouped_matmul_reference,
    "tiled": grouped_matmul_tiled,
    "pallas_tpu": tpu.grouped_matmul_tpu,
    "pallas_gpu": gpu.grouped_matmul_gpu,
}
OUTER = {
    "reference": grouped_outer_reference,
    "tiled": grouped_outer_tiled,
    "pallas_tpu": tpu.grouped_outer_tpu,
    "pallas_gpu": gpu.grouped_outer_gpu,
}
IMPLEMENTATIONS = tuple(MATMUL)
PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


def grouped_matmul(
    x: jax.Array,
    w: jax.Array,
    sizes: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """y_m = x_m w_g(m): the first `sizes[0]` rows times w[0], the next `sizes[1]` rows times w[1], and so on.

    Args:
      x: `[M, D]`, any floating type.
      w: `[E, D, F]` in the type of x.
      sizes: `[E]` whole numbers, how many rows each group has; 0 is allowed. Together at most M; the rows past them
        give 0 and get a gradient of 0, whatever they hold.
      implementation: None takes the Pallas kernels where the program is lowered for a TPU or a CUDA GPU, else loops
        over tiles of rows ("tiled"); "reference" computes every group for every row; a kernel by name is that one or an
        error.

    Returns `[M, F]` in the type of x; sums are float32, or float64 for float64. The gradient of an empty group is 0.

    Raises:
      ValueError: shapes or names that do not fit. NotImplementedError: a kernel by name that is lowered for another
      platform, or handed float64.
    """
    if x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1] or sizes.shape != w.shape[:1]:
        raise ValueError(f"x {x.shape}, w {w.shape} and sizes {sizes.shape} do not fit; use [M, D], [E, D, F] and [E].")
    if x.dtype != w.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype} and w {w.dtype}; use one floating type for both.")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} is not known; use one of {list(IMPLEMENTATIONS)}.")
    return _op(implementation, x, w, sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _op(implementation: str | None, x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    return _run(MATMUL, implementation, x, w, sizes)


def _forward(implementation: str | None, x: jax.Array, w: jax.Array, sizes: jax.Array) -> tuple[jax.Array, tuple]:
    return _op(implementation, x, w, sizes), (x, w, sizes)


def _backward(implementation: str | None, kept: tuple, dy: jax.Array) -> tuple:
    x, w, sizes = kept
    dx = _run(MATMUL, implementation, dy, w, sizes, transposed=True)
    return dx, _run(OUTER, implementation, x, dy, sizes), np.zeros(sizes.shape, jax.dtypes.float0)


_op.defvjp(_forward, _backward)


def _run(table: dict[str, Any], implementation: str | None, x: jax.Array, *rest: jax.Array, **static: Any) -> jax.Array:
    """The implementation that fits the platform in the making, or the named one."""
    made = {name: functools.partial(function, **static) for name, function in table.items()}
    wide = x.dtype.itemsize > 4
    if x.shape[0] == 0 or implementation == "reference":
        return made["reference"](x, *rest)
    if implementation == "tiled" or (implementation is None and wide):
        return made["tiled"](x, *rest)
    if implementation is None:
        kernels = {platform: made[name] for name, platform in PLATFORMS.items()}
        return by_platform(x, *rest, default=made["tiled"], **kernels)
    if wide:
        raise NotImplementedError(f"implementation={implementation!r} does not take {x.dtype}; use 'tiled'.")
    reason = f"implementation={implementation!r} is for another platform than this program's; use None or 'tiled'."
    return by_platform(x, *rest, default=reason, **{PLATFORMS[implementation]: made[implementation]})
