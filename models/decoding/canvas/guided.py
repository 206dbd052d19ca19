"""Guided diffusion: the diffusion model drafts all masked tokens, a small autoregressive guide says how many to keep.

Only the diffusion model's drafts are written, never the guide's tokens. Decoding goes from left to right. The result
is not lossless with respect to either model's joint law (FlashDLM).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.canvas.canvas import begin, fill
from models.objectives.masked_diffusion import mask_logits

Array = jax.Array
RULES = ("match", "top_k", "threshold", "ratio", "sample", "always", "never")


def decode(
    denoise: Callable[[Array, Array], Array],
    guide: Callable[[Array], Array],
    key: Array | None = None,
    *,
    batch: int,
    length: int,
    vocab_size: int,
    mask_id: int | None = None,
    rule: str = "match",
    top_k: int = 5,
    threshold: float = 0.3,
    ratio: float = 0.3,
    init: Array | None = None,
    requests: Array | None = None,
) -> tuple[Array, Array]:
    """Fills the masked positions; safe under jit; deterministic but for rule "sample", which needs `key`.

    Each round: one call of `denoise(z [B, T], t [B]) -> [B, T, C]`, argmax at all masked positions; one call of
    `guide(tokens [B, T]) -> [B, T, V]`, whose row l is the guide's prediction of token l from tokens < l; then the
    longest prefix of the drafts that obeys the rule is committed, and at least the first draft.

    Args:
      rule: match (the guide's argmax is the draft); top_k (draft among its `top_k`); threshold (p > `threshold`);
        ratio (among its top_k and p >= `ratio` times its largest); sample (with chance p); always; never.
      init: [T] or [B, T] canvas with `mask_id` where tokens are wanted; all masked if None.
      requests: as in `models.decoding.canvas.diffusion.sample`.

    Returns:
      tokens [B, T]; calls [B] of the diffusion model, never more than the masked tokens. The guide is called as often.

    Raises:
      ValueError: unknown rule, or "sample" without a key.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown; use one of {', '.join(RULES)}")
    if rule == "sample" and key is None:
        raise ValueError("key=None cannot serve rule='sample'; give jax.random.key(0), for example")
    canvas = begin(jax.random.key(0) if key is None else key, (batch, length), vocab_size, mask_id, init, requests)

    def step(i, z, own):
        masked = z == canvas.mask_id
        drafts = jnp.argmax(mask_logits(denoise(z, masked.mean(-1)), canvas.mask_id), -1).astype(z.dtype)
        filled = jnp.where(masked, drafts, z)
        good = accepts(rule, guide(filled), filled, canvas.keys, i, top_k=top_k, threshold=threshold, ratio=ratio)
        return jnp.where(kept(good, masked), drafts, z), masked.any(-1), own

    return fill(canvas, step, ())


def kept(good: Array, masked: Array) -> Array:
    """Which drafts stay, bool [B, T]: those before the first refused one, and the first draft even if it is refused.

    Args:
      good: bool [B, T] from `accepts`.
      masked: bool [B, T], the positions that have a draft.
    """
    first = masked & (jnp.cumsum(masked, -1) == 1)
    return masked & (jnp.cumprod(good | ~masked, -1).astype(bool) | first)


def accepts(
    rule: str,
    logits: Array,
    drafts: Array,
    keys: Array,
    when: Array | int,
    *,
    top_k: int,
    threshold: float,
    ratio: float,
) -> Array:
    """Whether the guide accepts each draft, by `rule`: bool [B, T] from its logits [B, T, V] and drafts [B, T]."""
    if rule in ("always", "never"):
        return jnp.full(drafts.shape, rule == "always")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if rule == "match":
        return jnp.argmax(logits, -1) == drafts
    at_draft = jnp.take_along_axis(logits, drafts[..., None], -1)[..., 0]
    p = jnp.exp(at_draft - jax.nn.logsumexp(logits, -1))
    if rule == "threshold":
        return p > threshold
    if rule == "sample":
        return key_scheme.uniform(key_scheme.fold(keys, when, key_scheme.ACCEPT), drafts.shape[1:], p.dtype) < p
    among = (logits > at_draft[..., None]).sum(-1) < top_k
    return among if rule == "top_k" else among & (jnp.exp(at_draft - logits.max(-1)) >= ratio)
