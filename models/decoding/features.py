"""Adaptive feature caches (dLLM-Cache): each layer keeps keys, values and what attention and channel gave, and most
tokens take them from there.

The prompt's features are renewed every `prompt_every` calls and the answer's every `answer_every`. Between those, each
layer projects the values of all answer tokens, and the share of them whose values moved most (least cosine similarity
to those kept) is computed anew (Liu et al. 2025, arXiv:2506.06295). Both at 1, or a share of 1 with the prompt at 1, is
no cache at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding.caches import Network
from models.mixers.context import Context

Array = jax.Array


class Layer(Protocol):
    """A layer in the parts that are kept apart: x + attend(...) = y, y + channel(y). x, y `[B, T, D]`."""

    def values(self, x: Array) -> Array:
        """`[B, T, ...]`: what the attention of the layer would read of each token."""

    def project(self, x: Array, places: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values `[B, T, ...]` of tokens at places `[B, T]`."""

    def attend(self, q: Array, k: Array, v: Array, places: Array, others: Array) -> Array:
        """`[B, T, D]` of queries at `places [B, T]` over keys and values at `others [B, S]`."""

    def channel(self, y: Array, places: Array) -> Array:
        """`[B, T, D]` of tokens at places `[B, T]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """What is kept: `layers`, a tuple of (keys, values, attention, channel) with B and T in front; `calls [B]`; `fed
    [B]`, tokens whose features were computed (what all answer tokens spend on being compared, one product of D by their
    values, is not in it)."""

    layers: tuple
    calls: Array
    fed: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """`prompt`: columns before this one are the prompt, those from it on the answer. `prompt_every`, `answer_every`:
    calls between two renewals; `share` of the answer is renewed in every other call (rounded up)."""

    prompt: int
    prompt_every: int = 50
    answer_every: int = 7
    share: float = 0.25

    def counts(self, length: int) -> tuple[int, int]:
        """Prompt and answer tokens."""
        return self.prompt, length - self.prompt

    def chosen(self, length: int) -> int:
        """Answer tokens that an ordinary call renews."""
        return math.ceil(self.share * (length - self.prompt))


def network(layers: Sequence[Layer], embed: Callable, logits: Callable, places: Array, plan: Plan) -> Network:
    """For `caches.decode(policy="none")`, in one block: rows then make their calls together until each is done.

    embed: tokens `[B, T]` -> `[B, T, D]`; logits: `[B, T, D]` -> `[B, T, C]`; places: `[B, T]`, -1 = padding.
    """
    length = places.shape[1]
    everything, answer = jnp.arange(length), jnp.arange(plan.prompt, length)

    def run(tokens: Array, positions: Array, kept: Features) -> tuple[Array, Features]:
        del positions  # All of them.
        x = embed(tokens)
        when = kept.calls.max()
        prompt, whole = when % plan.prompt_every == 0, when % plan.answer_every == 0

        def some(columns: Array, adaptive: bool):
            def go(operands):
                x, layers_ = operands
                new, count = [], len(columns) + adaptive * plan.chosen(length)
                for layer, old in zip(layers, layers_, strict=True):
                    at = jnp.broadcast_to(columns, (len(x), len(columns)))
                    if adaptive:
                        at = jnp.concatenate([at, moved(layer, x, old[1], plan, length)], 1)
                    x, old = renew(layer, x, old, at, places)
                    new.append(old)
                return x, tuple(new), jnp.asarray(count, kept.fed.dtype)

            return go

        front = everything[: plan.prompt]
        cases = [some(front[:0], True), some(answer, False), some(front, True), some(everything, False)]
        x, new, count = jax.lax.switch(2 * prompt + whole, cases, (x, kept.layers))
        return logits(x), Features(new, kept.calls + 1, kept.fed + count)

    return run


def moved(layer: Layer, x: Array, values: Array, plan: Plan, length: int) -> Array:
    """Columns `[B, n]` of the answer tokens whose values are least like those kept."""
    now, before = (v.reshape(*v.shape[:2], -1) for v in (layer.values(x[:, plan.prompt :]), values[:, plan.prompt :]))
    dot = (now * before).sum(-1)
    norms = jnp.linalg.norm(now, axis=-1) * jnp.linalg.norm(before, axis=-1)
    likeness = dot / jnp.maximum(norms, jnp.finfo(dot.dtype).tiny)
    return plan.prompt + jax.lax.top_k(-likeness, plan.chosen(length))[1]


def renew(layer: Layer, x: Array, kept: tuple, columns: Array, places: Array) -> tuple[Array, tuple]:
    """The layer's output `[B, T, D]` with the features of `columns [B, n]` computed and all others as kept."""
    take = lambda a: jnp.take_along_axis(a, columns.reshape(columns.shape + (1,) * (a.ndim - 2)), 1)  # noqa: E731
    rows = jnp.arange(len(x))[:, None]
    put = lambda old, new: old.at[rows, columns].set(new.astype(old.dtype))  # noqa: E731
    part, here = take(x), take(places)
    q, k, v = layer.project(part, here)
    keys, values = put(kept[0], k), put(kept[1], v)
    attended = layer.attend(q, keys, values, here, places)
    attention = put(kept[2], attended)
    channel = put(kept[3], layer.channel(part + attended, here))
    return x + attention + channel, (keys, values, attention, channel)


def empty(layers: Sequence[Layer], batch: int, length: int, width: int, dtype: Any) -> Features:
    """Nothing kept yet: the first call computes everything."""
    x = jax.ShapeDtypeStruct((batch, length, width), dtype)
    places = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    zero = lambda shape: jnp.zeros(shape.shape, shape.dtype)  # noqa: E731
    kept = []
    for layer in layers:
        _, k, v = jax.eval_shape(layer.project, x, places)
        kept.append((zero(k), zero(v), zero(x), zero(x)))
    return Features(tuple(kept), jnp.zeros(batch, int), jnp.zeros(batch, int))


@dataclasses.dataclass(frozen=True)
class BlockLayer:
    """A `models.block.Block` with attention in it, under `mask` by place."""

    block: Any
    mask: masks.Mask

    def values(self, x: Array) -> Array:
        return self.block.mixer.values(self.block.mixer_norm(x))

    def project(self, x: Array, places: Array) -> tuple[Array, Array, Array]:
        return self.block.mixer.project(self.block.mixer_norm(x), places)

    def attend(self, q: Array, k: Array, v: Array, places: Array, others: Array) -> Array:
        mask = masks.Positions(places, others, rule=self.mask)
        return self.block.joining(self.block.mixer.attend(q, k, v, mask, cached=True))

    def channel(self, y: Array, places: Array) -> Array:
        context = Context(places, None, self.mask)
        return self.block.joining(self.block.channel(self.block.channel_norm(y), context)[0])


def of_model(model, mask: masks.Mask, places: Array, plan: Plan, classes: int) -> tuple[Network, Features]:
    """Network and empty cache of an `LM` of attention layers that is told no time, inside a trace."""
    model = model.for_decoding()
    layers = [BlockLayer(block, mask) for period in model.stack.periods for block in period.blocks.values()]
    if any(getattr(layer.block.channel, "carries", {}) for layer in layers):
        raise ValueError(
            f"model.channel={model.spec.channel!r} carries values from layer to layer, which features that are kept "
            "apart cannot follow; use generate.diffusion.cache=''."
        )
    head = lambda x: model.logits(model.norm(x))[..., :classes]  # noqa: E731
    run = network(layers, model.embed, head, places, plan)
    return run, empty(layers, *places.shape, model.spec.D, model.spec.dtype)
