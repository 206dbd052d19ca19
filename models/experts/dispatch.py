"""Dispatch: how tokens get to the experts of their choice and back. Every form gives the same y where nothing is lost.

Letters: T tokens, K choices of each, E experts, C places of an expert. `index [T, K]` names an expert, or -1 for a
choice that is unused or dropped; `gate [T, K]` weighs what the expert gives. `bank` are the experts, in the form that
the dispatch needs: `models.experts.banks.ffn` and `grouped_ffn` are two of them.

    dense    every expert computes every token: the reference, E / K times the FLOPs
    einsum   one-hot matrices put tokens into C places of each expert: T E C numbers
    sorted   tokens in the order of their experts, one grouped matmul
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.experts import banks
from models.experts.routing import wide

Bank = Callable[..., jax.Array]


class Order(NamedTuple):
    """The T K choices in the order of their experts, unused ones last.

    order, back: `[T K]`: choice `order[m]` stands at place m, choice c at place `back[c]`; choice c is token c // K's.
    sizes: `[E]` choices of each expert.
    """

    order: jax.Array
    back: jax.Array
    sizes: jax.Array


def by_expert(index: Any, experts: int) -> Order:
    """Sorts the choices `index [T, K]` by expert; choices of one expert stay in the order of their tokens."""
    flat = jnp.asarray(index).reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < experts), flat, experts)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32), unique_indices=True)
    sizes = jnp.sum(flat[:, None] == jnp.arange(experts), axis=0, dtype=jnp.int32)
    return Order(order, back, sizes)


def permute(x: Any, order: Order) -> jax.Array:
    """Tokens `[T, D]`, each once for every choice, in the order of the experts: `[T K, D]`."""
    return _permute(jnp.asarray(x), order.order, order.back)


def unpermute(y: Any, order: Order, tokens: int) -> jax.Array:
    """What the experts gave `[T K, D]` back at the choices: `[T, K, D]`. `unpermute(permute(x))` sums over K to K x."""
    y = jnp.asarray(y)
    return _place(y, order.back, order.order).reshape(tokens, -1, y.shape[-1])


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, back: jax.Array) -> jax.Array:
    return x[order // (len(order) // len(x))]


def _permuted(x: jax.Array, order: jax.Array, back: jax.Array) -> tuple[jax.Array, tuple]:
    return _permute(x, order, back), (back, x)


def _permute_back(kept: tuple, g: jax.Array) -> tuple:
    """A sum over the choices of a token, by a gather: the scatter that jax would make adds row by row."""
    back, x = kept
    total = jnp.sum(wide(g[back]).reshape(len(x), -1, g.shape[-1]), axis=1)
    return total.astype(x.dtype), None, None


_permute.defvjp(_permuted, _permute_back)


@jax.custom_vjp
def _place(y: jax.Array, at: jax.Array, back: jax.Array) -> jax.Array:
    return y[at]


_place.defvjp(lambda y, at, back: (_place(y, at, back), back), lambda back, g: (g[back], None, None))


def combine(outputs: Any, gate: Any) -> jax.Array:
    """y_t = sum_k g_tk o_tk in float32 or wider: outputs `[T, K, D]`, gate `[T, K]`: `[T, D]`."""
    return jnp.einsum("tkd,tk->td", wide(outputs), wide(gate), precision=jax.lax.Precision.HIGHEST)


def dense(x: Any, index: Any, gate: Any, bank: Bank) -> jax.Array:
    """y_t = sum_k g_tk out[index_tk, t] with every expert on every token; `bank(x [T, D]) -> [E, T, D]`."""
    return banks.mixture(wide(bank(jnp.asarray(x))), index, wide(gate))


def einsum(x: Any, index: Any, gate: Any, places: Any, capacity: int, experts: int, bank: Bank) -> jax.Array:
    """GShard's form: one-hot matrices put tokens into `capacity` places of each expert and take them out again.

    Args:
      x: `[T, D]`.
      index: `[T, K]`.
      gate: `[T, K]`.
      places: `[T, K]`, the place of each choice in its expert's queue (`models.experts.capacity.ORDERS`); choices from
        `capacity` on are lost.
      capacity: C.
      experts: E.
      bank: `[E, C, D] -> [E, C, D]`.

    Returns:
      `[T, D]` in float32 or wider.
    """
    x, highest = jnp.asarray(x), jax.lax.Precision.HIGHEST
    expert, place = (
        jax.nn.one_hot(jnp.asarray(a), n, dtype=wide(x).dtype) for a, n in ((index, experts), (places, capacity))
    )
    there = jnp.einsum("tke,tkc->tec", expert, place).astype(x.dtype)
    back = jnp.einsum("tke,tkc,tk->tec", expert, place, wide(gate), precision=highest)
    given = jnp.einsum("tec,td->ecd", there, x, precision=highest)
    return jnp.einsum("tec,ecd->td", back, wide(bank(given)), precision=highest)


def by_sorting(x: Any, index: Any, gate: Any, experts: int, bank: Bank) -> jax.Array:
    """Choices sorted by expert, one grouped matmul, and back.

    Args:
      x: `[T, D]`.
      index: `[T, K]`.
      gate: `[T, K]`.
      experts: E.
      bank: `(rows [T K, D], sizes [E]) -> [T K, D]`: rows of expert 0 first; past the sizes it gives 0.

    Returns:
      `[T, D]` in float32 or wider.
    """
    x, index = jnp.asarray(x), jnp.asarray(index)
    order = by_expert(index, experts)
    outputs = bank(permute(x, order), order.sizes)
    return combine(unpermute(outputs, order, len(x)), jnp.where(index >= 0, gate, 0))
