"""A short causal convolution of each channel, over the tokens of a document, in front of a memory."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.mixers.context import Context
from models.spec import Spec

Three = tuple[jax.Array, jax.Array, jax.Array]


def short_conv(
    x: jax.Array, kernel: jax.Array, segment_ids: jax.Array | None = None, before: jax.Array | None = None
) -> jax.Array:
    """y_t = sum_{w < W} kernel_{W-1-w} x_{t-w}, `[B, T, C]`: a weight a channel for a token and the W - 1 before it.

    What stands before a document counts as zeros, as in Mamba (Gu & Dao 2023) and the gated delta net.

    Args:
      x: `[B, T, C]`.
      kernel: `[W, C]`; the last row is the weight of the token itself.
      segment_ids: `[B, T]`, the document of each token; None: a row is one document.
      before: `[B, W - 1, C]` tokens in front of the row; None: there are none.
    """
    W, (B, T, C) = kernel.shape[0], x.shape
    before = jnp.zeros((B, W - 1, C), x.dtype) if before is None else before
    joined = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    out = x * kernel[-1].astype(x.dtype)
    for w in range(1, W):
        earlier = joined[:, W - 1 - w : W - 1 - w + T]
        if segment_ids is not None:
            own = jnp.pad(segment_ids, ((0, 0), (w, 0)))[:, :T] == segment_ids
            earlier = jnp.where(own[..., None], earlier, 0)
        out = out + earlier * kernel[W - 1 - w].astype(x.dtype)
    return out


class Convolution(nnx.Module):
    """`short_conv` of q, k and v, `[B, T, N H]` each; weights start uniform within 1 / sqrt(W)."""

    def __init__(self, spec: Spec, width: int, *, rngs: nnx.Rngs):
        near = 1 / math.sqrt(width)
        uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -near, near)  # noqa: E731
        for name in "qkv":  # As biases: neither decayed nor made orthogonal.
            shape = (width, spec.N * spec.H)
            setattr(self, name, parameters.param(uniform, rngs, shape, (None, "heads"), "bias", spec))
        self.width, self.channels, self.dtype = width, spec.N * spec.H, spec.dtype

    def __call__(self, tokens: Three, context: Context, before: Three | None) -> tuple[Three, Three | None]:
        """(q, k, v behind the convolution, the newest W - 1 of each as they came); `before` those of the state."""
        earlier = before or (None,) * 3
        ids = None if before else context.segment_ids
        kernels = (self.q[...], self.k[...], self.v[...])
        made = tuple(short_conv(x, w, ids, b) for x, w, b in zip(tokens, kernels, earlier, strict=True))
        if before is None:
            return made, None
        read = jnp.sum(context.positions >= 0, axis=1)  # Padding stands at the end of a row.
        newest = read[:, None] + jnp.arange(self.width - 1)
        keep = lambda x, b: jnp.take_along_axis(jnp.concatenate([b, x], axis=1), newest[..., None], axis=1)  # noqa: E731
        return made, tuple(keep(x.astype(b.dtype), b) for x, b in zip(tokens, before, strict=True))

    def start(self, batch: int) -> Three:
        """What stands before the first token: zeros."""
        return tuple(jnp.zeros((batch, self.width - 1, self.channels), self.dtype) for _ in range(3))

    def flops(self) -> int:
        """Forward FLOPs a token."""
        return 6 * self.width * self.channels
