"""LaCT's fast-weight network: apply it, its closed-form gradient on a chunk, and one update. Plain jnp, any dtype.

The network of one head is f_W(x) = W1 [silu(W0 x) * (W2 x)], and a chunk's loss is -sum_i lr_i <f_W(k_i), v_i>.
Everything here is differentiable, so outer gradients pass through the inner gradient, the norms and Newton-Schulz.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.lact.chunk_scan import ByPlatform
from kernels.lengths import scaled_to
from kernels.newton_schulz import newton_schulz

Weights = tuple[jax.Array, jax.Array, jax.Array]
NORMALIZE = ("post", "pre", "none")
EPSILON = 1e-5


class Carry(NamedTuple):
    """The carry between two chunks.

    main: the weights that updates are added to, (w0 `[B, N, F, H]`, w1 `[B, N, H, F]`, w2 `[B, N, F, H]`): the fast
        weights themselves, except for normalize="pre", where they are the unnormalised sum.
    momentum: the running update, same shapes as `main`, or None without momentum.
    updates: `[B]`, how many chunks have been learned from since the document began. A float, so that every leaf has a
        gradient; only whether it is 0 matters.
    """

    main: Weights
    momentum: Weights | None
    updates: jax.Array


def product(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """einsum with operands rounded to `dtype` and float32 (float64 for float64) accumulation."""
    wide = jnp.promote_types(dtype, jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    if jnp.dtype(dtype).itemsize >= 4:
        return jnp.einsum(spec, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=wide)

    def native(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=wide)

    def widened(a, b):  # The CPU refuses some layouts of 16-bit operands; their products are exact in float32.
        return jnp.einsum(spec, a.astype(wide), b.astype(wide))

    return jax.lax.platform_dependent(a, b, cpu=widened, default=native)


def apply_fast_weights(x: jax.Array, weights: Weights) -> jax.Array:
    """f_W of every token: `[B, T, N, H]` with weights `[B|1, N, F, H]`, `[B|1, N, H, F]`, `[B|1, N, F, H]`.

    Returns `[B, T, N, H]` in the dtype of `x`; products accumulate in float32.
    """
    w0, w1, w2 = (jnp.broadcast_to(w, (x.shape[0], *w.shape[1:])) for w in weights)
    gate = product("bcnh,bnfh->bncf", x, w0, x.dtype)
    up = product("bcnh,bnfh->bncf", x, w2, x.dtype)
    return product("bncf,bnhf->bcnh", jax.nn.silu(gate) * up, w1, x.dtype).astype(x.dtype)


def fast_weight_gradient(k: jax.Array, v: jax.Array, lr: jax.Array, weights: Weights) -> Weights:
    """Minus the gradient of the chunk's loss for each matrix, learning rates inside: a sum over tokens.

    k, v `[B, C, N, H]`, lr `[B, C, N, 3]`, weights with a batch axis. Returns (D0, D1, D2) shaped as the weights, in
    float32 (float64 for float64). Because it is a sum over tokens, devices that share a chunk may add theirs up.
    """
    w0, w1, w2 = weights
    dtype = jnp.result_type(k, v)
    lr0, lr1, lr2 = jnp.moveaxis(lr, (3, 2), (0, 2))[..., None]  # each [B, N, C, 1]
    gate = product("bcnh,bnfh->bncf", k, w0, dtype)
    up = product("bcnh,bnfh->bncf", k, w2, dtype)
    d_hidden = product("bcnh,bnhf->bncf", v, w1, dtype)
    sigma = jax.nn.sigmoid(gate)
    act = gate * sigma
    d_gate = d_hidden * up * sigma * (1 + gate * (1 - sigma))
    d0 = product("bncf,bcnh->bnfh", lr0 * d_gate, k, dtype)
    d1 = product("bcnh,bncf->bnhf", v, lr1 * (act * up), dtype)
    d2 = product("bncf,bcnh->bnfh", lr2 * (d_hidden * act), k, dtype)
    return d0, d1, d2


class Network(NamedTuple):
    """How the network is computed: `apply_fast_weights` and `fast_weight_gradient`, or kernels that do the same."""

    apply: Callable
    gradient: Callable


PLAIN = Network(apply_fast_weights, fast_weight_gradient)


class Rule(NamedTuple):
    """The static part of an update: the (a, b, c) of each Newton-Schulz step, and see `lact` for the rest."""

    triples: tuple[tuple[float, float, float], ...] = ()
    normalize: str = "post"
    newton_schulz_implementation: str | None = None
    axis: str | None = None  # mesh axis whose devices hold equal shares of every chunk
    network: Network = PLAIN
    elsewhere: tuple[tuple[str, Network], ...] = ()  # what programs for these platforms take instead, whole chunks

    def bodies(self, make: Callable) -> ByPlatform:
        """The body make(rule) of `chunk_scan`, and the one of the rule of each platform that has its own."""
        others = tuple((name, make(self._replace(network=network))) for name, network in self.elsewhere)
        return ByPlatform(make(self), others)


def normalise(weights: Weights, norms: Weights) -> Weights:
    """Gives every row the length `norms`: n * W / (||row|| + 1e-5)."""
    return tuple(scaled_to(w, n, (-1,), EPSILON) for w, n in zip(weights, norms, strict=True))


def start(weights: Weights, batch: int, dtype: jnp.dtype, with_momentum: bool) -> Carry:
    """The carry at the start of a document, in the accumulation dtype, one copy per row of the batch."""
    main = tuple(jnp.broadcast_to(w, (batch, *w.shape[1:])).astype(dtype) for w in weights)
    momentum = tuple(map(jnp.zeros_like, main)) if with_momentum else None
    return Carry(main, momentum, jnp.zeros((batch,), dtype))


def fast_weights(carry: Carry, norms: Weights, rule: Rule) -> Weights:
    """The weights that queries are multiplied by, and at which gradients are taken."""
    if rule.normalize != "pre":
        return carry.main
    learned = carry.updates[:, None, None, None] > 0  # before the first update the initial weights are used as they are
    return tuple(jnp.where(learned, n, m) for n, m in zip(normalise(carry.main, norms), carry.main, strict=True))


def step(carry: Carry, gradient: Weights, gate: jax.Array | None, norms: Weights, rule: Rule, dtype) -> Carry:
    """Adds one chunk's gradient: momentum, then Newton-Schulz, then the addition and the row normalisation.

    gate: `[B, N]`, the chunk's mean momentum gate, or None. The momentum buffer keeps the update as it was before
    Newton-Schulz. A 16-bit `dtype` of the tokens also rounds the operands of Newton-Schulz.
    """
    update, momentum = gradient, None
    if gate is not None:
        scale = gate[:, :, None, None]
        update = tuple(d + scale * m for d, m in zip(gradient, carry.momentum, strict=True))
        momentum = update
    if rule.triples:
        wide = update[0].dtype
        low = jnp.dtype(dtype) if jnp.dtype(dtype).itemsize < 4 else wide
        d0, d1, d2 = update
        stacked = jnp.stack([d0, jnp.swapaxes(d1, -1, -2), d2]).astype(low)  # transposing commutes with Newton-Schulz
        chosen = {"implementation": rule.newton_schulz_implementation}
        d0, d1, d2 = newton_schulz(stacked, len(rule.triples), rule.triples, **chosen).astype(wide)
        update = (d0, jnp.swapaxes(d1, -1, -2), d2)
    main = tuple(w + d for w, d in zip(carry.main, update, strict=True))
    if rule.normalize == "post":
        main = normalise(main, norms)
    return Carry(main, momentum, carry.updates + 1)


def learn(
    carry: Carry, k: jax.Array, v: jax.Array, lr: jax.Array, gate: jax.Array | None, norms: Weights, rule: Rule
) -> Carry:
    """One whole update of `carry` from a chunk k, v `[B, C, N, H]`, lr `[B, C, N, 3]`, gate `[B, C, N]` or None."""
    wide = carry.main[0].dtype
    gradient = rule.network.gradient(k, v, lr.astype(wide), fast_weights(carry, norms, rule))
    mean = None if gate is None else jnp.mean(gate.astype(wide), axis=1)
    if rule.axis is not None:  # Before anything that is not linear: the sum over devices is the sum over tokens.
        gradient = jax.lax.psum(gradient, rule.axis)
        mean = None if gate is None else jax.lax.pmean(mean, rule.axis)
    return step(carry, gradient, mean, norms, rule, jnp.result_type(k, v))
