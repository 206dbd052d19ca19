"""Past-Future: a request is admitted if the largest memory of all futures that the past suggests still fits
(Gong et al. 2025, arXiv:2507.10150).

Rules are those of ModelTC/lightllm: the sampler of its branch `future_past_router`, the estimates of its main branch.
Memory is in tokens. Random numbers are arguments, uniform in [0, 1).
"""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

WINDOW, SETS, SAMPLES, RESERVED = 200, 5, 200, 0.05


def peak(held: Sequence[float], left: Sequence[float]) -> float:
    """max_i (b_i i + sum_{j<=i} a_j), rows by b descending: the most memory until all rows have ended. a, b: `[n]`.

    a: tokens held now; b: tokens still to come, one a step. The i-th term is the memory when row i ends. 0 of no rows.
    """
    a, b = np.asarray(held), np.asarray(left)
    if not len(a):
        return 0
    order = np.argsort(-b, kind="stable")
    return (b[order] * np.arange(1, len(a) + 1) + np.cumsum(a[order])).max().item()


@dataclasses.dataclass(frozen=True)
class Row:
    """A request as the scheduler sees it, in tokens.

    Attributes:
      prompt: of its prompt.
      most: that it may write.
      done: that it has written.
      state: "running"; "waiting"; "offloaded" (preempted, to be read anew); "kept" (preempted, its memory kept).
      cached: of the prompt, tokens that another's memory holds.
    """

    prompt: int
    most: int
    done: int = 0
    state: str = "running"
    cached: int = 0


def outlook(row: Row, length: int) -> tuple[int, int]:
    """(a, b) of a row that is to write `length` tokens in all, as lightllm counts them.

    running, kept: (prompt + done - cached, length - done - 1); waiting: (prompt + 1 - cached, length - 2); offloaded:
    (prompt + done + 1 - cached, length - done - 2); b is never negative.
    """
    held = row.prompt + row.done - row.cached
    if row.state in ("running", "kept"):
        return held, max(0, length - row.done - 1)
    if row.state == "waiting":
        return row.prompt + 1 - row.cached, max(0, length - 2)
    return held + 1, max(0, length - row.done - 2)


def first_tokens(row: Row) -> int:
    """Tokens that an admission reads: prompt where it waits, prompt + done where it was offloaded, else 0."""
    return {"waiting": row.prompt, "offloaded": row.prompt + row.done}.get(row.state, 0)


def capped(row: Row, length: int, factor: float = 1.0) -> int:
    """min(most, max(int(factor done), length)): a sampled length that the row can still have."""
    return min(row.most, max(int(factor * row.done), length))


def estimated_length(row: Row, *, busy: bool, typical: int = 1024) -> int:
    """lightllm's main branch, without a history: `most` where busy, else min(most, max(int(1.1 done), typical))."""
    return row.most if busy else capped(row, typical, 1.1)


