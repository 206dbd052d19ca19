"""Experts as functions of arrays: feed-forward ones, stacked `[E, ...]`, and those that cost (nearly) nothing."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.grouped_matmul import grouped_matmul
from models.experts import routing
from models.experts.routing import wide


def ffn(x: Any, up: Any, down: Any, activation: Callable = jax.nn.silu, gate: Any = None) -> jax.Array:
    """act(x W_up) W_down of every expert on every token, or (act(x W_gate) * x W_up) W_down.

    Args:
      x: `[T, D]`, or `[E, C, D]`: every expert its own tokens.
      up: `[E, D, F]`.
      down: `[E, F, D]`.
      activation: elementwise.
      gate: `[E, D, F]`, or None for experts that are not gated (BlockFFN: gating destroys the router's sparsity).

    Returns:
      `[E, T, D]`, or `[E, C, D]`.
    """
    x = jnp.asarray(x)
    form = "td,edf->etf" if x.ndim == 2 else "ecd,edf->ecf"
    product = lambda w: jnp.einsum(form, x, jnp.asarray(w))  # noqa: E731
    hidden = activation(product(up)) if gate is None else activation(product(gate)) * product(up)
    return jnp.einsum("etf,efd->etd", hidden, jnp.asarray(down))


def grouped_ffn(
    x: Any,
    sizes: Any,
    up: Any,
    down: Any,
    activation: Callable = jax.nn.silu,
    gate: Any = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """`ffn` of rows sorted by expert, `[M, D] -> [M, D]`: the first `sizes[0]` rows are expert 0's, and so on.

    The backward pass keeps what goes into the activation and computes the activation again. `implementation`: of
    `kernels.grouped_matmul`.
    """
    multiply = functools.partial(grouped_matmul, sizes=jnp.asarray(sizes), implementation=implementation)
    x = jnp.asarray(x)
    if gate is None:
        return multiply(jax.checkpoint(activation)(multiply(x, jnp.asarray(up))), jnp.asarray(down))
    gated = jax.checkpoint(lambda gate, up: activation(gate) * up)
    return multiply(gated(multiply(x, jnp.asarray(gate)), multiply(x, jnp.asarray(up))), jnp.asarray(down))


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
