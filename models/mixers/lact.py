"""LaCT: sliding-window attention beside fast weights that learn the text chunk by chunk, on shared queries and keys."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from kernels.lact import LactState, lact
from kernels.lact import init_state as init_fast
from kernels.lact.reference import Carry
from models import norms, parameters, projections, rope
from models.facts import Facts, largest_divisor
from models.mixers import fast
from models.mixers.attend import attend_row, recall
from models.mixers.context import Context
from models.mixers.memory import Memory, Policy
from models.spec import Spec

EPSILON = 1e-5  # Of the norms inside the released layer; the model's norms have their own.
IDENTITY, GAIN = 0.5, 0.5  # Low-rank start of w0 and w2: left right + IDENTITY I, entries scaled by GAIN.


class LactMixerState(NamedTuple):
    """Decoding state: the window's keys and values, and the fast weights with their open chunk."""

    window: Memory
    fast: LactState


class Lact(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`: out(window attention + scaled norm of the fast weights' output), q, k, v shared.

    N attention heads of width H; `lact.heads` fast ones of width d = N H / heads, hidden width F = `hidden_ratio` d.
    Fast q, k: per-channel scale and offset, SiLU, length 1 per head, then rotary positions in the layout of the
    attention heads. Fast v: SiLU. Rates: softplus, per token, head and matrix. The state is constant in the length
    of the text: the window's keys and values, 3 F d weights a head (twice with momentum) and one chunk of tokens.

    Source: "Test-Time Training Done Right" (LaCT), the released language-model layer.
    """

    bidirectional = False
    computed_again = 2
    context_parallel, layouts = True, ("striped",)  # In stripes every device holds an equal share of every chunk.

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options = spec.options["lact"]
        D, N, width, heads = spec.D, spec.N, spec.N * spec.H, options["heads"]
        self.q, self.k, self.v = (
            projections.make(spec, D, width, axes=("embed", "heads"), name=name, rngs=rngs) for name in "qkv"
        )
        self.out = projections.make(spec, width, D, axes=("heads", "embed"), residual=True, name="o", rngs=rngs)
        rms = {"kind": "rmsnorm", "scale": True, "eps": EPSILON, "rngs": rngs}
        self.q_norm = norms.Norm(spec, width, **rms) if options["qk_norm"] else None
        self.k_norm = norms.Norm(spec, width, **rms) if options["qk_norm"] else None
        channels = lambda init, role: parameters.param(init, rngs, (2, width), (None, "heads"), role, spec)  # noqa: E731
        self.scale, self.offset = channels(parameters.ones, "norm"), channels(parameters.zeros, "bias")
        self.rate = fast.Gate(spec, 3 * heads, rngs=rngs)
        self.momentum = fast.Gate(spec, heads, rngs=rngs) if options["momentum"] else None
        self.output_scale = fast.Gate(spec, heads, rngs=rngs) if options["output_scale"] else None
        self.fast_norm = norms.Norm(spec, width // heads, **rms)
        self._init_fast_weights(spec, width // heads, rngs)
        self.options, self.heads, self.N, self.H = options, heads, N, spec.H
        self.dtype, self.partition = spec.dtype, spec.partition

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Refuses heads that do not divide, and a chunk as long as the row: no token would read what it taught."""
        width, heads, chunk = facts.model["num_heads"] * facts.head_width, options["heads"], options["chunk_size"]
        tensor = facts.mesh["tensor"] if "tensor" in facts.sharding["heads"] else 1
        if width % heads:
            fits = largest_divisor(width, heads)
            yield f"model.lact.heads={heads} must divide the {width} channels of q; use e.g. model.lact.heads={fits}."
        elif tensor > 1 and heads % tensor:
            yield (
                f"model.lact.heads={heads} does not divide over mesh.tensor={tensor}; "
                f"use e.g. model.lact.heads={-(-heads // tensor) * tensor}."
            )
        context = facts.mesh["context"] if facts.sharding["sequence"] else 1
        if context > 1 and chunk % context:
            yield (
                f"model.lact.chunk_size={chunk} does not divide over mesh.context={context}, whose devices share "
                f"every chunk; use e.g. model.lact.chunk_size={-(-chunk // context) * context}."
            )
        if chunk >= facts.data["length"]:
            yield (
                f"model.lact.chunk_size={chunk} leaves no token of data.length={facts.data['length']} to read what "
                f"a chunk taught; use e.g. model.lact.chunk_size={max(1, facts.data['length'] // 4)}."
            )

    def _init_fast_weights(self, spec: Spec, d: int, rngs: nnx.Rngs) -> None:
        heads, rank = spec.options["lact"]["heads"], spec.options["lact"]["rank"]
        F = self.fast_hidden = round(spec.options["lact"]["hidden_ratio"] * d)
        draw = lambda std, *shape: fast.start(parameters.normal(std), rngs, (heads, *shape), spec)  # noqa: E731
        self.w1 = draw(1 / math.sqrt(F), d, F)
        if not rank:
            self.w0, self.w2 = draw(1 / math.sqrt(d), F, d), draw(1 / math.sqrt(d), F, d)
            return
        self.left0, self.right0 = draw(GAIN / math.sqrt(rank), F, rank), draw(GAIN / math.sqrt(d), rank, d)
        self.left2, self.right2 = draw(GAIN / math.sqrt(rank), F, rank), draw(GAIN / math.sqrt(d), rank, d)

    def fast_weights(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Fast weights at the start of a document: (w0 `[1, N, F, d]`, w1 `[1, N, d, F]`, w2 `[1, N, F, d]`)."""
        if not self.options["rank"]:
            return self.w0[...][None], self.w1[...][None], self.w2[...][None]
        eye = jnp.eye(self.fast_hidden, self.w1.shape[1], dtype=self.w1[...].dtype)

        def grown(left, right):
            return (jnp.einsum("nfr,nrh->nfh", left[...], right[...], precision="highest") + IDENTITY * eye)[None]

        return grown(self.left0, self.right0), self.w1[...][None], grown(self.left2, self.right2)

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        fast.only_causal("lact", context.mask)
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        window, fast_state = (None, None) if state is None else state
        near, window = self._near(q, k, v, context, window)
        far, fast_state = self._far(x, q, k, v, context, fast_state)
        y = self.out(near + far.astype(near.dtype))
        return y, None if state is None else LactMixerState(window, fast_state)

    def _near(self, q, k, v, context: Context, state):
        """The attention branch, `[B, T, N H]`: every token sees itself and the `window - 1` before it."""
        q, k, v = (y.reshape(*y.shape[:2], self.N, self.H) for y in (q, k, v))
        if state is None:
            q, k, near = self._rotate(q, context.positions), self._rotate(k, context.positions), self.options["window"]
            mask = context.mask & masks.Window(near - 1, near - 1)
            out = attend_row(self.partition, q, k, v, context, mask)
        else:
            out, state = recall(self.partition, q, k, v, context, context.mask, state, rotate=self._rotate, steady=True)
        return out.reshape(*out.shape[:2], -1), state

    def _far(self, x, q, k, v, context: Context, state):
        """The fast branch, `[B, T, N H]`."""
        q, k = (y * self.scale[i].astype(y.dtype) + self.offset[i].astype(y.dtype) for i, y in enumerate((q, k)))
        v = jax.nn.silu(v) if self.options["value_silu"] else v
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # noqa: E731
        q, k = (fast.unit(split(jax.nn.silu(y))) for y in (q, k))
        if self.options["rope_fast"]:
            layout = (*q.shape[:2], self.N, self.H)
            q, k = (self._rotate(y.reshape(layout), context.positions).reshape(y.shape) for y in (q, k))
        base = math.log(math.expm1(self.options["base_rate"]))
        rate = jax.nn.softplus(split(self.rate(x)) + base)
        momentum = None if self.momentum is None else jax.nn.sigmoid(self.momentum(x))
        out, state = self._learn((q, k, split(v), rate, momentum), context, state)
        out = self.fast_norm(out)
        if self.output_scale is not None:
            out = out * jax.nn.silu(self.output_scale(x))[..., None].astype(out.dtype)
        return out.reshape(*out.shape[:2], -1), state

    def _rotate(self, x: jax.Array, positions: jax.Array, **more: Any) -> jax.Array:
        return rope.rotate(x, positions, theta=self.options["rope_theta"], **more)

    def _learn(self, tokens: tuple, context: Context, state: LactState | None) -> tuple[jax.Array, LactState | None]:
        """The kernel on every device's own rows and heads; tokens: (q, k, v, rate, momentum or None)."""
        size = self.options["chunk_size"] if state is None else state.chunk[0].shape[1]
        rule = {name: self.options[name] for name in ("newton_schulz_steps", "normalize")}
        rule["axis"] = fast.shared_by(self.partition)

        def run(tokens, weights, kept):
            *tokens, momentum = tokens
            out, after = lact(*tokens, weights, momentum=momentum, chunk_size=size, **rule, **kept)
            return out, None if kept["state"] is None else after

        gate = None if tokens[4] is None else fast.RATES
        main = (fast.WEIGHTS,) * 3
        carry = Carry(main, None if gate is None else main, fast.ROWS)
        chunk = (fast.TOKENS, fast.TOKENS, fast.TOKENS, gate)
        state_axes = None if state is None else LactState(carry, chunk, fast.ROWS, fast.ROWS)
        kept, kept_axes = fast.kept(context, state, state_axes)
        axes = ((*(fast.TOKENS,) * 4, gate), ((None, "heads", None, None),) * 3, kept_axes)
        return self.partition.run(run, (tokens, self.fast_weights(), kept), axes, (fast.TOKENS, state_axes))

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: the window, reading and learning, Newton-Schulz per chunk.

        Reading is 6 F d a token and head. Learning is 12 F d more for every token but those of the last chunk.
        """
        window, d, F = min(self.options["window"], length), self.N * self.H // self.heads, self.fast_hidden
        seen = window - window * (window - 1) / (2 * length)
        size, short, long = self.options["chunk_size"], min(d, F), max(d, F)
        updates = -(-length // size) - 1
        orthogonal = 3 * self.options["newton_schulz_steps"] * (4 * short**2 * long + 2 * short**3)
        share = self.heads * (6 * F * d + updates / length * (12 * F * d * size + orthogonal))
        return {"attention": 4 * self.N * self.H * seen, "fast": share}

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> LactMixerState:
        """The state before the first token of `batch` rows; window and chunk are no longer than `length`."""
        size = min(self.options["chunk_size"], length)
        kind = {"dtype": self.dtype, "rate_dtype": jnp.promote_types(self.dtype, jnp.float32)}
        state = init_fast(self.fast_weights(), batch, chunk_size=size, momentum=self.momentum is not None, **kind)
        near = Policy("window", (("size", self.options["window"]),))
        return LactMixerState(near.empty(batch, length, N=self.N, K=self.N, H=self.H, dtype=self.dtype), state)


PARTS = {"lact": Lact}
