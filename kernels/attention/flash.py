"""Shared by the flash kernels of all platforms: sizes, refusals, scores in base 2, the terms of each query."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOG2_E = math.log2(math.e)
# Far below any score, and still finite: differences of it are 0 rather than NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

NT = (((1,), (1,)), ((), ()))  # [a, H] x [b, H] -> [a, b]
NN = (((1,), (0,)), ((), ()))  # [a, b] x [b, H] -> [a, H]
TN = (((0,), (0,)), ((), ()))  # [a, b] x [a, H] -> [b, H]


class Sizes(NamedTuple):
    """The static shape of one call. T and S are true lengths; block_q and block_k divide the padded ones."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    block_q: int
    block_k: int

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.N // self.K


class Call(NamedTuple):
    """The static arguments of a kernel."""

    sizes: Sizes
    mask: Any
    scale: float
    softcap: float | None


def in_32_bits(function: Callable) -> Callable:
    """`function` traced with 64-bit types off: else its plain numbers are float64, which no kernel has."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return run


def check(implementation: str, q: jax.Array, k: jax.Array, v: jax.Array, bias: Any) -> None:
    """Refuses what the flash kernels cannot do, in one sentence each."""
    if bias is not None:
        raise NotImplementedError(
            f"implementation={implementation!r} takes no bias; use implementation='chunked' or 'reference'."
        )
    if q.dtype not in (jnp.bfloat16, jnp.float32) or not q.dtype == k.dtype == v.dtype:
        raise NotImplementedError(
            f"implementation={implementation!r} takes q, k, v of one type, bfloat16 or float32, not {q.dtype}, "
            f"{k.dtype}, {v.dtype}; use implementation='chunked'."
        )


def pad_to(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """Zeros behind `x` so that `axis` is a multiple of `multiple`."""
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    width = [(0, 0)] * x.ndim
    width[axis] = (0, missing)
    return jnp.pad(x, width)


def stack(vectors: Any, block: int) -> jax.Array | None:
    """Vectors [B|1, T] as one array [B|1, how many, T padded to whole blocks], or None when there are none."""
    if not vectors:
        return None
    batch = max(v.shape[0] for v in vectors)
    return pad_to(jnp.stack([jnp.broadcast_to(v, (batch, v.shape[1])) for v in vectors], axis=1), 2, block)


def dot(x: jax.Array, y: jax.Array, dimensions: Any) -> jax.Array:
    """A matrix product with float32 accumulation; float32 operands keep float32 precision."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def scores(call: Call, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Scores of x [a, H] against y [b, H] in base 2, and with a softcap the derivative of capping, else None."""
    raw = dot(x, y, NT)
    if call.softcap is None:
        return raw * (call.scale * LOG2_E), None
    capped = jnp.tanh(raw * (call.scale / call.softcap))
    return capped * (call.softcap * LOG2_E), 1.0 - capped * capped


def clear_unseen(x: jax.Array, seen: jax.Array) -> jax.Array:
    """x [a, H] with zeros in the rows that no row of seen [b, a] sees: masked rows may be NaN, and 0 * NaN is NaN."""
    some = jnp.expand_dims(seen.astype(jnp.float32).max(axis=0), 1)
    return jnp.where(some > 0, x.astype(jnp.float32), 0.0).astype(x.dtype)


def row_terms(
    out: jax.Array, lse: jax.Array, d_out: jax.Array, d_lse: jax.Array | None, sinks: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Per query: delta = out . d_out - d_lse, and lse with 0 for rows that see nothing, [B, N, T]; and dsinks [N]."""
    # Not an einsum: a TPU would round its float32 operands to bfloat16.
    delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    if d_lse is not None:
        delta = delta - jnp.where(jnp.isfinite(lse), d_lse, 0.0)
    d_sinks = None
    if sinks is not None:
        weight = jnp.where(jnp.isfinite(lse), jnp.exp(sinks.astype(jnp.float32)[:, None] - lse), 0.0)
        d_sinks = -(weight * delta).sum(axis=(0, 2))
    return delta, jnp.where(jnp.isfinite(lse), lse, 0.0), d_sinks
