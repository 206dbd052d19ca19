"""Large-chunk test-time training: a SwiGLU network per head, trained inside the forward pass, chunk by chunk."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels.checks import check_shapes
from kernels.lact import chunked, gpu, tpu
from kernels.lact import reference as ref
from kernels.lact.chunked import LactState
from kernels.lact.reference import Rule, Weights, apply_fast_weights, fast_weight_gradient
from kernels.newton_schulz.reference import triples

__all__ = ["LactState", "apply_fast_weights", "fast_weight_gradient", "init_state", "lact"]

ORDERS = ("apply_then_update", "update_then_apply")
KERNELS = {"pallas_tpu": tpu, "pallas_gpu": gpu}
IMPLEMENTATIONS = (None, "reference", *KERNELS)


def lact(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    lr: jax.Array,
    weights: Weights,
    *,
    chunk_size: int,
    momentum: jax.Array | None = None,
    newton_schulz_steps: int = 0,
    coefficients: str | Sequence[tuple[float, float, float]] = "quintic5",
    normalize: str = "post",
    order: str = "apply_then_update",
    state: LactState | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    axis: str | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, LactState | None]:
    """Fast weights f_W(x) = W1 [silu(W0 x) * (W2 x)], trained on each chunk's -sum_i lr_i <f_W(k_i), v_i>.

    Args:
        q, k, v: `[B, T, N, H]`. Products take operands of this dtype and accumulate in float32 (float64 for float64).
        lr: `[B, T, N, 3]`, learning rate of each token for w0, w1, w2. A rate of 0 takes a token out of the update.
        weights: initial (w0 `[B|1, N, F, H]`, w1 `[B|1, N, H, F]`, w2 `[B|1, N, F, H]`); w1 is the output matrix. The
            same ones in every call of a stream: documents start from them, and normalised rows keep their lengths.
        chunk_size: C, tokens per update, counted from the start of each document.
        momentum: `[B, T, N]` gate; its mean over the chunk weighs the update before. The buffer starts at 0.
        newton_schulz_steps: steps on each matrix's update after momentum (5 as published), 0 for none.
        coefficients: "quintic5", "nvs" or triples (a, b, c); see `kernels.newton_schulz`.
        normalize: "post": W <- n (W+D)/(||row||+1e-5) with n the row norms of `weights`; "pre": sums are kept as they
            are and the network uses their normalised rows (after the first update); "none".
        order: "apply_then_update": a chunk is read with the weights after the chunks before it. The weights learn from
            it once a later token of its document arrives, so never from the last chunk (causal by chunks: the language
            model). "update_then_apply": the weights learn from a chunk, then it is read (sets; with C = T the
            bidirectional order, and with rate 0 on target tokens the novel-view order), a short last chunk included.
        state: what an earlier call returned; the T tokens go on from there. T at once, split anywhere, or token by
            token give the same numbers. In "update_then_apply" every call starts a new chunk, so split at multiples
            of C.
        segment_ids: `[B, T]` integers. Wherever the id changes a document begins: initial weights, zero momentum, a
            new chunk grid. Packed documents give exactly what each gives alone, gradients too.
        lengths: `[B]` tokens of each row that count, 0 to T. Later tokens are padding: they enter neither weights nor
            chunk, and their outputs are undefined. None: all T.
        axis: inside `jax.shard_map`, the mesh axis whose P devices share every row: rank r holds its tokens r, r + P,
            r + 2P, ..., so an equal share of every chunk. C (of the whole row) is a multiple of P. Each update is the
            sum over devices, taken before momentum and Newton-Schulz: exact. No state, no lengths.
        implementation: None takes kernels where the program is lowered for a platform that has them: for
            Newton-Schulz, and on a TPU for what whole chunks read and teach (`kernels.lact.tpu`), if the network fits
            VMEM. "reference" takes none; "pallas_tpu" or "pallas_gpu" is that kernel or an error.
        interpret: run a named kernel in Pallas' interpreter (tests).

    Returns:
        out `[B, T, N, H]` in the dtype of `v`, and the state after the last token (None with `axis`).

    Memory: chunks are scanned and recomputed in the backward pass (reverse mode only). Beyond inputs and outputs the
    forward pass holds one chunk; the backward pass also holds the weights (and momentum) before each chunk, or of 16
    and more before every sqrt-th one where all would exceed the inputs. Rows with `state` or `segment_ids` gather their
    chunks first.

    Raises:
        ValueError: shapes or names that do not fit. NotImplementedError: a combination that is not offered.

    Source: "Test-Time Training Done Right" (LaCT), the released language-model layer; gradients as in its appendix.
    """
    rows, tokens = q.shape[:2], q.shape[:3]
    check_shapes(
        q, k=(k, q.shape), v=(v, q.shape), lr=(lr, (*tokens, 3)), momentum=(momentum, tokens),
        segment_ids=(segment_ids, rows), lengths=(lengths, rows[:1]),
    )  # fmt: skip
    _check(q, weights, chunk_size, normalize, order)
    _check_state(state, q, chunk_size, momentum, order)
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"implementation={implementation!r} is not offered; use one of {IMPLEMENTATIONS}.")
    if order == "update_then_apply" and not (segment_ids is None and lengths is None):
        name = "lengths" if segment_ids is None else "segment_ids"
        reason = "the number of chunks would depend on the data"
        raise NotImplementedError(f"{name} with order={order!r} is not offered: {reason}; use one row a document.")
    dtype = jnp.result_type(q, k, v)
    rule = Rule(triples(newton_schulz_steps, coefficients), normalize, None, axis)
    rule = _with_kernels(rule, implementation, interpret, q.shape[-1], weights[0].shape[2], dtype)
    if axis is not None:
        chunk_size = _share(chunk_size, axis, state, lengths)
    q, tokens = q.astype(dtype), (k.astype(dtype), v.astype(dtype), lr, momentum)
    if order == "update_then_apply":
        out, state = _update_first(q, tokens, weights, chunk_size, state, rule)
    elif state is not None and q.shape[1] == 1:
        out, state = chunked.one_token(q, tokens, weights, state, segment_ids, lengths, chunk_size, rule)
    elif not (state is None and segment_ids is None and lengths is None):
        out, state = chunked.in_documents(q, tokens, weights, state, segment_ids, lengths, chunk_size, rule)
    else:
        carry = ref.start(weights, q.shape[0], jnp.promote_types(dtype, jnp.float32), momentum is not None)
        out, carry, chunk, held = chunked.on_grid(q, tokens, weights, carry, chunk_size, order, rule)
        fill = jnp.full((q.shape[0],), held, jnp.int32)
        state = LactState(carry, chunk, fill, jnp.zeros_like(fill))
    return out.astype(v.dtype), state if axis is None else None


def init_state(
    weights: Weights,
    batch: int,
    *,
    chunk_size: int,
    dtype: jnp.dtype = jnp.float32,
    rate_dtype: jnp.dtype = jnp.float32,
    momentum: bool = False,
    order: str = "apply_then_update",
) -> LactState:
    """The state before the first token of `batch` rows; `dtype` is that of q, k, v, `rate_dtype` of lr and momentum."""
    heads, width = weights[0].shape[1], weights[0].shape[-1]
    size = chunk_size if order == "apply_then_update" else 0
    tokens = jnp.zeros((batch, size, heads, width), dtype)
    rates = jnp.zeros((batch, size, heads, 3), rate_dtype)
    chunk = (tokens, tokens, rates, rates[..., 0] if momentum else None)
    carry = ref.start(weights, batch, jnp.promote_types(dtype, jnp.float32), momentum)
    zero = jnp.zeros((batch,), jnp.int32)
    return LactState(carry, chunk, zero, zero)


def _with_kernels(rule: Rule, implementation: str | None, interpret: bool, *sizes: Any) -> Rule:
    """The rule with the kernels of `implementation`; sizes: H, F and the dtype of the tokens."""
    if implementation == "reference":
        return rule._replace(newton_schulz_implementation="reference")
    kernels = KERNELS[implementation or "pallas_tpu"]  # A GPU's were compiled by none yet: they run where named.
    if interpret:
        return rule._replace(network=kernels.INTERPRETED)
    reason = kernels.too_large(*sizes)
    if implementation is not None and reason:
        raise NotImplementedError(f"implementation={implementation!r} does not take this: {reason}; use None.")
    if implementation is not None:
        return rule._replace(network=kernels.NETWORK)
    return rule if reason else rule._replace(elsewhere=(("tpu", tpu.NETWORK),))


def _update_first(q, tokens, weights, chunk_size, state, rule):
    """update_then_apply: no chunk stays open, so the state's chunk has no slots."""
    batch = q.shape[0]
    carry = ref.start(weights, batch, jnp.promote_types(q.dtype, jnp.float32), tokens[3] is not None)
    carry = carry if state is None else state.carry
    out, carry, _, _ = chunked.on_grid(q, tokens, weights, carry, chunk_size, "update_then_apply", rule)
    zero = jnp.zeros((batch,), jnp.int32)
    return out, LactState(carry, jax.tree.map(lambda x: x[:, :0], tokens), zero, zero)


