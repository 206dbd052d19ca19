"""Socket Channel: what happens to one token?

A part is built by `(spec, *, rngs)` and called as `(x [B, T, D], context) -> (y [B, T, D], report)`. No token reads
another. `report` is a dict (see models/reports.py), `{}` where there is nothing to report. `flops` counts the matrix
products of a token, forward, in the part of the channel that is active for it.

Optional are:

- `carries`, a dict name -> shape, say `{"router": (E,)}`. `context.flow[name]`, `[B, T, E]` in float32 or wider, then
  holds the entry of this name in the report of the layer before, zeros in the first layer. Such entries are not part of
  the model's report.
- Parameters of role `running`, which no gradient trains, and `advance(old, report) -> new`, which Program calls once a
  step. `old` holds these parameters by name, `report` the part's entries over the whole global batch (a Mean as a Mean,
  undivided); both have the layers `[L', ...]` in front. They are float32 or wider: a count is exact up to 2^24. With
  `within(old, report) -> new` the microbatches of a step see them renewed from the report of those before.
- `figures(report) -> dict`, numbers of each layer `[L']` that metrics show and that follow from the whole batch alone.
- Channels of a model may differ from layer to layer (model.channel is a list then); those with one of the last two are
  of one kind.
- `problems(options, facts)`, sentences about options that do not go with the rest of the config: models/facts.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
from flax import nnx

from models import parameters, pattention, projections
from models.activations import ACTIVATIONS, through
from models.experts.channel import MoE
from models.facts import Facts
from models.mixers.context import Context
from models.pattention import Pattention
from models.spec import Spec


class Channel(Protocol):
    """See the module's docstring."""

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]: ...

    def flops(self) -> float: ...


class MLP(nnx.Module):
    """`act(x W_in) W_out` with hidden width F (0: 4D)."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["mlp"]
        F = options["hidden"] or 4 * spec.D
        kw = {"bias": options["bias"], "rngs": rngs}
        self.up = projections.make(spec, spec.D, F, axes=("embed", "hidden"), name="up", **kw)
        self.down = projections.make(spec, F, spec.D, axes=("hidden", "embed"), residual=True, name="down", **kw)
        self.activation = ACTIVATIONS[options["activation"]]

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        return through(self.activation, self.down, self.up(x)), {}

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """A hidden width that no rule of sizes knows."""
        return _fixed_width("mlp", options, facts)

    def flops(self) -> int:
        """Two products, of every kernel once."""
        return 2 * parameters.kernel_size(self)


class SwiGLU(nnx.Module):
    """`(act(x W_gate) * x W_up) W_down` (Shazeer 2020), hidden width F (0: 8D/3 rounded up to a multiple of 64)."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["swiglu"]
        F = options["hidden"] or -(-8 * spec.D // 3 // 64) * 64
        kw = {"bias": options["bias"], "rngs": rngs}
        self.gate = projections.make(spec, spec.D, F, axes=("embed", "hidden"), name="up", **kw)
        self.up = projections.make(spec, spec.D, F, axes=("embed", "hidden"), name="up", **kw)
        self.down = projections.make(spec, F, spec.D, axes=("hidden", "embed"), residual=True, name="down", **kw)
        self.activation = ACTIVATIONS[options["activation"]]

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        hidden = self.gate(x), self.up(x)
        return through(lambda gate, up: self.activation(gate) * up, self.down, *hidden), {}

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """A hidden width that no rule of sizes knows."""
        return _fixed_width("swiglu", options, facts)

    def flops(self) -> int:
        """Three products, of every kernel once."""
        return 2 * parameters.kernel_size(self)


class PattentionChannel(nnx.Module):
    """The feed-forward of TokenFormer: ONE Pattention D -> D over `channel_tokens` (0: 4 x tokens)."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.map = Pattention(spec, spec.D, spec.D, axes=("embed", "embed"), residual=True, name="channel", rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict]:
        return self.map(x), {}

    problems = staticmethod(pattention.problems)

    def flops(self) -> int:
        """Scores of all keys, and their product with the values."""
        return 2 * parameters.kernel_size(self)


def _fixed_width(group: str, options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    rule, hidden = facts.model["parametrization"], options["hidden"]
    if rule != "standard" and hidden:
        yield (
            f"model.{group}.hidden={hidden} does not follow the width, which model.parametrization={rule!r} goes by; "
            f"use model.{group}.hidden=0."
        )


CHANNELS = {
    "mlp": MLP,
    "swiglu": SwiGLU,
    "pattention": PattentionChannel,
    "moe": MoE,
}
