"""The autoregressive control: exact likelihood, each token given those before it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.cross_entropy import cross_entropy, token_nll
from kernels.cross_entropy.reference import shape_logits
from models.block import Pass
from models.objectives.loss import Loss, per_scored
from models.products import by_rows

mask = masks.Causal()
bound = "="  # What the reported nats are: the exact negative log-likelihood.
causal = True
generator = "autoregressive"
context_parallel = True
extra_tokens = 0
copies = 1
adds_z_loss = True
tells_roles = True


def corrupt(batch: dict, key: jax.Array) -> dict:
    """The batch unchanged: this objective draws no noise."""
    return batch


def loss(model, batch: dict, key: jax.Array, *, z_loss: float = 0.0) -> Loss:
    """Sum of `-log p(target | tokens up to it)` over the valid targets of a batch, in nats, plus the z-loss.

    Args:
      model: an `LM`; one that `softens` decides softly in this pass, and for good wherever else it is read.
      batch: `tokens`, `targets` `[B, T]`, `scored [B, T]` (a target counts), and where rows hold several documents
        `positions` and `segment_ids` `[B, T]`.
      key: not used; other objectives draw noise from it.
      z_loss: weight of the squared log-partition.

    Returns:
      The sum to differentiate, `nll` a target, and the model's report.
    """
    out = forward(model, batch, **({"soft": True} if getattr(model, "softens", False) else {}))
    total, nll = weighted_nll(model, out.features, batch["targets"], batch["scored"], z_loss=z_loss)
    return Loss(total, per_scored({"nll": nll}, batch), out.report)


def row_nll(model, batch: dict, key: jax.Array) -> jax.Array:
    """Nats of each row's valid targets, `[B]`: what evaluation sums."""
    nll = target_nll(model, forward(model, batch).features, batch["targets"])
    return jnp.sum(jnp.where(batch["scored"], nll, 0), axis=-1)


def weighted_nll(
    model,
    features: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    classes: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums over all tokens of `weight * (nll + z_loss log(Z)^2)` and of `weight * nll`; every device does its tokens.

    Args:
      model: an `LM`.
      features: `[B, T, D]`.
      targets: `[B, T]` ids.
      weights: `[B, T]` not differentiated.
      z_loss: weight of the squared log-partition.
      classes: only ids below this one can be predicted; None: every row of the head.
    """
    partition, spec = model.spec.partition, model.spec

    def local(features: jax.Array, head: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
        head = partition.gather(head, (None, "embed"))
        total, nll = cross_entropy(
            features.reshape(-1, features.shape[-1]),
            head,
            targets.reshape(-1),
            weights.reshape(-1).astype(jnp.float32),
            z_loss=z_loss,
            scale=spec.logit_scale,
            softcap=spec.softcap,
        )
        return jnp.stack([total, nll])[None, None]

    rows = ("batch", "sequence")
    args = (features, model.head_weights()[:classes], targets, weights)
    sums = partition.run(local, args, ((*rows, None), (None, "embed"), rows, rows), (*rows, None))
    return jnp.sum(sums[..., 0]), jax.lax.stop_gradient(jnp.sum(sums[..., 1]))


def target_nll(model, features: jax.Array, targets: jax.Array, *, classes: int | None = None) -> jax.Array:
    """Nats of each target, `[B, T]`, for evaluation: not meant to be differentiated. Arguments: see `weighted_nll`."""
    spec = model.spec

    def local(features: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        head = spec.partition.gather(head, (None, "embed"))
        flat = features.reshape(-1, features.shape[-1])
        nll = token_nll(flat, head, targets.reshape(-1), scale=spec.logit_scale, softcap=spec.softcap)
        return nll.reshape(targets.shape)

    rows = ("batch", "sequence")
    args = (features, model.head_weights()[:classes], targets)
    return spec.partition.run(local, args, ((*rows, None), (None, "embed"), rows), rows)


def over_logits(
    function: Callable[..., jax.Array], model, features: jax.Array, *arrays: jax.Array, classes: int | None = None
) -> jax.Array:
    """`function(logits [b, T, C], *arrays) -> [b, ...]` of the rows of every device, joined: `[B, ...]`.

    For losses that need whole rows of logits. The logits are float32 or wider and are held in memory, B T C numbers.
    Every array has the batch in front. Other arguments: see `weighted_nll`.
    """
    spec = model.spec

    def local(features: jax.Array, head: jax.Array, *arrays: jax.Array) -> jax.Array:
        wide = jnp.promote_types(features.dtype, jnp.float32)
        head = head.astype(features.dtype)
        multiply = lambda x: jnp.einsum("md,vd->mv", x, head, preferred_element_type=wide)  # noqa: E731
        logits = by_rows(multiply, features)
        return function(shape_logits(logits, spec.logit_scale, spec.softcap), *arrays)

    rows = tuple(("batch", *(None,) * (array.ndim - 1)) for array in arrays)
    args = (features, model.head_weights()[:classes], *arrays)
    return spec.partition.run(local, args, (("batch", None, None), (None, None), *rows), ("batch",))


def forward(model, batch: dict, **told: Any) -> Pass:
    """A plain pass over a batch: each token sees those before it in its segment; `told` goes to the model."""
    return model(batch["tokens"], mask=mask, **told_of(batch), **told)


def told_of(batch: dict) -> dict[str, Any]:
    """What of a batch the model is told beside its tokens: places, documents, and roles where there are any."""
    roles = {"roles": batch["roles"]} if "roles" in batch else {}
    return {name: batch.get(name) for name in ("positions", "segment_ids")} | roles
