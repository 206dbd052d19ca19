"""Channels that use what a channel may do beside its map: report, carry to the next layer, keep running numbers."""

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters, projections
from models.reports import Mean


class Telling(nnx.Module):
    """A linear map whose layers know their depth from the flow and count tokens, and whose output grows with the count.

    It reports 1 and a loss of a quarter for each token, the tokens of first documents times the layer's number (from
    1), and one entry that is wider than a number.
    """

    carries = {"depth": (2,)}

    def __init__(self, spec, *, rngs):
        self.map = projections.make(spec, spec.D, spec.D, axes=("embed", "hidden"), residual=True, rngs=rngs)
        self.seen = parameters.param(parameters.zeros, rngs, (), (), "running", spec)

    def __call__(self, x, context):
        depth = context.flow["depth"] + jnp.asarray([1.0, 2.0])
        ids = jnp.ones(x.shape[:2], int) if context.segment_ids is None else context.segment_ids
        tokens = jnp.sum(jnp.ones(x.shape[:2]))
        first = jnp.sum(jnp.where(ids == 1, depth[..., 0], 0))
        report = {
            "loss": tokens / 4,
            "ones": Mean(tokens, tokens),
            "first": Mean(first, tokens),
            "wide": Mean(jnp.sum(depth, axis=(0, 1)), tokens),
            "depth": depth,
        }
        return self.map(x) * (1 + self.seen[...] / 2**16).astype(x.dtype), report

    def advance(self, old, report):
        return {"seen": old["seen"] + report["first"].total}

    def flops(self):
        return 2 * parameters.kernel_size(self)


class OneOfTwo(nnx.Module):
    """Two maps, of which every token takes the first: half of the kernels are active."""

    def __init__(self, spec, *, rngs):
        kw = {"axes": ("embed", "hidden"), "residual": True, "rngs": rngs}
        self.maps = nnx.List([projections.make(spec, spec.D, spec.D, **kw) for _ in range(2)])

    def __call__(self, x, context):
        return self.maps[0](jax.nn.relu(x)), {}

    def flops(self):
        return 2 * parameters.kernel_size(self.maps[0])
