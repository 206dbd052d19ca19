"""Attention over a sequence that is cut across devices: one function, nine schedules, one result."""

import math

import jax
from jax.sharding import Mesh

from kernels import masks
from kernels.attention import flash
from kernels.context_attention.bytes import choose, explain, sent
from kernels.context_attention.dispatch import CallOptions, attend
from kernels.context_attention.heads_move import check_heads
from kernels.context_attention.layouts import (
    LAYOUTS,
    SCHEDULES,
    Exchange,
    check_length,
    exchange_of,
    from_layout,
    multiple,
    positions,
    restore,
    to_layout,
)
from kernels.context_attention.placement import whole
from kernels.context_attention.plan import score_entries
from kernels.masks import Mask

__all__ = [
    "LAYOUTS", "SCHEDULES", "choose", "context_attention", "explain", "from_layout", "multiple", "positions",
    "score_entries", "sent", "exchange_of", "to_layout",
]  # fmt: skip

REMOTE = "pallas_tpu_remote"
# What the other axes of a mesh cut: rows of the batch and heads, where they divide them.
ROW_AXES, HEAD_AXES = ("data", "fsdp"), ("tensor",)


def context_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mesh: Mesh,
    axis: str = "context",
    schedule: str,
    mask: Mask | str,
    scale: float | None = None,
    layout: str = "natural",
    return_lse: bool = False,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale q.k) v over the keys that `mask` sees, the sequence being cut over `axis` of `mesh`.

    q, k and v are whole arrays, sharded over T (others are resharded). Rows are cut over the mesh axes data and fsdp
    and heads over tensor, where these exist and divide them; over any other axis the arrays are equal.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H], N a multiple of K.
      v: [B, T, K, H].
      mesh: the mesh.
      axis: the mesh axis that cuts the sequence.
      schedule: one of SCHEDULES, "usp:u" for groups of u ranks, or "auto" (see `explain`).
      mask: a `kernels.masks.Mask` or its string, of the [T, T] square.
      scale: None is 1 / sqrt(H).
      layout: "natural": q, k, v, the arrays of the mask and the results are in sequence order, converted inside.
        "schedule": all of them lie as `to_layout(x, P, schedule)` puts them; nothing is moved.
      return_lse: whether lse is returned, too.
      implementation: None, or "pallas_tpu_remote": on TPUs the attention kernel of the forward pass sends by itself, by
        remote copies beside its tiles; the backward pass permutes as always.

    Returns:
      out [B, T, N, H] in q's type and, with return_lse, lse [B, N, T] (natural log, float32, or float64 when an input
      is). Both can be differentiated. A row that sees nothing gives 0 and -inf, with finite gradients.

    Raises:
      ValueError: shapes that do not fit each other, the mesh or the schedule; the sentence names a shape that would.
      NotImplementedError: the named implementation cannot do it, with the reason.
    """
    mask = masks.parse(mask) if isinstance(mask, str) else mask
    P = _check(q, k, v, mesh, axis, mask, layout)
    B, T, N, H = q.shape
    K = k.shape[2]
    if schedule == "auto":
        if layout == "schedule":
            raise ValueError(
                "schedule='auto' with layout='schedule' leaves the layout open; use schedule=choose(...) by name."
            )
        schedule = choose(q.shape, k.shape, mask, P, q.dtype)
    exchange = exchange_of(schedule, P)
    check_length(T, P, schedule)
    rows, heads = _cut_by(mesh, ROW_AXES, B, axis), _cut_by(mesh, HEAD_AXES, K, axis)
    local_N, local_K = (n // math.prod(mesh.shape[a] for a in heads) for n in (N, K))
    check_heads(local_N, local_K, schedule, exchange.ulysses)
    scale = 1 / math.sqrt(H) if scale is None else float(scale)

    natural = layout == "natural"
    mask = whole(mask, T, (lambda x, axis: x) if natural else (lambda x, axis: restore(x, exchange.layout, axis)))
    if natural:
        q, k, v = (to_layout(x, P, schedule) for x in (q, k, v))
    remote = _remote(implementation, schedule, exchange, q, k, v)
    result = attend(
        CallOptions(mesh, axis, exchange, T, local_K, scale, rows, heads, return_lse, remote), q, k, v, mask
    )
    out, lse = result if return_lse else (result, None)
    if natural:
        out = restore(out, exchange.layout, 1)
        lse = restore(lse, exchange.layout, 2) if return_lse else None
    return (out, lse) if return_lse else out


def _remote(implementation: str | None, schedule: str, exchange: Exchange, q, k, v) -> bool:
    """Whether the kernels send; refuses what they cannot."""
    if implementation is None:
        return False
    if implementation != REMOTE:
        raise ValueError(f"implementation={implementation!r} is not known; use None or {REMOTE!r}.")
    if exchange.moves not in ("keys", "queries") or exchange.ulysses > 1 or exchange.layout.held > 1:
        raise NotImplementedError(
            f"implementation={REMOTE!r} has one attention call to send beside at each step, which "
            f"schedule={schedule!r} has not; use schedule='ring', 'striped' or 'token_ring', or implementation=None."
        )
    flash.check(REMOTE, q, k, v, None)
    return True


def _cut_by(mesh: Mesh, names: tuple[str, ...], length: int, axis: str) -> tuple[str, ...]:
    """Those mesh axes of `names` that can cut `length` together."""
    chosen: tuple[str, ...] = ()
    for name in names:
        if name in mesh.shape and name != axis and length % math.prod(mesh.shape[a] for a in (*chosen, name)) == 0:
            chosen += (name,)
    return chosen


def _check(q, k, v, mesh: Mesh, axis: str, mask, layout: str) -> int:
    """Refuses what does not fit together, in the words of the caller; returns the number of ranks."""
    if axis not in mesh.shape:
        raise ValueError(f"axis={axis!r} is not an axis of the mesh; use one of {', '.join(map(repr, mesh.shape))}.")
    if layout not in ("natural", "schedule"):
        raise ValueError(f"layout={layout!r} is not known; use 'natural' or 'schedule'.")
    if not isinstance(mask, Mask):
        raise ValueError(f"mask is a {type(mask).__name__}; use a mask such as masks.Causal(), or masks.Dense(array).")
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q {q.shape}, k {k.shape}, v {v.shape} must be [B, T, N, H] and twice [B, T, K, H].")
    N, K = q.shape[2], k.shape[2]
    if N % K:
        raise ValueError(f"q has {N} heads, not a multiple of the {K} of k and v; use {K * max(1, N // K)}.")
    return mesh.shape[axis]
