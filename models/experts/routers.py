"""Routers: which experts a token goes to and with which gates, as functions of its logits `[..., E]`.

Every function returns a `Routing` unless it says otherwise. The best expert stands first in `index`; of equal scores
the lowest index wins. `probs` is what the balance losses average.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.experts.routing import Routing, normalised, select, softmax_at, take, unless_masked, wide


def logits(x: Any, weight: Any, bias: Any = None) -> jax.Array:
    """z = x W (+ b) in float32 or wider, x `[..., D]`, W `[D, E]`, b `[E]`: `[..., E]`.

    The products are not rounded to the type of x: a router in bfloat16 would choose other experts than its float32
    form for the same x.
    """
    x, weight = wide(x), wide(weight)
    dtype = jnp.promote_types(x.dtype, weight.dtype)
    z = jnp.matmul(x.astype(dtype), weight.astype(dtype), precision=jax.lax.Precision.HIGHEST)
    return z if bias is None else z + wide(bias)


def softmax_before(logits: Any, k: int, *, renormalise: bool = False, scale: float = 1.0) -> Routing:
    """Softmax, then the choice: p = softmax(z), the k largest p, g = s p.

    `renormalise` divides the chosen p by their sum. Source: Switch (Fedus et al. 2021; K = 1), DeepSeek-V2, MegaBlocks
    (as stated); GShard (Lepikhin et al. 2020; K = 2, renormalised), Qwen3 (norm_topk_prob).
    """
    z = wide(logits)
    p = jax.nn.softmax(z, axis=-1)
    index = select(unless_masked(p, z), k)
    gate = take(p, index)
    return Routing(z, p, index, scale * (normalised(gate) if renormalise else gate))


def softmax_after(logits: Any, k: int, *, scale: float = 1.0) -> Routing:
    """The choice, then the softmax: the k largest z, g = s softmax over the chosen z.

    Source: Mixtral (Jiang et al. 2024), Megatron's default. Equal to `softmax_before` renormalised.
    """
    z = wide(logits)
    index = select(z, k)
    return Routing(z, jax.nn.softmax(z, axis=-1), index, scale * softmax_at(z, index))


def sigmoid_bias(logits: Any, bias: Any, k: int, *, scale: float = 1.0, renormalise: bool = True) -> Routing:
    """s = sigmoid(z); the k largest s + b; g = scale s / sum of the chosen s. b enters no gate and has no gradient.

    Args:
      logits: `[..., E]`.
      bias: b `[E]`, moved once a step by `balance.bias_update`; 0 for no bias.
      k: chosen experts.
      scale: 2.5 in DeepSeek-V3.
      renormalise: False leaves g = scale s (Megatron does so for k = 1).

    Returns:
      The routing; `probs` is s / sum of all s, as DeepSeek-V3's sequence-wise loss reads it.

    Source: Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3, arXiv:2412.19437, equations 12 to 16.
    """
    z = wide(logits)
    s = jax.nn.sigmoid(z)
    index = select(unless_masked(s + jax.lax.stop_gradient(wide(bias)), z), k)
    gate = take(s, index)
    return Routing(z, normalised(s), index, scale * (normalised(gate) if renormalise else gate))


GROUP_SCORES = ("max", "best_two", "sum")


def group_scores(scores: Any, groups: int, rule: str, best: int = 2) -> jax.Array:
    """A number for each of G groups of neighbouring experts, `[..., E] -> [..., G]`.

    `rule`: "max" (DeepSeek-V2), "best_two" (DeepSeek-V3: the sum of the two largest of s + b), or "sum": the sum of the
    `best` largest (Megatron: best = K / kept groups).
    """
    if rule not in GROUP_SCORES:
        raise ValueError(f"rule={rule!r} is unknown; use one of {', '.join(GROUP_SCORES)}.")
    scores = wide(scores)
    if scores.shape[-1] % groups:
        raise ValueError(f"groups={groups} do not divide {scores.shape[-1]} experts; use e.g. groups=1.")
    inside = scores.reshape(*scores.shape[:-1], groups, -1)
    count = {"max": 1, "best_two": 2, "sum": best}[rule]
    return jnp.sum(jax.lax.top_k(inside, min(count, inside.shape[-1]))[0], axis=-1)


def group_limited(
    scores: Any, k: int, groups: int, kept: int, *, rule: str = "best_two", fill: float = -jnp.inf
) -> jax.Array:
    """Index `[..., k]` of the k largest scores among the experts of the `kept` best of G groups.

    Args:
      scores: `[..., E]`: softmax probabilities (V2) or sigmoid(z) + b (V3).
      k: chosen experts.
      groups: G.
      kept: G'.
      rule: see `group_scores`; "sum" adds the k / kept best of a group, as Megatron's code does.
      fill: the score of experts in other groups. -inf in DeepSeek-V3's code and Megatron. DeepSeek-V2's code and the
        Transformers library's V3 fill with 0, and so take an expert of a group that was left out when its own score
        s + b is negative.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.2.2; DeepSeek-V3, arXiv:2412.19437, section 2.1.2.
    """
    scores = wide(scores)
    # A masked expert must not make its group one that cannot be chosen.
    least = jnp.finfo(scores.dtype).min / scores.shape[-1]
    best = select(group_scores(jnp.where(scores == -jnp.inf, least, scores), groups, rule, max(1, k // kept)), kept)
    allowed = jnp.any(jax.nn.one_hot(best, groups, dtype=bool), axis=-2)
    allowed = jnp.repeat(allowed, scores.shape[-1] // groups, axis=-1)
    return select(jnp.where(allowed | jnp.isnan(scores), scores, fill), k)


def group_softmax(logits: Any, k: int, groups: int, kept: int, *, scale: float = 1.0, rule: str = "max") -> Routing:
    """DeepSeek-V2: p = softmax(z), groups by their largest p, g = scale p, not renormalised (scale 16 in V2)."""
    z = wide(logits)
    p = jax.nn.softmax(z, axis=-1)
    index = group_limited(unless_masked(p, z), k, groups, kept, rule=rule)
    return Routing(z, p, index, scale * take(p, index))


def group_sigmoid(
    logits: Any, bias: Any, k: int, groups: int, kept: int, *, scale: float = 1.0, rule: str = "best_two"
) -> Routing:
    """DeepSeek-V3: groups and experts by s + b with s = sigmoid(z), g = scale s / sum of the chosen s."""
    z = wide(logits)
    s = jax.nn.sigmoid(z)
    index = group_limited(unless_masked(s + jax.lax.stop_gradient(wide(bias)), z), k, groups, kept, rule=rule)
    return Routing(z, normalised(s), index, scale * normalised(take(s, index)))


def moge(logits: Any, k: int, groups: int, *, scale: Any = 1.0) -> Routing:
    """Mixture of grouped experts: p = softmax(z) over all E, the k / M largest p in EVERY one of M groups, g = scale p.

    The load of a group is T k / M whatever the router says. Gates are not renormalised.

    Args:
      logits: `[..., E]`; group m holds the experts m E / M to (m + 1) E / M - 1.
      k: chosen experts in all, a multiple of M.
      groups: M, a divisor of E.
      scale: a number or `[E]`, learned per expert in Pangu Pro MoE.

    Returns:
      The routing, its index by groups in order, the best of each group first.

    Source: Tang et al. 2025, arXiv:2505.21411 (Pangu Pro MoE).
    """
    z = wide(logits)
    E = z.shape[-1]
    if k % groups or E % groups:
        raise ValueError(f"groups={groups} must divide k={k} and the {E} experts; use e.g. groups=1.")
    p = jax.nn.softmax(z, axis=-1)
    inside = select(unless_masked(p, z).reshape(*z.shape[:-1], groups, E // groups), k // groups)
    first = (jnp.arange(groups) * (E // groups))[:, None]
    index = jnp.where(inside >= 0, inside + first, -1).reshape(*z.shape[:-1], k).astype(jnp.int32)
    return Routing(z, p, index, take(p * wide(scale), index))


def expert_choice(logits: Any, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Each expert takes its `capacity` best tokens: the largest p_te of its column, p = softmax over the experts.

    A token may be taken by any number of experts, and whether it is depends on tokens after it: not for causal models.

    Args:
      logits: `[T, E]`.
      capacity: C = factor T / E tokens for each expert.

    Returns:
      `(tokens [E, C] int32, gate [E, C] = p)`.

    Source: Zhou et al. 2022, arXiv:2202.09368.
    """
    p = jax.nn.softmax(wide(logits), axis=-1)
    tokens = select(p.T, capacity)
    return tokens, take(p.T, tokens)


