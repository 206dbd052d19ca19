"""Shared by mixers that learn or accumulate along the row: gates, a norm, documents and padding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from kernels.lengths import scaled_to
from models import parameters, projections
from models.mixers.context import Context
from models.partition import Partition
from models.spec import Spec

TOKENS = ("batch", "sequence", "heads", None)  # logical axes of [B, T, N, H]
RATES = ("batch", "sequence", "heads")  # of [B, T, N]
WEIGHTS = ("batch", "heads", None, None)  # of fast weights [B, N, F, H]
ROWS = ("batch",)


class Gate(nnx.Module):
    """`x W + b`, `[B, T, D] -> [B, T, N]` float32 or wider: a few numbers a token, dense whatever the projections."""

    def __init__(self, spec: Spec, width: int, *, bias: Callable = parameters.zeros, rngs: nnx.Rngs):
        self.map = projections.Dense(spec, spec.D, width, axes=("embed", "heads"), rngs=rngs)
        self.bias = parameters.param(bias, rngs, (width,), ("heads",), "bias", spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.map(x)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32)) + self.bias[...]


def unit(x: jax.Array) -> jax.Array:
    """x / (||x|| + 1e-5) over the last axis, computed in float32 or wider; gradient 0 where x is 0."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return scaled_to(wide, None, (-1,), 1e-5).astype(x.dtype)


def only_causal(name: str, mask: masks.Mask) -> None:
    """Raises ValueError for a mask that the recurrence of this mixer cannot follow."""
    if mask != masks.Causal():
        raise ValueError(f"model.mixer={name!r} is causal and cannot follow the mask {mask}; use Causal().")


def kept(context: Context, state: Any, state_axes: Any) -> tuple[dict, dict]:
    """A kernel's arguments beside the tokens, and their logical axes: documents in training, state and lengths in
    decoding.

    In decoding a row is one document. Tokens with negative positions stand at its end and are padding.
    """
    if state is None:
        ids = context.segment_ids
        axes = {"segment_ids": None if ids is None else ("batch", "sequence"), "state": None}
        return {"segment_ids": ids, "state": None}, axes
    count = jnp.sum(context.positions >= 0, axis=1, dtype=jnp.int32)
    return {"state": state, "lengths": count}, {"state": state_axes, "lengths": ROWS}


def shared_by(partition: Partition) -> str | None:
    """The mesh axis whose devices share a sequence, None where each has whole ones."""
    return partition.mesh_axes("sequence")[0] if partition.schedule else None


def start(init: Callable, rngs: nnx.Rngs, shape: tuple[int, ...], spec: Spec) -> nnx.Param:
    """The parameter of the fast weights `[N, ...]` that every document starts from."""
    return parameters.param(init, rngs, shape, ("heads", *(None,) * (len(shape) - 1)), "fast", spec)
