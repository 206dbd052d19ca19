"""Socket Channel: what happens to one token? A part maps `x [B, T, D] -> [B, T, D]`."""

from typing import Protocol

import jax
from flax import nnx

from models import projections
from models.pattention import PattentionChannel
from models.spec import Spec

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "silu": jax.nn.silu,
}


class Channel(Protocol):
    """`(spec, *, rngs)`, then `x [B, T, D] -> [B, T, D]`; tokens never meet."""

    def __call__(self, x: jax.Array) -> jax.Array: ...


class MLP(nnx.Module):
    """`act(x W_in) W_out` with hidden width F (0: 4D)."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["mlp"]
        F = options["hidden"] or 4 * spec.D
        kw = {"bias": options["bias"], "rngs": rngs}
        self.up = projections.make(spec, spec.D, F, axes=("embed", "hidden"), **kw)
        self.down = projections.make(spec, F, spec.D, axes=("hidden", "embed"), residual=True, **kw)
        self.activation = ACTIVATIONS[options["activation"]]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))


class SwiGLU(nnx.Module):
    """`(silu(x W_gate) * x W_up) W_down` (Shazeer 2020), hidden width F (0: 8D/3 rounded up to a multiple of 64)."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["swiglu"]
        F = options["hidden"] or -(-8 * spec.D // 3 // 64) * 64
        kw = {"bias": options["bias"], "rngs": rngs}
        self.gate = projections.make(spec, spec.D, F, axes=("embed", "hidden"), **kw)
        self.up = projections.make(spec, spec.D, F, axes=("embed", "hidden"), **kw)
        self.down = projections.make(spec, F, spec.D, axes=("hidden", "embed"), residual=True, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


CHANNELS = {"mlp": MLP, "swiglu": SwiGLU, "pattention": PattentionChannel}