def expert_choice_gates(tokens: Any, gate: Any, count: int) -> jax.Array:
    """The choice of the experts by token: `tokens, gate [E, C] -> [T, E]` gates, 0 where a token was not taken."""
    chosen = jax.nn.one_hot(jnp.asarray(tokens), count, dtype=jnp.asarray(gate).dtype)
    return jnp.einsum("ect,ec->te", chosen, jnp.asarray(gate), precision=jax.lax.Precision.HIGHEST)


def relu(logits: Any, weight: Any = 1.0, *, eps: float = 1e-5) -> tuple[jax.Array, jax.Array]:
    """BlockFFN: every expert with z > 0, A = RMSNorm(ReLU(z)) w, the norm over the E experts of a token.

    Args:
      logits: `[..., E]`.
      weight: w, a number or `[E]`, learned, 1 at first.
      eps: added to the mean square.

    Returns:
      `(A [..., E], the same without w)`: gates, and what `sparsity.shares` makes a distribution of. A row without a
      positive logit gives 0.

    Source: Song et al. 2025, arXiv:2507.08771, equations 2 and 3.
    """
    positive = jax.nn.relu(wide(logits))
    plain = positive * jax.lax.rsqrt(jnp.mean(jnp.square(positive), axis=-1, keepdims=True) + eps)
    return plain * wide(weight), plain


def jittered(x: Any, key: jax.Array, eps: float = 1e-2) -> jax.Array:
    """The router's input times U(1 - eps, 1 + eps), drawn for each number (Switch, Fedus et al. 2021)."""
    x = wide(x)
    return x * jax.random.uniform(key, x.shape, x.dtype, 1 - eps, 1 + eps)


def tutel_noise(logits: Any, key: jax.Array, noise: float = 1.0) -> jax.Array:
    """z + noise N(0, 1) / E, as Tutel's code adds it to the logits `[..., E]`."""
    z = wide(logits)
    return z + noise * jax.random.normal(key, z.shape, z.dtype) / z.shape[-1]
