"""Attention under any mask of `kernels.masks`: one function, and the choice of what computes it."""

import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.attention import chunked, decode, library, reference
from kernels.attention.chunked import accumulator
from kernels.attention.decode import merge
from kernels.attention.scoring import Result, Scoring
from kernels.lowering import by_platform, first_that_can
from kernels.masks import Causal, Mask

__all__ = ["IMPLEMENTATIONS", "attention", "explain", "merge"]

IMPLEMENTATIONS = ("reference", "chunked", "decode", "library", "pallas_tpu", "pallas_gpu", "pallas_gpu_hopper")
IN_JAX = {"reference": reference, "chunked": chunked, "decode": decode}
KERNELS = {  # imported when first wanted
    "pallas_tpu": "kernels.attention.tpu",
    "pallas_gpu": "kernels.attention.gpu",
    "pallas_gpu_hopper": "kernels.attention.gpu_hopper",
}
# Up to this many scores per head an accelerator's own fusion does it: a kernel has nothing to save.
SHORT = 512 * 512
# Few queries against many keys.
DECODE_T, DECODE_S = 16, 2048


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | str = Causal(),  # noqa: B008 (immutable)
    scale: float | None = None,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(softcap(scale q.k + bias)) v over the keys that `mask` sees.

    Args:
      q: [B, T, N, H].
      k: [B, S, K, H], N a multiple of K.
      v: [B, S, K, H].
      mask: a `kernels.masks.Mask` or its string; with T != S the queries are the last T positions.
      scale: None is 1 / sqrt(H).
      bias: 4 axes, broadcastable to [B, N, T, S].
      softcap: cap * tanh(score / cap), before the mask.
      sinks: [N], per head the score of a virtual key of value zero.
      return_lse: whether lse is returned, too.
      implementation: one of IMPLEMENTATIONS, or None for the choice of `explain`, by the platform that the program is
        lowered for.

    Returns:
      out [B, T, N, H] in q's type and, with return_lse, lse [B, N, T] (natural log, float32, or float64 when an input
      is). Both can be differentiated. A row that sees nothing gives 0 and -inf, with finite gradients.

    Raises:
      NotImplementedError: a named implementation cannot do it, with the reason.

    Source: Dao 2023, "FlashAttention-2"; block-sparse over tiles of the mask.
    """
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    _check(q, k, v, mask, bias, sinks, implementation)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    scoring = Scoring(mask, scale, bias, None if softcap is None else float(softcap), sinks)
    if implementation == "library":
        if return_lse:
            raise NotImplementedError(
                "implementation='library' gives no lse that can be differentiated; use implementation='chunked'."
            )
        return library.forward(q, k, v, scoring)
    out, lse = _attend(implementation, q, k, v, scoring)
    return (out, lse) if return_lse else out


def explain(
    q_shape: tuple, k_shape: tuple, mask: Mask | str, platform: str, dtype: Any = jnp.float32, bias: bool = False
) -> str:
    """Which implementation `attention` takes when lowered for `platform` ("cpu", "tpu", "cuda"), and why.

    q_shape is [B, T, N, H], k_shape is [B, S, K, H], dtype is that of q, k and v, bias says whether there is one.
    """
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    (B, T, N, _), S = q_shape, k_shape[1]
    q, k = jax.ShapeDtypeStruct(q_shape, dtype), jax.ShapeDtypeStruct(k_shape, dtype)
    given = jax.ShapeDtypeStruct((B, N, T, S), dtype) if bias else None
    names, reason = _choose(platform, T, S)
    for name in names:
        try:
            jax.eval_shape(_forward_by(name), q, k, k, Scoring(mask, 1.0, given))
            break
        except (NotImplementedError, ImportError) as refusal:
            reason = f"{name} refuses: {refusal}"
    return f"{name}: {reason}"


def _choose(platform: str, T: int, S: int) -> tuple[tuple[str, ...], str]:
    """The implementations to try on a platform, in order, and why. The last one takes everything.

    `library` is not among them: cuDNN is no faster (docs/LEDGER.md), and its backward pass adds up in another order
    each time, while a resumed run must give the same bits.
    """
    if platform == "cpu":  # measured also for T = 1: it skips the empty end of a cache and copies less than a split
        return ("chunked",), f"on {platform} tiles that stay in cache are faster than T*S={T * S} scores in memory"
    if T <= DECODE_T and S >= DECODE_S:
        return ("decode",), f"T={T} queries against S={S} keys are split over the keys"
    kernels = {"tpu": ("pallas_tpu",), "cuda": ("pallas_gpu_hopper",) * _hopper() + ("pallas_gpu",)}.get(platform)
    if kernels is None:
        return ("chunked",), f"there is no kernel for {platform}"
    if T * S < SHORT:
        return ("reference",), f"T*S={T * S} scores are too few for a kernel to save anything (from {SHORT})"
    return (*kernels, "chunked"), f"{platform} has a block-sparse kernel for every mask"


def _hopper() -> bool:
    """Whether the GPUs of this host are Hopper's, the one generation that the Hopper kernels run on.

    A program lowered for CUDA on a host without a GPU takes the kernels that run on every generation.
    """
    return any(getattr(d, "compute_capability", "").startswith("9.") for d in jax.local_devices())


def _forward_by(name: str) -> Any:
    """forward(q, k, v, scoring) of an implementation."""
    module = IN_JAX.get(name) or importlib.import_module(KERNELS[name])

    def forward(q, k, v, scoring):
        out, lse = module.forward(q, k, v, scoring)
        return out.astype(q.dtype), lse.astype(accumulator(q, k, v))

    return forward


def _backward_by(name: str) -> Any:
    """backward(residuals, cotangent) of an implementation; decoding has the gradient of chunked."""
    name = "chunked" if name == "decode" else name
    module = IN_JAX.get(name) or importlib.import_module(KERNELS[name])

    def backward(residuals, cotangent):
        q, k, v, scoring, _ = residuals
        grads = module.backward(*residuals, cotangent)
        given = (q, k, v, scoring.bias, scoring.sinks)
        return tuple(None if x is None else g.astype(x.dtype) for g, x in zip(grads, given, strict=True))

    return backward


def _dispatch(by: Any, name: str | None, T: int, S: int, *args: Any) -> Any:
    """Runs the named implementation, or the one for the platform, which is known when the program is lowered."""
    if name is not None:
        run = by(name)
        if name in IN_JAX:
            return run(*args)
        platform = "tpu" if name == "pallas_tpu" else "cuda"
        refusal = f"implementation={name!r} runs on {platform} only; use implementation='chunked' or None."
        return by_platform(*args, default=refusal, **{platform: run})

    def run_for(platform: str) -> Any:
        return first_that_can(by, _choose(platform, T, S)[0])  # What cannot, `explain` tells.

    if len({_choose(platform, T, S)[0] for platform in ("cpu", "tpu", "cuda", "other")}) == 1:
        return run_for("cpu")(*args)
    return by_platform(*args, default=run_for("other"), **{p: run_for(p) for p in ("cpu", "tpu", "cuda")})


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(implementation, q, k, v, scoring):
    return _dispatch(_forward_by, implementation, q.shape[1], k.shape[1], q, k, v, scoring)


def _attend_forward(implementation, q, k, v, scoring):
    result = Result(*_attend(implementation, q, k, v, scoring))
    return tuple(result), (q, k, v, scoring, result)


def _attend_backward(implementation, residuals, cotangents):
    q, k, _, scoring, _ = residuals
    sizes = q.shape[1], k.shape[1]
    dq, dk, dv, d_bias, d_sinks = _dispatch(_backward_by, implementation, *sizes, residuals, Result(*cotangents))
    return dq, dk, dv, scoring.gradients(d_bias, d_sinks)


_attend.defvjp(_attend_forward, _attend_backward)


def _check(q, k, v, mask, bias, sinks, implementation) -> None:
    """Refuses wrong shapes in the words of the caller."""
    if q.ndim != 4 or k.ndim != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} must be [B, T, N, H] and twice [B, S, K, H].")
    B, T, N, _ = q.shape
    S, K = k.shape[1:3]
    if N % K:
        raise ValueError(f"q has {N} heads, not a multiple of the {K} of k and v; use {K * max(1, N // K)}.")
    if not isinstance(mask, Mask):
        raise ValueError(f"mask is a {type(mask).__name__}; use a mask such as masks.Causal(), or masks.Dense(array).")
    if bias is not None and (
        bias.ndim != 4 or any(b not in (1, n) for b, n in zip(bias.shape, (B, N, T, S), strict=True))
    ):
        raise ValueError(f"bias has shape {bias.shape}; it must be [B|1, N|1, T|1, S|1] of {(B, N, T, S)}.")
    if sinks is not None and sinks.shape != (N,):
        raise ValueError(f"sinks has shape {sinks.shape}; it must be one score per head, ({N},).")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation={implementation!r} is not known; use None or one of {IMPLEMENTATIONS}.")
    q_vectors, k_vectors, tiles = jax.eval_shape(lambda mask: mask.operands(T, S), mask)
    for x in (*q_vectors, *k_vectors, *tiles):
        if x.shape[0] not in (1, B) or (x.ndim == 4 and x.shape[1] not in (1, N)):
            raise ValueError(f"mask {mask} has arrays for {x.shape[0]} rows; q has B={B} rows and N={N} heads.")
