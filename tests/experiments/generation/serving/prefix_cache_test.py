"""Shared blocks against dictionaries of whole beginnings, and serving with them."""

import numpy as np
import pytest

from experiments.generation.serving import batchllm, traces
from experiments.generation.serving.costs import StepCost
from experiments.generation.serving.jobs import Asked, Blocks
from experiments.generation.serving.prefix_cache import PrefixCache, chain
from experiments.generation.serving.sarathi import Limits
from experiments.generation.serving.schedulers import BatchLLM, FirstCome, Sarathi
from experiments.generation.serving.simulator import Machine, simulate

ONE = StepCost((1.0, 0, 0, 0, 0))


def test_hashes_stand_for_all_before_them():
    assert len(list(chain(range(11), 4))) == 2 and not list(chain(range(3), 4))
    a, b, c = (list(chain(ids, 2)) for ids in ([1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 3, 4]))
    assert a[0] == b[0] and a[1] != b[1] and a[0] != c[0] and a[1] != c[1]
    assert list(chain([1, 23], 2)) != list(chain([12, 3], 2))


def test_blocks_are_counted_shared_and_evicted_by_use():
    cache = PrefixCache(2, most=3)
    assert cache.take(0, [1, 2, 3, 4, 5]) == [] and cache.add(0, [1, 2, 3, 4, 5], lambda n: f"a{n}") == 2
    assert cache.take(1, [1, 2, 3, 4]) == ["a0"]  # Never the block with the last token.
    assert cache.take(2, [1, 2, 3, 4, 9]) == ["a0", "a1"] and cache.referenced == 2
    assert cache.hits == 6 and cache.misses == 5 + 2 + 1
    cache.release(0)
    cache.release(1)
    assert cache.referenced == 2  # Row 2 has them.
    cache.release(2)
    assert cache.referenced == 0 and len(cache.blocks) == 2
    assert cache.take(3, [7, 7]) == [] and cache.add(3, [7, 7, 8, 8], lambda n: f"b{n}") == 2
    # Room for 3: the block unused for longest has gone, the second of the first text; the first is still of use.
    assert cache.find([1, 2, 3, 4, 5]) == list(chain([1, 2], 2)) and len(cache.blocks) == 3
    cache.shrink(0)
    assert len(cache.blocks) == 2 and cache.find([7, 7, 8, 8, 0]) == list(chain([7, 7, 8, 8], 2))
    assert PrefixCache(2, most=0).add(0, [1, 2]) == 0
    with pytest.raises(ValueError, match="release it first"):
        cache.take(3, [1])


def test_what_is_found_is_the_longest_beginning_in_whole_blocks():
    rng = np.random.default_rng(0)
    cache, texts = PrefixCache(3), []
    for row in range(150):
        text = rng.integers(0, 2, rng.integers(1, 14)).tolist()
        there = {tuple(t[:n]) for t in texts for n in range(3, len(t) + 1, 3)}
        want = 0
        while want + 3 < len(text) and tuple(text[: want + 3]) in there:
            want += 3
        assert len(cache.take(row, text)) * 3 == want
        cache.add(row, text)
        texts.append(text)
        if row % 3:
            cache.release(row)
    assert len(cache.blocks) == len({tuple(t[:n]) for t in texts for n in range(3, len(t) + 1, 3)})


def together(count, groups, seed, block=4):
    """Requests of `groups` long beginnings in whole blocks, each with an end of its own, mixed."""
    rng = np.random.default_rng(seed)
    heads = [tuple(rng.integers(0, 9, 8 * block).tolist()) for _ in range(groups)]
    ids = [heads[i % groups] + (100 + i,) * int(rng.integers(1, 9)) for i in range(count)]
    outputs = rng.integers(1, 20, count).tolist()
    return [Asked(i, 0.0, len(p), o, 20, p) for i, (p, o) in enumerate(zip(ids, outputs, strict=True))]


@pytest.mark.parametrize(
    "scheduler", [FirstCome, lambda: Sarathi(Limits(budget=40)), lambda: BatchLLM(Limits(budget=40))]
)
def test_serving_with_shared_blocks(scheduler):
    requests = together(24, 4, 0)
    memory = Blocks(64, 4)
    cache = PrefixCache(4)
    log = simulate(requests, [Machine(scheduler(), ONE, memory, cache=cache)])
    alone = simulate(requests, [Machine(scheduler(), ONE, memory)])
    for found in (log, alone):
        assert all(len(found.served[r.id].times) == r.output for r in requests)
        assert all(step.used <= 64 for step in found.steps)
    read = lambda found: sum(n for step in found.steps for n, _ in step.work.chunks)  # noqa: E731
    again = lambda found: sum(s.again for s in found.served.values())  # noqa: E731
    assert read(log) < read(alone) and sum(s.hit for s in log.served.values()) > 0
    assert read(alone) >= sum(r.prompt for r in requests) and cache.referenced == 0
    if not again(log):
        assert read(log) == sum(r.prompt - log.served[r.id].hit for r in requests)


def test_groups_read_each_beginning_once_where_arrivals_read_it_again_and_again():
    """With room for few beginnings, LRU under first come first served finds fewer blocks than groups do."""
    requests = together(48, 12, 1)
    made = {}
    for name, scheduler in (("groups", BatchLLM(Limits(budget=64))), ("arrivals", Sarathi(Limits(budget=64)))):
        log = simulate(requests, [Machine(scheduler, ONE, Blocks(48, 4), cache=PrefixCache(4))])
        made[name] = sum(n for step in log.steps for n, _ in step.work.chunks)
    nodes = batchllm.trie_nodes([r.ids for r in requests])
    assert nodes <= made["groups"] < made["arrivals"]
    roomy = simulate(requests, [Machine(BatchLLM(Limits(budget=40)), ONE, Blocks(10**4, 4), cache=PrefixCache(4))])
    assert sum(n for step in roomy.steps for n, _ in step.work.chunks) >= nodes
    assert traces.asked([], [], []) == []
