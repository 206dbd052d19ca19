"""Any-subset autoregression: one network for every conditional p(targets | prompt), trained on their joint likelihood.

`order` [T] or [B, T] lists positions by rank. A prompt holds the first m ranks. Two streams share the weights
(XLNet): the content stream at rank i sees ranks <= i, the query stream, which predicts, sees ranks < i. Losses in
nats; exact ("=").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.facts import Facts
from models.objectives.loss import Loss, per_scored
from models.objectives.masked_diffusion import mask_logits
from models.objectives.next_token import target_nll, weighted_nll

Array = jax.Array


class Split(NamedTuple):
    """A batch split in prompt and targets: order [B, T], prompt length [B], weight [B, T] (1 at targets)."""

    order: Array
    prompt_length: Array
    weight: Array


def lattice_order(targets: Array) -> Array:
    """Prompt positions ascending, then targets ascending: [..., T] from bool [..., T].

    2^T orders instead of T!, which is all that infilling needs (AS-ARM section 4).
    """
    return jnp.argsort(jnp.asarray(targets), -1, stable=True)


def ranks(order: Array) -> Array:
    """Rank of each position, the inverse of `order`: [..., T]."""
    return jnp.argsort(order, -1)


def stream_masks(order: Array, prompt_length: Array | int) -> tuple[Array, Array]:
    """Attention masks (content, query) of the two streams, bool [..., T, T], positions in rows and columns.

    A content token sees ranks up to its own; a content token of the prompt sees all of the prompt. A query sees lower
    ranks only, so rank 0 without a prompt sees nothing and needs a start token.
    """
    rank = ranks(order)
    own, other = rank[..., :, None], rank[..., None, :]
    m = jnp.asarray(prompt_length)[..., None, None]
    return (other <= own) | ((own < m) & (other < m)), other < own


def target_rate(
    progress: float, start: float = 0.15, limits: tuple[float, float] = (0.85, 0.99)
) -> tuple[float, float]:
    """Range of the target share at `progress` in [0, 1] of AS-ARM's warm-up: from {start} to U[limits]."""
    share = min(max(progress, 0.0), 1.0)
    return tuple(start + share * (limit - start) for limit in limits)


def corrupt(key: Array, x: Array, limits: tuple[float, float] = (0.85, 0.99), frozen: Array | None = None) -> Split:
    """Draws targets for a batch x [B, T]: a share U[limits] of the free tokens, at least one, uniform in place.

    frozen: [B, T] bool, never a target (a given prompt, padding).
    """
    rate_key, place_key = jax.random.split(key)
    free = jnp.ones(x.shape, bool) if frozen is None else ~jnp.asarray(frozen)
    rate = jax.random.uniform(rate_key, x.shape[:1], minval=limits[0], maxval=limits[1])
    count = jnp.clip(jnp.round(rate * free.sum(-1)), 1, free.sum(-1))
    noise = jnp.where(free, jax.random.uniform(place_key, x.shape), 2.0)
    targets = free & (jnp.argsort(jnp.argsort(noise, -1), -1) < count[:, None])
    return Split(lattice_order(targets), (~targets).sum(-1), targets.astype(jnp.float32))


def token_loss(logits: Array, x: Array, weight: Array, mask_id: int) -> Array:
    """-log p(x_l | lower ranks) at targets, 0 in the prompt: [B, T]; the sum is the joint NLL of the targets.

    logits [B, T, C] are the query stream's, column `mask_id` (if any) ruled out as in sampling.
    """
    log_p = jax.nn.log_softmax(mask_logits(logits, mask_id), -1)
    chosen = jnp.take_along_axis(log_p, jnp.asarray(x)[..., None], -1)[..., 0]
    return jnp.where(weight > 0, -chosen * weight, 0.0)


def nll_exact(
    conditionals: Callable[[Array, Array], Array], x: Array, order: Array, mask_id: int, prompt_length: int = 0
) -> Array:
    """-log p(targets | prompt) in the given order, one call of `conditionals(z, t)` per target: [B] for x [B, T]."""
    x = jnp.asarray(x)
    order = jnp.broadcast_to(jnp.asarray(order), x.shape)
    rank, total = ranks(order), 0.0
    for n in range(prompt_length, x.shape[1]):
        z = jnp.where(rank < n, x, mask_id)
        t = jnp.full(x.shape[:1], 1 - n / x.shape[1])
        total = total + token_loss(conditionals(z, t), x, rank == n, mask_id).sum(-1)
    return total


