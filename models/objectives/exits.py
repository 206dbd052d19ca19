"""Classifiers behind every layer that say whether a token may leave there, or whether the answer should end.

Sun et al. 2024, "When Neural Code Completion Models Size up the Situation", arXiv:2401.09964. Behind layer l a linear
map of the state h_l [D], brought to mean square 1, has the classes go on, exit, stop: exit where the likeliest token of
h_l is the one that follows, stop where neither that of h_l nor that of a later layer is (`depth.exit_labels`). A token
costs

    -log p(next | h_L) + a mean_l -log p(next | h_l) + w mean_l -log p(class_l)

with p(. | h_l) from the model's last norm and its unembedding. Classifiers read states as they are: their loss changes
no other parameter. The middle term, which the paper does not have, makes early layers worth leaving at; a = 0 leaves it
out. Losses in nats; what is evaluated is the whole model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from models import depth, parameters
from models.decoding.control.depth import exit_labels
from models.lm import Head
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward, over_logits, weighted_nll
from models.spec import Spec

Array = jax.Array
SITE = "residual"


@dataclasses.dataclass(frozen=True)
class Exits(LeftToRight):
    """Options of `config.exits`: `weight` w and `layers_weight` a of the formula."""

    weight: float = 1.0
    layers_weight: float = 0.3

    tells_roles: ClassVar[bool] = True

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`exits`, a classifier of each layer."""
        return {"exits": functools.partial(_make, spec)}

    def more_flops(self, spec: Spec) -> float:
        """FLOPs of a step's products, a token, beside one reading of the unembedding and three products a kernel.

        Every layer's state is read for its likeliest token and, if it is to learn, for its loss; states have no
        gradient from their classifiers.
        """
        readings = 1 + 3 * (self.layers_weight > 0)
        return spec.L * (readings * 2.0 * spec.V * spec.D - 6.0 * spec.D)

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """The formula's sum over the valid targets of a batch, in nats, plus the z-loss of each layer's law.

        Args:
          model: an `LM` with the head above.
          batch: as `next_token.loss` reads it.
          key: not used.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate; `nll`, `nll_layers` and `nll_class` (without weights) a scored token; the report.
        """
        out = forward(model, batch, taps=(SITE,))
        states, scored, targets = out.report[SITE], batch["scored"], batch["targets"]
        total, nll = weighted_nll(model, out.features, targets, scored, z_loss=z_loss)
        early, predicted = jnp.zeros(()), []
        for h in states:
            features = model.norm(h)
            if self.layers_weight:
                more, each = weighted_nll(model, features, targets, scored, z_loss=z_loss)
                total, early = total + self.layers_weight * more / len(states), early + each / len(states)
            best = lambda logits: jnp.argmax(logits, axis=-1)  # noqa: E731
            predicted.append(over_logits(best, model, jax.lax.stop_gradient(features)))
        labels = exit_labels(jnp.stack(predicted, axis=-1), targets)  # [B, T, L]
        wrong = class_loss(jax.lax.stop_gradient(states), model.heads["exits"], labels)
        classes = jnp.sum(jnp.where(scored, jnp.mean(wrong, axis=-1), 0))
        sums = {"nll": nll, "nll_layers": early, "nll_class": jax.lax.stop_gradient(classes)}
        report = {name: value for name, value in out.report.items() if name != SITE}
        return Loss(total + self.weight * classes, per_scored(sums, batch), report)


def class_loss(states: Array, head: Any, labels: Array) -> Array:
    """-log of each layer's class, `[B, T, L]`: states `[L, B, T, D]`, labels `[B, T, L]`."""
    kernel, bias = head.kernel[...].astype(jnp.float32), head.bias[...]
    logits = jnp.einsum("lbtd,ldc->btlc", depth.unit(states), kernel) + bias
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]


class Classifiers(nnx.Module):
    """kernel `[L, D, 3]`, bias `[L, 3]`: zeros at first."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        size, axes = (spec.L, spec.D, 3), (None, "embed", None)
        self.kernel = parameters.param(parameters.zeros, rngs, size, axes, "kernel", spec)
        self.bias = parameters.param(parameters.zeros, rngs, (spec.L, 3), (None, None), "bias", spec)


def _make(spec: Spec, rngs: nnx.Rngs) -> Classifiers:
    return Classifiers(spec, rngs=rngs)


PARTS = {"exits": Exits}
