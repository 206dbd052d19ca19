"""Multi-token prediction: at each place the next n tokens at once, by heads over one trunk.

Gloeckle et al. 2024, "Better & Faster Large Language Models via Multi-token Prediction", arXiv:2404.19737, equation 2,
in its simplest form, with linear heads: the model as it is predicts the next token from its features f [D], and
softmax(E W_i f) the i-th next one, i = 2..n. The unembedding E [V, D] is shared, W_i [D, D] is learned. Losses in nats;
what is evaluated and what writes text is the model of the next token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.lm import Head
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward, weighted_nll
from models.products import by_rows
from models.spec import Spec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class MultiToken(LeftToRight):
    """Options of `config.multi_token`: `tokens`, n above."""

    tokens: int = 4

    @property
    def predictions(self) -> int:
        """Times that the head reads a token's features."""
        return self.tokens

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`ahead_i`, the linear map of the i-th next token, for i = 2..n."""
        make = functools.partial(_make, spec)
        return {f"ahead_{i}": make for i in range(2, self.tokens + 1)}

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Sum of `-log p` of the next n tokens over the valid ones of a batch, in nats, plus the z-loss of each head.

        A token that lies i ahead counts where its own target counts and it is of the same document.

        Args:
          model: an `LM` with the heads above.
          batch: as `next_token.loss` reads it, its tokens in their order.
          key: not used.
          z_loss: weight of the squared log-partition.

        Returns:
          The sum to differentiate; `nll` and, of the i-th next token, `nll_i`, all of them a scored token of the batch;
          and the model's report.
        """
        out = forward(model, batch)
        total, nll = weighted_nll(model, out.features, batch["targets"], batch["scored"], z_loss=z_loss)
        sums = {"nll": nll}
        for i in range(2, self.tokens + 1):
            features = model.heads[f"ahead_{i}"](out.features)
            more, sums[f"nll_{i}"] = weighted_nll(model, features, *ahead(batch, i - 1), z_loss=z_loss)
            total = total + more
        return Loss(total, per_scored(sums, batch), out.report)


def ahead(batch: Mapping[str, Array], places: int) -> tuple[Array, Array]:
    """Targets and `scored` `[B, T]` of a batch, `places` further on in the same document; none behind a row's end."""
    move = lambda x: jnp.pad(x[:, places:], ((0, 0), (0, min(places, x.shape[1]))))  # noqa: E731
    scored = move(batch["scored"])
    if "segment_ids" in batch:
        scored = scored & (move(batch["segment_ids"]) == batch["segment_ids"])
    return move(batch["targets"]), scored


class Linear(nnx.Module):
    """`[B, T, D] -> [B, T, D]`, a kernel without bias, whatever `model.projection` is: it does not grow with it."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        init = parameters.normal(parameters.kernel_std(spec, spec.D, "embed", residual=False))
        self.kernel = parameters.param(init, rngs, (spec.D, spec.D), ("embed", None), "kernel", spec)
        self.dtype, self.partition = spec.dtype, spec.partition

    def __call__(self, x: Array) -> Array:
        kernel = self.kernel[...].astype(self.dtype)
        return by_rows(lambda x: x @ kernel, x.astype(self.dtype), self.partition)


def _make(spec: Spec, rngs: nnx.Rngs) -> Linear:
    return Linear(spec, rngs=rngs)


PARTS = {"multi_token": MultiToken}
