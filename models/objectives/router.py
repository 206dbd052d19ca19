"""A classifier of which next tokens a large model would write otherwise: the trained router of R2R.

Fu et al. 2025 (R2R, arXiv:2505.21600): a small classifier over the small model's hidden state h [D] (after its last
norm), the embedding e [D] of its likeliest token v, and its largest logits says P(the token is critical). Here, with
the log-probabilities l [k] of the k likeliest tokens, u = [h / rms(h), e / rms(e), l], and s the classifier's logit,

    s = w silu(W u + b) + c        hidden width F; F = 0: s = w u + c        P = sigmoid(s)
    s = w layer_norm(x_N) + c      with N blocks, x_0 = W u + b, x_i = `routing.router_block`(x_(i-1))
    loss = mean of -r y log P - (1 - y) log(1 - P),    y = 1 where argmax of the large model's law is not v

(`routing.router_features`, `router_logit`, `router_loss`). The authors label a token critical where a judge finds the
texts to mean something else; here every difference counts. What else is not as released is in docs/control.md. It reads
the small model as it is: the loss changes no other parameter. Losses in nats; evaluated is the small model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from models import depth, parameters
from models.decoding.control import routing
from models.facts import Facts
from models.hypernetwork import layer_norm
from models.lm import Head
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward, over_logits, weighted_nll
from models.spec import Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Router(LeftToRight):
    """Options of `config.router`: `top` k, `hidden` F, `blocks` N, `recall` r of the formula, `weight` of its loss."""

    mask_id: int  # the number of the tokenizer's ids: what both models predict
    top: int = 8
    hidden: int = 64
    blocks: int = 0
    recall: float = 1.0
    weight: float = 1.0

    companions: ClassVar[tuple[str, ...]] = ("teacher",)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """See `Objective.problems`."""
        if facts.data["tokenizer"] == "bytes" and options["top"] > 256:
            yield f"router.top={options['top']} are more tokens than there are bytes; use at most router.top=256."
        if options["blocks"] and not options["hidden"]:
            yield f"router.blocks={options['blocks']} have no width at router.hidden=0; use e.g. router.hidden=64."

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`router`, the classifier."""
        return {"router": lambda rngs: Classifier(spec, self.top, (self.hidden, self.blocks), self.mask_id, rngs=rngs)}

    def more_flops(self, spec: Spec) -> float:
        """FLOPs of a step's products, a token, beside three products a kernel: the law is read once more, the state has
        no gradient from the classifier."""
        return 2.0 * spec.V * spec.D - 2.0 * (2 * spec.D + self.top) * max(1, self.hidden)

    def loss(self, model: Any, batch: dict, key: Array, *, companions: Mapping[str, Any], z_loss: float = 0.0) -> Loss:
        """Sum over scored tokens of `-log p` of the next token and of the classifier's weighted loss.

        Args:
          model: an `LM` with the head above: the small model.
          batch: as `next_token.loss` reads it.
          key: not used.
          companions: "teacher": the large model, an `LM` with the same tokenizer. It has no gradient.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate; `nll`, `nll_router` (weighted by r), `critical` (the share of labels that are 1) a
          scored token of the batch; the model's report.
        """
        out, teacher = forward(model, batch), companions["teacher"]
        total, nll = weighted_nll(model, out.features, batch["targets"], batch["scored"], z_loss=z_loss)
        features, taught = (jax.lax.stop_gradient(x) for x in (out.features, forward(teacher, batch).features))
        best = lambda logits: jnp.argmax(logits, axis=-1)  # noqa: E731
        wanted = over_logits(best, teacher, taught, classes=self.mask_id)
        law = lambda logits: routing.likeliest(logits, self.top)  # noqa: E731
        own, log_p = over_logits(law, model, features, classes=self.mask_id)
        label = (own != wanted).astype(jnp.float32)
        embedded = jax.lax.stop_gradient(model.embed(own))
        logit = model.heads["router"](features, embedded, jax.lax.stop_gradient(log_p))
        each = routing.router_nats(logit, label, self.recall)
        sums = [jnp.sum(jnp.where(batch["scored"], x, 0)) for x in (each, label)]
        told = {"nll": nll, "nll_router": jax.lax.stop_gradient(sums[0]), "critical": sums[1]}
        return Loss(total + self.weight * sums[0], per_scored(told, batch), out.report)


class Classifier(nnx.Module):
    """into kernel `[2 D + k, F]`, bias `[F]`, drawn; out kernel `[F]` (F = 0: `[2 D + k]`), bias `[1]`: zeros at first,
    so that P is 1/2. `shape`: (F, N); blocks stand side by side, `[N, ...]`."""

    def __init__(self, spec: Spec, top: int, shape: tuple[int, int], classes: int, *, rngs: nnx.Rngs):
        size, self.top, self.classes = 2 * spec.D + top, top, classes
        hidden, self.blocks = shape
        wide = hidden or size
        if hidden:
            init = parameters.normal(size**-0.5)
            self.kernel = parameters.param(init, rngs, (size, hidden), (None, None), "kernel", spec)
            self.bias = parameters.param(parameters.zeros, rngs, (hidden,), (None,), "bias", spec)
        self.out = parameters.param(parameters.zeros, rngs, (wide, 1), (None, None), "kernel", spec)
        self.shift = parameters.param(parameters.zeros, rngs, (1,), (None,), "bias", spec)
        self.hidden = hidden
        if N := self.blocks:
            make = lambda init, shape, role: parameters.param(init, rngs, shape, (None,) * len(shape), role, spec)  # noqa: E731
            F, zeros, ones = hidden, parameters.zeros, parameters.ones
            self.scale, self.move = make(ones, (N + 1, F), "norm"), make(zeros, (N + 1, F), "norm")
            self.wide = make(parameters.normal(F**-0.5), (N, F, 4 * F), "kernel")
            self.wide_bias = make(zeros, (N, 4 * F), "bias")
            self.back = make(parameters.normal((4 * F) ** -0.5), (N, 4 * F, F), "kernel")
            self.back_bias = make(zeros, (N, F), "bias")

    def __call__(self, features: Array, embedded: Array, log_p: Array) -> Array:
        """s: features, embedded `[..., D]`, log_p `[..., k]` -> `[...]`, float32 or wider."""
        u = routing.router_features(depth.unit(features), depth.unit(embedded), log_p, self.top)
        if self.blocks:
            u = u @ self.kernel[...] + self.bias[...]
            for i in range(self.blocks):
                wide, back = (self.wide[...][i], self.wide_bias[...][i]), (self.back[...][i], self.back_bias[...][i])
                u = routing.router_block(u, (self.scale[...][i], self.move[...][i]), wide, back)
            u = layer_norm(u, self.scale[...][-1], self.move[...][-1], 1e-5)
        inner = (self.kernel[...], self.bias[...]) if self.hidden and not self.blocks else None
        return routing.router_logit(u, self.out[...][:, 0], self.shift[...][0], inner)


PARTS = {"router": Router}
