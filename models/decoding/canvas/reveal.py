"""Rules that diffusion samplers share: which masked positions to reveal, and how many. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.objectives.masked_diffusion import mask_logits

Array = jax.Array
CONFIDENCES = ("max_prob", "margin", "entropy", "random", "left_to_right", "candidate", "drawn")


def predictor(
    denoise: Callable[[Array, Array], Array], mask_id: int, guidance: float = 0.0, prompt: Array | None = None
) -> Callable[[Array, Array], Array]:
    """A function (z [B, T], t scalar or [B]) -> logits [B, T, C] with the mask ruled out and guidance applied.

    Classifier-free guidance w (LLaDA): (1 + w) cond - w uncond. In uncond the prompt (bool, [T] or [B, T]) is masked,
    too.
    """

    def call(z: Array, t: Array) -> Array:
        return mask_logits(denoise(z, jnp.broadcast_to(t, z.shape[:1])), mask_id)

    def predict(z: Array, t: Array) -> Array:
        with_prompt = call(z, t)
        if guidance == 0:
            return with_prompt
        without = call(jnp.where(prompt, mask_id, z), t)
        mixed = (1 + guidance) * with_prompt - guidance * without
        return jnp.where(jnp.isneginf(with_prompt) | jnp.isneginf(without), with_prompt, mixed)

    return predict


def confidence(
    kind: str, logits: Array, temperature: float = 1.0, *, candidates: Array | None = None, keys: Array | None = None
) -> Array:
    """Confidence of the model at each position: [B, T] from logits [B, T, C]; the largest is revealed first.

    With p = softmax(logits / temperature), or softmax(logits) at temperature 0, and p1 >= p2 its largest entries:

    max_prob: p1.
    margin: p1 - p2 (Dream's topk_margin).
    entropy: sum p log p (Dream's entropy).
    left_to_right: minus the position.
    random: uniform, from `keys` [B].
    candidate: softmax(logits), without the temperature, of the drawn token (LLaDA as released).
    drawn: p of the drawn token (Dream's maskgit_plus as released); at temperature 0 it is max_prob.

    The last two rank positions by `candidates` [B, T], the tokens drawn there, and so bias the law.
    """
    if kind == "random":
        return key_scheme.uniform(keys, logits.shape[1:-1], logits.dtype)
    if kind == "left_to_right":
        return jnp.broadcast_to(-jnp.arange(logits.shape[-2], dtype=logits.dtype), logits.shape[:-1])
    if kind == "candidate":
        return jnp.take_along_axis(jax.nn.softmax(logits, -1), candidates[..., None], -1)[..., 0]
    p = jax.nn.softmax(logits / (temperature or 1.0), -1)
    if kind == "drawn":
        return jnp.take_along_axis(p, candidates[..., None], -1)[..., 0]
    if kind == "max_prob":
        return p.max(-1)
    if kind == "margin":
        best = jax.lax.top_k(p, 2)[0]
        return best[..., 0] - best[..., 1]
    if kind == "entropy":
        return jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum(-1)
    raise ValueError(f"confidence {kind!r} is unknown; use one of {', '.join(CONFIDENCES)}")


def transfer_counts(masks: Array | int, steps: int) -> Array:
    """Tokens revealed in each of `steps` steps: [..., steps]; floor(n/steps), one more in the first n mod steps.

    Source: LLaDA.
    """
    masks, index = jnp.asarray(masks)[..., None], jnp.arange(steps)
    return masks // steps + (index < masks % steps)


def threshold_count(conf: Array, threshold: float) -> Array:
    """How many of the most confident to reveal: those at or above `threshold`, at least one. [..., T] -> [...].

    Positions that are not candidates carry -inf; a row with none gives 0 (Fast-dLLM).
    """
    return jnp.maximum((conf >= threshold).sum(-1), jnp.isfinite(conf).any(-1))


def factor_count(conf: Array, factor: float) -> Array:
    """The largest n with (n+1)(1 - c_(n)) <= factor, c sorted downwards, at least one (Fast-dLLM). [..., T] -> [...].

    Written c_(n) >= 1 - factor/(n+1), as released, so that equality does not hang on the rounding of 1 - c.
    """
    ranked = -jnp.sort(-conf, -1)
    n = jnp.arange(1, conf.shape[-1] + 1, dtype=conf.dtype)
    enough = jnp.cumprod(ranked >= 1 - factor / (n + 1), -1).sum(-1)
    return jnp.maximum(enough, jnp.isfinite(conf).any(-1))


def choose(conf: Array, allowed: Array, count: Array) -> Array:
    """The `count` [B] most confident allowed positions, ties to the left: bool [B, T]."""
    conf = jnp.where(allowed, conf, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-conf, -1, stable=True), -1)
    return allowed & (rank < jnp.asarray(count)[..., None])


def block_of(length: int, block: int | None, prompt_length: int = 0) -> Array:
    """Block number of each position, counted from the end of the prompt (which is block -1): [T]."""
    block = block or max(length - prompt_length, 1)
    return (jnp.arange(length) - prompt_length) // block
