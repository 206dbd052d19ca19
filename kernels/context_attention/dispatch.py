"""One custom gradient for every schedule: the local parts of a call under `shard_map`, forward and backward."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Cut

from kernels.attention.flash import row_terms
from kernels.attention.scoring import Result
from kernels.context_attention import keys_move, queries_move
from kernels.context_attention.heads_move import keys_to_heads, keys_to_tokens, to_heads, to_tokens
from kernels.context_attention.layouts import Exchange
from kernels.context_attention.task import Task
from kernels.lowering import by_platform
from kernels.masks import Mask

MOVES = {
    "all": (keys_move.gather_forward, keys_move.gather_backward),
    "keys": (keys_move.ring_forward, keys_move.ring_backward),
    "queries": (queries_move.direct_forward, queries_move.direct_backward),
    "pairs": (queries_move.neighbour_forward, queries_move.neighbour_backward),
}


class CallOptions(NamedTuple):
    """The static arguments of a call.

    rows: the mesh axes that cut B.
    heads: the mesh axes that cut N and K.
    remote: whether the forward pass sends by remote copies inside its kernels.
    simulator: `pltpu.InterpretParams` that run these kernels on CPU devices.
    """

    mesh: Mesh
    axis: str
    exchange: Exchange
    T: int
    K: int
    scale: float
    rows: tuple[str, ...]
    heads: tuple[str, ...]
    return_lse: bool
    remote: bool = False
    simulator: Any = None

    @property
    def deals_heads(self) -> bool:
        """Whether neighbours exchange heads for tokens before anything else."""
        return self.exchange.ulysses > 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(options: CallOptions, q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> Any:
    """out [B, T, N, H], or with return_lse (out, lse [B, N, T]), of arrays that lie as the schedule wants them.

    mask: as `placement.whole` gives it.
    """
    return _forward(options, q, k, v, mask)[0]


def _attend_forward(options: CallOptions, q, k, v, mask):
    result, kept = _forward(options, q, k, v, mask)
    return result, (kept, mask)


def _forward(options: CallOptions, q, k, v, mask):
    """The result, and the arrays that each device keeps for its backward pass: q, k, v, out and lse."""
    move = _remotely(options) if options.remote else MOVES[options.exchange.moves][0]

    def run(q, k, v, mask):
        task = _task(options, mask)
        if not options.deals_heads:
            out, lse = move(task, q, k, v)
            return out.astype(q.dtype), lse, ()
        q, k, v = to_heads(task, q), keys_to_heads(task, k), keys_to_heads(task, v)
        out, lse = move(task, q, k, v)
        out = out.astype(q.dtype)
        # Kept as it is dealt out here: to deal it out again for the backward pass would double the traffic.
        kept = jax.tree.map(lambda x: x[None], (q, k, v, out, lse))
        return to_tokens(task, out), to_tokens(task, lse, 2, 1) if options.return_lse else None, kept

    tokens, lse_cut, dealt = _cuts(options)
    some_lse = options.return_lse or not options.deals_heads
    given = (tokens, tokens, tokens, _mask_cuts(options, q.shape[0], mask))
    out_specs = (tokens, lse_cut if some_lse else None, dealt if options.deals_heads else ())
    out, lse, kept = _on_devices(options, run, given, out_specs)(q, k, v, mask)
    return (out, lse) if options.return_lse else out, kept or (q, k, v, out, lse)


def _attend_backward(options: CallOptions, residuals, cotangents):
    kept, mask = residuals
    d_out, d_lse = cotangents if options.return_lse else (cotangents, None)
    _, move = MOVES[options.exchange.moves]

    def run(kept, mask, d_out, d_lse):
        task = _task(options, mask)
        # Else the compiler would find what was sent in the forward pass and keep it, to send it only once.
        kept, d_out = jax.lax.optimization_barrier((kept, d_out))
        if options.deals_heads:
            kept = jax.tree.map(lambda x: x[0], kept)
            d_out = to_heads(task, d_out)
            d_lse = None if d_lse is None else to_heads(task, d_lse, 2, 1)
        q, k, v, out, lse = kept
        d_out = d_out.astype(q.dtype)
        delta = row_terms(Result(out, lse), Result(d_out, d_lse))[0]
        dq, dk, dv = move(task, (q, d_out, jnp.stack([lse, delta])), k, v)
        if options.deals_heads:
            dq = to_tokens(task, dq.astype(q.dtype))
            dk, dv = (keys_to_tokens(task, d, options.K, x.dtype) for d, x in ((dk, k), (dv, v)))
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

    tokens, lse_cut, dealt = _cuts(options)
    kept_cuts = dealt if options.deals_heads else (tokens, tokens, tokens, tokens, lse_cut)
    mask_cuts = _mask_cuts(options, d_out.shape[0], mask)
    given = (kept_cuts, mask_cuts, tokens, None if d_lse is None else lse_cut)
    return *_on_devices(options, run, given, (tokens,) * 3)(kept, mask, d_out, d_lse), None


attend.defvjp(_attend_forward, _attend_backward)


def _remotely(options: CallOptions) -> Any:
    """The forward pass with remote copies, which a program has that is lowered for TPUs, or that simulates them."""
    from kernels.context_attention import tpu_remote  # imported when first wanted, as every kernel

    run = tpu_remote.FORWARD[options.exchange.moves]
    if options.simulator is not None:
        return functools.partial(run, simulator=options.simulator)

    def move(task: Task, q, k, v):
        reason = "implementation='pallas_tpu_remote' runs on tpu only; use implementation=None."
        here = lambda q, k, v, mask: run(task._replace(mask=mask), q, k, v)  # noqa: E731
        return by_platform(q, k, v, task.mask, default=reason, tpu=here)

    return move


def _task(options: CallOptions, mask: Mask) -> Task:
    return Task(options.exchange, mask, options.T, options.scale, options.axis)


def _on_devices(options: CallOptions, run: Any, given: Any, result: Any) -> Any:
    return jax.shard_map(run, mesh=options.mesh, in_specs=given, out_specs=result, check_vma=False)


def _cuts(options: CallOptions) -> tuple[Cut, Cut, tuple[Cut, ...]]:
    """How q, k, v and out are cut, how lse is, and how (q, k, v, out, lse) are while heads are dealt out."""
    rows, heads, axis = options.rows or None, options.heads or None, options.axis
    each = Cut(axis, rows, None, heads, None)
    return Cut(rows, axis, heads, None), Cut(rows, heads, axis), (each,) * 4 + (Cut(axis, rows, heads, None),)


def _mask_cuts(options: CallOptions, B: int, mask: Mask) -> Any:
    """Every device has the mask's arrays of all tokens (4 bytes a token); rows and heads are cut as those of q."""

    def cut(x: jax.Array) -> Cut:
        rows = options.rows if options.rows and x.shape[0] == B else None
        heads = options.heads if options.heads and x.ndim == 4 and x.shape[1] > 1 else None
        return Cut(rows, heads) if x.ndim == 4 else Cut(rows)

    return jax.tree.map(cut, mask)
