"""An engine that reads no beginning twice: blocks of the decoding state after prompts are kept and found by hash.

    engine = CachedEngine(trained.load("runs/first"), lanes=8, blocks=512, block=32)

A text is what it is without the cache. A row has a copy of what it begins with (lanes lie side by side in one state):
the cache saves passes, not memory. It holds `blocks` blocks at most, those in use and those unused for least long.
A row looks for its beginning as it is first read, so that of prompts admitted together the second finds the first's.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation import prompts, requests
from experiments.generation.engine import Engine
from experiments.generation.request import Request
from experiments.generation.serving.prefix_cache import PrefixCache
from experiments.settings.errors import ConfigError
from models.decoding import parts as sockets
from models.decoding.control import CONTROLS, Control
from models.decoding.drafts import Drafter
from models.decoding.stream import Progress

BLOCK = 32
"""Tokens of a block where the state is slots alone; else a snapshot stands behind each, and `Engine.chunk` are one."""


def refusal(settings: Mapping[str, Any], roles: int = 0) -> str:
    """Why no beginning of a prompt can be another's under `config.generate` = settings and `model.roles` = roles, in a
    sentence; "": it can."""
    if roles:
        return (
            f"model.roles={roles} tells tokens of one text apart by who they come from; leave the cache of beginnings "
            "away: generate.engine.prefix_blocks=0."
        )
    if settings["memory"] != "full":
        return (
            f"generate.memory={settings['memory']!r} keeps what it chooses of a whole prompt, which is no beginning of "
            "another; a cache of beginnings goes with generate.memory='full'."
        )
    if settings["prefill"] != "dense":
        return (
            f"generate.prefill={settings['prefill']!r} finds patterns in a whole prompt, which is no beginning of "
            "another; a cache of beginnings goes with generate.prefill='dense'."
        )
    for name in sockets.order(settings["control"]):
        made = getattr(CONTROLS[name], "func", CONTROLS[name])
        if made.enters is not Control.enters or made.placed is not Control.placed:
            return (
                f"generate.control={name!r} changes, for each request, what is read of a prompt; leave it away, or the "
                "cache of beginnings."
            )
    return ""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What a block of a text is in a row's state and sides, leaf by leaf.

    Of the sides only those have a piece that change as a prompt is read; all others are the request's own.

    Attributes:
      grown: of leaves with a dimension of slots, those of the block.
      rest: of all other leaves, what they are behind the block; None where the length alone is one.
    """

    grown: list[jax.Array]
    rest: list[jax.Array] | None


