"""What a step takes: a sum of terms with costs that are fitted to measured steps, never negative."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

from experiments.generation.serving import lamina, prepacking

ROUNDS = 100  # of weights, at most; ten or so are enough
NAMES = ("step", "token", "decode_context", "chunk_area", "row")


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step does.

    Attributes:
      decodes: tokens in memory of each row that draws.
      chunks: (tokens, tokens in memory before) of each prompt that is read.
      joins: tokens in memory of each row whose prompt ends here.
      moves: rows that leave or come back with their memory.
    """

    decodes: tuple[int, ...] = ()
    chunks: tuple[tuple[int, int], ...] = ()
    joins: tuple[int, ...] = ()
    moves: int = 0

    @property
    def tokens(self) -> int:
        """Of decodes and chunks."""
        return len(self.decodes) + sum(n for n, _ in self.chunks)


def terms(work: Work) -> np.ndarray:
    """(1, tokens, sum of contexts of decodes, sum n (context + n / 2) of chunks, rows) `[5]`, as `NAMES`."""
    area = sum(n * (before + n / 2) for n, before in work.chunks)
    return np.array([1.0, work.tokens, sum(work.decodes), area, len(work.decodes) + len(work.chunks)])


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Seconds of a step: costs . terms(work).

    Attributes:
      costs: one of each term.
      of: Work -> terms.
    """

    costs: tuple[float, ...]
    of: Callable[[Work], np.ndarray] = terms

    def __call__(self, work: Work) -> float:
        """Seconds."""
        return float(np.dot(self.costs, self.of(work)))


def nonnegative(design: np.ndarray, seconds: Sequence[float]) -> np.ndarray:
    """argmin over c >= 0 of sum_i (design c - seconds)_i^2 / (design c)_i `[terms]`, the weights held; design
    `[steps, terms]`.

    The weights are those of times that vary as sums of many parts do, and are of the fit itself, made anew with it
    until it stands: the fitted times have the sum of the measured ones. With weights of measured times the fit would be
    their harmonic mean, which noise alone makes too small. Columns are scaled first: their sizes differ by 10^6.
    """
    design, seconds = np.asarray(design, np.float64), np.asarray(seconds, np.float64)
    scale = np.maximum(np.abs(design).max(axis=0), np.finfo(float).tiny)
    fitted, costs = np.full(len(seconds), seconds.mean()), np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(np.maximum(fitted, 1e-3 * seconds.mean()))  # A step that would cost nothing has a weight, too.
        before, costs = costs, optimize.nnls(design / scale / root[:, None], seconds / root)[0]
        fitted = design / scale @ costs
        if np.allclose(before, costs, rtol=1e-10, atol=0):
            break
    return costs / scale


@dataclasses.dataclass(frozen=True)
class Fitted:
    """cost: fitted to all steps; error: median |predicted / measured - 1| of steps that a fit has not seen."""

    cost: StepCost
    error: float


def fit(
    works: Sequence[Work], seconds: Sequence[float], of: Callable[[Work], np.ndarray] = terms, *, parts: int = 5
) -> Fitted:
    """`nonnegative` of measured steps, and its error on held-out steps: every `parts`-th, in turn."""
    design, seconds = np.stack([of(work) for work in works]), np.asarray(seconds, np.float64)
    turn, away = np.arange(len(works)) % parts, []
    for part in range(parts):
        costs = nonnegative(design[turn != part], seconds[turn != part])
        away.append(np.abs(design[turn == part] @ costs / seconds[turn == part] - 1))
    found = StepCost(tuple(nonnegative(design, seconds).tolist()), of)
    return Fitted(found, float(np.median(np.concatenate(away))))


def padded(work: Work) -> Work:
    """The same step where chunks are read as one batch that is padded to its longest."""
    longest = max((n for n, _ in work.chunks), default=0)
    return dataclasses.replace(work, chunks=tuple((longest, before) for _, before in work.chunks))


def packed(work: Work) -> Work:
    """The same step where prompts read from their beginning are packed into rows (`prepacking.bins`), padded to the
    longest row."""
    lengths = [n for n, _ in work.chunks]
    rows = prepacking.bins(lengths)
    longest = max((sum(lengths[i] for i in row) for row in rows), default=0)
    return dataclasses.replace(work, chunks=tuple((longest, 0) for _ in rows))


@dataclasses.dataclass(frozen=True)
class Offloaded:
    """Lamina's step: the model and attention on two kinds of devices, `batches` of them rotating.

    Attributes:
      model: cost of a step without attention over contexts.
      attention: seconds a token of context on the attention workers.
      traffic: bytes a token between the two.
      bandwidth: bytes a second.
      batches: that rotate, equal parts of the work; a step of all rows takes as many intervals (`lamina.interval`).
    """

    model: StepCost
    attention: float
    traffic: float
    bandwidth: float
    batches: int = 2

    def __call__(self, work: Work) -> float:
        """Seconds."""
        n = self.batches
        part = [Work(work.decodes[i::n], work.chunks[i::n]) for i in range(n)]
        model = sum(self.model(dataclasses.replace(p, decodes=(0,) * len(p.decodes))) for p in part) / n
        attention = self.attention * sum(work.decodes) / n
        exchange = work.tokens / n * self.traffic / self.bandwidth
        return n * lamina.interval(model, attention, exchange, n)
