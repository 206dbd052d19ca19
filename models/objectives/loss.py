"""The loss of a batch, with its metrics and the model's report."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.reports import Mean


class Loss(NamedTuple):
    """The result of `Objective.loss`; see models/reports.py for the units of a report."""

    total: jax.Array  # to differentiate: a sum over tokens, in nats, without the losses of the report
    means: dict[str, Mean]  # what the metrics show, by name
    report: dict[str, Any]  # of the model's parts, over all passes that the objective made


def per_scored(sums: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> dict[str, Mean]:
    """Sums over the scored tokens of a batch as means over them, outside of the gradient."""
    scored = jnp.sum(batch["scored"], dtype=jnp.float32)
    return {name: Mean(jax.lax.stop_gradient(value), scored) for name, value in sums.items()}
