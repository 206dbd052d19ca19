"""How an engine reads prompts: each into a row of its own, in pieces of few sizes, or several side by side in one row.

A row has slots for what was read of its prompt, and not for all of it, so that a piece looks at few that are empty.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.generation.between import started
from experiments.generation.decoder import Decoder
from experiments.generation.pool import Pool
from experiments.generation.prefixes import Prefixes, padded, pieces, row_size
from experiments.generation.request import Request
from experiments.generation.serving import prepacking
from models.decoding import parts as sockets
from models.decoding.stream import Parts, Progress

GROWTH = 4  # A row whose slots are used up is copied to so many times as many: a copy of thousands takes many steps.


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next `tokens` of a prompt, padded to `size`."""

    request: Request
    tokens: int
    size: int

    def shown(self) -> Progress:
        """The request's row, with only so much of its text that a padded piece reads no more than it is to."""
        length = jnp.full((1,), self.request.read + self.tokens + 1, jnp.int32)
        return dataclasses.replace(self.request.one, length=length)

    def taken(self, one: Progress) -> None:
        """The request's row is `one`, which has read the piece."""
        request = self.request
        request.one = dataclasses.replace(one, length=jnp.full((1,), len(request.ids), jnp.int32))
        request.read += self.tokens


class Prompts:
    """What an engine does with prompts before they take lanes."""

    decoder: Decoder
    weights: dict[str, Any]
    tokenizer: Any
    pool: Pool
    chunk: int
    prefixes: Prefixes
    _parts: Parts
    _whole: bool

    def _fresh_row(self, request: Request, found: Progress | None, slots: int = 0) -> Progress:
        """The row of a request of which nothing is read, or what a prefix holds; 0 slots: for the whole prompt."""
        slots = slots or self._room(max((end for *_, end in self._cuts(request, len(request.ids))), default=0))
        text = np.full((1, self._width()), self.tokenizer.pad, np.int32)
        text[0, : len(request.ids)] = request.ids
        given = (np.asarray([len(request.ids)]), np.asarray([request.limit]), request.key[None])
        dials, shape = sockets.dials([request.options], self._parts), {"size": 0, "capacity": slots}
        one = self.decoder.start(self.weights, text, *given, dials, parts=self._parts, **shape)
        if found is None:
            return started(one, request.given)
        kept = self.decoder.moved(self.weights, found, np.zeros(1, np.int32), parts=self._parts, capacity=slots)
        return started(dataclasses.replace(one, state=kept.state, side=kept.side), request.given)

    def _width(self) -> int:
        """Tokens of the text of a row, the padding of its prompt's last piece included."""
        return padded(self.pool.longest)

    def _room(self, tokens: int) -> int:
        """Slots of the row of a prompt of which so many tokens are read, padding included."""
        return min(self.pool.room(tokens), self._width())

    def _cuts(self, request: Request, count: int) -> list[tuple[int, int, int]]:
        """Up to `count` more tokens of a prompt in pieces: (tokens, size with padding, where that ends) of each."""
        at, end = request.read, min(request.read + count, len(request.ids) - 1)
        if self._whole:
            end = len(request.ids) - 1
        made = []
        for stop in (*([len(request.prefix)] if at < len(request.prefix) <= end else []), end):
            n = stop - at
            for used, size in [(n, self.pool.room(n))] if self._whole else pieces(n, self.chunk):
                made.append((used, size, at + size))
                at += used
        return made

    def _reading(self, request: Request, count: int) -> Iterator[Piece]:
        """Up to `count` more tokens of a prompt, piece by piece: each is read when the next is asked for."""
        cuts = self._cuts(request, count)
        slots = self._room(max((end for *_, end in cuts), default=0))
        if request.one is None:
            request.one = self._fresh_row(request, None, slots)
        elif slots > (there := self.decoder.slots(request.one, self._parts)):
            slots, rows = max(slots, min(GROWTH * there, self._room(len(request.ids) - 1))), np.zeros(1, np.int32)
            request.one = self.decoder.moved(self.weights, request.one, rows, parts=self._parts, capacity=slots)
        for used, size, _ in cuts:
            yield Piece(request, used, size)
            if request.prefix and request.read == len(request.prefix):
                self.prefixes.keep(request.prefix, request.one)

    def _read_piece(self, piece: Piece) -> None:
        fresh = piece.request.read == 0
        piece.taken(self.decoder.read(self.weights, piece.shown(), parts=self._parts, size=piece.size, fresh=fresh))

    def _read(self, request: Request, count: int) -> None:
        """Reads up to `count` more tokens of a prompt."""
        for piece in self._reading(request, count):
            self._read_piece(piece)

    # Several prompts in one row.

    def _packable(self, requests: Sequence[Request]) -> list[Request]:
        """Those of which nothing is read, or will be found or kept for others."""
        return [r for r in requests if r.one is None and not r.prefix]

    def _read_packed(self, requests: Sequence[Request]) -> set[int]:
        """Reads whole prompts, but for their last tokens, several in a row of at most `chunk` tokens; whose they are.

        A prompt that no other shares a row with is left.
        """
        fitting = [r for r in self._packable(requests) if 2 <= len(r.ids) <= self.chunk + 1]
        rows = prepacking.bins([len(r.ids) - 1 for r in fitting], self.chunk)
        read = set()
        for row in rows:
            if len(row) > 1:
                self._read_row([fitting[i] for i in row])
                read |= {fitting[i].id for i in row}
        return read

    def _read_row(self, requests: Sequence[Request]) -> None:
        """Reads prompts side by side, then gives each what is its own."""
        sizes = [len(r.ids) - 1 for r in requests]
        row = prepacking.side_by_side([r.ids[:-1] for r in requests], row_size(sum(sizes)), self.tokenizer.pad)
        made, start = self.decoder.packed(self.weights, *row, parts=self._parts, slots=row_size(self.chunk)), 0
        for request, n in zip(requests, sizes, strict=True):
            size = self._room(n)
            one = self._fresh_row(request, None, size)
            at = np.int32(start)
            request.one = self.decoder.unpacked(self.weights, one, made, at, parts=self._parts, size=size)
            request.read, start = n, start + n


__all__ = ["Piece", "Prompts"]
