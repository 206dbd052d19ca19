"""Linear attention with optional decay, and the gated delta rule: memories `[B, N, H, P]` of constant size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels.checks import check_shapes
from kernels.lact.schedule import boundaries
from kernels.linear_attention.chunked import chunked
from kernels.linear_attention.dispatch import KERNELS, unsupported
from kernels.linear_attention.reference import recurrent

__all__ = ["LinearState", "gated_delta_rule", "init_state", "linear_attention", "unsupported"]

IMPLEMENTATIONS = (None, "reference", "chunked", *KERNELS)


class LinearState(NamedTuple):
    """The state between two calls.

    memory: `[B, N, H, P]`, float32 or float64.
    segment: `[B]` int32, segment id of the last token.
    """

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
    axis: str | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, LinearState]:
    """out_t = q_t S_t with S_t = e^decay_t S_{t-1} + k_t v_t^T: causal, the token itself included.

    Args:
        q, k: `[B, T, N, H]`, with scale and feature map already applied.
        v: `[B, T, N, P]`.
        decay: `[B, T, N]`, logarithm of the share of the memory that is kept (finite, at most 0; 0 keeps all), or None.
        chunk_size: tokens per matmul; any gives the same numbers.
        state: what an earlier call returned. Splits anywhere and token by token equal the whole.
        segment_ids: `[B, T]` integers; wherever the id changes a document begins with an empty memory.
        axis: inside `jax.shard_map`, the mesh axis whose devices share every row: rank r holds its r-th piece, and goes
            on from the memory that the pieces before it leave (one more pass over the keys; no `state`).
        implementation: None takes a Pallas kernel for the whole chunks where the program is lowered for a TPU and
            `unsupported` has nothing against it, else "chunked", which is jnp; "pallas_tpu" or "pallas_gpu" is that
            kernel or an error; "reference" is one token after another.
        interpret: run a named kernel in Pallas' interpreter (tests).

    Returns out `[B, T, N, P]` in the dtype of `v`, and the state after the last token. Products take operands of the
    dtype of the inputs and accumulate in float32 (float64 for float64).

    Raises ValueError for shapes that do not fit, NotImplementedError for a named kernel that does not take them.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs"; decay as in Dao & Gu 2024 (Mamba-2, scalar per head).
    """
    form = _form(Tokens(q, k, v, None, decay), chunk_size, implementation, interpret)
    return _run(Tokens(q, k, v, None, decay), form, state, segment_ids, axis)


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
    axis: str | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, LinearState]:
    """out_t = q_t S_t with S' = e^decay_t S_{t-1} and S_t = S' + beta_t k_t (v_t - k_t^T S')^T.

    beta: `[B, T, N]`, the share of the value at key k_t that is replaced (0 to 1; keys of length 1 keep it stable).
    All other arguments are those of `linear_attention`; decay None is the plain delta rule.

    Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks"; the chunk's triangular system is its WY form.
    """
    form = _form(Tokens(q, k, v, beta, decay), chunk_size, implementation, interpret)
    return _run(Tokens(q, k, v, beta, decay), form, state, segment_ids, axis)


class Tokens(NamedTuple):
    """What each token brings: q, k `[B, T, N, H]`, v `[B, T, N, P]`, beta and decay `[B, T, N]` or None."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    beta: jax.Array | None
    decay: jax.Array | None


def _form(tokens: Tokens, chunk_size: int, implementation: str | None, interpret: bool) -> Callable:
    """The function `(tokens, memory, begins) -> (out, last memory)`."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not positive; use e.g. 64.")
    if implementation not in IMPLEMENTATIONS:
        raise NotImplementedError(f"implementation={implementation!r} is not offered; use one of {IMPLEMENTATIONS}.")
    if implementation == "reference":
        return lambda tokens, memory, begins: recurrent(*tokens, memory, begins)
    if implementation in KERNELS and tokens.q.ndim == 4 and not interpret:
        sizes = tokens.q.shape[1], chunk_size, tokens.q.shape[-1], tokens.v.shape[-1]
        if reason := unsupported(implementation, jnp.result_type(*tokens[:3]), *sizes):
            raise NotImplementedError(f"implementation={implementation!r} does not take this: {reason}; use 'chunked'.")
    return functools.partial(chunked, chunk_size=chunk_size, implementation=implementation, interpret=interpret)


def _run(tokens: Tokens, form: Callable, state: LinearState | None, segment_ids: Any, axis: str | None):
    q, k, v, beta, decay = tokens
    rates = q.shape[:3]
    check_shapes(
        q, k=(k, q.shape), v=(v, (*rates, v.shape[-1])), beta=(beta, rates), decay=(decay, rates),
        segment_ids=(segment_ids, rates[:2]),
    )  # fmt: skip
    dtype = jnp.result_type(q, k, v)
    wide = jnp.promote_types(dtype, jnp.float32)
    if axis is not None and state is not None:
        raise NotImplementedError(f"axis={axis!r} with a state is not offered; decode with whole rows.")
    last = None if state is None else state.segment
    state = init_state(q.shape[0], *q.shape[2:], v.shape[-1], wide) if state is None else state
    if state.memory.shape != (q.shape[0], *q.shape[2:], v.shape[-1]) or state.memory.dtype != wide:
        made = f"{state.memory.dtype}{list(state.memory.shape)}"
        raise ValueError(f"state has a memory {made}; this call needs {wide}{[q.shape[0], *q.shape[2:], v.shape[-1]]}.")
    begins, segment = jnp.zeros(q.shape[:2], bool), state.segment
    if segment_ids is not None:
        last = last if axis is None else _before(segment_ids, axis)
        begins, segment = boundaries(segment_ids, last), segment_ids[:, -1].astype(jnp.int32)
    tokens = tokens._replace(q=q.astype(dtype), k=k.astype(dtype), v=v.astype(dtype))
    memory = state.memory
    if axis is not None:
        after = lambda v, memory: form(tokens._replace(v=v), memory, begins)[1]  # noqa: E731
        memory = _entering(after, tokens.v, memory, axis)
    out, memory = form(tokens, memory, begins)
    return out.astype(v.dtype), LinearState(memory, segment)


def _before(segment_ids: jax.Array, axis: str) -> jax.Array:
    """`[B]` segment id of the token before this device's first token; on rank 0 the id of that first token itself."""
    size = jax.lax.axis_size(axis)
    sent = jax.lax.ppermute(segment_ids[:, -1], axis, [(i, i + 1) for i in range(size - 1)])
    return jnp.where(jax.lax.axis_index(axis) == 0, segment_ids[:, 0], sent)


def _entering(after: Callable, v: jax.Array, memory: jax.Array, axis: str) -> jax.Array:
    """The memory `[B, N, H, P]` after the tokens of all lower ranks; after(v, memory): the memory after this rank's.

    A piece maps a memory S to A S + B. B is its result on an empty memory, A its result on the identity without values;
    one pass gives both.
    """
    width = memory.shape[2]
    eye = jnp.broadcast_to(jnp.eye(width, dtype=memory.dtype), (*memory.shape[:3], width))
    none = jnp.zeros((*v.shape[:3], width), v.dtype)
    both = after(jnp.concatenate([v, none], axis=-1), jnp.concatenate([jnp.zeros_like(memory), eye], axis=-1))
    rank, pieces = jax.lax.axis_index(axis), jax.lax.all_gather(both, axis)
    for i in range(pieces.shape[0] - 1):
        added, kept = pieces[i, ..., :-width], pieces[i, ..., -width:]
        grown = jnp.einsum("bnhi,bnip->bnhp", kept, memory, precision=jax.lax.Precision.HIGHEST) + added
        memory = jnp.where(i < rank, grown, memory)
    return memory
