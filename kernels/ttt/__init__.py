"""TTT-Linear and TTT-MLP: a small model per head, trained inside the forward pass by mini-batches of tokens."""

import jax
import jax.numpy as jnp

from kernels.checks import check_shapes
from kernels.ttt import chunked, gpu, tpu
from kernels.ttt import reference as ref
from kernels.ttt.chunked import TTTState
from kernels.ttt.reference import TTTParams

__all__ = ["TTTParams", "TTTState", "init_state", "ttt_linear", "ttt_mlp"]

KERNELS = {"pallas_tpu": (tpu, "tpu", "a TPU"), "pallas_gpu": (gpu, "cuda", "a CUDA GPU")}
IMPLEMENTATIONS = (None, "chunked", *KERNELS)


def ttt_linear(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    eta: jax.Array,
    params: TTTParams,
    *,
    mini_batch: int = 16,
    state: TTTState | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, TTTState]:
    """Learns k -> v with f(x) = x + LN(x W + b) and reads f(q), update then apply, token i included.

    With Z_j = k_j W_0 + b_0 at the first weights of the mini-batch and G_j = d/dZ 1/2 ||LN(Z_j) - (v_j - k_j)||^2:
    W_i = W_0 - sum_{j<=i} rate_i eta_j k_j^T G_j, b_i likewise, out_i = q_i + LN(q_i W_i + b_i); the mini-batch leaves
    W_{K-1}. rate_i = max(0, 1/(i+1) + position_i). Computed in the dual form: matmuls only.

    Args:
        q, k, v: `[B, T, N, H]`. Products take operands of this dtype and accumulate in float32 (float64 for float64).
        eta: `[B, T, N]`, rate of each token: base_lr * sigmoid(gate) / H in the published layers.
        params: see `TTTParams`. The same in every call of a stream: documents start from them.
        mini_batch: K, counted from the start of each document. A shorter last one uses the first rates.
        state: what an earlier call returned. T at once, split anywhere, or token by token give the same numbers.
        segment_ids: `[B, T]` integers; wherever the id changes a document begins with the initial weights.
        lengths: `[B]` tokens of each row that count, 0 to T. Later tokens are padding: they enter neither weights nor
            mini-batch, and their outputs are undefined. None: all T.
        implementation: None takes a Pallas kernel for the whole mini-batches where the program is lowered for a TPU,
            rows are one document from its start, and `tpu.too_large` has nothing against it; else, and with "chunked",
            the formulas in jnp. "pallas_tpu" or "pallas_gpu" is that kernel or an error.
        interpret: run a named kernel in Pallas' interpreter (tests).

    Returns out `[B, T, N, H]` in the dtype of `v`, and the state after the last token. Reverse-mode gradients pass
    through the inner gradients; memory as for `kernels.lact.lact`.

    Raises ValueError for shapes that do not fit, NotImplementedError for a named kernel that does not take them.

    Source: Sun et al. 2024, "Learning to (Learn at Test Time): RNNs with Expressive Hidden States", section 2.
    """
    _check(q, params, mini_batch, depth=1)
    return _ttt(q, (k, v, eta), params, mini_batch, (state, segment_ids, lengths), (implementation, interpret))


def ttt_mlp(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    eta: jax.Array,
    params: TTTParams,
    *,
    mini_batch: int = 16,
    state: TTTState | None = None,
    segment_ids: jax.Array | None = None,
    lengths: jax.Array | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, TTTState]:
    """As `ttt_linear` with f(x) = x + LN(gelu(x W1 + b1) W2 + b2), gelu in its tanh form; F = 4H as published."""
    _check(q, params, mini_batch, depth=2)
    return _ttt(q, (k, v, eta), params, mini_batch, (state, segment_ids, lengths), (implementation, interpret))


def init_state(
    params: TTTParams, batch: int, *, mini_batch: int = 16, dtype: jnp.dtype = jnp.float32, eta_dtype=jnp.float32
) -> TTTState:
    """The state before the first token; `dtype` is that of q, k, v and `eta_dtype` that of eta."""
    heads, width = params.scale.shape
    tokens, eta = jnp.zeros((batch, mini_batch, heads, width), dtype), jnp.zeros((batch, mini_batch, heads), eta_dtype)
    zero = jnp.zeros((batch,), jnp.int32)
    return TTTState(_start(params, batch, jnp.promote_types(dtype, jnp.float32)), (tokens, tokens, eta), zero, zero)


