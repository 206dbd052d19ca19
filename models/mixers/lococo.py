"""Mixer `lococo`: attention whose past is a cache of fixed size, into which a convolution merges keys and values."""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from models import parameters, projections, rope
from models.facts import Facts
from models.mixers import fast
from models.mixers.attend import HEADS, attend_row
from models.mixers.context import Context
from models.mixers.memory import Policy, lococo
from models.mixers.memory.lococo import Held
from models.spec import Spec

CACHE = ("batch", "heads", None, None)
STATE_AXES = Held(CACHE, CACHE, CACHE[:3], ("batch",), ("batch",))
ROWS = ("batch", None)


class Lococo(nnx.Module):
    """`x [B, T, D] -> [B, T, D]`: a token attends to M slots and to its chunk of C tokens up to itself.

    Behind each chunk of a document the slots and the chunk become M slots: half are the keys and values that got most
    attention from this chunk, the others W K and W V of the rest, W = (1 - g) OneHot(best) + g softmax(relu(conv([K;
    V]))). Convolution and g are of the layer, and the same in all its heads. Cai et al. 2024, arXiv:2406.05317; the
    first C tokens of a document are softmax attention.
    """

    bidirectional = False
    context_parallel = False
    grouped = True

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options, D = spec.options["lococo"], spec.D
        self.N, self.K, self.H = spec.N, spec.K, spec.H
        make = functools.partial(projections.make, spec, D, axes=("embed", "heads"), rngs=rngs)
        self.q = make(self.N * self.H, name="q")
        self.k, self.v = (make(self.K * self.H, name=name) for name in "kv")
        self.out = projections.make(
            spec, self.N * self.H, D, axes=("heads", "embed"), residual=True, name="o", rngs=rngs
        )
        self.slots, self.chunk, self.local = options["slots"], options["chunk_size"], options["local"]
        self.rate, self.detach, self.theta = options["rate"], options["detach"], options["rope_theta"]
        C, w = merged(options), options["taps"]
        std = 1 / (math.sqrt(2 * self.H * w) * self.rate)
        shape, none = (C, 2 * self.H, w), (None,) * 3
        self.kernel = parameters.param(parameters.normal(std), rngs, shape, none, "fast", spec)
        self.bias = parameters.param(parameters.zeros, rngs, (C,), (None,), "bias", spec)
        gate = options["gate"] / self.rate
        self.gate = parameters.param(lambda key, shape, dtype: jnp.full(shape, gate, dtype), rngs, (1,), (None,),
                                     "bias", spec)  # fmt: skip
        self.dtype, self.partition = spec.dtype, spec.partition

    def __call__(self, x: jax.Array, context: Context, state: Held | None = None) -> tuple[jax.Array, Held | None]:
        fast.only_causal("lococo", context.mask)
        q, k, v = (y.reshape(*y.shape[:2], -1, self.H) for y in (self.q(x), self.k(x), self.v(x)))
        q, k = (rope.rotate(y, context.positions, theta=self.theta) for y in (q, k))
        weights = tuple(self.rate * w for w in (self.kernel[...], self.bias[...], self.gate[0]))
        tokens, plain = (q, k, v), ((None, None, None), (None,), ())
        if state is None:
            out = self._row(q, k, v, context, weights, plain)
        else:
            run = functools.partial(stepped, chunk=self.chunk, local=self.local)
            count = jnp.sum(context.positions >= 0, axis=1, dtype=jnp.int32)
            axes = ((HEADS,) * 3, STATE_AXES, plain, ("batch",))
            out, state = self.partition.run(run, (tokens, state, weights, count), axes, (HEADS, STATE_AXES))
        return self.out(out.reshape(*out.shape[:2], -1)), state

    def _row(self, q, k, v, context: Context, weights: tuple, plain: tuple) -> jax.Array:
        """Training: tokens of a document's first chunk by attention's own kernel, the others chunk by chunk."""
        T, near = q.shape[1], masks.Window(self.chunk - 1, self.chunk - 1)
        first = attend_row(self.partition, q, k, v, context, context.mask & near)
        if T <= self.chunk:
            return first
        shape = q.shape[:2]
        places = jnp.broadcast_to(context.positions, shape)
        ids = jnp.ones(shape, jnp.int32) if context.segment_ids is None else context.segment_ids
        run = functools.partial(chunked, slots=self.slots, chunk=self.chunk, local=self.local, detach=self.detach)
        axes = ((HEADS,) * 3, ROWS, ROWS, plain)
        later = self.partition.run(run, ((q, k, v), places, ids, weights), axes, HEADS)
        return jnp.where((places < self.chunk)[..., None, None], first, later)

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """A convolution without a middle, and more tokens that are kept than there is room for."""
        if options["taps"] % 2 == 0:
            yield (f"model.lococo.taps={options['taps']} has no middle; use model.lococo.taps={options['taps'] + 1}.")
        kept = options["slots"] - merged(options)
        if options["local"] > kept:
            yield (
                f"model.lococo.local={options['local']} is more than the {kept} tokens that are kept as they are; use "
                f"model.lococo.local={kept}."
            )
        if not 1 <= merged(options):
            yield (
                f"model.lococo.heavy={options['heavy']} leaves no slot of model.lococo.slots={options['slots']} to the "
                "convolution; use model.lococo.heavy=0.5."
            )

    def context_flops(self, length: int, causal: bool) -> dict[str, float]:
        """Forward FLOPs a token beyond the projections: its chunk, and for each later chunk of a row that is one
        document the slots, attention of the chunk before (scores alone), the convolution and the mixing."""
        N, H, C, M = self.N, self.H, min(self.chunk, length), self.slots
        later = (length - 1) // self.chunk
        S, w = self.kernel.shape[0], self.kernel.shape[2]
        merging = self.K * (2 * S * 2 * H * w + 4 * S * H) * (C + S)
        return {"recurrent": 4 * N * H * C + later / length * (6 * N * H * C * (M + C) + merging)}

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> Held:
        """The empty cache of `batch` rows; the same size for any `length`."""
        return lococo.empty(batch, slots=self.slots, chunk=self.chunk, heads=self.K, width=self.H, dtype=self.dtype)


