"""Masked and block diffusion of an `LM`: the losses of masked_diffusion.py and block_diffusion.py.

A masked model is told the time t where `model.time_features` asks for it. Without it, the share of masked tokens in the
input says enough (MDLM). Tokens where `batch["scored"]` is true are masked and scored; the others (padding, the start
of a document) are given and never masked. The head predicts ids below `mask_id` only, which is the SUBS
parameterisation: the mask has no probability, visible tokens have no loss. Nats are upper bounds, summed over the valid
tokens. Noise is drawn in the order of the row, even where the tokens of a batch are permuted (`order`), so that no
layout changes a number.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.facts import Facts, largest_divisor, span_problems
from models.objectives import block_diffusion, masked_diffusion, schedules
from models.objectives.loss import Loss, per_scored
from models.objectives.masked_diffusion import Corruption
from models.objectives.next_token import target_nll, weighted_nll
from models.objectives.noise import by_row, mean_of_draws

GROUPS = ("masked_diffusion", "block_diffusion")
CHOICES = {
    "schedule": schedules.NAMES,
    "masking": ("bernoulli", "fixed_count"),
    "times": ("iid", "offset", "stratified"),
}
WEIGHTINGS = ("elbo", "ones")


@dataclasses.dataclass(frozen=True)
class _Diffusion:
    """The common part of both; `noise` and `read` differ. Options: see `config.masked_diffusion`."""

    mask_id: int
    schedule: str = "linear"
    masking: str = "bernoulli"
    times: str = "stratified"
    t_min: float = 1e-3
    t_max: float = 1.0
    draws: int = 4

    causal: ClassVar[bool] = False
    generator: ClassVar[str] = "canvas"
    context_parallel: ClassVar[bool] = True
    extra_tokens: ClassVar[int] = 1
    adds_z_loss: ClassVar[bool] = True

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Refuses `t_min` above `t_max`."""
        return span_problems(options, facts)

    def corrupt(self, batch: dict, key: jax.Array) -> dict:
        """The global batch with `noised [B, T]` tokens, their `time`, and `weight [B, T]` of the loss (0: none)."""
        noised, time, weight = self._drawn(batch, key, training=True)
        return {**batch, "noised": noised, "time": time, "weight": weight}

    def _drawn(self, batch: dict, key: jax.Array, *, training: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Noised tokens `[B, T]`, times and loss weights `[B, T]` of a batch, drawn in the order of the row.

        `key`: of the batch in training; one key of each row, `[B]`, outside.
        """
        given, order = (batch["tokens"], ~batch["scored"]), batch.get("order")
        if order is not None:
            back = jnp.argsort(order, axis=-1)
            given = tuple(jnp.take_along_axis(x, back, axis=-1) for x in given)
        draw = functools.partial(self.noise, training=training)
        drawn = draw(key, *given) if training else by_row(draw, key, *given)
        found = (drawn.z, drawn.t, drawn.weight)
        if order is None:
            return found
        return tuple(x if x.ndim == 1 else jnp.take_along_axis(x, order, axis=-1) for x in found)

    def loss(self, model, batch: dict, key: jax.Array, *, z_loss: float = 0.0) -> Loss:
        """Sum of the weighted loss over a batch from `corrupt`, an estimate of its bound in nats, plus the z-loss.

        Args:
          model: an `LM`.
          batch: `tokens`, `noised` `[B, T]`, `weight [B, T]`, `time` `[B]` or `[B, T]`, and where rows hold several
            documents `positions` and `segment_ids` `[B, T]`.
          key: not used: the noise is in the batch.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate, `nll` a scored token, and the model's report.
        """
        out = self.read(model, batch, batch["noised"], batch["time"])
        total, nll = weighted_nll(
            model, out.features, batch["tokens"], batch["weight"], z_loss=z_loss, classes=self.mask_id
        )
        return Loss(total, per_scored({"nll": nll}, batch), out.report)

    def row_nll(self, model, batch: dict, key: jax.Array) -> jax.Array:
        """Bound of each row's nats, `[B]`: the mean of `draws` fixed-count estimates (LLaDA, appendix B.5).

        Each masks k of a row's n free tokens, k uniform on 1..n, with weight n / k, whatever the training drew.
        """
        tokens = batch["tokens"]

        def estimate(keys: jax.Array) -> jax.Array:
            noised, time, weight = self._drawn(batch, keys, training=False)
            nll = target_nll(model, self.read(model, batch, noised, time).features, tokens, classes=self.mask_id)
            return jnp.sum(jnp.where(weight > 0, weight * nll, 0), axis=-1)

        return mean_of_draws(estimate, key, self.draws, tokens, model.spec.dtype)

    def noise(self, key: jax.Array, tokens: jax.Array, frozen: jax.Array, *, training: bool) -> Corruption:
        raise NotImplementedError

    def read(self, model, batch: dict, noised: jax.Array, time: jax.Array) -> Pass:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(_Diffusion):
    """Masked diffusion (MDLM, Sahoo et al. 2024; MD4, Shi et al. 2024; LLaDA, Nie et al. 2025)."""

    steps: int = 0

    mask: ClassVar[masks.Mask] = masks.Full()
    bound: ClassVar[str] = "<="
    copies: ClassVar[int] = 1
    timed: ClassVar[bool] = True

    def noise(self, key: jax.Array, tokens: jax.Array, frozen: jax.Array, *, training: bool) -> Corruption:
        """`masked_diffusion.corrupt` as the options say; fixed counts outside training."""
        return masked_diffusion.corrupt(
            key,
            tokens,
            mask_id=self.mask_id,
            schedule=self.schedule,
            how=self.masking if training else "fixed_count",
            times=self.times,
            limits=(self.t_min, self.t_max),
            steps=self.steps or None,
            frozen=frozen,
        )

    def read(self, model, batch: dict, noised: jax.Array, time: jax.Array) -> Pass:
        """A pass over the noised tokens `[B, T]`; every token sees its whole document."""
        return whole_documents(model, batch, noised, time)


@dataclasses.dataclass(frozen=True)
class BlockDiffusion(_Diffusion):
    """Block diffusion (BD3-LM, Arriola et al. 2025): blocks of `block` tokens of a row, each with a rate of its own.

    One pass over [noised ; clean], both with the positions and segments of the row. Every block is a masked diffusion
    given the clean blocks before it. Block 1 is the autoregressive likelihood, exactly; block T is masked diffusion.
    """

    block: int = 4
    weighting: str = "elbo"

    copies: ClassVar[int] = 2
    laid_out_twice: ClassVar[bool] = True

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Refuses `t_min` above `t_max`, and blocks that do not divide a row."""
        yield from span_problems(options, facts)
        block, length = options["block"], facts.data["length"]
        if length % block:
            yield (
                f"block_diffusion.block={block} does not divide data.length={length}; "
                f"use e.g. block_diffusion.block={largest_divisor(length, block)}."
            )

    @property
    def bound(self) -> str:
        """At block 1 the fixed count masks the only token of every block: nothing is random, the value exact."""
        return "=" if self.block == 1 else "<="

    @property
    def mask(self) -> masks.Mask:
        """The mask of the clean half, and of a row in generation: each token sees its own block and all before it."""
        return masks.BlockCausal(self.block)

    def noise(self, key: jax.Array, tokens: jax.Array, frozen: jax.Array, *, training: bool) -> Corruption:
        """`block_diffusion.corrupt` as the options say; fixed counts with the weights of the bound outside training."""
        return block_diffusion.corrupt(
            key,
            tokens,
            self.block,
            mask_id=self.mask_id,
            schedule=self.schedule,
            how=self.masking if training else "fixed_count",
            times=self.times,
            limits=(self.t_min, self.t_max),
            weighting=self.weighting if training else "elbo",
            frozen=frozen,
        )

    def read(self, model, batch: dict, noised: jax.Array, time: jax.Array) -> Pass:
        """A pass over both halves, under the mask of figure 3 of the paper; features `[B, T, D]` of the noised half.

        The model is not told the time.
        """
        T = noised.shape[1]
        tokens, positions = block_diffusion.training_inputs(noised, batch["tokens"])
        positions, segments = batch.get("positions", positions[:T][None]), batch.get("segment_ids")
        out = model(
            tokens,
            mask=masks.BlockDiffusion(T, self.block),
            positions=jnp.concatenate([positions, positions], -1),
            segment_ids=None if segments is None else jnp.concatenate([segments, segments], -1),
        )
        return out._replace(features=out.features[:, :T])

    def keys(self, length: int) -> float:
        """Keys seen for each token of a row of `length`, over both copies: (n^2 + n block) / n."""
        return length + self.block


def whole_documents(model, batch: dict, noised: jax.Array, time: jax.Array) -> Pass:
    """A pass over noised tokens `[B, T]` at times `[B]` or `[B, T]`; each sees its whole document."""
    places = {"positions": batch.get("positions"), "segment_ids": batch.get("segment_ids")}
    return model(noised, mask=masks.Full(), time=time, **places)


PARTS = {"masked_diffusion": MaskedDiffusion, "block_diffusion": BlockDiffusion}
