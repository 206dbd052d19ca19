"""How many tokens a text will still have: a head that predicts it for every next token, beside the next token itself.

Budget guidance (Li et al. 2025, arXiv:2506.13752): with features f [D] of the model, token v as the next one leaves a
length L behind it whose log(L + 1) has the law Gamma(alpha_v, rate_v), alpha_v = exp(a_v f + b_v), rate_v = exp(c_v f +
d_v); the loss is its negative log density at what came. The head reads the features as they are: it changes no other
parameter. Losses in nats; what is evaluated is the model of the next token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.decoding.control.budget import gamma_of_token, negative_log_likelihood
from models.lm import Head
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward, weighted_nll
from models.spec import Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Remaining(LeftToRight):
    """Options of `config.remaining`: `weight` of the head's loss, which trains the head alone."""

    weight: float = 1.0

    tells_roles: ClassVar[bool] = True

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`remaining`, two linear maps of features for each token."""
        return {"remaining": functools.partial(_make, spec)}

    def more_flops(self, spec: Spec) -> float:
        """FLOPs of a step's products, a token, beside three products a kernel: of the head the two rows of the next
        token alone are read, and features have no gradient from it."""
        return 8.0 * spec.D - 12.0 * spec.V * spec.D

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Sum over scored tokens of `-log p` of the next token and of the weighted loss of the length behind it.

        A length is known where the document ends in the row, and counts where it is not 0.

        Args:
          model: an `LM` with the head above.
          batch: as `next_token.loss` reads it, its tokens in their order.
          key: not used.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate; `nll` and `nll_length` a scored token of the batch; the model's report.
        """
        out = forward(model, batch)
        total, nll = weighted_nll(model, out.features, batch["targets"], batch["scored"], z_loss=z_loss)
        length, known = lengths(batch["scored"], batch.get("segment_ids"))
        head = model.heads["remaining"]
        features = jax.lax.stop_gradient(out.features)
        targets = batch["targets"]
        alpha, rate = gamma_of_token(features, head.kernel[...][:, targets], head.bias[...][:, targets])
        counts = known & batch["scored"] & (length > 0)
        each = jnp.where(counts, negative_log_likelihood(alpha, rate, jnp.maximum(length, 1)), 0)
        more = jnp.sum(each)
        sums = {"nll": nll, "nll_length": jax.lax.stop_gradient(more)}
        return Loss(total + self.weight * more, per_scored(sums, batch), out.report)


def lengths(scored: Array, segment_ids: Array | None) -> tuple[Array, Array]:
    """(scored targets behind each in its document, whether its document ends in the row), `[B, T]` each.

    scored: `[B, T]` bool. segment_ids: `[B, T]`, 0 = padding; None: one document, which does not end. A document that
    touches the end of its row may go on in another.
    """
    if segment_ids is None:
        segment_ids = jnp.ones(scored.shape, jnp.int32)
    after = jnp.cumsum(scored[:, ::-1].astype(jnp.int32), axis=1)[:, ::-1] - scored  # behind t, in the whole row
    last = jnp.concatenate([segment_ids[:, 1:] != segment_ids[:, :-1], jnp.zeros_like(scored[:, :1])], axis=1)
    # `after` falls along the row: of all ends behind t the next one has the largest.
    beyond = jax.lax.cummax(jnp.where(last, after, -1), axis=1, reverse=True)
    return jnp.maximum(after - beyond, 0), (beyond >= 0) & (segment_ids > 0)


class Lengths(nnx.Module):
    """kernel `[2, V, D]`, bias `[2, V]`: of log alpha and log rate; zeros at first."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        size, axes = (2, spec.V, spec.D), (None, "vocab", "embed")
        self.kernel = parameters.param(parameters.zeros, rngs, size, axes, "kernel", spec)
        self.bias = parameters.param(parameters.zeros, rngs, size[:2], axes[:2], "bias", spec)


def _make(spec: Spec, rngs: nnx.Rngs) -> Lengths:
    return Lengths(spec, rngs=rngs)


PARTS = {"remaining": Remaining}