def merged(options: Mapping[str, Any]) -> int:
    """Slots that the convolution fills: M - floor(M heavy)."""
    return options["slots"] - int(options["slots"] * options["heavy"])


def stepped(
    tokens: tuple, held: Held, weights: tuple, count: jax.Array, *, chunk: int, local: int
) -> tuple[jax.Array, Held]:
    """Any number of new tokens, `[B, T, N|K, H]` each, of which row b has `count [B]`: outputs and the rows after."""
    T = tokens[0].shape[1]
    passes, width = (T + chunk - 2) // chunk + 1, min(T, chunk)

    def one(carry: tuple) -> tuple:
        held, out, done = carry
        full = (held.used == chunk) & (done < count)
        squeeze = functools.partial(lococo.compress, weights=weights, full=full, chunk=chunk, local=local)
        held = jax.lax.cond(jnp.any(full), squeeze, lambda held: held, held)
        more = jnp.minimum(jnp.minimum(chunk - held.used, width), count - done)
        at = done[:, None] + jnp.arange(width)
        some = (jnp.take_along_axis(x, jnp.minimum(at, T - 1)[..., None, None], axis=1) for x in tokens)
        made, held = lococo.read(held, *some, more, chunk)
        at = jnp.where(jnp.arange(width) < more[:, None], at, T)
        out = jax.vmap(lambda out, at, made: out.at[at].set(made, mode="drop"))(out, at, made)
        return held, out, done + more

    carry = held, jnp.zeros_like(tokens[0]), jnp.zeros_like(count)
    if passes == 1:
        held, out, _ = one(carry)
    else:
        held, out, _ = jax.lax.fori_loop(0, passes, lambda _, carry: one(carry), carry)
    return out, held


def chunked(
    tokens: tuple,
    places: jax.Array,
    ids: jax.Array,
    weights: tuple,
    *,
    slots: int,
    chunk: int,
    local: int,
    detach: bool,
) -> jax.Array:
    """Outputs `[B, T, N, H]` of all tokens behind the first chunk of their document, zeros elsewhere.

    Those chunks begin at least C tokens apart, so that a row has at most (T - 1) / C of them, wherever its documents
    begin; a scan goes through them, and before the first of a document reads the chunk that came before.

    Args:
      tokens: q `[B, T, N, H]`, k and v `[B, T, K, H]`.
      places, ids: `[B, T]` place in the document, and its number (0: padding).
      weights: as in `lococo.compress`.
    """
    (B, T, N, H), K = tokens[0].shape, tokens[1].shape[2]
    begins = (places % chunk == 0) & (places >= chunk) & (ids > 0)
    starts = jnp.sort(jnp.where(begins, jnp.arange(T), T), axis=1)[:, : (T - 1) // chunk].T  # [E, B]
    none = lococo.empty(B, slots=slots, chunk=chunk, heads=K, width=H, dtype=tokens[1].dtype)
    pick = lambda x, at: jnp.take_along_axis(x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), axis=1)  # noqa: E731
    every = jnp.ones((B,), bool)

    def later(held: Held, start: jax.Array) -> tuple[Held, tuple[jax.Array, jax.Array]]:
        at = start[:, None] + jnp.arange(chunk)  # [B, C]
        inside, before = jnp.minimum(at, T - 1), jnp.clip(at - chunk, 0, T - 1)
        first, own = pick(places, inside[:, :1]) == chunk, pick(ids, inside[:, :1])
        there = (at < T) & (pick(ids, inside) == own) & (pick(places, inside) >= pick(places, inside[:, :1]))
        fresh = lococo.read(none, *(pick(x, before) for x in tokens), jnp.full((B,), chunk, jnp.int32), chunk)[1]
        held = jax.tree.map(lambda a, b: jnp.where(first.reshape(B, *[1] * (a.ndim - 1)), a, b), fresh, held)
        held = lococo.compress(held, weights, every, chunk=chunk, local=local, detach=detach)
        out, held = lococo.read(
            held, *(pick(x, inside) for x in tokens), jnp.sum(there, axis=1, dtype=jnp.int32), chunk
        )
        return held, (out, jnp.where(there, at, T))

    _, (outs, at) = jax.lax.scan(later, none, starts)
    outs, at = (jnp.moveaxis(x, 0, 1).reshape(B, -1, *x.shape[3:]) for x in (outs, at))
    place = lambda out, at: jnp.zeros((T, N, H), out.dtype).at[at].set(out, mode="drop")  # noqa: E731
    return jax.vmap(place)(outs, at)


PARTS = {"lococo": Lococo}
