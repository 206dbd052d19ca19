"""SwiftKV's distillation: a rewired model learns the predictions, and the stream before the last layer, of its teacher.

Qiao et al. 2024, arXiv:2410.03960. A scored token costs

    (1 - w) (-log p_1(target)) + w S^2 KL(q_S || p_S) + c mean_d (h_d - h'_d)^2

h, h' the streams `[D]` that enter the last layer of student and teacher, S the temperature, w = c = 1 as published.
Released code takes both means over ALL tokens (here: but padding), where unscored ones count as zeros in the
first and as themselves in the second (`released`); where every token is scored the two are one. Nats; what is evaluated
is the exact likelihood of the student. `models.swiftkv.distillation` is the same of plain arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.block import Pass
from models.objectives.distillation import Distillation
from models.objectives.loss import Loss, per_scored

Array = jax.Array
SITE = "residual"


@dataclasses.dataclass(frozen=True)
class SwiftKV(Distillation):
    """Options of `config.swiftkv`; see the formula above."""

    weight: float = 1.0
    hidden: float = 1.0
    released: bool = False

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The batch, and where `released` its share of scored tokens for every row, `[B]`."""
        if not self.released:
            return batch
        scored, real = (jnp.sum(x, dtype=jnp.float32) for x in (batch["scored"], _real(batch)))
        share = scored / jnp.maximum(real, 1.0)
        return batch | {"share": jnp.full(batch["scored"].shape[:1], share)}

    def loss(self, model: Any, batch: dict, key: Array, *, companions: Mapping[str, Any], z_loss: float = 0.0) -> Loss:
        """The sum of the formula over a batch; arguments of `Distillation.loss`.

        Returns:
          The sum to differentiate; `nll`, `kl` and `hidden` (without weights) a scored token; the student's report.
        """
        teacher = companions["teacher"]
        out, taught = (_forward(each, batch) for each in (model, teacher))
        sums = self._sums(model, teacher, out.features, taught.features, batch, z_loss)
        total, nll, kl = sums.reshape(-1, 3).sum(0)
        apart = _apart(out, taught)
        seen = apart * (_real(batch) if self.released else batch["scored"])
        total, distance = total + self.hidden * jnp.sum(seen), jnp.sum(apart * batch["scored"])
        if self.released:  # A step divides by scored tokens; these means are over all.
            total = total * batch["share"][0]
        report = {name: value for name, value in out.report.items() if name != SITE}
        return Loss(total, per_scored({"nll": nll, "kl": kl, "hidden": distance}, batch), report)


def _real(batch: dict) -> Array:
    """`[B, T]` bool: what is no padding."""
    ids = batch.get("segment_ids")
    return jnp.ones(batch["tokens"].shape, bool) if ids is None else ids > 0


def _forward(model: Any, batch: dict) -> Pass:
    told = {name: batch.get(name) for name in ("positions", "segment_ids")}
    return model(batch["tokens"], mask=Distillation.mask, taps=(SITE,), **told)


def _apart(student: Pass, teacher: Pass) -> Array:
    """`[B, T]`: mean squared difference of the streams before the last layer; 0 of a model of one layer."""
    streams = [each.report[SITE] for each in (student, teacher)]
    if len(streams[0]) < 2:
        return jnp.zeros(streams[0].shape[1:3], jnp.float32)
    h, taught = (x[-2].astype(jnp.promote_types(x.dtype, jnp.float32)) for x in streams)
    return jnp.mean(jnp.square(h - taught), axis=-1)


PARTS = {"swiftkv": SwiftKV}
