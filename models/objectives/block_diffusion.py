"""Block diffusion (BD3-LM): blocks from left to right, each a masked diffusion given the clean blocks before it.

Block 1 is an autoregressive model, block L is masked diffusion. Training sees [z ; x], the noised copy then the
clean one, 2n tokens in one pass under `training_mask`; both copies carry positions 0..n-1 and the loss is read on
the first. A last block may be shorter than the others. Losses in nats; bounds ("<=") except at block 1, where they
are exact ("=").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.objectives import masked_diffusion, schedules
from models.objectives.masked_diffusion import Corruption, Denoiser
from models.objectives.schedules import Schedule

Array = jax.Array


def may_see(query: Array, key: Array, length: int, block: int) -> Array:
    """Whether index `query` of [z ; x] (length 2n) may attend to index `key`; broadcasts, bool.

    A noisy token sees its own noisy block and the clean blocks before it. A clean token sees clean blocks up to its own
    (BD3-LM, figure 3).
    """
    noisy_q, noisy_k = query < length, key < length
    block_q, block_k = (query % length) // block, (key % length) // block
    own = noisy_q & noisy_k & (block_q == block_k)
    context = noisy_q & ~noisy_k & (block_k < block_q)
    clean = ~noisy_q & ~noisy_k & (block_k <= block_q)
    return own | context | clean


def training_mask(length: int, block: int) -> Array:
    """Attention mask of one training pass: bool [2n, 2n], queries in rows, noisy half first; n = `length`.

    When `block` divides n, n^2 + n * block of its 4 n^2 entries are true.
    """
    _check(length, block)
    index = jnp.arange(2 * length)
    return may_see(index[:, None], index[None], length, block)


def training_inputs(z: Array, x: Array) -> tuple[Array, Array]:
    """Tokens [z ; x] [B, 2n] and their positions [2n] from noised and clean tokens [B, n]."""
    index = jnp.arange(z.shape[-1])
    return jnp.concatenate([z, x], -1), jnp.concatenate([index, index])


def training_logits(network: Callable[[Array, Array, Array], Array], z: Array, x: Array, block: int) -> Array:
    """Logits of every block given the clean blocks before it, in one pass: [B, n, C].

    `network(tokens [B, 2n], positions [2n], mask [2n, 2n]) -> [B, 2n, C]` must obey the mask.
    """
    tokens, positions = training_inputs(z, x)
    return network(tokens, positions, training_mask(z.shape[-1], block))[:, : z.shape[-1]]


def blockwise_logits(denoise: Denoiser, z: Array, x: Array, t: Array, block: int, mask_id: int) -> Array:
    """`training_logits` from a plain `denoise(z, t)`, one call per block with the later blocks all masked: [B, n, C].

    t is [B, n], constant within a block; each call is given its block's column.
    """
    length, index = x.shape[-1], jnp.arange(x.shape[-1])
    parts = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        canvas = jnp.where(index < start, x, jnp.where(index < stop, z, mask_id))
        parts.append(denoise(canvas, t[:, start])[:, start:stop])
    return jnp.concatenate(parts, 1)


def corrupt(
    key: Array,
    x: Array,
    block: int,
    *,
    mask_id: int,
    schedule: Schedule | str = "linear",
    how: str = "bernoulli",
    times: str = "stratified",
    limits: tuple[float, float] = (0.0, 1.0),
    weighting: str = "elbo",
    frozen: Array | None = None,
) -> Corruption:
    """Masks each block of a batch with a rate of its own: z, t and weight, all [B, n].

    Args:
      key: of the whole batch.
      x: [B, n].
      block: block size.
      mask_id: the mask.
      schedule: a schedule or its name.
      how: "bernoulli", times drawn over batch x blocks together; "fixed_count", k ~ U{1..n_b} of the n_b free tokens of
        a block, weight n_b/k.
      times: see `schedules.sample_times`.
      limits: range of t, as BD3-LM's clipped rates (U[.45, .95] at block 4 and U[.3, .8] at block 16 on LM1B have the
        least gradient variance). The weight stays -alpha'/(1-alpha), and the mean over the range is returned. limits
        (1, 1) masks everything: at block 1 that is AR training, without variance.
      weighting: "elbo", or "ones" for weight 1 at every masked token.
      frozen: [B, n] bool, tokens that are neither masked nor scored.
    """
    schedule, x = schedules.resolve(schedule), jnp.asarray(x)
    batch, length = x.shape
    _check(length, block)
    blocks, owner = math.ceil(length / block), jnp.arange(length) // block
    free = jnp.ones(x.shape, bool) if frozen is None else ~jnp.asarray(frozen)
    time_key, mask_key = jax.random.split(key)
    noise = jax.random.uniform(mask_key, x.shape)
    if how == "fixed_count":
        member = free[:, :, None] & (owner[:, None] == jnp.arange(blocks))  # [B, n, blocks]
        count = member.sum(1)
        k = 1 + jnp.floor(jax.random.uniform(time_key, (batch, blocks)) * count).astype(int)
        k = jnp.minimum(k, count)
        # Sorting by block first, free before frozen, then noise: the rank inside a block follows by subtraction.
        score = owner + 0.5 * jnp.where(free, noise, 1.5)
        rank = jnp.argsort(jnp.argsort(score, -1), -1) - owner * block
        masked = free & (rank < k[:, owner])
        scale = jnp.where(count > 0, count / jnp.maximum(k, 1), 0.0)[:, owner]
        t = schedule.time(jnp.where(count > 0, k / jnp.maximum(count, 1), 0.0))[:, owner]
    elif how == "bernoulli":
        t = schedules.sample_times(time_key, batch * blocks, times, *limits).reshape(batch, blocks)[:, owner]
        masked, scale = free & (noise < schedule.mask(t)), schedule.weight(t)
    else:
        raise ValueError(f"how={how!r} is unknown; use bernoulli or fixed_count")
    if weighting not in ("elbo", "ones"):
        raise ValueError(f"weighting={weighting!r} is unknown; use elbo or ones")
    scale = scale if weighting == "elbo" else jnp.ones_like(scale)
    return Corruption(jnp.where(masked, mask_id, x), t, jnp.where(masked, scale, 0.0))


def nelbo_exact(
    denoise: Denoiser, x: Array, block: int, vocab_size: int | None = None, mask_id: int | None = None
) -> Array:
    """NELBO by summing over every masked set of every block, nats per sequence: [B] for x [B, L], a scalar for [L].

    A block's logits come from `denoise(z, t)` with earlier blocks clean and later blocks all masked; `mask_id`
    defaults to `vocab_size`. Block 1 gives the autoregressive negative log likelihood itself, block L
    `masked_diffusion.nelbo_exact`.
    """
    mask_id, rows = masked_diffusion.resolve_mask_id(vocab_size, mask_id), jnp.atleast_2d(jnp.asarray(x))
    length, total = rows.shape[1], 0.0
    _check(length, block)
    for start in range(0, length, block):
        region = range(start, min(start + block, length))
        weights = masked_diffusion.set_weights(len(region))
        total = total + masked_diffusion.sum_over_sets(denoise, rows, mask_id, weights, region)
    return total[0] if jnp.ndim(x) == 1 else total


def nelbo(
    denoise: Denoiser,
    x: Array,
    block: int,
    key: Array,
    samples: int,
    vocab_size: int | None = None,
    mask_id: int | None = None,
    **options,
) -> tuple[Array, Array]:
    """Estimated NELBO and its standard error, nats per sequence: [B], [B] (scalars for x [L]).

    Each draw is an independent `corrupt(..., how="fixed_count")`; at block 1 it has no variance.
    """
    mask_id = masked_diffusion.resolve_mask_id(vocab_size, mask_id)
    if samples < 2:
        raise ValueError(f"samples={samples} gives no standard error; use at least 2, for example 128")
    rows = jnp.atleast_2d(jnp.asarray(x))
    tiled = jnp.tile(rows, (samples, 1))
    settings = {"how": "fixed_count", "times": "iid", **options}
    noised = corrupt(key, tiled, block, mask_id=mask_id, **settings)
    logits = blockwise_logits(denoise, noised.z, tiled, noised.t, block, mask_id)
    draws = masked_diffusion.corrupted_loss(logits, tiled, noised, mask_id).sum(-1).reshape(samples, -1)
    mean, error = draws.mean(0), draws.std(0, ddof=1) / math.sqrt(samples)
    return (mean[0], error[0]) if jnp.ndim(x) == 1 else (mean, error)


def _check(length: int, block: int) -> None:
    if not 1 <= block <= length:
        raise ValueError(f"block={block} must lie between 1 and the length {length}, for example {min(4, length)}")
