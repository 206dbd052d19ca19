"""EAGLE's head: the model's next feature from its feature before and the token, on a frozen model.

Li et al. 2024, "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty", arXiv:2401.15077, and its code.
With the model's features f_t [D] (after its last norm, before the unembedding) and embedded tokens e(x_t), it reads

    z_t = W [e(x_t); f_{t-1}],   f_{-1} = 0, also at the start of a document

through one layer of attention, and its output g_t stands for f_t: softmax(E g_t) drafts x_{t+1}, and g_t in the place
of f_t goes on. Of every scored token it costs

    feature_weight mean_d smooth_l1(g_t - f_t) + token_weight (-sum_v softmax(E f_t)_v log softmax(E g_t)_v)

The model has no gradient: its features, its embedding and its unembedding E are constants here. Differences from the
code: the layer has the norms of the model's own layers (the code leaves out the first one), x_0 is read beside a zero
feature (the code begins with x_1), and no noise is added to features.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.cross_entropy.reference import shape_logits
from models import parameters
from models.block import Period
from models.lm import Head
from models.mixers.context import Context
from models.mixers.memory import Policy
from models.objectives.left_to_right import LeftToRight
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import forward, weighted_nll
from models.products import by_rows
from models.spec import Spec

Array = jax.Array


def before(features: Array, segment_ids: Array | None = None) -> Array:
    """f_{t-1} for every t, 0 where there is none: features `[B, T, D]`, segment_ids `[B, T]`."""
    moved = jnp.pad(features[:, :-1], ((0, 0), (1, 0), (0, 0)))
    if segment_ids is None:
        return moved
    same = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1) == segment_ids
    return jnp.where(same[..., None], moved, 0)


def smooth_l1(x: Array) -> Array:
    """x^2 / 2 where |x| < 1, else |x| - 1/2: `[...]`."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x * x, size - 0.5)


def feature_loss(predicted: Array, features: Array) -> Array:
    """mean_d smooth_l1(g - f): `[..., D]`, `[..., D]` -> `[...]`."""
    return jnp.mean(smooth_l1(predicted - features), axis=-1)


def token_loss(predicted: Array, wanted: Array) -> Array:
    """-sum_v softmax(wanted)_v log softmax(predicted)_v of logits `[..., V]`: `[...]`, in nats."""
    return -jnp.sum(jax.nn.softmax(wanted, axis=-1) * jax.nn.log_softmax(predicted, axis=-1), axis=-1)


class Drafting(nnx.Module):
    """The head: z = W [e; f], then one layer of attention with the model's options."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        init = parameters.normal(parameters.kernel_std(spec, 2 * spec.D, "embed", residual=False))
        self.kernel = parameters.param(init, rngs, (2 * spec.D, spec.D), ("embed", None), "kernel", spec)
        self.layer = Period(dataclasses.replace(spec, mixers=("attention",)), rngs=rngs)
        self.dtype, self.partition = spec.dtype, spec.partition

    def __call__(self, embedded: Array, features: Array, context: Context, state: Any = None) -> tuple[Array, Any]:
        """(g `[B, T, D]`, the layer's decoding state): embedded e(x_t), features f_{t-1}, `[B, T, D]` each."""
        kernel = self.kernel[...].astype(self.dtype)
        pair = jnp.concatenate([embedded, features], axis=-1).astype(self.dtype)
        x = by_rows(lambda x: x @ kernel, pair, self.partition)
        out = self.layer(x, dataclasses.replace(context, flow=self.layer.start(x)), state)
        return out.x, out.state

    def init_state(self, batch: int, length: int) -> Any:
        """The layer's decoding state without a token."""
        return {name: block.mixer.init_state(batch, length, Policy()) for name, block in self.layer.blocks.items()}


@dataclasses.dataclass(frozen=True)
class Eagle(LeftToRight):
    """Options of `config.eagle`; see the formula above."""

    feature_weight: float = 1.0
    token_weight: float = 0.1

    adds_z_loss: ClassVar[bool] = False
    predictions: ClassVar[int] = 3

    def heads(self, spec: Spec) -> Mapping[str, Head]:
        """`eagle`, the head."""
        return {"eagle": functools.partial(_make, spec)}

    def matmul_flops(self, spec: Spec, forward: float, head: int) -> float:
        """FLOPs of a step's products, a token: the model forward, three passes of the `head` numbers of the head's
        kernels, but no gradient to what its first map reads, and three products of the vocabulary: both laws, and the
        gradient of one to its feature."""
        return forward + 6 * head - 2 * 2 * spec.D * spec.D + 3 * 2 * spec.V * spec.D

    def loss(self, model: Any, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """The sum of the formula above over the scored tokens of a batch.

        Args:
          model: an `LM` with the head above; nothing else of it has a gradient.
          batch: as `next_token.loss` reads it, its tokens in their order.
          key, z_loss: not used.

        Returns:
          The sum to differentiate; `nll` of the model's own next token, `feature` and `token`, all of them a scored
          token of the batch; and the model's report.
        """
        out, segments = forward(model, batch), batch.get("segment_ids")
        features, embedded = map(jax.lax.stop_gradient, (out.features, model.embed(batch["tokens"])))
        positions = batch.get("positions")
        positions = jnp.arange(features.shape[1])[None] if positions is None else positions
        context = Context(positions, segments, self.mask)
        predicted, _ = model.heads["eagle"](embedded, before(features, segments), context)
        feature, token = self._sums(model, predicted, features, batch["scored"])
        _, nll = weighted_nll(model, features, batch["targets"], batch["scored"])
        total = self.feature_weight * feature + self.token_weight * token
        return Loss(total, per_scored({"nll": nll, "feature": feature, "token": token}, batch), out.report)

    def _sums(self, model: Any, predicted: Array, features: Array, scored: Array) -> tuple[Array, Array]:
        """Both losses summed over the scored tokens; every device does its own."""
        spec = model.spec

        def local(predicted: Array, features: Array, head: Array, scored: Array) -> Array:
            head = spec.partition.gather(head, (None, "embed")).astype(features.dtype)
            wide = jnp.promote_types(features.dtype, jnp.float32)
            got, wanted = (
                shape_logits(
                    jnp.einsum("btd,vd->btv", x, head, preferred_element_type=wide), spec.logit_scale, spec.softcap
                )
                for x in (predicted, features)
            )
            each = feature_loss(predicted.astype(wide), features.astype(wide)), token_loss(got, wanted)
            return jnp.stack([jnp.sum(jnp.where(scored, x, 0)) for x in each])[None, None]

        rows = ("batch", "sequence")
        args = (predicted, features, jax.lax.stop_gradient(model.head_weights()), scored)
        sums = spec.partition.run(local, args, ((*rows, None), (*rows, None), (None, "embed"), rows), (*rows, None))
        return jnp.sum(sums[..., 0]), jnp.sum(sums[..., 1])


def _make(spec: Spec, rngs: nnx.Rngs) -> Drafting:
    return Drafting(spec, rngs=rngs)


PARTS = {"eagle": Eagle}
