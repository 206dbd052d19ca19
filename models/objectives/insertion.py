"""Insertion language models (ILM): one softmax over slots x vocabulary says which token goes where; a stop is learned.

Slot s follows the s-th surviving token; slot 0 follows the start token. A noised row is [BOS, survivors, padding].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels import masks
from models.block import Pass
from models.facts import Facts
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import over_logits
from models.objectives.noise import by_row, mean_of_draws

Array = jax.Array
WEIGHTINGS = ("length", "constant")


class Deletion(NamedTuple):
    """A batch with tokens removed.

    Args:
      z: [B, L+1] BOS, the surviving tokens, padding.
      count: [B] surviving tokens.
      target: [B, L+1, V] share of the dropped tokens in each slot.
      stop: [B] bool, nothing was dropped.
      weight: [B] of the losses.
    """

    z: Array
    count: Array
    target: Array
    stop: Array
    weight: Array


def target(x: Array, dropped: Array | Collection[int], vocab_size: int) -> Array:
    """Share of the dropped tokens that belong in each slot: [..., L+1, V], sum 1, or all 0 when nothing was dropped.

    A dropped token's slot is that of the nearest survivor to its left, so target(slot, v) = count / n (ILM section 3).
    Slots are numbered by survivors; with m of them rows 0..m are in use and the rest are zero.

    Args:
      x: tokens [..., L].
      dropped: bool [..., L], or the positions of the dropped tokens of one sequence.
      vocab_size: V.
    """
    x = jnp.asarray(x)
    if isinstance(dropped, (set, frozenset, range)):
        dropped = sorted(dropped)
    dropped = jnp.asarray(dropped)
    if dropped.dtype != bool:
        dropped = jnp.zeros(x.shape, bool).at[dropped.astype(int)].set(True)
    slot = jnp.cumsum(~dropped, -1)
    dtype = jnp.result_type(float)
    places = jax.nn.one_hot(slot, x.shape[-1] + 1, dtype=dtype) * dropped[..., None]
    counts = jnp.einsum("...ls,...lv->...sv", places, jax.nn.one_hot(x, vocab_size, dtype=dtype))
    return counts / jnp.maximum(dropped.sum(-1), 1)[..., None, None]


def delete(
    key: Array, x: Array, lengths: Array | None = None, *, bos: int, pad: int, frozen: Array | None = None
) -> tuple[Array, Array, Array]:
    """Removes n ~ U{0..L_x} uniformly chosen tokens from each row x [B, L]: z [B, L+1], survivors [B], dropped [B, L].

    Args:
      key: of the whole batch.
      x: [B, L].
      pad: the id that stands after the survivors.
      bos: the id of the start.
      lengths: [B], all L if None.
      frozen: [B, L] bool, tokens never removed; L_x then counts the removable ones.
    """
    batch, length = x.shape
    lengths = jnp.full(batch, length) if lengths is None else jnp.asarray(lengths)
    real = jnp.arange(length) < lengths[:, None]
    free = real if frozen is None else real & ~jnp.asarray(frozen)
    count_key, place_key = jax.random.split(key)
    most = free.sum(-1)
    n = jnp.minimum(jnp.floor(jax.random.uniform(count_key, (batch,)) * (most + 1)).astype(int), most)
    noise = jnp.where(free, jax.random.uniform(place_key, x.shape), 2.0)
    dropped = free & (jnp.argsort(jnp.argsort(noise, -1), -1) < n[:, None])
    kept = real & ~dropped
    front = jnp.argsort(~kept, -1, stable=True)
    count = kept.sum(-1)
    tokens = jnp.where(jnp.arange(length) < count[:, None], jnp.take_along_axis(x, front, -1), pad)
    return jnp.concatenate([jnp.full((batch, 1), bos, tokens.dtype), tokens], -1), count, dropped


def corrupt(
    key: Array,
    x: Array,
    lengths: Array | None = None,
    *,
    vocab_size: int,
    bos: int | None = None,
    pad: int | None = None,
    weighted: bool = False,
    frozen: Array | None = None,
) -> Deletion:
    """`delete`, and the targets of what it dropped.

    With `weighted` both losses have weight L_x + 1 instead of 1. With variable lengths and a sampled stop, the optimum
    of the plain losses samples P(x)/(L_x + 1) renormalised, too short; that of the weighted losses samples P exactly.
    bos and pad default to V and V + 1.
    """
    batch, length = x.shape
    bos, pad = vocab_size if bos is None else bos, vocab_size + 1 if pad is None else pad
    lengths = jnp.full(batch, length) if lengths is None else jnp.asarray(lengths)
    z, count, dropped = delete(key, x, lengths, bos=bos, pad=pad, frozen=frozen)
    real = jnp.arange(length) < lengths[:, None]
    removable = (real if frozen is None else real & ~jnp.asarray(frozen)).sum(-1)
    weight = (removable + 1 if weighted else jnp.ones_like(removable)).astype(jnp.float32)
    return Deletion(z, count, target(jnp.where(real, x, 0), dropped, vocab_size), ~dropped.any(-1), weight)


def slot_log_probs(logits: Array, count: Array) -> Array:
    """log p(slot, v) [B, S, V] from logits [B, S, V]: one softmax over the count + 1 slots in use x the vocabulary."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    used = jnp.arange(logits.shape[1]) <= count[:, None]
    logits = jnp.where(used[..., None], logits, -jnp.inf)
    return logits - jax.nn.logsumexp(logits, axis=(1, 2), keepdims=True)


