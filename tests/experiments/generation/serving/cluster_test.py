"""Sizes of two pools: the search against all sizes, and what is simulated for it against a recursion by hand."""

import itertools

import numpy as np
import pytest

from experiments.generation.serving import cluster, traces
from experiments.generation.serving.costs import StepCost
from experiments.generation.serving.jobs import Asked, Blocks
from experiments.generation.serving.schedulers import FirstCome
from experiments.generation.serving.simulator import Log, Machine, Served, simulate


@pytest.mark.parametrize("price", [(1.0, 1.0), (2.35, 1.0), (1.0, 3.1)])
def test_the_cheapest_is_that_of_all_sizes(price):
    """Of many random borders between what is enough and what is not: more machines of any pool are."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        border = np.sort(rng.integers(1, 9, 6))[::-1]  # token machines that are needed beside p + 1 others
        asked = []

        def enough(p, t, border=border, asked=asked):
            asked.append((p, t))
            return t >= border[p - 1]

        found = cluster.cheapest(enough, (6, 6), price)
        good = [(p, t) for p in range(1, 7) for t in range(1, 7) if t >= border[p - 1]]
        best = min((p * price[0] + t * price[1] for p, t in good), default=None)
        assert (found is None) == (not good)
        if good:
            assert found in good and found[0] * price[0] + found[1] * price[1] == best
            assert all(p * price[0] + t * price[1] <= best for p, t in asked)


def test_the_fastest_within_a_budget_is_that_of_all_sizes():
    rng = np.random.default_rng(1)
    for budget, price in itertools.product((2.0, 3.5, 7.0, 10.0), ((1.0, 1.0), (2.0, 1.0), (1.0, 1.5))):
        if budget < sum(price):
            with pytest.raises(ValueError, match="buys no machine of each pool"):
                cluster.fastest(lambda p, t: 1.0, budget, price)
            continue
        reads, writes = np.sort(rng.uniform(0, 9, 12)), np.sort(rng.uniform(0, 9, 12))
        rate = lambda p, t, r=reads, w=writes: min(r[p], w[t])  # noqa: E731
        size, found = cluster.fastest(rate, budget, price)
        all_sizes = [(p, t) for p in range(1, 11) for t in range(1, 11) if p * price[0] + t * price[1] <= budget]
        assert size in all_sizes and found == rate(*size) == max(rate(p, t) for p, t in all_sizes)


def test_rates_are_halved():
    assert cluster.highest_rate(lambda rate: rate <= 0.7, 0.0, 1.0, 20) == pytest.approx(0.7, abs=1e-6)
    assert (
        cluster.highest_rate(lambda rate: True, 0.0, 1.0) == 1.0
        and cluster.highest_rate(lambda r: False, 0.1, 1.0) == 0.1
    )


def test_limits_are_of_percentiles_of_slowdowns():
    """A hundred requests: alone first token after 1, gaps of 2; two are slower."""

    def log(first, gap):
        made = Log()
        for i in range(100):
            begin = 10.0 * i + first[i]
            made.served[i] = Served(Asked(i, 10.0 * i, 4, 3), 0.0, [begin, begin + gap[i], begin + 2 * gap[i]])
        return made

    alone = log([1.0] * 100, [2.0] * 100)
    slow = log([1.5] * 98 + [9.0] * 2, [2.0] * 100)
    found = cluster.slowdowns(slow, alone)
    assert found["first"][0] == 1.5 and found["gap"][99] == 1.0 and found["whole"][99] == (9 + 4) / 5
    assert not cluster.meets(slow, alone)  # The 99th percentile of the first token is 9 > 6.
    assert cluster.meets(log([1.5] * 99 + [9.0], [2.0] * 100), alone)  # Interpolated: 1.5 + 0.01 (9 - 1.5).
    assert not cluster.meets(log([1.0] * 100, [2.6] * 100), alone)  # The median gap is 1.3 > 1.25.
    assert not cluster.meets(log([2.1] * 100, [2.0] * 100), alone)
    short = Log(served={0: Served(Asked(0, 0.0, 4, 1), 0.0, [1.0])})
    assert cluster.meets(short, short)  # One token has no gap.


def test_pools_are_searched_by_simulation():
    """Prompts of 2 s, answers of 4 tokens of 1 s, a row a machine, one each 1.25 s: queues grow unless two read and
    three write (3 gaps each)."""
    cost = StepCost((0.0, 0.0, 0.0, 0.0, 1.0), of=lambda work: np.array([0, 0, 0, 0, 2.0 * bool(work.chunks) or 1.0]))
    make = lambda: Machine(FirstCome(rows=1), cost, Blocks(100))  # noqa: E731
    requests = traces.asked([1.25 * i for i in range(40)], [2] * 40, [4] * 40)
    served = lambda p, t, some=requests: simulate(some, cluster.pools(p, t, make), route=cluster.reading)  # noqa: E731
    alone = cluster.apart(requests, lambda some: served(1, 1, some))
    assert {round(s.first, 9) for s in alone.served.values()} == {2.0}
    assert {round(s.times[-1] - s.asked.arrival, 9) for s in alone.served.values()} == {5.0}
    enough = lambda p, t: cluster.meets(served(p, t), alone)  # noqa: E731
    good = [(p, t) for p in range(1, 5) for t in range(1, 5) if enough(p, t)]
    assert good == [(p, t) for p in range(2, 5) for t in range(3, 5)]
    assert cluster.cheapest(enough, (4, 4), (2.0, 1.0)) == (2, 3)
