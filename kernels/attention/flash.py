"""Shared by the flash kernels of all platforms: sizes, refusals, scores in base 2, the terms of each query."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.attention.scoring import Result, Scoring

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
    """What the body of a kernel knows of a call; arrays of the mask reach it as refs."""

    sizes: Sizes
    mask: Any
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, sizes: Sizes, scoring: Scoring) -> "Call":
        return cls(sizes, scoring.mask, scoring.scale, scoring.softcap)


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
    result: Result, cotangent: Result, sinks: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Per query delta = out . d_out - d_lse and lse, [B, N, T], both 0 where it sees nothing; and dsinks [N].

    All are in the type of lse.
    """
    lse = result.lse
    some = jnp.isfinite(lse)
    # Not an einsum: a TPU would round its float32 operands to bfloat16.
    delta = (result.out.astype(lse.dtype) * cotangent.out.astype(lse.dtype)).sum(-1).swapaxes(1, 2)
    delta = delta if cotangent.lse is None else delta - cotangent.lse.astype(lse.dtype)
    delta = jnp.where(some, delta, 0.0)
    d_sinks = None
    if sinks is not None:
        weight = jnp.where(some, jnp.exp(sinks.astype(lse.dtype)[:, None] - lse), 0.0)
        d_sinks = -(weight * delta).sum(axis=(0, 2))
    return delta, jnp.where(some, lse, 0.0), d_sinks


def opening(
    qkv: tuple[jax.Array, jax.Array, jax.Array],
    sinks: jax.Array | None,
    result: Result,
    cotangent: Result,
    lay: Callable[[jax.Array, int], jax.Array],
    block_q: int,
    block_k: int,
) -> tuple[list[jax.Array], jax.Array | None]:
    """What every backward kernel reads, and dsinks [N].

    Args:
      qkv: q [B, T, N, H], k and v [B, S, K, H].
      lay: `(array, block) -> array`, how the kernel wants these four laid out, their tokens padded to whole blocks.
      block_q: tokens of a block of queries.
      block_k: tokens of a block of keys.

    Returns:
      [q, d_out, k, v, lse in base 2, delta], the last two [B, N, T padded to whole blocks].
    """
    q, k, v = qkv
    delta, lse, d_sinks = row_terms(result, cotangent, sinks)
    queries = [lay(x, block_q) for x in (q, cotangent.out.astype(q.dtype))]
    keys = [lay(x, block_k) for x in (k, v)]
    return [*queries, *keys, *(pad_to(x, 2, block_q) for x in (lse * LOG2_E, delta))], d_sinks
