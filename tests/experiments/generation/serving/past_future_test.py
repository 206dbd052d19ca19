"""Past-Future against memory that is counted step by step, and against counts of what is sampled."""

import itertools

import numpy as np
import pytest

from experiments.generation.serving import past_future
from experiments.generation.serving.past_future import Row


def most_memory(held, left):
    """Step after step: every row that has not ended holds one token more; it gives all back behind its last."""
    return max(sum(a + t for a, b in zip(held, left, strict=True) if b >= t) for t in range(max(left) + 1))


def test_the_peak_is_the_most_memory_of_all_steps():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 8))
        held, left = rng.integers(0, 30, n).tolist(), rng.integers(0, 12, n).tolist()
        assert past_future.peak(held, left) == most_memory(held, left)
        assert past_future.peak(held[::-1], left[::-1]) == most_memory(held, left)
    assert past_future.peak([5, 3, 2], [1, 4, 2]) == 13  # By hand: 4 + 3; 2 * 2 + 3 + 2; 3 * 1 + 3 + 2 + 5.
    assert past_future.peak([], []) == 0


def test_what_a_row_holds_and_has_still_to_come():
    row = Row(prompt=10, most=50, done=4, cached=3)
    as_ = lambda state: Row(10, 50, 0 if state == "waiting" else 4, state, 3)  # noqa: E731
    assert past_future.outlook(row, 20) == (11, 15) == past_future.outlook(as_("kept"), 20)
    assert past_future.outlook(as_("waiting"), 20) == (8, 18)
    assert past_future.outlook(as_("offloaded"), 20) == (12, 14)
    assert [past_future.outlook(as_(s), 4)[1] for s in ("running", "waiting", "offloaded")] == [0, 2, 0]
    assert [past_future.first_tokens(as_(s)) for s in ("running", "waiting", "offloaded", "kept")] == [0, 10, 14, 0]
    long = Row(prompt=1, most=2000, done=1001)
    assert past_future.estimated_length(long, busy=False) == 1101  # int(1.1 * 1001) = int(1101.1)
    assert past_future.estimated_length(row, busy=False) == 50 == past_future.estimated_length(row, busy=True)
    assert past_future.estimated_length(Row(1, 2000, 5), busy=False) == 1024
    assert past_future.estimated_length(Row(1, 2000, 5), busy=False, typical=7) == 7


def test_the_history():
    history = past_future.first_history(64)
    assert history == [64] * 100
    history = past_future.recorded(history, range(150))
    assert len(history) == 200 and history[:50] == [64] * 50 and history[50:] == list(range(150))
    assert past_future.sample_new(history, 0.0) == 64 and past_future.sample_new(history, 0.9999) == 149
    assert [past_future.sample_sets(n) for n in (0, 1, 40, 49, 50, 51, 66, 67, 200, 201)] == [
        1,
        5,
        5,
        5,
        5,
        4,
        4,
        3,
        2,
        1,
    ]


def test_lengths_are_sampled_above_what_is_written():
    history = [9, 3, 5, 5, 20]
    assert past_future.sample_range(history, 0, 20) == [0, 3, 5, 5, 9, 20]
    assert past_future.sample_range(history, 5, 30) == [5, 9, 20, 30]
    assert past_future.sample_range(history, 25, 30) == [25, 30]
    assert past_future.sample_range(history, 30, 30) == [30] and past_future.sample_length(history, 30, 30, 0.5) == 30
    # Points 5, 9, 20, 30 at 0, 1/3, 2/3, 1: half way between the first two is 7, a quarter of the next 11.75 -> 12.
    assert [past_future.sample_length(history, 5, 30, u / 12) for u in (0, 2, 5, 4, 8)] == [5, 7, 12, 9, 20]
    assert past_future.sample_length([2, 3], 0, 3, 0.25) == 1  # 0, 2, 3: half way to 2.
    rng = np.random.default_rng(1)
    drawn = [past_future.sample_length(history, 5, 30, u) for u in rng.uniform(size=3000)]
    assert np.mean(drawn) == pytest.approx((7 + 14.5 + 25) / 3, abs=4 * 7.6 / np.sqrt(3000))
    assert min(drawn) == 5 and max(drawn) == 30


