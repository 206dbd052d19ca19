"""Newton-Schulz orthogonalisation of batches of matrices (Muon, LaCT)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kernels.lowering import by_platform
from kernels.newton_schulz import gpu, tpu
from kernels.newton_schulz.reference import (
    COEFFICIENTS,
    Triple,
    newton_schulz_gradient,
    newton_schulz_reference,
    triples,
)

__all__ = ["COEFFICIENTS", "newton_schulz", "unsupported"]

KERNELS = {"pallas_tpu": tpu, "pallas_gpu": gpu}


def newton_schulz(
    g: jax.Array,
    steps: int = 5,
    coefficients: str | Sequence[Triple] = "quintic5",
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Pushes all singular values towards 1: X <- aX + (bA + cAA)X with A = XX^T, from X = G/(||G||_F + 1e-7).

    Args:
        g: `[..., m, n]`, any floating dtype. A 16-bit type rounds the operands of the products; the iterate and the
            sums stay in float32 (float64 for float64). A zero matrix stays zero and its gradient is finite.
        steps: how many steps; 0 returns `g` itself.
        coefficients: "quintic5" (five different steps, values end in about [0.98, 1.14]), "nvs" (one step repeated,
            about [0.68, 1.20]), or (a, b, c) triples. The last triple is repeated when `steps` exceeds the set.
        implementation: None takes a kernel where the program is lowered for a TPU or CUDA GPU and the matrix fits on
            chip, else batched matmuls; "reference" is those matmuls; "pallas_tpu" or "pallas_gpu" is that kernel or
            an error.

    Returns `[..., m, n]` in the dtype of `g`.

    Raises:
        ValueError: unknown names, negative steps, fewer than two axes. NotImplementedError: a named kernel that does
        not take this matrix, with the reason.

    Source: Muon (Jordan et al., 2024); the coefficient sets are those of the LaCT releases.
    """
    schedule = triples(steps, coefficients)
    if g.ndim < 2 or not jnp.issubdtype(g.dtype, jnp.floating):
        raise ValueError(f"g has shape {g.shape} and type {g.dtype}; use a floating [..., m, n].")
    if implementation not in (None, "reference", *KERNELS):
        raise ValueError(f"implementation={implementation!r} is not known; use one of {['reference', *KERNELS]}.")
    if implementation in KERNELS and (reason := unsupported(g, implementation)):
        raise NotImplementedError(f"implementation={implementation!r} does not take g: {reason}; use 'reference'.")
    if not schedule or g.size == 0:
        return g
    return _op(schedule, implementation, g)


def unsupported(g: jax.Array | jax.ShapeDtypeStruct, implementation: str) -> str | None:
    """Why the kernel "pallas_tpu" or "pallas_gpu" does not take `g`, or None when it does."""
    if jnp.dtype(g.dtype).itemsize > 4:
        return f"{g.dtype} is not a type of the matrix units"
    return KERNELS[implementation].too_large(*g.shape[-2:], g.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _op(schedule: tuple[Triple, ...], implementation: str | None, g: jax.Array) -> jax.Array:
    plain = functools.partial(newton_schulz_reference, schedule=schedule)
    if implementation == "reference":
        return plain(g)
    kernels = {
        name: functools.partial(module.newton_schulz_kernel, schedule=schedule)
        for name, module in KERNELS.items()
        if unsupported(g, name) is None
    }
    if implementation is not None:
        return kernels[implementation](g)
    names = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}
    return by_platform(g, default=plain, **{names[k]: kernel for k, kernel in kernels.items()})


def _op_fwd(schedule, implementation, g):
    return _op(schedule, implementation, g), g


def _op_bwd(schedule, implementation, g, ct):
    """Recomputes the steps from `g` with batched matmuls; the same on every platform."""
    return (newton_schulz_gradient(g, ct, schedule),)


_op.defvjp(_op_fwd, _op_bwd)
