"""Splitwise, Lamina and Flover: transfers and rotations by walks through their events, placement by hand."""

import heapq

import numpy as np
import pytest

from experiments.generation.serving import flover, lamina, splitwise
from experiments.generation.serving.splitwise import Machine


def sent_by_layers(compute, link):
    """When the last layer is there: each begins when it is computed and the link is free."""
    done = free = 0.0
    for _ in range(len(compute)):
        done += compute[0]
        free = max(done, free) + link
    return free


@pytest.mark.parametrize(
    "prefill, size, bandwidth, layers", [(8.0, 4.0, 1.0, 4), (4.0, 32.0, 2.0, 8), (3.0, 5.0, 2.5, 1)]
)
def test_what_is_sent_layer_by_layer_is_there_earlier(prefill, size, bandwidth, layers):
    walk = sent_by_layers([prefill / layers] * layers, size / bandwidth / layers)
    found = splitwise.layered_transfer(prefill, size, bandwidth, layers, latency=0.5)
    assert found == pytest.approx(0.5 + walk, rel=1e-14)
    serial = splitwise.serial_transfer(prefill, size, bandwidth, 0.5)
    assert serial == 0.5 + prefill + size / bandwidth and (found < serial or layers == 1)
    both = [splitwise.transfer(tokens, prefill, size, bandwidth, layers, 0.5) for tokens in (511, 512)]
    assert both == [serial, found]
    assert splitwise.released_transfer(prefill, size, bandwidth) == prefill + size / bandwidth / 10


def test_bytes_queues_and_batches():
    assert splitwise.kv_bytes(10, layers=3, width=8, bytes_each=2) == 2 * 10 * 3 * 8 * 2
    assert splitwise.shortest([5, 2, 9, 2]) == 1
    assert [splitwise.prompt_batch(p, 10) for p in ([4, 6, 1], [4, 7], [11, 1], [], [3])] == [2, 1, 1, 0, 1]


def test_placement_by_hand():
    prompt = lambda pending, queued=1, memory=0: Machine("prompt", pending, memory, 100, queued)  # noqa: E731
    token = lambda memory, pending=0: Machine("token", pending, memory, 100)  # noqa: E731
    mixed = lambda pending, memory, queued=1: Machine("mixed", pending, memory, 100, queued)  # noqa: E731
    place = lambda machines, tokens=100, memory=10: splitwise.place(machines, tokens, memory, most=500)  # noqa: E731
    # The shortest queue and the emptiest memory.
    found = place([prompt(300), prompt(200), token(50), token(40)])
    assert (found.prompt, found.token, found.moved) == (1, 3, {})
    # 400 + 100 is not too long, 401 + 100 is, unless nothing waits; then the mixed pool, then a token machine is taken.
    assert place([prompt(400), token(0)]).prompt == 0
    assert place([prompt(401, queued=0), token(0)]).prompt == 0
    found = place([prompt(401), mixed(7, 0), token(0)])
    assert (found.prompt, found.token) == (1, 2) and not found.moved
    found = place([prompt(401), token(5, pending=9), token(7, pending=3)])
    assert (found.prompt, found.token, found.moved) == (2, 1, {2: "mixed"})
    # 89 + 10 fits, 90 + 10 does not: the mixed pool, then the emptiest prompt machine becomes mixed.
    assert place([prompt(0), token(89)]).token == 1
    assert place([prompt(0), mixed(0, 50), token(90)]).token == 1
    found = place([prompt(0, memory=8), prompt(5, memory=6), token(90)])
    assert (found.prompt, found.token, found.moved) == (0, 1, {1: "mixed"})
    # No one for tokens, and no prompt machine left: the fewest pending tokens does both.
    found = place([mixed(9, 95), mixed(4, 99)])
    assert (found.prompt, found.token, found.moved) == (1, 1, {})


def rotation(model, attention, batches, rounds=200):
    """Steps a unit of time where n batches share attention workers and max(1, n - 1) replicas of the model."""
    replicas, free_attention = [0.0] * max(1, batches - 1), 0.0
    queue, done, part = [(0.0, b) for b in range(batches)], 0, [0] * batches
    heapq.heapify(queue)
    while done < rounds * batches:
        ready, b = heapq.heappop(queue)
        r = lamina.replica(b, part[b], batches)
        begin = max(ready, replicas[r])
        replicas[r] = begin + model
        free_attention = max(replicas[r], free_attention) + attention
        part[b] += 1
        done += 1
        heapq.heappush(queue, (free_attention, b))
    return max(free_attention, *replicas) / done


