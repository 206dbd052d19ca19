"""Experts as functions of arrays: feed-forward ones, stacked `[E, ...]`, and those that cost (nearly) nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.grouped_matmul import grouped_matmul
from models.experts import routing
from models.experts.routing import wide

Map = Any  # [E, in, out], or that and a bias [E, out].


def ffn(
    x: Any,
    up: Map,
    down: Map,
    activation: Callable = jax.nn.silu,
    gate: Map = None,
    *,
    join: Callable | None = None,
) -> jax.Array:
    """act(x W_up) W_down of every expert on every token, or (act(x W_gate) * x W_up) W_down.

    Args:
      x: `[T, D]`, or `[E, C, D]`: every expert its own tokens.
      up: `[E, D, F]`, or a pair of it and a bias `[E, F]`.
      down: `[E, F, D]`, or a pair of it and a bias `[E, D]`.
      activation: elementwise.
      gate: as `up`, or None for experts that are not gated (BlockFFN: gating destroys the router's sparsity).
      join: what the gate and the other half become, in place of act(gate) * up: `clamped_glu`.

    Returns:
      `[E, T, D]`, or `[E, C, D]`.
    """
    x = jnp.asarray(x)
    form = "td,edf->etf" if x.ndim == 2 else "ecd,edf->ecf"

    def product(form: str, x: jax.Array, map_: Map) -> jax.Array:
        w, bias = _parts(map_)
        y = jnp.einsum(form, x, w)
        return y if bias is None else y + bias[:, None]

    halves = [product(form, x, map_) for map_ in (gate, up) if map_ is not None]
    return product("etf,efd->etd", _joined(activation, join)(*halves), down)


def _parts(map_: Map) -> tuple[jax.Array, jax.Array | None]:
    """The matrices and the biases of a map."""
    w, bias = map_ if isinstance(map_, tuple) else (map_, None)
    return jnp.asarray(w), None if bias is None else jnp.asarray(bias)


def _joined(activation: Callable, join: Callable | None) -> Callable:
    """The hidden numbers of an expert from one product, or from the gate and the other half."""
    both = join or (lambda gate, up: activation(gate) * up)
    return lambda *halves: both(*halves) if len(halves) > 1 else activation(*halves)


def clamped_glu(gate: Any, up: Any, limit: float = 7.0, alpha: float = 1.702) -> jax.Array:
    """(clip(up, -limit, limit) + 1) g sigmoid(alpha g), g = min(gate, limit); arrays `[..., F]`.

    Source: gpt-oss (OpenAI 2025, arXiv:2508.10925).
    """
    gate, up = jnp.minimum(jnp.asarray(gate), limit), jnp.clip(jnp.asarray(up), -limit, limit)
    return (up + 1) * gate * jax.nn.sigmoid(alpha * gate)


def grouped_ffn(
    x: Any,
    sizes: Any,
    up: Map,
    down: Map,
    activation: Callable = jax.nn.silu,
    gate: Map = None,
    *,
    join: Callable | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """`ffn` of rows sorted by expert, `[M, D] -> [M, D]`: the first `sizes[0]` rows are expert 0's, and so on.

    Rows past the sizes give 0. The backward pass keeps what goes into the activation and computes the activation again.
    `implementation`: of `kernels.grouped_matmul`.
    """
    x, sizes = jnp.asarray(x), jnp.asarray(sizes)

    def multiply(x: jax.Array, map_: Map) -> jax.Array:
        w, bias = _parts(map_)
        y = grouped_matmul(x, w, sizes, implementation=implementation)
        if bias is None:
            return y
        # Of each row a 1 at its expert, so that a bias and its gradient are products and no scatter by row.
        hot = jax.nn.one_hot(_expert_of(sizes, len(x)), len(sizes), dtype=x.dtype)
        return y + jnp.matmul(hot, bias, precision=jax.lax.Precision.HIGHEST)

    halves = [multiply(x, map_) for map_ in (gate, up) if map_ is not None]
    return multiply(jax.checkpoint(_joined(activation, join))(*halves), down)


def _expert_of(sizes: jax.Array, rows: int) -> jax.Array:
    """The expert of each row, `[rows]`; E for rows past the sizes."""
    return jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(rows), side="right")


def zero(x: Any) -> jax.Array:
    """0, like x."""
    return jnp.zeros_like(jnp.asarray(x))


def copy(x: Any) -> jax.Array:
    """x."""
    return jnp.asarray(x)


def constant(x: Any, weight: Any, vector: Any) -> jax.Array:
    """a_1 x + a_2 v with [a_1, a_2] = softmax(x W_c): x `[..., D]`, W_c `[D, 2]`, v `[D]` (MoE++, equation 5)."""
    x = jnp.asarray(x)
    a = jax.nn.softmax(jnp.matmul(wide(x), wide(weight), precision=jax.lax.Precision.HIGHEST), axis=-1)
    return (a[..., :1] * x + a[..., 1:] * wide(vector)).astype(x.dtype)


def blockffn(x: Any, gates: Any, up: Any, down: Any, activation: Callable = jax.nn.silu) -> jax.Array:
    """y = sum_i A_i act(x W_up,i) W_down,i over all experts: x `[T, D]`, A `[T, E]` from `routers.relu`: `[T, D]`."""
    return jnp.einsum("etd,te->td", ffn(x, up, down, activation), jnp.asarray(gates))


def mixture(outputs: Any, index: Any, gate: Any) -> jax.Array:
    """y_t = sum_k g_tk out[index_tk, t]: outputs `[E, T, D]` of every expert, index and gate `[T, K]`: `[T, D]`."""
    outputs = jnp.asarray(outputs)
    return jnp.einsum("etd,te->td", outputs, routing.dense(index, gate, outputs.shape[0]).astype(outputs.dtype))


def moepp_output(
    x: Any,
    index: Any,
    gate: Any,
    experts: Callable[[jax.Array], jax.Array],
    constants: list[tuple[Any, Any]],
    *,
    times: float = 1.0,
) -> jax.Array:
    """MoE++ in the order of its release: FFN experts, constants, one copy, one zero. `x [T, D] -> [T, D]`.

    Args:
      x: the tokens.
      index: `[T, K]`.
      gate: `[T, K]`.
      experts: the FFN experts, `[T, D] -> [N_F, T, D]`.
      constants: `(W_c [D, 2], v [D])` of each constant expert.
      times: the input of every expert is multiplied by it; the release's default mode has K = 2, the paper 1.
    """
    x = times * jnp.asarray(x)
    free = [constant(x, weight, vector) for weight, vector in constants] + [copy(x), zero(x)]
    return mixture(jnp.concatenate([experts(x), jnp.stack(free)]), index, gate)


def duo(x: Any, index: Any, gate: Any, modules: list[Callable[[jax.Array], jax.Array]]) -> jax.Array:
    """Duo-LLM: a token's module (big, small, or skip: `zero`) times its gate. x `[T, D]`, index and gate `[T, 1]`."""
    return mixture(jnp.stack([module(jnp.asarray(x)) for module in modules]), index, gate)
