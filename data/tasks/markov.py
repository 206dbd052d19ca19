"""Markov sources of order k with a known law: the entropy rate is the best loss of any model, exactly."""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np

from data import messages
from data.tasks import draws

_KINDS = ("dirichlet", "switching")
_MOST_CONTEXTS = 1 << 12  # the stationary law is a dense system of this size
_TOGETHER = 256  # contexts up to which a row is walked in chunks
_WINDOW = 64  # steps before a chunk in which walks from all contexts are given time to meet


@dataclasses.dataclass(frozen=True)
class Markov:
    """A stationary chain of order `order` over `symbols`; rows begin in its stationary law and all else is an answer.

    "dirichlet": the next symbol's law given the last `order` symbols is drawn from Dirichlet(`concentration`), once,
    by `law` (another number is another source, the same for train and validation). "switching": the symbol `order`
    places back returns with probability 1 - `flip`, else one of the others (after Rajaraman et al. 2024, Toward a
    Theory of Tokenization: a model that sees only frequencies stays at log(symbols)).
    """

    order: int = 2
    symbols: int = 4
    kind: str = "dirichlet"
    concentration: float = 0.3
    flip: float = 0.1
    law: int = 0

    best_kind: ClassVar[str] = "exact"

    @property
    def num_symbols(self) -> int:
        return self.symbols

    def check(self) -> None:
        if self.kind not in _KINDS:
            raise messages.unknown("kind", self.kind, _KINDS)
        if self.symbols < 2:
            raise ValueError(f"symbols={self.symbols} leaves nothing to predict; use 2 or more.")
        if self.symbols**self.order > _MOST_CONTEXTS:
            most = int(math.log(_MOST_CONTEXTS, self.symbols))
            raise ValueError(f"order={self.order} over symbols={self.symbols} has too many contexts; use order={most}.")
        if not self.concentration > 0:
            raise ValueError(f"concentration={self.concentration!r} is not positive; use one such as 0.3.")
        if not 0 < self.flip < 1:
            raise ValueError(f"flip={self.flip!r} is not a probability inside (0, 1); use one such as 0.1.")

    def least_length(self) -> int:
        return self.order

    @functools.cached_property
    def transitions(self) -> np.ndarray:
        """`[symbols^order, symbols]`: the law of the next symbol; a context reads its oldest symbol first."""
        contexts, v = self.symbols**self.order, self.symbols
        if self.kind == "switching":
            oldest = np.arange(contexts) // v ** (self.order - 1)
            return np.where(oldest[:, None] == np.arange(v), 1 - self.flip, self.flip / (v - 1))
        rng = np.random.Generator(np.random.Philox(draws.derive(self.law, "law")))
        return rng.dirichlet(np.full(v, self.concentration), contexts) * (1 - 1e-6) + 1e-6 / v  # none impossible

    @functools.cached_property
    def stationary(self) -> np.ndarray:
        """`[symbols^order]`: the law of contexts that one step of the chain leaves as it is."""
        contexts, v = self.transitions.shape
        step = np.zeros((contexts, contexts))
        here = np.arange(contexts)[:, None]
        step[here, here * v % contexts + np.arange(v)] = self.transitions
        # pi (I - step) = 0 and sum(pi) = 1: one equation is spare; the sum, added to all of them, takes its place.
        return np.linalg.solve((np.eye(contexts) - step).T + 1.0, np.ones(contexts))

    @property
    def best_loss(self) -> float:
        """The entropy rate: nats per symbol given the last `order` symbols."""
        p = self.transitions
        return float(-self.stationary @ (p * np.log(p)).sum(axis=1))

    @property
    def best_accuracy(self) -> float:
        return float(self.stationary @ self.transitions.max(axis=1))

    @property
    def chance_loss(self) -> float:
        """Entropy of one symbol by itself: the loss of a model that knows frequencies only."""
        p = self.stationary.reshape(self.symbols, -1).sum(axis=1)
        return float(-(p * np.log(p)).sum())

    def sample(self, seed: int, row: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(sequence `[B, length + 1]`, answers `[B, length + 1]` bool) of rows `row` `[B]`; see `data.tasks.Task`."""
        batch, k, v = len(row), self.order, self.symbols
        first = np.searchsorted(np.cumsum(self.stationary)[:-1], draws.uniforms(seed, row, "first", 1)[:, 0], "right")
        sequence = np.empty((batch, length + 1), np.int64)
        powers = v ** np.arange(k - 1, -1, -1, dtype=np.int64)
        sequence[:, :k] = (first[:, None] // powers % v)[:, : length + 1]
        steps = length + 1 - k
        sequence[:, k:] = self._walk(first, draws.uniforms(seed, row, "steps", steps))
        answers = np.zeros(sequence.shape, bool)
        answers[:, k:] = True
        return sequence, answers

    def _walk(self, context: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Symbols `[B, n]` from `context` `[B]`, driven by `u` `[B, n]` uniform in [0, 1).

        With few contexts the row is cut into sqrt(n) chunks that are walked side by side, once it is known where each
        begins; else step by step.
        """
        batch, n = u.shape
        size = max(1, math.isqrt(n)) if len(self.transitions) <= _TOGETHER else n
        padded = np.zeros((batch, -(-n // size) * size))
        padded[:, :n] = u
        padded = padded.reshape(batch, -1, size)
        state = self._begins(context, padded)
        made = np.empty(padded.shape, np.int64)
        for step in range(size):
            made[:, :, step], state = self._step(state, padded[:, :, step])
        return made.reshape(batch, -1)[:, :n]

    def _step(self, state: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(symbol, next context) from contexts `state` and uniform `u` of one shape, by inverting the law."""
        drawn = (u[..., None] >= self._cumulative[state]).sum(axis=-1)
        return drawn, (state * self.symbols + drawn) % len(self.transitions)

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(self.transitions, axis=1)[:, :-1]

    def _begins(self, context: np.ndarray, u: np.ndarray) -> np.ndarray:
        """The context in which each chunk of `u` `[B, chunks, size]` begins, `[B, chunks]`.

        Walks that share their random numbers soon meet: where the last steps before a chunk lead to one context from
        every context, that is where it begins. Where they do not, the chunk before is walked whole.
        """
        batch, chunks, size = u.shape
        window = min(_WINDOW, size)
        every = np.arange(len(self.transitions))
        state = np.broadcast_to(every, (batch, chunks - 1, len(every)))
        for step in range(size - window if chunks > 1 else size, size):
            _, state = self._step(state, np.broadcast_to(u[:, :-1, step, None], state.shape))
        met = (state == state[..., :1]).all(axis=-1)
        begins = np.concatenate([context[:, None], state[..., 0]], axis=1)
        for chunk in np.flatnonzero(~met.all(axis=0)):
            rows = np.flatnonzero(~met[:, chunk])
            at = begins[rows, chunk]
            for step in range(size):
                _, at = self._step(at, u[rows, chunk, step])
            begins[rows, chunk + 1] = at
        return begins