@pytest.mark.parametrize("batches", [1, 2, 3, 5])
@pytest.mark.parametrize("model, attention", [(4.0, 1.0), (2.0, 2.0), (1.0, 3.0), (6.0, 2.0)])
def test_the_interval_is_that_of_batches_that_rotate(model, attention, batches):
    walk = rotation(model, attention, batches)
    found = lamina.interval(model, attention / 2, attention / 2, batches)
    assert walk == pytest.approx(found, rel=0.02)  # The first and last rounds of 200 are not full.
    if batches == 1:
        assert found == model + attention
    if batches == 2:
        assert found == max(model, attention)
    if model == attention * (batches - 1):
        assert found == attention  # All are busy.


def test_traffic_and_times():
    """d = 8192, 8 query heads a key head, 80 layers, 2 bytes: 2.25 x 8192 x 2 x 80 bytes a token."""
    assert lamina.bytes_per_token(8192, 8, 80) == 2949120
    sent = 2 * 8192 + 2 * 8192 / 8  # query and output, key and value
    assert lamina.bytes_per_token(8192, 8, 80, 2) == sent * 2 * 80
    assert lamina.memory_per_token(8192, 8, 80) == 327680
    assert lamina.least_bandwidth(30.0, 1.0, 2.0, 0.2) == pytest.approx(50.0)
    assert lamina.roofline(10, 4, 5, 1) == 4 and lamina.roofline(10, 4, 2, 1) == 5
    assert lamina.overlapped(5, 1, 2, 3, 0.5) == 6.5 and lamina.overlapped(1, 1, 2, 3) == 5
    assert lamina.per_price(100, 2, [3, 7]) == 5


def test_attention_over_parts_is_merged():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(5, 3)), rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
    weight = np.exp(q @ k.T)
    want = weight @ v / weight.sum(1, keepdims=True)
    outputs, log_sums = [], []
    for part in (slice(0, 2), slice(2, 9), slice(9, 12)):
        w = np.exp(q @ k[part].T)
        outputs.append(w @ v[part] / w.sum(1, keepdims=True))
        log_sums.append(np.log(w.sum(1)))
    np.testing.assert_allclose(lamina.merged(np.stack(outputs), np.stack(log_sums)), want, rtol=0, atol=1e-14)
    huge = np.stack(log_sums) + 2000.0
    np.testing.assert_allclose(lamina.merged(np.stack(outputs), huge), want, rtol=0, atol=1e-12)


def test_rows_of_the_tail_fill_the_holes():
    alive = [True, False, True, False, False, True, True]
    assert flover.compaction(alive).tolist() == [0, 5, 2, 6] and flover.in_order(alive).tolist() == [0, 2, 5, 6]
    assert flover.moved([0, 5, 2, 6]) == 2 and flover.moved([0, 2, 5, 6]) == 3
    rng = np.random.default_rng(0)
    for _ in range(200):
        alive = rng.uniform(size=rng.integers(0, 12)) < 0.6
        source = flover.compaction(alive)
        n = alive.sum()
        assert sorted(source) == np.flatnonzero(alive).tolist()
        assert flover.moved(source) == (~alive[:n]).sum() == alive[n:].sum()  # No map moves fewer.
        one_by_one = list(range(len(alive)))
        for new, old in enumerate(source):
            one_by_one[new] = one_by_one[old]  # In place: nothing that is needed is overwritten.
        assert one_by_one[:n] == source.tolist()


def test_passes_with_and_without_fusion():
    """Requests of 3 passes at 0, 1 and 6: together 0..4 and 6..8; alone 9; in batches of 2: 0..2, 3..5, 6..8."""
    arrivals, lengths = [0, 1, 6], [3, 4, 3]
    assert flover.fused_passes(arrivals, lengths) == 8 and flover.separate_passes(lengths) == 10
    assert flover.batched_passes(arrivals, lengths, 2) == (10, 10)
    assert flover.batched_passes([0, 0, 0], [2, 5, 3], 2) == (8, 8) and flover.fused_passes([0, 0, 0], [2, 5, 3]) == 5
    assert flover.batched_passes([4, 0], [1, 2], 8) == (3, 5)