def first_history(longest: int, window: int = WINDOW) -> list[int]:
    """window / 2 copies of the longest length that is served: what is believed before anything has ended."""
    return [longest] * (window // 2)


def recorded(history: Sequence[int], lengths: Sequence[int], window: int = WINDOW) -> list[int]:
    """The last `window` of the history and the lengths of requests that have ended, in their order."""
    return [*history, *lengths][-window:]


def sample_range(history: Sequence[int], done: int, most: int) -> list[int]:
    """[done, the lengths of the history above it in order, `most` if it is above all of these]."""
    ordered = sorted(history)
    points = [done, *ordered[bisect.bisect_right(ordered, done) :]]
    return [*points, most] if points[-1] < most else points


def sample_length(history: Sequence[int], done: int, most: int, u: float) -> int:
    """Length of a running row: at u (n - 1) of the n points of `sample_range`, between two of them linear, rounded.

    A row beyond all lengths keeps `done`, where the released code fails.
    """
    points = sample_range(history, done, most)
    if len(points) == 1:
        return done
    place = u * (len(points) - 1)
    low = int(place)
    return round(points[low] + (points[low + 1] - points[low]) * (place - low))


def sample_new(history: Sequence[int], u: float) -> int:
    """Length of a waiting row: history[int(u n)], one of the past lengths."""
    return history[int(u * len(history))]


def sample_sets(rows: int) -> int:
    """min(5, int(200 / rows) + 1): so many futures are sampled for so many running rows; 1 of none."""
    return min(SETS, int(SAMPLES / rows) + 1) if rows else 1


def sampled(rows: Sequence[Row], history: Sequence[int], u: np.ndarray) -> list[list[tuple[int, int]]]:
    """(a, b) of running rows in each future: u `[S, n]`, futures by rows -> S lists of n pairs."""
    length = lambda row, u: capped(row, sample_length(history, row.done, row.most, u))  # noqa: E731
    return [[outlook(row, length(row, x)) for row, x in zip(rows, each, strict=True)] for each in u]


def fits(futures: Sequence[Sequence[tuple[int, int]]], capacity: float, *, paused: int = 0, cached: int = 0) -> bool:
    """Whether the largest `peak` of the futures is below 0.95 capacity - paused - cached."""
    peaks = [peak(*zip(*pairs, strict=True)) if pairs else 0 for pairs in futures]
    return max(peaks) < capacity * (1 - RESERVED) - paused - cached


def admitted(
    running: Sequence[Row],
    waiting: Sequence[Row],
    history: Sequence[int],
    capacity: int,
    uniform: Callable[[], float],
    *,
    rows: int = 1000,
    tokens: float = float("inf"),
) -> int:
    """How many of the queue are admitted: from its front while all futures fit (`fits`), and rows and tokens are left.

    uniform() gives the random numbers: of running rows row by row, each in all futures; then of each waiting row.
    tokens: that all who are admitted may read together (`first_tokens`).
    """
    S = sample_sets(len(running))
    u = np.array([[uniform() for _ in range(S)] for _ in running]).reshape(len(running), S).T
    futures = sampled(running, history, u)
    for count, row in enumerate(waiting):
        tokens -= first_tokens(row)
        if tokens < 0:
            return count
        for pairs in futures:
            pairs.append(outlook(row, capped(row, sample_new(history, uniform()))))
        if len(running) + count + 1 > rows or not fits(futures, capacity):
            return count
    return len(waiting)


def aggressive(running: Sequence[Row], waiting: Sequence[Row], capacity: int, *, rows: int = 1000) -> int:
    """How many of the queue are admitted where nothing is foreseen: while sum a < capacity, all b = 0."""
    return _without_history(running, waiting, capacity, rows, lambda row: 0)


def conservative(running: Sequence[Row], waiting: Sequence[Row], capacity: int, *, rows: int = 1000) -> int:
    """How many of the queue are admitted where each is to write all it may: while peak(a, b of `most`) < capacity."""
    return _without_history(running, waiting, capacity, rows, lambda row: row.most)


def released(
    running: Sequence[Row], waiting: Sequence[Row], capacity: int, *, busy: bool, typical: int = 1024, rows: int = 1000
) -> int:
    """How many of the queue lightllm's main branch admits: while peak(a, b of `estimated_length`) < capacity."""
    length = lambda row: estimated_length(row, busy=busy, typical=typical)  # noqa: E731
    return _without_history(running, waiting, capacity, rows, length)


def _without_history(
    running: Sequence[Row], waiting: Sequence[Row], capacity: int, rows: int, length: Callable[[Row], int]
) -> int:
    pairs = [outlook(row, length(row)) for row in running]
    for count, row in enumerate(waiting):
        pairs.append(outlook(row, length(row)))
        if len(pairs) > rows or peak(*zip(*pairs, strict=True)) >= capacity:
            return count
    return len(waiting)