def token_loss(logits: Array, noised: Deletion) -> Array:
    """Cross-entropy of the insertion target, by slot: [B, S] from logits [B, S, V]; 0 for a row that lost nothing."""
    log_p = slot_log_probs(logits, noised.count)
    terms = jnp.where(noised.target > 0, noised.target * log_p, 0.0)
    return -terms.sum(-1) * noised.weight[:, None]


def stop_loss(stop_logits: Array, noised: Deletion) -> Array:
    """Cross-entropy of "nothing is missing" (class 1) against "go on" (class 0): [B] from logits [B, 2]."""
    log_p = jax.nn.log_softmax(stop_logits.astype(jnp.promote_types(stop_logits.dtype, jnp.float32)), -1)
    return -jnp.where(noised.stop, log_p[:, 1], log_p[:, 0]) * noised.weight


def strings(vocab_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every string of up to `length` tokens, shortest first: rows [N, L+1] as in `Deletion.z`, and counts [N]."""
    rows, counts = [], []
    for count in range(length + 1):
        for index in range(vocab_size**count):
            digits = [index // vocab_size**i % vocab_size for i in reversed(range(count))]
            rows.append([vocab_size, *digits, *[vocab_size + 1] * (length - count)])
            counts.append(count)
    return np.array(rows), np.array(counts)


@dataclasses.dataclass(frozen=True)
class Insertion:
    """Insertion of an `LM` (ILM, Patel et al. 2025): a row is ONE string, whatever documents it holds.

    Tokens where `batch["scored"]` is true are removed and scored. There are two more ids: `mask_id` starts a row and
    `mask_id` + 1 pads it. Their rows of the head are the two classes of the stop, go on and stop, read at the start.
    Options: see `config.insertion`.

    Each order of inserting the n missing tokens is one way to the string. All n! orders are equally likely backwards,
    so that -log P(x) <= (L + 1) E[both losses] - log L! with L free tokens: the bound that evaluation estimates. It
    includes the end of the row.
    """

    mask_id: int
    weighting: str = "length"
    draws: int = 4

    mask: ClassVar[masks.Mask] = masks.Full()
    bound: ClassVar[str] = "<="
    causal: ClassVar[bool] = False
    generator: ClassVar[str] = "insertion"
    extra_tokens: ClassVar[int] = 2
    copies: ClassVar[int] = 1

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Rows that are more than one string."""
        if facts.data["isolate"]:
            yield (
                "data.isolate=True parts a row, which objective='insertion' reads as one string; "
                "use data.isolate=False."
            )

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The global batch with survivors `noised [B, T+1]` and `count [B]`, `dropped [B, T]`, `weight [B]`."""
        noised = self._noise(key, batch)
        weight = batch["scored"].sum(-1) + 1
        if self.weighting == "constant":
            weight = jnp.full_like(weight, batch["tokens"].shape[1] + 1)
        return {**batch, **noised, "weight": weight}

    def loss(self, model, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Weighted sum of both losses over a batch from `corrupt`, nats; `key` and `z_loss` are not used."""
        rows, report = self._rows(model, batch, batch)
        total = jnp.sum(batch["weight"] * rows)
        return Loss(total, per_scored({"nll": total}, batch), report)

    def row_nll(self, model, batch: dict, key: Array) -> Array:
        """Bound of each row's nats, [B]: the mean of `draws` estimates."""
        free = batch["scored"].sum(-1)

        read = {name: batch[name] for name in ("tokens", "scored", "segment_ids") if name in batch}

        def estimate(keys: Array) -> Array:
            return (free + 1) * self._rows(model, batch, by_row(self._noise, keys, read))[0]

        mean = mean_of_draws(estimate, key, self.draws, batch["tokens"], model.spec.dtype)
        return mean - jax.lax.lgamma(free + 1.0)

    def predict(self, model, z: Array, count: Array) -> tuple[Array, Array]:
        """Slot logits [B, S, V] and stop logits [B, 2] of rows z [B, S] with `count` tokens behind the start."""
        return self.split(model.logits(self._pass(model, z, count).features))

    def split(self, logits: Array) -> tuple[Array, Array]:
        """The two parts of the head's logits [B, S, V + 2]."""
        return logits[..., : self.mask_id], logits[:, 0, self.mask_id : self.mask_id + 2]

    def _pass(self, model, z: Array, count: Array) -> Pass:
        held = jnp.arange(z.shape[1]) <= count[:, None]
        return model(z, mask=self.mask, segment_ids=held.astype(jnp.int32))

    def _noise(self, key: Array, batch: dict) -> dict:
        tokens = batch["tokens"]
        lengths = (batch["segment_ids"] != 0).sum(-1) if "segment_ids" in batch else None
        ids = {"bos": self.mask_id, "pad": self.mask_id + 1}
        z, count, dropped = delete(key, tokens, lengths, **ids, frozen=~batch["scored"])
        return {"noised": z, "count": count, "dropped": dropped}

    def _rows(self, model, batch: dict, noised: dict) -> tuple[Array, dict]:
        """Both losses of each row [B], and the model's report; no [B, S, V] target is made."""

        def local(logits: Array, x: Array, dropped: Array, count: Array) -> Array:
            slots, stop = self.split(logits)
            log_p = slot_log_probs(slots, count)
            index = jnp.cumsum(~dropped, -1) * slots.shape[-1] + jnp.minimum(x, self.mask_id - 1)
            chosen = jnp.take_along_axis(log_p.reshape(len(x), -1), index, -1)
            n = dropped.sum(-1)
            inserted = -jnp.where(dropped, chosen, 0).sum(-1) / jnp.maximum(n, 1)
            log_stop = jax.nn.log_softmax(stop, -1)
            return inserted - jnp.where(n == 0, log_stop[:, 1], log_stop[:, 0])

        out = self._pass(model, noised["noised"], noised["count"])
        arrays = (batch["tokens"], noised["dropped"], noised["count"])
        return over_logits(local, model, out.features, *arrays, classes=self.mask_id + 2), out.report


PARTS = {"insertion": Insertion}
