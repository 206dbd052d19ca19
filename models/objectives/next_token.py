"""The autoregressive control: exact likelihood, each token given those before it."""

import jax
import jax.numpy as jnp

from kernels import masks
from kernels.cross_entropy import cross_entropy, token_nll

mask = masks.Causal()
bound = "="  # What the reported nats are: the exact negative log-likelihood.
bidirectional = False
extra_tokens = 0


def loss(model, batch: dict, key: jax.Array, *, z_loss: float = 0.0) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of `-log p(target | tokens up to it)` over the valid targets of a batch, in nats, plus the z-loss.

    Args:
      model: an `LM`.
      batch: `tokens`, `targets` `[B, T]`, `mask [B, T]` (a target counts), and where rows hold several documents
        `positions` and `segment_ids` `[B, T]`.
      key: not used; other objectives draw noise from it.
      z_loss: weight of the squared log-partition.

    Returns:
      The sum to differentiate and `{"nll": sum of nats}`.
    """
    features = _features(model, batch)
    total, nll = cross_entropy(
        features,
        model.head_weights(),
        batch["targets"].reshape(-1),
        batch["mask"].reshape(-1).astype(jnp.float32),
        z_loss=z_loss,
        scale=model.spec.logit_scale,
        softcap=model.spec.softcap,
    )
    return total, {"nll": nll}


def row_nll(model, batch: dict, key: jax.Array) -> jax.Array:
    """Nats of each row's valid targets, `[B]`: what evaluation sums."""
    nll = token_nll(
        _features(model, batch),
        model.head_weights(),
        batch["targets"].reshape(-1),
        scale=model.spec.logit_scale,
        softcap=model.spec.softcap,
    )
    return jnp.sum(jnp.where(batch["mask"], nll.reshape(batch["mask"].shape), 0), axis=-1)


def _features(model, batch: dict) -> jax.Array:
    """Features `[B * T, D]`."""
    features, _ = model(
        batch["tokens"], mask=mask, positions=batch.get("positions"), segment_ids=batch.get("segment_ids")
    )
    return features.reshape(-1, features.shape[-1])