def _share(chunk_size, axis, state, lengths):
    """Tokens of a chunk that each device of `axis` holds."""
    size = jax.lax.axis_size(axis)
    if chunk_size % size:
        use = -(-chunk_size // size) * size
        raise ValueError(f"chunk_size={chunk_size} does not divide over {size} devices of {axis!r}; use {use}.")
    if not (state is None and lengths is None):
        raise NotImplementedError(f"axis={axis!r} with a state or lengths is not offered; decode with whole rows.")
    return chunk_size // size


def _check(q, weights, chunk_size, normalize, order):
    """Raises ValueError for the first of these that does not fit, naming what would."""
    batch, length, heads, width = q.shape
    hidden = weights[0].shape[2] if weights[0].ndim == 4 else 0
    for i, w in enumerate(weights):
        shape = (heads, width, hidden) if i == 1 else (heads, hidden, width)
        if w.ndim != 4 or w.shape[0] not in (1, batch) or w.shape[1:] != shape:
            raise ValueError(f"weights[{i}] has shape {w.shape}; use ({batch} or 1, {', '.join(map(str, shape))}).")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not positive; use e.g. {length}.")
    if normalize not in ref.NORMALIZE:
        raise ValueError(f"normalize={normalize!r} is not known; use one of {ref.NORMALIZE}.")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not known; use one of {ORDERS}.")


def _check_state(state, q, chunk_size, momentum, order):
    """Raises ValueError where a state was made for other settings."""
    if state is None:
        return
    slots = chunk_size if order == "apply_then_update" else 0
    if state.chunk[0].shape[:2] != (q.shape[0], slots):
        made = state.chunk[0].shape[:2]
        raise ValueError(f"state has (rows, chunk slots) {made}; this call needs {(q.shape[0], slots)}.")
    wide = jnp.promote_types(q.dtype, jnp.float32)
    if state.carry.main[0].dtype != wide or (slots and state.chunk[0].dtype != q.dtype):
        made = (state.chunk[0].dtype.name, state.carry.main[0].dtype.name)
        raise ValueError(f"state has (tokens, weights) of types {made}; q of type {q.dtype} needs {wide} weights.")
    if (state.carry.momentum is None) != (momentum is None):
        held = "no momentum buffer" if state.carry.momentum is None else "a momentum buffer"
        raise ValueError(f"state has {held}; pass momentum to every call of a stream or to none.")
