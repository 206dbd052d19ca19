"""Reports of the parts of a model in a pass, and how they add up over layers, microbatches and steps.

A report is a dict, name -> value. The entry `loss` is a sum over tokens in nats, its coefficient included: it joins the
sum that an objective minimises, and so counts per valid token of the global batch. An entry named after a tapped site
holds activations, and "experts" the choices of each token where they are tapped. Every other entry is a `Mean`. All
entries but those of taps may be added.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mean(NamedTuple):
    """A mean that is not divided yet: two of them add to the mean over both."""

    total: jax.Array
    weight: jax.Array  # broadcasts to `total`

    @property
    def value(self) -> jax.Array:
        """`total / weight`, and 0 where nothing was weighed."""
        return self.total / jnp.where(self.weight == 0, 1, self.weight)


def add(a: Any, b: Any) -> Any:
    """The report of two passes through one model."""
    return jax.tree.map(jnp.add, a, b)


def with_losses(total: jax.Array, report: Mapping[str, Any]) -> jax.Array:
    """`total` plus the losses of a report, in nats; `total` itself where the report has none."""
    return total + jnp.sum(report["loss"]) if "loss" in report else total


def summary(report: Mapping[str, Any], tokens: jax.Array) -> dict[str, jax.Array]:
    """One number for each entry that has one a layer: `loss` per token, a mean over all layers for the others.

    Entries with more than one number a layer are left out.
    """
    found = {}
    for name, value in report.items():
        if name == "loss":
            found[name] = jnp.sum(value) / tokens
        elif isinstance(value, Mean) and value.total.ndim == 1:
            weight = jnp.broadcast_to(value.weight, value.total.shape)
            found[name] = Mean(jnp.sum(value.total), jnp.sum(weight)).value
    return found


SHOWN = 256  # Numbers of one figure: of more, such as the load of 61 layers with 256 experts, a line would be pages.


def by_layer(figures: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Metrics of what channels read off a report, `[L', ...]` each: one for every layer, and their mean.

    Figures of more than `SHOWN` numbers are left out.
    """
    found = {}
    for name, values in figures.items():
        if values.ndim == 1:
            found[f"train/report/{name}"] = jnp.mean(values)
        if values.size <= SHOWN:
            places = np.ndindex(values.shape)
            found |= {f"train/layers/{name}/{'/'.join(f'{i:02}' for i in at)}": values[at] for at in places}
    return found


def join(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Reports of the blocks of a period, `[repeats, ...]` each, as one of the stack, `[L', ...]` in order of depth.

    L' counts the layers that report the entry.
    """
    found = {}
    for name in dict.fromkeys(name for report in blocks.values() for name in report):
        values = [report[name] for report in blocks.values() if name in report]
        found[name] = jax.tree.map(lambda *xs: _interleave(xs), *values)
    return found


def _interleave(xs: Sequence[jax.Array]) -> jax.Array:
    return xs[0] if len(xs) == 1 else jnp.stack(xs, 1).reshape(-1, *xs[0].shape[1:])
