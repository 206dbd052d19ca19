"""Softmax attention with grouped queries, rotary positions, optional QK-norm, window and sinks."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from kernels.attention import attention
from kernels.attention.cached import attend_cache
from models import norms, parameters, projections, rope
from models.facts import Facts
from models.mixers import together
from models.mixers.attend import attend, attend_row, recall
from models.mixers.context import Context
from models.mixers.memory import Memory, Policy
from models.rope_scaling import Scaling
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
    joins = True
    sized = True

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["attention"]
        D, N, K, H = spec.D, spec.N, spec.K, spec.H
        kw = {"bias": options["bias"] or options["qkv_bias"], "rngs": rngs}
        self.q = projections.make(spec, D, N * H, axes=("embed", "heads"), name="q", **kw)
        self.k = projections.make(spec, D, K * H, axes=("embed", "heads"), name="k", **kw)
        self.v = projections.make(spec, D, K * H, axes=("embed", "heads"), name="v", **kw)
        kw["bias"] = options["bias"]
        self.out = projections.make(spec, N * H, D, axes=("heads", "embed"), residual=True, name="o", **kw)
        head_norm = {"kind": "rmsnorm", "scale": True, "eps": options["qk_norm_eps"] or None, "rngs": rngs}
        self.by_row = options["qk_norm_over"] == "row"
        self.q_norm = norms.Norm(spec, N * H if self.by_row else H, **head_norm) if options["qk_norm"] else None
        self.k_norm = norms.Norm(spec, K * H if self.by_row else H, **head_norm) if options["qk_norm"] else None
        sinks = ((N,), ("heads",), "bias", spec)
        self.sink_scores = parameters.param(parameters.zeros, rngs, *sinks) if options["sink_scores"] else None
        self.N, self.K, self.H, self.dtype, self.q_width = N, K, H, spec.dtype, N * H
        self.theta, self.fraction = options["rope_theta"], options["rope_fraction"]
        self.scaling = Scaling.of(options["rope_scaling"])
        self.steady = self.scaling is None or self.scaling.steady
        self.window, self.sinks = options["window"], options["sinks"]
        self.partition, self.softcap = spec.partition, options["softcap"] or None
        self.score_scale = spec.sizes.scores * (options["scale"] * math.sqrt(H) if options["scale"] else 1.0)
        self.implementation = options["implementation"] or None

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        return self.over(*self.heads(x), context, state)

    def over(
        self, q: jax.Array, k: jax.Array, v: jax.Array, context: Context, state: Any = None
    ) -> tuple[jax.Array, Any]:
        """The layer behind its queries, keys and values as `heads` makes them: `[B, T, D]` and the state."""
        mask, options = self._see(context), {"implementation": self.implementation, "softcap": self.softcap}
        options["sinks"] = None if self.sink_scores is None else self.sink_scores[...]
        if state is None:
            q, k = self.rotate(q, context.positions), self.rotate(k, context.positions)
            out = attend_row(self.partition, q, k, v, context, mask, **options)
            return self.out(out.reshape(*out.shape[:2], -1)), None
        options |= {"rotate": self.rotate, "steady": self.steady}
        if not context.parts:
            out, state = recall(self.partition, q, k, v, context, mask, state, **options)
            return self.out(out.reshape(*out.shape[:2], -1)), state
        cut = zip(*(together.cut(y, context.parts) for y in (q, k, v)), context.parts, state, strict=True)
        made = [recall(self.partition, *heads, part, mask, held, **options) for *heads, part, held in cut]
        out = together.joined([out for out, _ in made])
        return self.out(out.reshape(*out.shape[:2], -1)), tuple(held for _, held in made)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]`, before rotary positions."""
        heads = lambda y: y.reshape(*y.shape[:2], -1, self.H)  # noqa: E731
        q, k, v = self.q(x), self.k(x), heads(self.v(x))
        if not self.by_row:
            q, k = heads(q), heads(k)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = heads(q), heads(k)
        return q if self.score_scale == 1.0 else q * jnp.asarray(self.score_scale, q.dtype), k, v

    def project(self, x: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries `[B, T, N, H]` and keys, and values, `[B, T, K, H]`."""
        q, k, v = self.heads(x)
        return self.rotate(q, positions), self.rotate(k, positions), v

    def rotate(self, x: jax.Array, positions: jax.Array, **more: Any) -> jax.Array:
        """x `[B, T, N|K, H]` turned by this layer's rotary positions; `within`, `along`: see `rope.rotate`."""
        return rope.rotate(x, positions, theta=self.theta, fraction=self.fraction, scaling=self.scaling, **more)

    def values(self, x: jax.Array) -> jax.Array:
        """Values alone, `[B, T, K * H]`."""
        return self.v(x)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: masks.Mask, *, cached: bool) -> jax.Array:
        """Attention over a cache or over the row itself, then the output projection: `[B, T, D]`."""
        more = {"implementation": self.implementation, "softcap": self.softcap}
        op = functools.partial(attend_cache if cached else attention, **more)
        sinks = None if self.sink_scores is None else self.sink_scores[...]
        out = attend(self.partition, op, q, k, v, mask, sinks=sinks)
        return self.out(out.reshape(*q.shape[:2], -1))

    def _see(self, context: Context) -> masks.Mask:
        """The objective's mask within this layer's window, joined by the sinks: the first tokens of each document."""
        if not self.window:
            return context.mask
        near = masks.Window(self.window - 1, self.window - 1)
        if not self.sinks:
            return context.mask & near
        first = masks.Sinks(self.sinks)
        if context.segment_ids is not None and not context.decoding:
            first = masks.Positions(context.positions, context.positions, rule=first)
        return context.mask & (near | first)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Scores that devices which share a sequence cannot shape, and rates that are not there."""
        for name in ("softcap", "sink_scores"):
            if options[name] and facts.ways("sequence") > 1:
                yield (
                    f"model.attention.{name}={options[name]!r} is not computed where devices share a sequence; use "
                    "mesh.context=1."
                )
        scaling, R = options["rope_scaling"], int(facts.head_width * options["rope_fraction"]) // 2 * 2
        if scaling["kind"] == "longrope":
            for name in ("short_factors", "long_factors"):
                if len(scaling[name]) != R // 2 or not all(is_positive(number) for number in scaling[name]):
                    yield (
                        f"model.attention.rope_scaling.{name} has {len(scaling[name])} elements; use {R // 2} positive "
                        "numbers, one for each rotated pair of a head."
                    )
        if scaling["kind"] == "dynamic" and R < 4:
            yield (
                f"model.attention.rope_scaling.kind='dynamic' needs four rotated numbers a head and has {R}; use "
                "kind='linear'."
            )
        if scaling["kind"] == "llama3" and scaling["high"] <= scaling["low"]:
            yield (
                f"model.attention.rope_scaling.high={scaling['high']} must be above low={scaling['low']}; use e.g. "
                "high=4.0."
            )

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: scores and their product with v over the keys it sees."""
        window = min(self.window or length, length)
        seen = window - window * (window - 1) / (2 * length) if causal else window
        return {"attention": 4 * self.q_width * seen}

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> Memory:
        """What is kept of `batch` rows of up to `length` tokens: everything, or what `memory` says."""
        return (memory or Policy()).empty(batch, length, N=self.N, K=self.K, H=self.H, dtype=self.dtype)


def is_positive(text: str) -> bool:
    """Whether a text is a positive number."""
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


PARTS = {"attention": Attention}
