"""How much attention each key got from all queries, without an array of T x S: a second pass over attention's lse.

    out, lse = attention(q, k, v, mask=mask, return_lse=True)
    sums = column_sums(q, k, lse, mask=mask, weights=weights)     # [B, K, S]

Ones in `weights` give H2O's score, powers of alpha A2SF's, ones for the last queries SnapKV's, a single one TOVA's.
Keyformer's is `column_sums` of noisy scores, under their own `row_lse`.
"""

import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.attention import SHORT
from kernels.attention.scoring import Scoring
from kernels.column_sums import chunked, reference
from kernels.column_sums.noisy import Noise
from kernels.lowering import by_platform, first_that_can
from kernels.masks import Causal, Mask

__all__ = ["IMPLEMENTATIONS", "Noise", "column_sums", "row_lse"]

IMPLEMENTATIONS = ("reference", "chunked", "pallas_tpu", "pallas_gpu")
IN_JAX = {"reference": reference, "chunked": chunked}
KERNELS = {"pallas_tpu": "kernels.column_sums.tpu", "pallas_gpu": "kernels.column_sums.gpu"}  # imported when wanted
PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}


def column_sums(
    q: jax.Array,
    k: jax.Array,
    lse: jax.Array,
    *,
    mask: Mask | str = Causal(),  # noqa: B008 (immutable)
    weights: jax.Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    noise: Noise | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """c_j = sum over the heads of a group and queries i of w_i exp(score_ij - lse_i), over the keys that `mask` sees.

    Args:
      q: `[B, T, N, H]`.
      k: `[B, S, K, H]`, N a multiple of K. Keys that no query sees may be NaN.
      lse: `[B, N, T]`, natural log of each query's sum, of `attention(..., return_lse=True)`; a query with -inf, which
        sees nothing, adds nothing.
      mask: as in `attention`.
      weights: `[B, T]`; ones unless given.
      scale, softcap: of the scores, as in `attention`.
      noise: the scores become (score + Gumbel noise) / tau, see `Noise`; lse is then that of `row_lse`.
      implementation: one of IMPLEMENTATIONS, or None for the one of the platform that the program is lowered for.

    Returns:
      `[B, K, S]` in float32, or float64 where q is. It has no gradient.

    Raises:
      ValueError: shapes that do not fit. NotImplementedError: a named implementation cannot do it, with the reason.
    """
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    _check(q, k, lse, weights, implementation)
    scoring = Scoring(mask, _scale(scale, q), softcap=softcap)
    weights = jnp.ones(lse.shape[::2], lse.dtype) if weights is None else weights.astype(lse.dtype)
    some = jnp.isfinite(lse)
    rows = jnp.where(some, lse, 0), jnp.where(some, weights[:, None], 0)
    return _dispatch("columns", implementation, q, k, *rows, scoring, noise)


def row_lse(
    q: jax.Array,
    k: jax.Array,
    *,
    mask: Mask | str = Causal(),  # noqa: B008 (immutable)
    scale: float | None = None,
    softcap: float | None = None,
    noise: Noise | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """log sum_j exp(score_ij) of each query over the keys that it sees, `[B, N, T]`; -inf where it sees none.

    Arguments and errors as in `column_sums`.
    """
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    _check(q, k, None, None, implementation)
    return _dispatch("rows", implementation, q, k, Scoring(mask, _scale(scale, q), softcap=softcap), noise)


def _scale(scale: float | None, q: jax.Array) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def _dispatch(part: str, name: str | None, q: jax.Array, k: jax.Array, *args: Any) -> jax.Array:
    """Runs `part` of the named implementation, or of that of the platform, known when the program is lowered."""
    *arrays, scoring, noise = args

    def by(name: str) -> Any:
        module = IN_JAX.get(name) or importlib.import_module(KERNELS[name])
        return lambda q, k, arrays, scoring: getattr(module, part)(q, k, *arrays, scoring, noise)

    given = (q, k, tuple(arrays), scoring)
    if name in IN_JAX:
        return by(name)(*given)
    if name is not None:
        refusal = f"implementation={name!r} runs on {PLATFORMS[name]} only; use implementation='chunked' or None."
        return by_platform(*given, default=refusal, **{PLATFORMS[name]: by(name)})
    if q.shape[1] * k.shape[1] < SHORT:
        return by_platform(*given, default=by("reference"), cpu=by("chunked"))
    kernels = {platform: first_that_can(by, (each, "chunked")) for each, platform in PLATFORMS.items()}
    return by_platform(*given, default=by("chunked"), **kernels)


def _check(q: jax.Array, k: jax.Array, lse: Any, weights: Any, implementation: str | None) -> None:
    """Refuses wrong shapes in the words of the caller."""
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"q {q.shape}, k {k.shape} must be [B, T, N, H] and [B, S, K, H], N a multiple of K.")
    B, T, N, _ = q.shape
    if lse is not None and lse.shape != (B, N, T):
        raise ValueError(f"lse has shape {lse.shape}; it must be one number per query, {(B, N, T)}.")
    if weights is not None and weights.shape != (B, T):
        raise ValueError(f"weights has shape {weights.shape}; it must be one number per query, {(B, T)}.")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} is not known; use None or one of {IMPLEMENTATIONS}.")
