"""The lanes of an engine: which rows are under way together, in how many slots, and which of them draw."""

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation.pool import Shape, staying
from experiments.generation.prompts import Prompts
from experiments.generation.request import Request
from experiments.generation.serving.plan import StepPlan
from models.decoding import parts as sockets
from models.decoding.rows import take
from models.decoding.stream import Parts, Progress


class Lanes(Prompts):
    """What an engine does with rows whose prompts were read."""

    settings: dict[str, Any]
    waiting: deque[Request]
    reading: dict[int, Request]
    running: dict[int, Request]
    _lanes: Progress | None
    _shape: Shape | None

    def need(self, request: Request, rounds: int) -> int:
        """Tokens that its row is to hold after so many rounds."""
        drafter = self._parts.drafter[1]
        return min(request.limit, request.length + rounds * drafter.depth)

    def _seat(self, request: Request, rounds: int) -> None:
        """Puts a row into a lane."""
        needs = {r.id: self.need(r, rounds) for r in (*self.running.values(), request)}
        kept, shape = staying(self.pool, needs)
        if request.id not in kept:
            return
        self._resize(shape)
        taken = {r.row for r in self.running.values()}
        request.row = next(row for row in range(shape.rows) if row not in taken)
        rows = np.zeros(1, np.int32)
        one = self.decoder.moved(self.weights, request.one, rows, parts=self._parts, capacity=shape.slots)
        self._lanes = self.decoder.insert(self._lanes, np.int32(request.row), one)
        request.one = None
        del self.reading[request.id]
        self.running[request.id] = request

    def _resize(self, shape: Shape) -> None:
        """The lanes with another number of rows and slots; running rows are moved together where rows are fewer."""
        if self._lanes is None or (shape != self._shape and not self.running):
            text = np.full((shape.rows, self._width()), self.tokenizer.pad, np.int32)
            dials = sockets.dials([self.settings] * shape.rows, self._parts)
            self._lanes = self.decoder.lanes(self.weights, text, dials, parts=self._parts, capacity=shape.slots)
        elif shape != self._shape:
            rows = np.full(shape.rows, -1, np.int32)
            for row, request in enumerate(self.running.values()):
                rows[row], request.row = request.row, row
            self._lanes = self.decoder.moved(self.weights, self._lanes, rows, parts=self._parts, capacity=shape.slots)
        self._shape = shape

    def _preempt(self, request: Request) -> None:
        """Takes a row out of its lane; it comes back as it is, in the host's memory until then. Half a prompt that was
        read is read anew."""
        if self.reading.pop(request.id, None) is not None:
            if not request.ready:
                request.one, request.read, request.prefix = None, 0, ()
            self.waiting.appendleft(request)
            return
        row = jax.jit(take)(self._lanes, jnp.asarray([request.row]))
        request.one, request.read = jax.device_get(row), len(request.ids)
        self._retire([request.row])
        del self.running[request.id]
        request.row = -1
        self.waiting.appendleft(request)

    def _retire(self, rows: Sequence[int]) -> None:
        """Lanes that are no request's any more."""
        done = np.array(self._lanes.done)
        done[list(rows)] = True
        self._lanes = dataclasses.replace(self._lanes, done=jax.device_put(done, self._lanes.done.sharding))

    def _turn(self, plan: StepPlan, rounds: int) -> tuple[list[Request], np.ndarray, Parts]:
        """The running rows that the pool holds after so many rounds, in lanes that have room for them; `[rows]` which
        of them draw; the parts of their rounds."""
        kept, shape = staying(self.pool, {r.id: self.need(r, rounds) for r in self.running.values()})
        for request in [r for r in self.running.values() if r.id not in kept][::-1]:
            self._preempt(request)
        self._resize(shape)
        here = list(self.running.values())
        among = np.zeros(shape.rows, bool)
        among[[r.row for r in here if plan.decodes is None or r.id in plan.decodes]] = True
        return here, among, self.decoder.parts([r.options for r in here], shared=self.settings)
