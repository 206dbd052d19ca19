"""Normalisation over the last dimension, with or without parameters, always computed in float32 or better."""

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.spec import Spec


class Norm(nnx.Module):
    """RMSNorm or LayerNorm: `x [..., D] -> [..., D]` in `spec.dtype`.

    RMSNorm: x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019). LayerNorm also subtracts the mean (Ba et al. 2016).
    Then it is multiplied by the scale, by 1 + scale where `model.norm_offset` says so, and the bias is added.
    """

    def __init__(
        self,
        spec: Spec,
        width: int,
        *,
        kind: str,
        scale: bool,
        bias: bool = False,
        eps: float | None = None,  # None: the model's.
        rngs: nnx.Rngs,
    ):
        self.centre = kind == "layernorm"
        self.eps = spec.norm_eps if eps is None else eps
        self.dtype = spec.dtype
        self.offset = spec.norm_offset
        first = parameters.zeros if self.offset else parameters.ones
        self.scale = parameters.param(first, rngs, (width,), (None,), "norm", spec) if scale else None
        self.bias = parameters.param(parameters.zeros, rngs, (width,), (None,), "norm", spec) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.centre:
            x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        if self.scale is not None:
            x = x * (1 + self.scale[...] if self.offset else self.scale[...])
        if self.bias is not None:
            x = x + self.bias[...]
        return x.astype(self.dtype)


NORMS = ("rmsnorm", "layernorm")


def make(spec: Spec, *, rngs: nnx.Rngs) -> Norm:
    """The norm before a mixer or a channel, as `config.model.norm*` says."""
    return Norm(spec, spec.D, kind=spec.norm, scale=spec.norm_scale, bias=spec.norm_bias, rngs=rngs)


def make_final(spec: Spec, *, rngs: nnx.Rngs) -> Norm:
    """The norm before the head: the same kind as inside, or one by name with parameters."""
    if spec.final_norm == "same":
        return make(spec, rngs=rngs)
    return Norm(spec, spec.D, kind=spec.final_norm, scale=True, bias=spec.final_norm == "layernorm", rngs=rngs)
