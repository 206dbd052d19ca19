"""Which model writes the next token: R2R (Fu et al. 2025, arXiv:2505.21600), Nudging (Fei et al. 2024, 2410.09300)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from models.decoding.control.rollouts import entropy
from models.hypernetwork import layer_norm

Array = jax.Array


def to_large(critical: Array, threshold: Array | float) -> Array:
    """R2R: whether the large model writes the token, P(critical) >= threshold; 0: always, above 1: never. `[...]`."""
    return critical >= threshold


def likeliest(logits: Array, top: int) -> tuple[Array, Array]:
    """(the likeliest token `[...]`, log-probabilities of the `top` likeliest `[..., top]`) of logits `[..., V]`."""
    found, which = jax.lax.top_k(jax.nn.log_softmax(logits, axis=-1), top)
    return which[..., 0], found


def router_logit(
    features: Array, kernel: Array, bias: Array | float = 0.0, inner: tuple[Array, Array] | None = None
) -> Array:
    """s = kernel silu(W features + b) + bias with inner = (W `[I, F]`, b `[F]`); None: kernel features + bias.

    features `[..., I]`: hidden state, embedding, top logits (`router_features`) -> `[...]`.
    """
    if inner is not None:
        features = jax.nn.silu(features @ inner[0] + inner[1])
    return features @ kernel + bias


def router_block(x: Array, norm: tuple[Array, Array], wide: tuple[Array, Array], back: tuple[Array, Array]) -> Array:
    """x + gelu(layer_norm(x) W + b) V + c, a block of the released classifier at its dropout of none: `[..., F]`.

    norm: scale and shift `[F]`; wide: (W `[F, 4 F]`, b); back: (V `[4 F, F]`, c). gelu is the exact one.
    """
    return x + jax.nn.gelu(layer_norm(x, *norm, 1e-5) @ wide[0] + wide[1], approximate=False) @ back[0] + back[1]


def router(
    features: Array, kernel: Array, bias: Array | float = 0.0, inner: tuple[Array, Array] | None = None
) -> Array:
    """P(critical) = sigmoid(`router_logit`): `[...]`."""
    return jax.nn.sigmoid(router_logit(features, kernel, bias, inner))


def recall_weight(label: Array, factor: float = 1.0) -> Array:
    """Weight of critical tokens in `router_loss`: factor times tokens that are not critical over those that are.

    label `[...]`, 0 or 1; 1 where none is critical.
    """
    yes = jnp.sum(jnp.asarray(label) == 1)
    return jnp.where(yes > 0, factor * (jnp.size(label) - yes) / jnp.maximum(yes, 1), 1.0)


def threshold_for_recall(critical: Array, label: Array, recall: float) -> Array:
    """The largest threshold at which `to_large` takes at least that share of the critical tokens: `[N]` each.

    critical: P(critical); label: 0 or 1, at least one of them 1. 1: the least probability of a critical token.
    """
    label = jnp.asarray(label) == 1
    ordered = jnp.sort(jnp.where(label, critical, -jnp.inf), descending=True)
    return ordered[jnp.maximum(jnp.ceil(recall * jnp.sum(label)).astype(jnp.int32) - 1, 0)]


def router_features(hidden: Array, embedded: Array, logits: Array, top: int = 100) -> Array:
    """[hidden, embedding of the small model's token, its `top` largest logits]: `[..., 2 D + top]`."""
    return jnp.concatenate([hidden, embedded, jax.lax.top_k(logits, top)[0]], axis=-1)


def router_nats(critical_logit: Array, label: Array, positive_weight: float | Array = 1.0) -> Array:
    """-w y log s - (1 - y) log(1 - s), s = sigmoid(logit): w weighs recall. `[...]`, labels 0 or 1."""
    log_yes, log_no = jax.nn.log_sigmoid(critical_logit), jax.nn.log_sigmoid(-critical_logit)
    return -(positive_weight * label * log_yes + (1 - label) * log_no)


def router_loss(critical_logit: Array, label: Array, positive_weight: float | Array = 1.0) -> Array:
    """The mean of `router_nats`."""
    return jnp.mean(router_nats(critical_logit, label, positive_weight))


def entropy_to_large(logits: Array, threshold: float = 0.45) -> Array:
    """R2R's variant without a router: whether the entropy of the small model is at least the threshold. `[...]`."""
    return entropy(logits) >= threshold


def all_exceeded(values: Sequence[Array], thresholds: Sequence[float]) -> Array:
    """R2R's immediate switching: whether every given uncertainty is at least its threshold: `[...]` each."""
    return jnp.all(jnp.stack([value >= bar for value, bar in zip(values, thresholds, strict=True)]), axis=0)


def log_uncertainty(logits: Array, k: int = 10) -> tuple[Array, Array]:
    """(aleatoric, epistemic) uncertainty of the k largest logits x, S their sum: `[..., V]` -> `[...]`.

    -sum (x / S) (digamma(x + 1) - digamma(S + 1)), and k / (S + k) (Ma et al. 2025, LogTokU). R2R's variant takes the
    large model where the aleatoric one is at least 2.275.
    """
    x = jax.lax.top_k(logits, k)[0]
    S = jnp.sum(x, axis=-1, keepdims=True)
    digamma = jax.scipy.special.digamma
    aleatoric = -jnp.sum(x / S * (digamma(x + 1) - digamma(S + 1)), axis=-1)
    return aleatoric, k / (S[..., 0] + k)


def needs_nudging(log_p: Array, threshold: Array | float = 0.3) -> Array:
    """Nudging: whether the base model's largest probability is below the threshold; 0: never, above 1: always."""
    return jnp.exp(jnp.max(log_p, axis=-1)) < threshold


def nudging_words(words: Sequence[str], base_first: Sequence[str], base_top: Sequence[float], threshold: float) -> int:
    """How many of the small model's words are taken: the first, then all before one that the base model goes on from.

    Word i >= 1 ends the nudge where " " + word begins with the base model's own next token there, base_first[i] (they
    agree), or where the base model is sure, base_top[i] >= threshold. If none does, the last word is left out, which
    the round's limit of tokens may have cut, unless it is the only one.

    Args:
      words: the small model's text, split at blanks; empty words are passed over.
      base_first, base_top: the base model's first token, and its probability, behind the words before word i; entry 0
        is not read.
      threshold: 0.3 in the authors' script.
    """
    for i in range(1, len(words)):
        if words[i] and ((" " + words[i]).startswith(base_first[i]) or base_top[i] >= threshold):
            return i
    return max(1, len(words) - 1)


def base_tokens(log_p: Array, threshold: Array | float = 0.3) -> Array:
    """Nudging: how many tokens of a base model's text stand, all before the first that needs nudging: log_p
    `[..., T, V]` of the law that each token was chosen from -> `[...]`."""
    return jnp.sum(jnp.cumprod(~needs_nudging(log_p, threshold), axis=-1), axis=-1)


def repeated(rounds: Sequence[str], limit: int = 3) -> bool:
    """Whether the last nudges were the same `limit` + 1 times in a row, where the released code stops."""
    return len(rounds) > limit and len(set(rounds[-limit - 1 :])) == 1
