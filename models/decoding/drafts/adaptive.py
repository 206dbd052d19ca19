"""How long to draft, and with how much of the draft: thresholds that depend on what was seen (LLMCad, S2D,
Dovetail)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def verify_now(confidences: Array, threshold: Array | float) -> Array:
    """LLMCad: whether the product of the drafts' confidences since the last verification is below the threshold.

    confidences `[..., n]` -> `[...]` (Xu et al. 2023, arXiv:2309.04255).
    """
    return jnp.prod(jnp.asarray(confidences), axis=-1) < threshold


def next_threshold(threshold: Array | float, all_accepted: Array) -> Array:
    """LLMCad: half of the threshold where every draft was accepted, twice it where one was not."""
    return jnp.where(all_accepted, 0.5, 2.0) * threshold


def exit_layer(confidence: Array, thresholds: Array) -> Array:
    """S2D: the first sub-model whose confidence exceeds its threshold, else the last: `[..., M]`, `[M]` -> `[...]`.

    (Kavehzadeh et al. 2024, arXiv:2407.01955.) The law to verify with is the one of the sub-model that was taken.
    """
    sure = jnp.asarray(confidence) > thresholds
    return jnp.where(jnp.any(sure, axis=-1), jnp.argmax(sure, axis=-1), sure.shape[-1] - 1)


def sorted_loss(losses: Sequence[Array] | Array) -> Array:
    """S2D's sorted fine-tuning: the mean of the sub-models' losses, all in one step: `[M, ...]` -> `[...]`."""
    return jnp.mean(jnp.asarray(losses), axis=0)


def gated_fusion(hidden: Array, embedded: Array, kernel: Array, bias: Array | float = 0.0) -> Array:
    """Dovetail: g h + (1 - g) e with g = sigmoid([h, e] W + b): hidden, embedded `[..., D]`, kernel `[2 D, D]`.

    (Zhang et al. 2024, arXiv:2412.18934.)
    """
    gate = jax.nn.sigmoid(jnp.concatenate([hidden, embedded], axis=-1) @ kernel + bias)
    return gate * hidden + (1 - gate) * embedded
