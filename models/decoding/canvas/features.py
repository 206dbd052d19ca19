"""Adaptive feature caches (dLLM-Cache): most tokens of a call take their features from the call before.

Each layer keeps its keys, its values, and the outputs of its attention and of its channel. The prompt's features are
renewed every `prompt_every` calls and the answer's every `answer_every`. In the calls between, each layer projects the
values of all answer tokens and renews the share of them whose values moved most (least cosine similarity to the kept
ones; Liu et al. 2025, arXiv:2506.06295). Both periods at 1, or a share of 1 with the prompt's at 1, is no cache at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding.canvas.caches import Network
from models.mixers.context import Context

Array = jax.Array
GRID = 4096  # Likenesses closer than about 1 / GRID count as equal.


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
    """The cache.

    Args:
      layers: (keys, values, attention's output, channel's output) of each layer, with B and T in front.
      calls: `[B]`.
      fed: `[B]` tokens whose features were computed. The comparison of all answer tokens, one product of D by their
        values, is not counted.
    """

    layers: tuple
    calls: Array
    fed: Array


@dataclasses.dataclass(frozen=True)
class Renewal:
    """Which features are renewed when, and how many columns of a batch that takes at most.

    Args:
      prompt: most prompt tokens in a row of the batch.
      answer: most answer tokens in a row of the batch.
      prompt_every: calls between two renewals of the prompt.
      answer_every: calls between two renewals of the answer.
      share: of a row's answer tokens, renewed in every call between two renewals (rounded up).
    """

    prompt: int
    answer: int
    prompt_every: int = 50
    answer_every: int = 7
    share: float = 0.25

    def chosen(self) -> list[int]:
        """Answer tokens that an ordinary call renews, by how many there are: 0 .. answer."""
        return [math.ceil(self.share * count) for count in range(self.answer + 1)]


def sides(places: Array, open_: Array) -> tuple[Array, Array]:
    """Prompt and answer of each row, bool `[B, T]`: the tokens before its first open column, and those from it on.

    Args:
      places: `[B, T]`, -1 = padding, which is neither.
      open_: `[B, T]` bool, the columns to be filled in.
    """
    begun = jnp.cumsum(open_, -1) > 0
    return (places >= 0) & ~begun, (places >= 0) & begun


def columns_of(side: Array, count: int) -> Array:
    """Columns `[B, count]` where `side [B, T]` is true, from left to right, then T, which is no column."""
    length = side.shape[1]
    first = jnp.argsort(~side, -1, stable=True)[:, :count]
    return jnp.where(jnp.take_along_axis(side, first, 1), first, length)


def network(
    layers: Sequence[Layer], embed: Callable, logits: Callable, places: Array, open_: Array, plan: Renewal
) -> Network:
    """A network for `caches.decode(policy="none")` in one block: rows make their calls together until each is done.

    No row depends on its neighbours: each has its own prompt, its own answer and its own count of renewed tokens.

    Args:
      embed: tokens `[B, T]` -> `[B, T, D]`.
      logits: `[B, T, D]` -> `[B, T, C]`.
      places: `[B, T]`, -1 = padding.
      open_: `[B, T]` bool, the columns to be filled in, as they were at first.
    """
    rows, length = places.shape
    prompt_side, answer_side = sides(places, open_)
    front, answer = columns_of(prompt_side, plan.prompt), columns_of(answer_side, plan.answer)
    everything = jnp.broadcast_to(jnp.arange(length), (rows, length))
    most = jnp.asarray(plan.chosen())[jnp.minimum(answer_side.sum(-1), plan.answer)]

    def run(tokens: Array, positions: Array, kept: Features) -> tuple[Array, Features]:
        del positions  # All of them.
        x = embed(tokens)
        when = kept.calls.max()
        prompt, whole = when % plan.prompt_every == 0, when % plan.answer_every == 0

        def some(columns: Array, adaptive: bool):
            def go(operands):
                x, layers_ = operands
                new, count = [], (columns < length).sum(-1) + adaptive * most
                for layer, old in zip(layers, layers_, strict=True):
                    at = columns
                    if adaptive:
                        at = jnp.concatenate([at, moved(layer, x, old[1], answer, most, plan)], 1)
                    x, old = renew(layer, x, old, at, places)
                    new.append(old)
                return x, tuple(new), count.astype(kept.fed.dtype)

            return go

        cases = [some(front[:, :0], True), some(answer, False), some(front, True), some(everything, False)]
        x, new, count = jax.lax.switch(2 * prompt + whole, cases, (x, kept.layers))
        return logits(x), Features(new, kept.calls + 1, kept.fed + count)

    return run


def moved(layer: Layer, x: Array, values: Array, answer: Array, most: Array, plan: Renewal) -> Array:
    """Columns `[B, n]` of the answer tokens whose values are least like those kept, `most [B]` of them, then T.

    answer: `[B, A]` columns of the answers, T beyond the end of one.
    """
    length = x.shape[1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    now, before = (_take(v.reshape(*v.shape[:2], -1), answer).astype(wide) for v in (layer.values(x), values))
    dot = (now * before).sum(-1)
    norms = jnp.linalg.norm(now, axis=-1) * jnp.linalg.norm(before, axis=-1)
    likeness = dot / jnp.maximum(norms, jnp.finfo(dot.dtype).tiny)
    # Unmoved values have the same similarity up to rounding, which must not choose among them: ties go to the first.
    likeness = jnp.where(answer < length, jnp.round(likeness * GRID) / GRID, jnp.inf)
    count = plan.chosen()[plan.answer]
    chosen = jnp.take_along_axis(answer, jax.lax.top_k(-likeness, count)[1], 1)
    return jnp.where(jnp.arange(count) < most[:, None], chosen, length)


def renew(layer: Layer, x: Array, kept: tuple, columns: Array, places: Array) -> tuple[Array, tuple]:
    """The layer's output `[B, T, D]` with the features of `columns [B, n]` computed and all others as kept.

    Column T does not exist: features computed for it are dropped.
    """
    rows = jnp.arange(len(x))[:, None]
    put = lambda old, new: old.at[rows, columns].set(new.astype(old.dtype), mode="drop")  # noqa: E731
    part, here = _take(x, columns), _take(places, columns)
    q, k, v = layer.project(part, here)
    keys, values = put(kept[0], k), put(kept[1], v)
    attended = layer.attend(q, keys, values, here, places)
    attention = put(kept[2], attended)
    channel = put(kept[3], layer.channel(part + attended, here))
    return x + attention + channel, (keys, values, attention, channel)


def _take(array: Array, columns: Array) -> Array:
    """`[B, n, ...]` of `array [B, T, ...]`; an index that is no column takes the last one."""
    columns = jnp.minimum(columns, array.shape[1] - 1)
    return jnp.take_along_axis(array, columns.reshape(columns.shape + (1,) * (array.ndim - 2)), 1)


def empty(layers: Sequence[Layer], batch: int, length: int, width: int, dtype: Any) -> Features:
    """The empty cache: the first call computes everything."""
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
        return self.block.joining(self.block.mixer.attend(q, k, v, mask, cached=True), self.block.mixer_out_norm)

    def channel(self, y: Array, places: Array) -> Array:
        context = Context(places, None, self.mask)
        said = self.block.channel(self.block.channel_norm(y), context)[0]
        return self.block.joining(said, self.block.channel_out_norm)


def of_model(
    model, mask: masks.Mask, places: Array, open_: Array, plan: Renewal, classes: int
) -> tuple[Network, Features]:
    """Network and empty cache of an `LM` of attention layers that is told no time, inside a trace; see `network`."""
    model = model.for_decoding()
    layers = [BlockLayer(block, mask) for period in model.stack.periods for block in period.blocks.values()]
    if any(getattr(layer.block.channel, "carries", {}) for layer in layers):
        raise ValueError(
            f"model.channel={model.spec.channel!r} carries values from layer to layer, which features that are kept "
            "apart cannot follow; use generate.diffusion.cache=''."
        )
    if model.spec.parallel or model.spec.positions:
        name = "parallel" if model.spec.parallel else "positions"
        raise ValueError(
            f"model.{name} goes another way through a layer than features that are kept apart; use "
            "generate.diffusion.cache=''."
        )
    head = lambda x: model.logits(model.norm(x))[..., :classes]  # noqa: E731
    run = network(layers, model.embed, head, places, open_, plan)
    return run, empty(layers, *places.shape, model.spec.D, model.spec.dtype)