def plainly(running, waiting, capacity, length, bound):
    """The longest beginning of the queue for which every beginning of it keeps the memory below the bound."""
    pairs = lambda n: [past_future.outlook(row, length(row)) for row in (*running, *waiting[:n])]  # noqa: E731
    good = [most_memory(*zip(*pairs(n), strict=True)) < bound for n in range(1, len(waiting) + 1)]
    return len(list(itertools.takewhile(bool, good)))


def test_baselines_see_nothing_or_the_worst():
    rng, counts = np.random.default_rng(2), []
    draw = lambda high, n: rng.integers(1, high, n).tolist()  # noqa: E731
    for _ in range(100):
        running = [Row(p, 40, d) for p, d in zip(draw(20, 4), draw(40, 4), strict=True)]
        waiting = [Row(p, m, 0, "waiting") for p, m in zip(draw(9, 20), draw(60, 20), strict=True)]
        capacity = int(rng.integers(150, 400))
        bold = past_future.aggressive(running, waiting, capacity)
        shy = past_future.conservative(running, waiting, capacity)
        assert bold == plainly(running, waiting, capacity, lambda row: 0, capacity)
        assert shy == plainly(running, waiting, capacity, lambda row: row.most, capacity)
        assert past_future.released(running, waiting, capacity, busy=True) == shy
        typical = lambda row: min(row.most, max(int(1.1 * row.done), 9))  # noqa: E731
        found = past_future.released(running, waiting, capacity, busy=False, typical=9)
        assert found == plainly(running, waiting, capacity, typical, capacity) and shy <= found <= bold
        counts.append((bold, found, shy))
    assert sum(bold > found for bold, found, _ in counts) > 5 and sum(found > shy for _, found, shy in counts) > 20
    waiting = [Row(1, 2, 0, "waiting")] * 9
    assert past_future.aggressive([Row(1, 2, 1)], waiting, 1000, rows=4) == 3
    assert past_future.conservative([], [Row(9, 2, 0, "waiting")], 10) == 0  # 10 of 10 is not below the capacity.


def test_admission_takes_the_worst_of_the_sampled_futures():
    """With a history of one length all futures are known; else the largest decides."""
    waiting = [Row(10, 100, 0, "waiting") for _ in range(5)]
    running = [Row(10, 100, 3)]
    # At u = 0 a running row ends with what it has, 13 tokens; each waiting row holds 11 and has 6 to come.
    for capacity in range(10, 120, 3):
        n = past_future.admitted(running, waiting, [8] * 200, capacity, lambda: 0.0)
        assert n == sum(most_memory([13] + [11] * k, [0] + [6] * k) < 0.95 * capacity for k in range(1, 6)), capacity
    one = iter([0.0, 0.9, 0.0, 0.0, 0.0] + [0.0] * 50)  # In one future of five the row goes on.
    worst = past_future.outlook(running[0], past_future.sample_length([8] * 200, 3, 100, 0.9))
    few = past_future.admitted(running, waiting, [8] * 200, 90, lambda: next(one))
    assert worst[1] == 4  # 8 - 3 - 1.
    assert few == sum(most_memory([13] + [11] * k, [4] + [6] * k) < 0.95 * 90 for k in range(1, 6)) < 5
    assert past_future.admitted(running, waiting, [8] * 200, 10**6, lambda: 0.0, rows=3) == 2
    assert past_future.admitted(running, waiting, [8] * 200, 10**6, lambda: 0.0, tokens=39) == 3
    assert past_future.fits([[(5, 0)]], 100, paused=90) is False and past_future.fits([[(4, 0)]], 100, paused=90)
    assert not past_future.fits([[(4, 0)]], 100, paused=90, cached=1)
