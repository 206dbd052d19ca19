"""Linear attention with optional decay, and the gated delta rule: memories `[B, N, H, P]` of constant size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.lact.schedule import boundaries
from kernels.linear_attention.chunked import chunked
from kernels.linear_attention.reference import recurrent

__all__ = ["LinearState", "gated_delta_rule", "init_state", "linear_attention"]

IMPLEMENTATIONS = (None, "reference", "chunked")


class LinearState(NamedTuple):
    """memory: `[B, N, H, P]`, float32 or float64. segment: `[B]` int32, segment id of the last token."""

    memory: jax.Array
    segment: jax.Array


def init_state(batch: int, heads: int, width: int, value_width: int, dtype: jnp.dtype = jnp.float32) -> LinearState:
    """The empty memory before the first token."""
    return LinearState(jnp.zeros((batch, heads, width, value_width), dtype), jnp.zeros((batch,), jnp.int32))


def linear_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    decay: jax.Array | None = None,
    chunk_size: int = 64,
    state: LinearState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearState]:
    """out_t = q_t S_t with S_t = e^decay_t S_{t-1} + k_t v_t^T: causal, the token itself included.

    Args:
        q, k: `[B, T, N, H]`. v: `[B, T, N, P]`. No scale and no feature map: apply yours before.
        decay: `[B, T, N]`, logarithm of what is kept of the memory (0 keeps all; finite, at most 0), or None.
        chunk_size: tokens per matmul; any gives the same numbers.
        state: what an earlier call returned. Splits anywhere and token by token equal the whole.
        segment_ids: `[B, T]` integers; wherever the id changes a document begins with an empty memory.
        implementation: None or "chunked", or "reference" (one token after another).

    Returns out `[B, T, N, P]` in the dtype of `v`, and the state after the last token. Products take operands of the
    dtype of the inputs and accumulate in float32 (float64 for float64).

    Raises ValueError for shapes that do not fit.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs"; decay as in Dao & Gu 2024 (Mamba-2, scalar per head).
    """
    return _run(q, k, v, None, decay, chunk_size, state, segment_ids, implementation)


def gated_delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    decay: jax.Array | None = None,
    *,
    chunk_size: int = 64,
    state: LinearState | None = None,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> tuple[jax.Array, LinearState]:
    """out_t = q_t S_t with S' = e^decay_t S_{t-1} and S_t = S' + beta_t k_t (v_t - k_t^T S')^T.

    beta: `[B, T, N]`, how much of the value at key k_t is replaced (0 to 1; keys of length 1 keep it stable).
    All else as in `linear_attention`; decay None is the plain delta rule.

    Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"; the chunk's triangular system is its WY form.
    """
    return _run(q, k, v, beta, decay, chunk_size, state, segment_ids, implementation)


def _run(q, k, v, beta, decay, chunk_size, state, segment_ids, implementation):
    _check(q, k, v, beta, decay, chunk_size, segment_ids, implementation)
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    last = None if state is None else state.segment
    state = init_state(q.shape[0], *q.shape[2:], v.shape[-1], wide) if state is None else state
    if state.memory.shape != (q.shape[0], *q.shape[2:], v.shape[-1]) or state.memory.dtype != wide:
        made = f"{state.memory.dtype}{list(state.memory.shape)}"
        raise ValueError(f"state has a memory {made}; this call needs {wide}{[q.shape[0], *q.shape[2:], v.shape[-1]]}.")
    begins, segment = jnp.zeros(q.shape[:2], bool), state.segment
    if segment_ids is not None:
        begins, segment = boundaries(segment_ids, last), segment_ids[:, -1].astype(jnp.int32)
    inputs = (*[x.astype(dtype) for x in (q, k, v)], beta, decay, state.memory, begins)
    out, memory = recurrent(*inputs) if implementation == "reference" else chunked(*inputs, chunk_size)
    return out.astype(v.dtype), LinearState(memory, segment)


def _check(q, k, v, beta, decay, chunk_size, segment_ids, implementation):
    """Raises ValueError for the first argument that does not fit."""
    if q.ndim != 4 or 0 in q.shape:
        raise ValueError(f"q has shape {q.shape}; use [B, T, N, H] with no empty axis.")
    wanted = {"k": (k, q.shape), "v": (v, (*q.shape[:3], v.shape[-1])), "beta": (beta, q.shape[:3])}
    wanted |= {"decay": (decay, q.shape[:3]), "segment_ids": (segment_ids, q.shape[:2])}
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; q of shape {q.shape} needs {shape}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not positive; use e.g. 64.")
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"implementation={implementation!r} is not offered; use one of {IMPLEMENTATIONS}.")