def row_mask(rank: Array, prompt_length: Array, seen: Array) -> masks.Mask:
    """What each token of [query ; content] sees in one pass over both streams.

    rank and seen are [B, T], prompt_length is [B]. The content stream is that of `stream_masks`. Query l sees the
    content tokens of rank < seen[l] (training: seen = its own rank) and itself, whose input is the mask token. Rank 0
    without a prompt sees only itself.
    """
    unseen = jnp.full_like(rank, -1)
    content = jnp.maximum(rank, prompt_length[:, None] - 1)
    queries = jnp.concatenate([seen - 1, content], -1)
    return masks.Positions(queries, jnp.concatenate([unseen, rank], -1)) | masks.Window(0)


@dataclasses.dataclass(frozen=True)
class AnySubset:
    """Any-subset autoregression of an `LM` (AS-ARM), both streams in one row of 2 T tokens, lattice orders.

    Targets are a share of the tokens where `batch["scored"]` is true; all others are prompt. The query of every token
    is `mask_id`. Evaluation gives all free tokens, from left to right: an exact likelihood. Options:
    `config.any_subset`. The share is drawn as after the warm-up of the paper.
    """

    mask_id: int
    rate_min: float = 0.85
    rate_max: float = 0.99

    mask: ClassVar[masks.Mask] = masks.Full()
    bound: ClassVar[str] = "="
    causal: ClassVar[bool] = False
    generator: ClassVar[str] = "any_subset"
    extra_tokens: ClassVar[int] = 1
    copies: ClassVar[int] = 2
    adds_z_loss: ClassVar[bool] = True
    laid_out_twice: ClassVar[bool] = True

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Rates without a span."""
        least, most = options["rate_min"], options["rate_max"]
        if least > most:
            yield (
                f"any_subset.rate_min={least} lies above any_subset.rate_max={most}; "
                f"use e.g. any_subset.rate_min={most}."
            )

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The global batch with `rank [B, T]`, `prompt_length [B]`, and the targets as its `scored`."""
        split = corrupt(key, batch["tokens"], (self.rate_min, self.rate_max), ~batch["scored"])
        return {**batch, "rank": ranks(split.order), "prompt_length": split.prompt_length, "scored": split.weight > 0}

    def loss(self, model, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Joint `-log p(targets | prompt)` of a batch from `corrupt` in nats, plus the z-loss; `key` is not used."""
        out = self.read(model, batch, batch["rank"], batch["prompt_length"], batch["rank"])
        weights = batch["scored"]
        total, nll = weighted_nll(model, out.features, batch["tokens"], weights, z_loss=z_loss, classes=self.mask_id)
        return Loss(total, per_scored({"nll": nll}, batch), out.report)

    def row_nll(self, model, batch: dict, key: Array) -> Array:
        """Nats of each row's free tokens given the others, [B], exact; `key` is not used."""
        rank = ranks(lattice_order(batch["scored"]))
        out = self.read(model, batch, rank, (~batch["scored"]).sum(-1), rank)
        nll = target_nll(model, out.features, batch["tokens"], classes=self.mask_id)
        return jnp.sum(jnp.where(batch["scored"], nll, 0), axis=-1)

    def read(self, model, batch: dict, rank: Array, prompt_length: Array, seen: Array) -> Pass:
        """A pass over both streams, features [B, T, D] of the query stream; arguments as in `row_mask`."""
        x = batch["tokens"]
        twice = lambda value: None if value is None else jnp.concatenate([value, value], -1)  # noqa: E731
        out = model(
            jnp.concatenate([jnp.full_like(x, self.mask_id), x], -1),
            mask=row_mask(rank, prompt_length, seen),
            positions=twice(batch.get("positions", jnp.arange(x.shape[1])[None])),
            segment_ids=twice(batch.get("segment_ids")),
        )
        return out._replace(features=out.features[:, : x.shape[1]])

    def conditionals(self, model, canvas: Array, segment_ids: Array | None = None) -> Callable[..., Array]:
        """For `decoding.assd.sample(two_stream=True)`: (tokens, order, seen), each [B, T], -> logits [B, T, mask_id].

        `canvas` [B, T] has `mask_id` where tokens are drawn; the others are prompt.
        """
        given = (canvas != self.mask_id).sum(-1)

        def logits(tokens: Array, order: Array, seen: Array) -> Array:
            row = {"tokens": tokens, "segment_ids": segment_ids}
            return model.logits(self.read(model, row, ranks(order), given, seen).features)[..., : self.mask_id]

        return logits

    def keys(self, length: int) -> float:
        """Keys seen for each token of a row of `length`, over both copies: (n + 1) / 2 twice."""
        return length + 1


PARTS = {"any_subset": AnySubset}
