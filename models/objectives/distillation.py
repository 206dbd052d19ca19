"""Distillation: the next token as the text has it, and as a trained model, the teacher, would have it.

Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2. With the
student's logits z, the teacher's u, a temperature S and a weight w, a scored token costs

    (1 - w) (-log p_1(target)) + w S^2 sum_v q_v (log q_v - log p_S(v)),   p_S = softmax(z / S), q = softmax(u / S)

S^2 keeps the gradient of the second term as large as it is at S = 1. Losses in nats; what is evaluated is the exact
likelihood of the student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kernels.cross_entropy import MAX_LOGITS, reference
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distillation(LeftToRight):
    """Options of `config.distillation`; see the formula above."""

    mask_id: int  # the number of the tokenizer's ids: what both models predict, whatever each adds to them
    weight: float = 0.5
    temperature: float = 2.0

    context_parallel: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("teacher",)

    def loss(self, model: Any, batch: dict, key: Array, *, companions: Mapping[str, Any], z_loss: float = 0.0) -> Loss:
        """The sum of the formula above over the valid targets of a batch, plus the z-loss of the student.

        Args:
          model: the student, an `LM`.
          batch: as `next_token.loss` reads it.
          key: not used.
          companions: "teacher": an `LM` with the same tokenizer. It has no gradient.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate, `nll` and `kl` (at the temperature, without w S^2) a target, and the student's
          report.
        """
        out, taught = forward(model, batch), forward(companions["teacher"], batch)
        sums = self._sums(model, companions["teacher"], out.features, taught.features, batch, z_loss)
        total, nll, kl = sums.reshape(-1, 3).sum(0)
        return Loss(total, per_scored({"nll": nll, "kl": kl}, batch), out.report)

    def _sums(self, student: Any, teacher: Any, features: Array, taught: Array, batch: dict, z_loss: float) -> Array:
        """Loss, nll and KL divergence summed over the tokens of each device, `[..., 3]`; features are `[B, T, D]`."""
        partition, models = student.spec.partition, (student, teacher)

        def local(features: Array, head: Array, taught: Array, other: Array, targets: Array, weights: Array) -> Array:
            heads = [partition.gather(each, (None, "embed")) for each in (head, other)]
            rows = (features, taught, targets, weights.astype(jnp.float32))
            chunks = _chunks(*(x.reshape(-1, *x.shape[2:]) for x in rows), classes=sum(len(head) for head in heads))

            def chunk(chunk: tuple) -> Array:
                read = zip(models, chunk[:2], heads, strict=True)
                return self._chunk(*(_logits(*each) for each in read), *chunk[2:], z_loss)

            if len(chunks[0]) == 1:
                return chunk(tuple(x[0] for x in chunks))[None, None]
            # Logits are computed again in the backward pass instead of being kept.
            again = jax.checkpoint(chunk)
            zero = jnp.zeros(3, jnp.promote_types(features.dtype, jnp.float32))
            return jax.lax.scan(lambda sums, x: (sums + again(x), None), zero, chunks)[0][None, None]

        rows = ("batch", "sequence")
        args = (features, student.head_weights(), taught, teacher.head_weights(), batch["targets"], batch["scored"])
        read = ((*rows, None), (None, "embed"))
        return partition.run(local, args, (*read, *read, rows, rows), (*rows, None))

    def _chunk(self, z: Array, u: Array, targets: Array, weights: Array, z_loss: float) -> Array:
        """Sums `[3]` of loss, nll and KL divergence over tokens with logits z `[m, V]` and u `[m, V']`."""
        log_z = jax.nn.logsumexp(z, -1)
        nll = log_z - jnp.take_along_axis(z, targets[:, None], -1)[:, 0]
        log_p, log_q = (jax.nn.log_softmax(x[:, : self.mask_id] / self.temperature, -1) for x in (z, u))
        kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), -1)
        loss = (1 - self.weight) * nll + self.weight * self.temperature**2 * kl + z_loss * log_z**2
        return jnp.stack([jnp.sum(weights * each) for each in (loss, nll, kl)])


def _logits(model: Any, features: Array, head: Array) -> Array:
    """`[m, D] -> [m, V]` as the model shapes its logits, float32 or wider."""
    wide = jnp.promote_types(features.dtype, jnp.float32)
    raw = jnp.einsum("md,vd->mv", features, head.astype(features.dtype), preferred_element_type=wide)
    return reference.shape_logits(raw, model.spec.logit_scale, model.spec.softcap)


def _chunks(*arrays: Array, classes: int) -> tuple[Array, ...]:
    """Cuts `[M, ...]` arrays into `[chunks, m, ...]` with m classes <= MAX_LOGITS; padding has weight 0."""
    M = arrays[0].shape[0]
    count = max(1, -(-M * classes // MAX_LOGITS))
    size = -(-M // count)
    pad = count * size - M
    return tuple(jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)).reshape(count, size, *a.shape[1:]) for a in arrays)


PARTS = {"distillation": Distillation}
