"""Routers beside experts that cost nothing or less: MoE++, AdaMoE and Duo-LLM."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.experts.routing import Routing, normalised, select, softmax_at, take, unless_masked, wide

# ==================== MoE++ (Jin et al. 2024, arXiv:2410.07348) ====================


def gating_residual(logits: Any, previous: Any, weight: Any) -> jax.Array:
    """G^j = z^j + G^(j-1) W_g: the logits with those of the layer before, a recursion on full logits (equation 7).

    Args:
      logits: z `[..., E]` of this layer alone.
      previous: G of the layer before `[..., E]`, its own residual included; 0 in the first layer.
      weight: W_g `[E, E]`, from the earlier layer's experts to this layer's.
    """
    previous, weight = wide(previous), wide(weight)
    return wide(logits) + jnp.matmul(previous, weight, precision=jax.lax.Precision.HIGHEST)


def two_layer_logits(x: Any, into: Any, out: Any) -> jax.Array:
    """tanh(x W_1) W_2, the router of the MoE++ release: x `[..., D]`, W_1 `[D, 8E]`, W_2 `[8E, E]`."""
    hidden = jnp.tanh(jnp.matmul(wide(x), wide(into), precision=jax.lax.Precision.HIGHEST))
    return jnp.matmul(hidden, wide(out), precision=jax.lax.Precision.HIGHEST)


def scaled_logits(logits: Any, std: float = 1.0) -> jax.Array:
    """z / (deviation of z over the experts / std), the deviation over E - 1: the release's `moe_use_logits_norm`."""
    z = wide(logits)
    return z / (jnp.std(z, axis=-1, ddof=1, keepdims=True) / std)


def moepp_released(logits: Any, k: int = 2) -> Routing:
    """The default gates of the MoE++ release: softmax, the k largest, the LAST (zero) expert's gate set to 0, the rest
    divided by their sum.

    A token that chose zero and another expert gives the other all the weight. Where the release divides 0 by 0 (k = 1
    and the zero expert) the gate here is 0. The release also multiplies the input of the experts by k
    (`banks.moepp_output`, `times`).
    """
    z = wide(logits)
    p = jax.nn.softmax(z, axis=-1)
    index = select(unless_masked(p, z), k)
    gate = jnp.where(index == z.shape[-1] - 1, 0, take(p, index))
    return Routing(z, p, index, normalised(gate))


# ==================== AdaMoE (Zeng et al. 2024, arXiv:2406.13233) ====================


def null_experts(logits: Any, k: int, true: int) -> Routing:
    """p = softmax over n true and m null experts, the k largest, gates renormalised over the chosen TRUE experts.

    The first `true` experts are true, the rest null: their index stays in the routing, with gate 0. A token with null
    experts alone has no gate at all. Null logits cancel in the gates, so the output gives their rows no gradient.
    """
    z = wide(logits)
    p = jax.nn.softmax(z, axis=-1)
    index = select(unless_masked(p, z), k)
    # The chosen true logits alone: p divides out, and so do its rounding and its underflow.
    return Routing(z, p, index, softmax_at(z, jnp.where(index < true, index, -1)))


def adamoe_released(logits: Any, k: int, true: int) -> jax.Array:
    """The weights `[..., k]` of the AdaMoE release: null experts keep their p (and multiply nothing there)."""
    routing = null_experts(logits, k, true)
    return jnp.where(routing.index < true, routing.gate, take(routing.probs, routing.index))


def expected_true(k: int, true: int, null: int) -> float:
    """True experts for a token where the load is balanced: k n / (n + m)."""
    return k * true / (true + null)


# ==================== Duo-LLM (Alizadeh et al. 2024, arXiv:2410.10846) ====================


def duo(logits: Any, temperature: float = 1.0, *, straight: bool = False) -> Routing:
    """One of big, small (and skip) for each token: p = softmax(z / temperature), the largest p, g = p.

    `straight`: g = 1 with the gradient of p (a straight-through gate: the module as it is).
    """
    p = jax.nn.softmax(wide(logits) / temperature, axis=-1)
    index = select(p, 1)
    gate = take(p, index)
    return Routing(wide(logits), p, index, 1 + (gate - jax.lax.stop_gradient(gate)) if straight else gate)


def duo_random(key: jax.Array, shape: Sequence[int], weights: Any = (0.5, 0.5)) -> jax.Array:
    """Training by chance: an index `[*shape, 1]` of module i with probability weights_i for each token and layer."""
    return jax.random.choice(key, len(weights), (*shape, 1), p=jnp.asarray(weights)).astype(jnp.int32)


def by_chance(routing: Routing, key: jax.Array, positions: Any, chance: Any) -> Routing:
    """`routing` `[B, T, ...]` with one of the E modules in its place, all alike, for a share `chance` of the tokens.

    What is drawn depends on the key and on the position alone (`positions [B|1, T]`), so that a token decoded by itself
    takes the module that it takes in a whole row. A module that was drawn has the gate 1.
    """
    positions, E = jnp.asarray(positions), routing.probs.shape[-1]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions.reshape(-1))
    drawn, use = jax.vmap(lambda k: (jax.random.randint(k, (), 0, E), jax.random.uniform(jax.random.fold_in(k, 1))))(
        keys
    )
    drawn, use = (jnp.broadcast_to(a.reshape(*positions.shape, 1), routing.index.shape) for a in (drawn, use < chance))
    index = jnp.where(use, drawn, routing.index).astype(routing.index.dtype)
    return routing._replace(index=index, gate=jnp.where(use, 1, routing.gate))


def budget_step(before: Any, now: Any, layers: int, target: float) -> jax.Array:
    """One layer's part of `budget_loss`, so that the parts of all L layers add up to it, `[...]` a token.

    (S / L - b)^2 - (S_before / L - b)^2 + b^2 / L, S the sum of P_big over the layers so far.
    """
    before, now = wide(before), wide(now)
    return jnp.square(now / layers - target) - jnp.square(before / layers - target) + target**2 / layers


def budget_loss(big: Any, target: float) -> jax.Array:
    """(mean over layers of P_big - target)^2, the mean over tokens: `big [..., L]` probabilities of the big module."""
    return jnp.mean(jnp.square(jnp.mean(wide(big), axis=-1) - target))


def oracle(
    loss: Callable[[tuple[int, ...]], float], layers: int, modules: int, costs: Sequence[float], budget: float
) -> tuple[float, tuple[int, ...]]:
    """The best path of one token by trying all `modules ** layers` of them: (its loss, the module of each layer).

    Args:
      loss: of a path, every other token's path fixed. No recursion over layers is valid: attention mixes the tokens.
      layers: L.
      modules: 2 (big, small) or 3 (and skip).
      costs: of each module, in any unit.
      budget: the most that the path may cost in that unit.

    Errors: ValueError where no path is cheap enough. Of equal losses the first path in lexicographic order wins.
    """
    best = (np.inf, ())
    for path in itertools.product(range(modules), repeat=layers):
        if sum(costs[m] for m in path) <= budget:
            found = float(loss(path))
            best = (found, path) if not best[1] or found < best[0] else best
    if not best[1]:
        raise ValueError(f"budget={budget} is below the cheapest path; use at least {layers * min(costs)}.")
    return best