def _start(params, batch, wide):
    return jax.tree.map(lambda w: jnp.broadcast_to(w, (batch, *w.shape[1:])).astype(wide), params.layers)


def _ttt(q, tokens, params, mini_batch, rows, by):
    (k, v, eta), (state, segment_ids, lengths) = tokens, rows
    check_shapes(
        q, k=(k, q.shape), v=(v, q.shape), eta=(eta, q.shape[:3]), segment_ids=(segment_ids, q.shape[:2]),
        lengths=(lengths, q.shape[:1]),
    )  # fmt: skip
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    batch = q.shape[0]
    if state is not None and (
        state.chunk[0].shape[:2] != (batch, mini_batch)
        or (state.chunk[0].dtype, state.layers[0][0].dtype) != (dtype, wide)
    ):
        made = f"{state.chunk[0].dtype}{list(state.chunk[0].shape[:2])}"
        raise ValueError(f"state has an open mini-batch {made}; this call needs {dtype}{[batch, mini_batch]}.")
    initial, norm = _start(params, batch, wide), (params.scale.astype(wide), params.shift.astype(wide))
    rate = ref.rates(params, mini_batch, wide)
    q, tokens = q.astype(dtype), (k.astype(dtype), v.astype(dtype), eta)
    kernels = _kernels(q, initial, mini_batch, rows, *by)
    if state is None and segment_ids is None and lengths is None:
        out, state = chunked.on_grid(q, tokens, initial, norm, rate, kernels)
    else:
        out, state = chunked.in_documents(q, tokens, initial, norm, rate, state, segment_ids, lengths)
    return out.astype(v.dtype), state


def _kernels(q, layers, mini_batch, rows, implementation, interpret):
    """(kernels in place of the body of `chunk_scan` or None, those of other platforms)."""
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"implementation={implementation!r} is not offered; use one of {IMPLEMENTATIONS}.")
    steps, reason = q.shape[1] // mini_batch, None
    if implementation == "chunked":
        return None, ()
    module, platform, chip = KERNELS[implementation or "pallas_tpu"]  # A GPU's run where named: none compiled them yet.
    if interpret:
        return module.INTERPRETED, ()
    if any(x is not None for x in rows):
        reason = "rows with a state, documents or padding have no kernel"
    reason = reason or module.too_large(layers, steps if module is tpu else mini_batch, q.dtype)
    if implementation is None:
        return None, () if reason else ((platform, module.KERNELS),)
    if reason:
        raise NotImplementedError(f"implementation={implementation!r} does not take this: {reason}; use 'chunked'.")
    refusal = f"implementation={implementation!r} runs on {chip} only; use 'chunked' or None."
    return refusal, ((platform, module.KERNELS),)


def _check(q, params, mini_batch, *, depth):
    """Raises ValueError for the first parameter that does not fit q."""
    if mini_batch < 1:
        raise ValueError(f"mini_batch={mini_batch} is not positive; use 16.")
    check_shapes(q)
    batch, _, heads, width = q.shape
    check_shapes(
        q, params__scale=(params.scale, (heads, width)), params__shift=(params.shift, (heads, width)),
        params__position=(params.position, (mini_batch,)),
    )  # fmt: skip
    if len(params.layers) != depth:
        raise ValueError(f"params.layers has {len(params.layers)} linear maps; this inner model has {depth}.")
    hidden = width if depth == 1 else params.layers[0][1].shape[-1]
    sides = [(width, hidden), (hidden, width)][:depth]
    for i, ((w, b), (a, c)) in enumerate(zip(params.layers, sides, strict=True)):
        for name, array, shape in (("w", w, (heads, a, c)), ("b", b, (heads, c))):
            if array.shape[0] not in (1, batch) or array.shape[1:] != shape:
                need = f"({batch} or 1, {', '.join(map(str, shape))})"
                raise ValueError(f"params.layers[{i}] has {name} of shape {array.shape}; use {need}.")
