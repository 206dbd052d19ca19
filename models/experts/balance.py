"""Losses of the load: E sum_i f_i P_i in every scope and normalisation, z-loss, biases, and measures of imbalance.

f_i is the share of choices that fell on expert i and carries no gradient; P_i is the mean of the router's
probabilities. Divided by K (`normalise_k`: Megatron, MegaBlocks, Qwen) balance gives 1; not divided (HF's Mixtral,
flaxformer) it gives K.
"""

from typing import Any

import jax
import jax.numpy as jnp

from models.experts import routing
from models.experts.routing import wide


def counts(index: Any, experts: int, valid: Any = None) -> jax.Array:
    """Choices of each expert over all tokens: `index [..., K] -> [E]`; `valid [...]` leaves tokens out."""
    chosen = routing.mask(index, experts)
    if valid is not None:
        chosen = chosen * jnp.asarray(valid)[..., None]
    return jnp.sum(chosen.reshape(-1, experts), axis=0)


def mean_probs(probs: Any, valid: Any = None) -> jax.Array:
    """P_i = mean over the valid tokens of p_ti: `[..., E] -> [E]`."""
    p = wide(probs)
    p = p.reshape(-1, p.shape[-1])
    if valid is None:
        return jnp.mean(p, axis=0)
    v = jnp.asarray(valid).reshape(-1, 1).astype(p.dtype)
    return jnp.sum(p * v, axis=0) / jnp.maximum(jnp.sum(v), 1)


def product(f: Any, P: Any) -> jax.Array:
    """E sum_i f_i P_i; no gradient through f."""
    P = wide(P)
    return P.shape[-1] * jnp.sum(jax.lax.stop_gradient(wide(f)) * P, axis=-1)


def fractions(index: Any, experts: int, *, valid: Any = None, normalise_k: bool = True) -> jax.Array:
    """f_i = count_i / (K T), or count_i / T where `normalise_k` is False: `index [..., K] -> [E]`."""
    index = jnp.asarray(index)
    tokens = index.size // index.shape[-1] if valid is None else jnp.maximum(jnp.sum(jnp.asarray(valid)), 1)
    return counts(index, experts, valid) / (tokens * (index.shape[-1] if normalise_k else 1))


def batch(probs: Any, index: Any, *, valid: Any = None, normalise_k: bool = True) -> jax.Array:
    """E sum_i f_i P_i with f and P over all tokens that are handed in: the micro-batch's loss, or the whole batch's.

    Args:
      probs: `[..., E]`.
      index: `[..., K]`, -1 unused.
      valid: `[...]` tokens that count.
      normalise_k: f divided by K.

    Source: Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6.
    """
    f = fractions(index, jnp.shape(probs)[-1], valid=valid, normalise_k=normalise_k)
    return product(f, mean_probs(probs, valid))


def sequence(probs: Any, index: Any, *, valid: Any = None, normalise_k: bool = True) -> jax.Array:
    """The mean over sequences of each one's own loss: `probs [B, T, E]`, `index [B, T, K]`, `valid [B, T]`."""
    each = jax.vmap(lambda p, i, v: batch(p, i, valid=v, normalise_k=normalise_k))
    valid = jnp.ones(jnp.shape(index)[:-1], bool) if valid is None else jnp.asarray(valid)
    return jnp.mean(each(jnp.asarray(probs), jnp.asarray(index), valid))


def micro(probs: Any, index: Any, *, normalise_k: bool = True) -> jax.Array:
    """The mean over R ranks or micro-batches of each one's own loss: `probs [R, T, E]`, `index [R, T, K]`."""
    return sequence(probs, index, normalise_k=normalise_k)


def over_ranks(probs: Any, index: Any, *, normalise_k: bool = True) -> jax.Array:
    """The loss of each of R ranks with f of the WHOLE batch and P of its own: `[R]`; their mean is `batch` of all.

    Args:
      probs: `[R, T, E]`.
      index: `[R, T, K]`.
      normalise_k: f divided by K.

    Source: Qiu et al. 2025, arXiv:2501.11873 (Demons in the Detail), equations 4 to 6.
    """
    f = fractions(index, jnp.shape(probs)[-1], normalise_k=normalise_k)
    return jax.vmap(lambda p: product(f, mean_probs(p)))(jnp.asarray(probs))


def accumulate(buffer: Any, new: Any) -> tuple[jax.Array, jax.Array]:
    """One micro-step of the count buffer: c += counts, f = c / sum c (0 where none counted): `(f [E], c [E])`."""
    buffer = wide(buffer) + wide(new)
    total = jnp.sum(buffer)
    return buffer / jnp.where(total == 0, 1, total), buffer


