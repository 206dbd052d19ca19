"""Softmax attention with grouped queries, rotary positions, optional QK-norm, window and sinks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from kernels.attention import attention
from kernels.attention.cached import attend_cache
from models import norms, projections, rope
from models.mixers.attend import attend, attend_row, recall
from models.mixers.context import Context
from models.mixers.memory import Memory, Policy
from models.spec import Spec


class Attention(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`, N query heads over K key/value heads of width H (Vaswani et al. 2017; GQA 2023).

    The decoding state is a `models.mixers.memory.Memory`. Its class says what is kept; masks go by positions, so the
    order of slots is free.
    """

    bidirectional = True
    context_parallel = True
    grouped = True
    grows = True
    sized = True

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["attention"]
        D, N, K, H = spec.D, spec.N, spec.K, spec.H
        kw = {"bias": options["bias"], "rngs": rngs}
        self.q = projections.make(spec, D, N * H, axes=("embed", "heads"), name="q", **kw)
        self.k = projections.make(spec, D, K * H, axes=("embed", "heads"), name="k", **kw)
        self.v = projections.make(spec, D, K * H, axes=("embed", "heads"), name="v", **kw)
        self.out = projections.make(spec, N * H, D, axes=("heads", "embed"), residual=True, name="o", **kw)
        head_norm = {"kind": "rmsnorm", "scale": True, "rngs": rngs}
        self.q_norm = norms.Norm(spec, H, **head_norm) if options["qk_norm"] else None
        self.k_norm = norms.Norm(spec, H, **head_norm) if options["qk_norm"] else None
        self.N, self.K, self.H, self.dtype, self.q_width = N, K, H, spec.dtype, N * H
        self.theta, self.fraction = options["rope_theta"], options["rope_fraction"]
        self.window, self.sinks = options["window"], options["sinks"]
        self.partition, self.score_scale = spec.partition, spec.sizes.scores
        self.implementation = options["implementation"] or None

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        mask, options = self._see(context), {"implementation": self.implementation}
        if state is None:
            q, k, v = self.project(x, context.positions)
            out = attend_row(self.partition, q, k, v, context, mask, **options)
        else:
            rotate = functools.partial(rope.rotate, theta=self.theta, fraction=self.fraction)
            q, k, v = self.heads(x)
            out, state = recall(self.partition, q, k, v, context, mask, state, rotate=rotate, **options)
        return self.out(out.reshape(*out.shape[:2], -1)), state

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, before rotary positions."""
        q, k, v = (y.reshape(*y.shape[:2], -1, self.H) for y in (self.q(x), self.k(x), self.v(x)))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q if self.score_scale == 1.0 else q * jnp.asarray(self.score_scale, q.dtype), k, v

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries `[B, T, N, H]` and keys, and values, `[B, T, K, H]`."""
        q, k, v = self.heads(x)
        q, k = (rope.rotate(y, positions, theta=self.theta, fraction=self.fraction) for y in (q, k))
        return q, k, v

    def values(self, x: jax.Array) -> jax.Array:
        """Values alone, `[B, T, K * H]`."""
        return self.v(x)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: masks.Mask, *, cached: bool) -> jax.Array:
        """Attention over a cache or over the row itself, then the output projection: `[B, T, D]`."""
        op = functools.partial(attend_cache if cached else attention, implementation=self.implementation)
        out = attend(self.partition, op, q, k, v, mask)
        return self.out(out.reshape(*q.shape[:2], -1))

    def _see(self, context: Context) -> masks.Mask:
        """The objective's mask within this layer's window, joined by the sinks: the first tokens of each document."""
        if not self.window:
            return context.mask
        near = masks.Window(self.window - 1, self.window - 1)
        if not self.sinks:
            return context.mask & near
        first = masks.Sinks(self.sinks)
        if context.segment_ids is not None:
            first = masks.Positions(context.positions, context.positions, rule=first)
        return context.mask & (near | first)

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: scores and their product with v over the keys it sees."""
        window = min(self.window or length, length)
        seen = window - window * (window - 1) / (2 * length) if causal else window
        return {"attention": 4 * self.q_width * seen}

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> Memory:
        """What is kept of `batch` rows of up to `length` tokens: everything, or what `memory` says."""
        return (memory or Policy()).empty(batch, length, N=self.N, K=self.K, H=self.H, dtype=self.dtype)


PARTS = {"attention": Attention}