class CachedEngine(Engine):
    """See the module's docstring.

    Args:
      trained, settings: as of `Engine`.
      blocks: that are kept at most.
      block: tokens of a block; 0: see `BLOCK`. A model whose state is not slots alone reads prompts in pieces that end
        with blocks.

    Errors: ConfigError, also for what `refusal` names.
    """

    def __init__(self, trained: Any, *, blocks: int = 512, block: int = 0, **settings: Any):
        super().__init__(trained, **settings)
        if block < 0 or blocks < 1:
            raise ConfigError([f"blocks={blocks}, block={block} must be at least 1, e.g. blocks=512, block=32."])
        if problem := refusal(self.settings, trained.config.model.roles):
            raise ConfigError([problem])
        both = (Control.read, Drafter.read)
        self._changed = tuple(name for name, part in self._parts.sides if type(part).read not in both)
        self._axes = self._slot_axes()
        # A state that is slots alone has one leaf without them, their number: all blocks can be cut out at the end.
        self._only_slots = sum(axis is None for axis in self._axes) == 1
        self.cache = PrefixCache(block or (BLOCK if self._only_slots else self.chunk), blocks)
        self._cut = jax.jit(self._cut_out)
        self._put = jax.jit(self._put_in, donate_argnums=0)

    def admit_all(
        self, prompts: Sequence[str], *, seed: int | None = None, numbers: Sequence[int] | None = None, **settings: Any
    ) -> list[int]:
        """`admit` for many."""
        numbers = np.asarray(requests.rows(prompts)) if numbers is None else numbers
        asked = zip(prompts, numbers, strict=True)
        return [self.admit(prompt, seed=seed, number=int(n), **settings) for prompt, n in asked]

    # Leaves and blocks.

    def _read_of(self, one: Progress) -> tuple[Any, dict[str, Any]]:
        """What changes of a row as a prompt is read: its state, and some sides."""
        return one.state, {name: one.side[name] for name in self._changed}

    def _leaves(self, one: Progress) -> list[Any]:
        return jax.tree.leaves(self._read_of(one))

    def _slot_axes(self) -> list[int | None]:
        """Of each leaf, the axis along which it has a place for every token; None: it has not."""
        shapes = [self._leaves(self._row_shape(slots)) for slots in (self.pool.room(64), self.pool.room(128))]
        found = []
        for short, long in zip(*shapes, strict=True):
            differ = [axis for axis, (a, b) in enumerate(zip(short.shape, long.shape, strict=True)) if a != b]
            found.append(differ[0] if differ else None)
        return found

    def _row_shape(self, slots: int) -> Progress:
        key = np.zeros((1, 2), np.uint32)
        given = (np.ones((1,), np.int32), np.ones((1,), np.int32), key, sockets.dials([self.settings], self._parts))
        text = np.zeros((1, self._width()), np.int32)
        make: Any = lambda weights: self.decoder.start(weights, text, *given, parts=self._parts, size=0, capacity=slots)  # noqa: E731
        return jax.eval_shape(make, self.weights)

    def _cut_out(self, leaves: Sequence[jax.Array], start: jax.Array) -> list[jax.Array]:
        """Of leaves with slots, those of a block."""
        size = self.cache.block
        mine = [(x, axis) for x, axis in zip(leaves, self._axes, strict=True) if axis is not None]
        return [jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x, axis in mine]

    def _put_in(self, leaves: list[jax.Array], grown: list[jax.Array], start: jax.Array) -> list[jax.Array]:
        """Leaves with a block in its place."""
        new = iter(grown)
        put = jax.lax.dynamic_update_slice_in_dim
        return [
            x if axis is None else put(x, next(new).astype(x.dtype), start, axis)
            for x, axis in zip(leaves, self._axes, strict=True)
        ]

    def _piece(self, one: Progress, number: int) -> Piece:
        leaves = self._leaves(one)
        rest = [jnp.copy(x) for x, axis in zip(leaves, self._axes, strict=True) if axis is None]
        return Piece(self._cut(leaves, np.int32(number * self.cache.block)), None if self._only_slots else rest)

    def _begun_with(self, one: Progress, pieces: Sequence[Piece]) -> Progress:
        """A fresh row that has read what the pieces hold."""
        leaves, tree = jax.tree.flatten(self._read_of(one))
        for number, piece in enumerate(pieces):
            leaves = self._put(leaves, piece.grown, np.int32(number * self.cache.block))
        tokens = jnp.full((1,), len(pieces) * self.cache.block, jnp.int32)
        rest = iter([tokens] if pieces[-1].rest is None else [jnp.copy(x) for x in pieces[-1].rest])
        leaves = [next(rest) if axis is None else x for x, axis in zip(leaves, self._axes, strict=True)]
        state, side = jax.tree.unflatten(tree, leaves)
        return dataclasses.replace(one, state=state, side=one.side | side)

    # What the engine does with a request.

    def _reading(self, request: Request, count: int) -> Iterator[prompts.Piece]:
        if request.one is None:
            self._find(request)
        end, block = min(request.read + count, len(request.ids) - 1), self.cache.block
        if self._only_slots:
            yield from super()._reading(request, count)
            self._keep(request)
            return
        if request.read == end:  # A prompt without a token to read has a row, too.
            yield from super()._reading(request, 0)
        while request.read < end:
            yield from super()._reading(request, min(end - request.read, block - request.read % block))
            self._keep(request)

    def _packable(self, requests: Sequence[Request]) -> list[Request]:
        """Those that find nothing, and of equal beginnings the first: the others find its blocks."""
        new: dict[bytes, Request] = {}
        for request in super()._packable(requests):
            self._find(request)
            if request.one is None:
                new.setdefault(request.ids[: self.cache.block].tobytes(), request)
        return list(new.values())

    def _read_row(self, requests: Sequence[Request]) -> None:
        super()._read_row(requests)
        for request in requests:
            self._keep(request)

    def _find(self, request: Request) -> None:
        self.cache.release(request.id)  # It may have begun before, and was put back.
        if pieces := self.cache.take(request.id, request.ids.tolist()):
            request.one = self._begun_with(self._fresh_row(request, None), pieces)
            request.read = request.found = len(pieces) * self.cache.block

    def _keep(self, request: Request) -> None:
        """Keeps the whole blocks that were read; where others than slots count, only as they end."""
        whole = request.read // self.cache.block
        there = len(self.cache.rows.get(request.id, ()))
        if whole <= there or not (self._only_slots or request.read == (there + 1) * self.cache.block):
            return
        ids = request.ids[: whole * self.cache.block].tolist()
        self.cache.add(request.id, ids, lambda number: self._piece(request.one, number))

    def _end(self, request: Request, reason: str) -> None:
        self.cache.release(request.id)
        super()._end(request, reason)

    def figures(self) -> Mapping[str, int]:
        """Blocks that are kept and in use; tokens of prompts that were found and that were read."""
        cache = self.cache
        return {
            "blocks": len(cache.blocks),
            "used": cache.referenced,
            "hit_tokens": cache.hits,
            "read_tokens": cache.misses,
        }


__all__ = ["BLOCK", "CachedEngine", "Piece", "refusal"]