def accumulated(probs: Any, index: Any) -> jax.Array:
    """The loss of each of S micro-steps in order, f over all steps so far (divided by K): `[S, T, ...] -> [S]`.

    Only the last equals what f of the whole batch gives.

    Source: Qiu et al. 2025, arXiv:2501.11873, algorithm 1.
    """
    experts = jnp.shape(probs)[-1]

    def step(buffer: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        p, i = inputs
        f, buffer = accumulate(buffer, counts(i, experts))
        return buffer, product(f, mean_probs(p))

    start = jnp.zeros(experts, wide(probs).dtype)
    return jax.lax.scan(step, start, (wide(probs), jnp.asarray(index)))[1]


def shuffled(probs: Any, index: Any, order: Any, parts: int, *, normalise_k: bool = True) -> jax.Array:
    """The micro-batch loss of tokens drawn from the whole batch: a control with the micro-batch's count of tokens.

    Args:
      probs: `[N, E]` of the whole batch.
      index: `[N, K]`.
      order: a permutation `[N]`; part i takes the i-th N / parts of it.
      parts: micro-batches.
      normalise_k: f divided by K.
    """
    cut = lambda x: jnp.asarray(x)[jnp.asarray(order)].reshape(parts, -1, jnp.shape(x)[-1])  # noqa: E731
    return micro(cut(probs), cut(index), normalise_k=normalise_k)


def megatron(probs: Any, counted: Any, tokens: Any, k: int, coefficient: float = 1.0) -> jax.Array:
    """sum_i (sum_t p_ti) count_i E c / (K T^2), as Megatron's `switch_load_balancing_loss_func` computes a rank's loss.

    Ranks add up to the loss of the batch (they are not averaged): `probs [T_local, E]`, `counted [E]` and `tokens` over
    the whole scope.
    """
    p, tokens = wide(probs), wide(tokens)
    E = p.shape[-1]
    total = jnp.sum(jnp.sum(p, axis=0) * jax.lax.stop_gradient(wide(counted)))
    return total * (E * coefficient / (k * tokens * tokens))


def gshard(probs: Any, index: Any) -> jax.Array:
    """E sum_i f_i P_i with f of the FIRST choice alone (GShard, Lepikhin et al. 2020; Tutel): 1 at balance."""
    return batch(probs, jnp.asarray(index)[..., :1])


def layers_mixed(logits: Any, k: int, *, valid: Any = None) -> jax.Array:
    """One loss of all layers together, f and P over layers and tokens, f not divided by K: HF's Mixtral.

    `logits [L, T, E]`, `valid [T]` (the attention mask).
    """
    p = jax.nn.softmax(wide(logits), axis=-1)
    valid = None if valid is None else jnp.broadcast_to(jnp.asarray(valid), p.shape[:-1])
    return batch(p, routing.select(p, k), valid=valid, normalise_k=False)


def heterogeneous(probs: Any, index: Any, eta: Any, *, valid: Any = None) -> jax.Array:
    """MoE++: sum_i eta_i f_i P_i, f = count / T, no factor E; eta 1 for FFN experts, tau for those without cost.

    Source: Jin et al. 2024, arXiv:2410.07348, equation 8. eta = 1: K / E times the loss with f divided by K.
    """
    f = fractions(index, jnp.shape(probs)[-1], valid=valid, normalise_k=False)
    return jnp.sum(wide(eta) * jax.lax.stop_gradient(f) * mean_probs(probs, valid))


def null_fractions(f: Any, true: int) -> jax.Array:
    """f with every null expert's share replaced by the mean of the null shares: `[E]`, the first `true` are true."""
    f = wide(f)
    null = f[true:]
    return f if not null.size else jnp.concatenate([f[:true], jnp.full_like(null, jnp.mean(null))])


def null_aware(probs: Any, index: Any, true: int, *, valid: Any = None, normalise_k: bool = True) -> jax.Array:
    """AdaMoE: (n + m) sum_i f~_i P_i, f~ of a null expert the mean of the null shares: nulls need not balance.

    Source: Zeng et al. 2024, arXiv:2406.13233; `normalise_k` (f~ sums to 1) as in the release's exp_1.
    """
    f = fractions(index, jnp.shape(probs)[-1], valid=valid, normalise_k=normalise_k)
    return product(null_fractions(f, true), mean_probs(probs, valid))


def adamoe_exp2(logits: Any, k: int, true: int) -> jax.Array:
    """The loss of the AdaMoE release's exp_2, all layers' tokens together, f not divided by K: `logits [T, n + m]`.

    It takes the nulls' rows of a `[k, n + m]` array along its FIRST axis, from n on. Its mean over nulls is never
    taken, and with k <= n nothing is replaced: the plain loss of n + m experts. With k > n the rows n.. would be
    assigned an array of m columns, which fails there; here it raises ValueError.
    """
    if k > true:
        raise ValueError(f"k={k} above the {true} true experts fails in the release; use e.g. k={true}.")
    p = jax.nn.softmax(wide(logits), axis=-1)
    return batch(p, routing.select(p, k), normalise_k=False)


def device(probs: Any, index: Any, groups: int, *, normalise_k: bool = True) -> jax.Array:
    """DeepSeek's balance of devices: sum_d f'_d P'_d, f' the mean of E f over the experts of group d, P' the sum of P.

    Source: DeepSeekMoE, arXiv:2401.06066, equations 15 to 17.
    """
    E = jnp.shape(probs)[-1]
    f = E * fractions(index, E, normalise_k=normalise_k)
    P = mean_probs(probs)
    return jnp.sum(jax.lax.stop_gradient(f.reshape(groups, -1).mean(-1)) * P.reshape(groups, -1).sum(-1))


def importance(probs: Any) -> jax.Array:
    """var(I) / (mean(I)^2 + 1e-10), I_i = sum_t p_ti, the variance over E - 1 (Tutel's importance loss)."""
    total = jnp.sum(wide(probs).reshape(-1, jnp.shape(probs)[-1]), axis=0)
    return jnp.var(total, ddof=1) / (jnp.mean(total) ** 2 + 1e-10)


def importance_and_load(scores: Any, chosen: Any, noise: float) -> jax.Array:
    """Half of `importance` plus half of the same of load_i = sum_t Phi((s_ti - threshold_t) E / noise): Tutel.

    Args:
      scores: `[T, E]` without noise.
      chosen: `[T, K]` noisy scores of the choice; the last is the threshold.
      noise: the deviation of the noise times E.
    """
    s = wide(scores)
    load = jnp.sum(jax.scipy.stats.norm.cdf((s - wide(chosen)[:, -1:]) * (s.shape[-1] / noise)), axis=0)
    return (importance(s) + jnp.var(load, ddof=1) / (jnp.mean(load) ** 2 + 1e-10)) / 2


def z_loss(logits: Any, valid: Any = None) -> jax.Array:
    """mean_t (log sum_e e^z_te)^2 over the valid tokens (ST-MoE, Zoph et al. 2022; the coefficient there is 1e-3)."""
    each = jnp.square(jax.nn.logsumexp(wide(logits), axis=-1))
    if valid is None:
        return jnp.mean(each)
    v = jnp.asarray(valid).astype(each.dtype)
    return jnp.sum(each * v) / jnp.maximum(jnp.sum(v), 1)


def logit_gradient(probs: Any, f: Any) -> jax.Array:
    """The gradient of E sum_i f_i P_i to softmax logits: (E / T) p_t (f - p_t . f): `probs [T, E]`, `f [E]`."""
    p, f = wide(probs), wide(f)
    T, E = p.shape
    return E / T * p * (f - jnp.sum(p * f, axis=-1, keepdims=True))


def bias_update(bias: Any, counted: Any, rate: float = 1e-3) -> jax.Array:
    """b_i + u sign(mean of the counts - count_i): once a step, counts `[..., E]` over the whole batch; sign(0) = 0.

    Source: Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """
    counted = wide(counted)
    return wide(bias) + rate * jnp.sign(jnp.mean(counted, axis=-1, keepdims=True) - counted)


def max_violation(counted: Any) -> jax.Array:
    """max_i count_i / mean of the counts - 1: `[..., E] -> [...]`; 0 where nothing was counted."""
    counted = wide(counted)
    mean = jnp.mean(counted, axis=-1)
    return jnp.where(mean > 0, jnp.max(counted, axis=-1) / jnp.where(mean > 0, mean, 1) - 1, 0)


def imbalance(counted: Any, groups: int, tokens: Any) -> jax.Array:
    """(largest - smallest load of a device) / tokens, experts in `groups` of neighbours: Pangu's imbalance score."""
    load = jnp.sum(wide(counted).reshape(groups, -1), axis=-1)
    return (jnp.max(load) - jnp.min(load)) / tokens


def entropy(probs: Any) -> jax.Array:
    """-sum_i p_i log p_i of each row in nats, `[..., E] -> [...]`; 0 log 0 = 0."""
    p = wide(probs)
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1)
