"""Placement, caches, traffic and speculation against enumeration, on small traces."""

import itertools

import numpy as np
import pytest

from experiments.routing import caches, placement, speculative, traces, traffic
from experiments.settings.errors import Refused

E, L, G, N = 4, 3, 2, 60
RNG = np.random.default_rng(0)


def drawn(seed=0, k=1, layers=L, experts=E, tokens=N):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, experts, (tokens, 1, k))
    steps = (first + rng.integers(0, 2, (tokens, layers, k)).cumsum(1)) % experts
    return steps.astype(np.int16)


def by_hand(trace, where):
    """Crossings by a loop over tokens, layers and pairs of choices."""
    return sum(
        where[i][a] != where[i + 1][b]
        for token in trace for i in range(len(token) - 1) for a in token[i] for b in token[i + 1] if a >= 0 and b >= 0
    )  # fmt: skip


@pytest.mark.parametrize("k", [1, 2])
def test_counts_of_a_trace(k):
    trace = drawn(k=k)
    trace[3, 1, 0] = -1
    R = traces.transitions(trace, E)
    for i, a, b in itertools.product(range(L - 1), range(E), range(E)):
        assert R[i, a, b] == sum(list(t[i]).count(a) * list(t[i + 1]).count(b) for t in trace)
    assert traces.load(trace, E).sum() == N * L * k - 1
    where = np.stack([RNG.permutation(E) % G for _ in range(L)])
    assert placement.crossings(R, where) == placement.crossings_of(trace, where) == by_hand(trace, where)
    np.testing.assert_allclose(traces.affinity(R).sum(-1), 1)


def test_a_trace_is_saved_and_a_file_that_is_none_is_refused(tmp_path):
    traces.save(tmp_path / "t.npz", drawn(k=2), E)
    again, experts = traces.read(tmp_path / "t.npz")
    np.testing.assert_array_equal(again, drawn(k=2))
    assert experts == E
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(Refused, match="is no trace of routing"):
        traces.read(tmp_path / "other.npz")
    whole, rng = (tmp_path / "t.npz").read_bytes(), np.random.default_rng(0)
    damaged = [whole[:size] for size in range(0, len(whole) - 1, 17)]
    for place in rng.integers(0, len(whole), 200):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
    for data in damaged:  # A sentence, or (where the bit says nothing) the trace itself.
        (tmp_path / "other.npz").write_bytes(data)
        try:
            np.testing.assert_array_equal(traces.read(tmp_path / "other.npz")[0], again)
        except Refused as error:
            assert "is no trace of routing" in str(error)
    with pytest.raises(ValueError, match="experts=3 has 0 to 2"):
        traces.checked(drawn(), 3)
    with pytest.raises(ValueError, match=r"give \[tokens, layers, K\]"):
        traces.checked(np.zeros(3, int), 3)


@pytest.mark.parametrize("seed", range(4))
def test_the_solver_finds_the_best_of_all_placements(seed):
    R = traces.transitions(drawn(seed, k=1 + seed % 2), E)
    ways = list(placement.balanced(E, G))
    assert len(ways) == 6
    least = min(placement.crossings(R, np.array(p)) for p in itertools.product(ways, repeat=L))  # 216 of them
    assert placement.crossings(R, placement.contiguous(L, E, G)) > least
    for found in (placement.exflow(R, G), placement.exact(R, G), placement.bisection(R, G)):
        assert placement.crossings(R, found) == least
        assert all(np.all(np.bincount(row, minlength=G) == E // G) for row in found)


def test_stages_keep_the_outer_cut_and_fill_every_device():
    R = traces.transitions(drawn(1, experts=8, tokens=200), 8)
    two = placement.hierarchical(R, 2, 2)
    four = placement.bisection(R, 4)
    for found in (two, four):
        assert all(np.all(np.bincount(row, minlength=4) == 2) for row in found)
        assert placement.crossings(R, found // 2) == placement.crossings(R, placement.exflow(R, 2))
    assert placement.crossings(R, two) >= placement.crossings(R, placement.exact(R, 4))
    with pytest.raises(ValueError, match="no power of two; use e.g. 4"):
        placement.bisection(R, 6)
    with pytest.raises(ValueError, match="devices=3 does not divide 8"):
        placement.exflow(R, 3)


def test_exflow_reports_costs_of_steps():
    trace, where = drawn(tokens=40)[:, :, 0], np.stack([RNG.permutation(E) for _ in range(L)])
    inside = between = 0
    for token in trace:
        for i in range(L - 1):
            a, b = where[i][token[i]], where[i + 1][token[i + 1]]
            inside += a != b and a // 2 == b // 2
            between += a // 2 != b // 2
    steps = 40 * (L - 1)
    want = ((inside + 2 * between) / steps, inside / steps, between / steps)
    np.testing.assert_allclose(placement.exflow_cost(trace, where, 2), want, rtol=1e-12)


def uneven(load, way):
    return sum(abs(load[np.array(way) == c].sum() - load.sum() / G) for c in range(G))


def test_moetuner_balances_then_moves_little():
    rng = np.random.default_rng(3)
    for _ in range(4):
        load = rng.integers(1, 30, E)
        found = placement.moetuner_clusters(load, G)
        assert uneven(load, found) == min(uneven(load, way) for way in placement.balanced(E, G))
    load, R = rng.integers(1, 30, (L, E)), rng.integers(0, 9, (L - 1, E, E))
    B = np.array([[1.0, 2.0], [0.5, 1.0]])
    found = placement.moetuner(load, R, B)
    clusters = np.stack([placement.moetuner_clusters(row, G) for row in load])

    def slow(where):
        total = 0
        for i in range(L - 1):
            C = np.zeros((G, G))
            for a, b in itertools.product(range(E), range(E)):
                C[where[i][a], where[i + 1][b]] += R[i, a, b]
            total += max(C[0, 1] / B[0, 1], C[1, 0] / B[1, 0])
        return total

    ways = [
        np.stack([np.array(p)[c] for p, c in zip(ps, clusters, strict=True)])
        for ps in itertools.product([(0, 1), (1, 0)], repeat=L)
    ]
    assert slow(found) == pytest.approx(min(map(slow, ways)))
    moved = np.einsum("lec,lef,lfd->lcd", np.eye(G)[clusters][:-1], R, np.eye(G)[clusters][1:])
    devices = np.stack([[found[i][clusters[i] == c][0] for c in range(G)] for i in range(L)])
    assert placement.slowest_exchanges(moved, devices, B) == pytest.approx(slow(found))


def test_slots_are_a_permutation_in_order_of_devices():
    where = np.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(placement.slots(where), [[2, 0, 3, 1], [0, 1, 2, 3]])
    weights, index = RNG.normal(size=(2, E)), RNG.integers(0, E, (5, 2))
    for layer in range(2):
        moved = np.empty(E)
        moved[placement.slots(where)[layer]] = weights[layer]
        np.testing.assert_array_equal(moved[placement.slots(where)[layer][index]], weights[layer][index])


# ==================== Caches ====================
def least_misses(asked, slots):
    """Fewest misses over every choice of what goes, by search."""
    states = {frozenset(): 0}
    for request in asked:
        after = {}
        for held, misses in states.items():
            if request in held:
                options = [(held, misses)]
            elif len(held) < slots:
                options = [(held | {request}, misses + 1)]
            else:
                options = [(held - {gone} | {request}, misses + 1) for gone in held]
            for state, cost in options:
                after[state] = min(cost, after.get(state, cost))
        states = after
    return min(states.values())


@pytest.mark.parametrize("seed", range(3))
def test_belady_is_the_least_and_lru_is_a_stack(seed):
    asked = caches.requests(drawn(seed, tokens=12, layers=2), E)
    lru = [caches.lru(asked, slots).misses for slots in range(1, 9)]
    assert lru == sorted(lru, reverse=True) and lru[-1] == len(set(asked))
    for slots in (1, 2, 3, 5):
        best = caches.belady(asked, slots)
        assert best.misses == least_misses(asked, slots) and best.hits + best.misses == len(asked)
        for policy in caches.POLICIES.values():
            served = policy(asked, slots)
            assert served.misses >= best.misses and served.hits + served.misses == len(asked)
    assert caches.lru(asked, 0).misses == caches.lfu(asked, 0).misses == caches.belady(asked, 0).misses == len(asked)


def test_lru_and_lfu_by_hand():
    a, b, c = (0, 0), (0, 1), (0, 2)
    assert caches.lru([a, b, a, c, b, a], 2) == (1, 5, 5)
    assert caches.lfu([a, b, a, c, b, a], 2) == (2, 4, 4)
    assert caches.lru([a, a], 1).rate == 0.5 and caches.lru([], 1).rate == 0
    assert caches.requests(np.array([[[1, 0]], [[1, -1]]]), 2, batch=2) == [(0, 0), (0, 1)]
    assert caches.by_frequency(np.array([[[1]], [[1]], [[0]]]), 3, 3) == [(0, 1), (0, 0)]


def test_a_perfect_prediction_never_misses_and_a_wrong_one_is_corrected():
    trace = drawn(5, tokens=6)
    passes = [caches.requests(trace[i : i + 1], E) for i in range(6)]
    need = max(map(len, passes))
    served = caches.predicted(passes, passes, need)
    assert served.misses == 0 and served.hits == sum(map(len, passes))
    assert served.loads <= served.hits
    everything = caches.predicted(passes, passes, E * L)
    assert everything.loads == len({r for p in passes for r in p})
    wrong = caches.predicted(passes, [[]] * 6, need)
    assert wrong.hits + wrong.misses == served.hits and wrong.loads == wrong.misses > 0
    assert caches.predicted(passes, passes, 0) == (0, served.hits, 0)


# ==================== Traffic ====================
def test_bytes_of_balanced_and_of_any_routing():
    t, d, s, k, ep = 12, 5, 2, 2, 4
    where = np.arange(8) // 2
    home = np.repeat(np.arange(ep), t)
    index = np.stack([(np.arange(ep * t) + i) % 8 for i in (0, 4)], axis=1)  # every device the same load from each
    got = traffic.bytes_of(index, home, where, ep, d, s)
    np.testing.assert_allclose(got, traffic.alltoall(t, d, s, k, ep))
    index = RNG.integers(0, 8, (ep * t, k))
    index[0, 1] = -1
    got = traffic.bytes_of(index, home, where, ep, d, s)
    for g in range(ep):
        out = sum(where[e] == g != home[i] for i, row in enumerate(index) for e in row if e >= 0)
        back = sum(where[e] != g == home[i] for i, row in enumerate(index) for e in row if e >= 0)
        assert got[g] == (out + back) * d * s
    assert traffic.allgather(t, d, s, ep, 2) == 2 * t * d * s * 7
    assert traffic.alltoall(t, d, s, k, ep, 2) == 2 * k * t * d * s * (3 / 4 + 1)
    assert traffic.allgather_wins(8, 4) and not traffic.allgather_wins(2, 8)
    assert traffic.expert_parameters(4, 6, 8, 4) == 3 * 4 * 6 * 2
    ways = [len({c // 2 for c in row}) for row in itertools.product(range(6), repeat=2)]
    assert traffic.distinct_devices(2, 3) == pytest.approx(np.mean(ways))


def test_tutels_layouts_share_one_shard():
    assert traffic.tutel(0, 4, 3, 2, 5, 2, 100) == (0, 7 * 200)
    assert traffic.tutel(1, 4, 3, 2, 5, 2, 100) == (2 * 3 * 2 * 5 * 2, 3 * 200)
    assert traffic.tutel(4, 4, 3, 2, 5, 2, 100) == (4 * 2 * 3 * 2 * 5 * 2, 0)
    with pytest.raises(ValueError, match="r=3 does not divide 4"):
        traffic.tutel(3, 4, 3, 2, 5, 2, 100)


def test_one_exchange_a_layer_moves_less():
    trace, where, home = drawn(tokens=40)[:, :, 0], placement.contiguous(L, E, G), RNG.integers(0, G, 40)
    moved = back = 0
    for token, at in zip(trace, home, strict=True):
        here = at
        for i in range(L):
            to = where[i][token[i]]
            moved, back, here = moved + (to != here), back + 2 * (to != at), to
    assert traffic.exflow(trace, home, where, 3, 2) == moved * 6
    assert traffic.returning(trace, home, where, 3, 2) == back * 6
    assert traffic.exflow(trace, home, where, 3, 2) < traffic.returning(trace, home, where, 3, 2)


# ==================== Speculation ====================
def test_tables_guess_the_device_and_perfect_guesses_send_nothing():
    tokens = RNG.integers(0, 5, N)
    trace = np.stack([(tokens + i) % E for i in range(L)], axis=1)
    where = placement.contiguous(L, E, G)
    made = speculative.tables(trace, tokens, where, 6)
    for layer in range(L):
        device, share = made.guess(layer, tokens)
        np.testing.assert_array_equal(device, where[layer][trace[:, layer]])
        assert np.all(share == 1)
    assert made.guess(0, [5])[1] == 0
    device, _ = made.guess(2, [5], trace[:1, :2])  # a token never seen, by its experts
    assert device == where[2][trace[0, 2]]
    true = where[0][trace[:, 0]]
    room = RNG.permutation(true)  # any homes with the counts that are needed
    at = speculative.shuffle(true, room, np.ones(N), G)
    assert speculative.remaining(at, trace[:, :1], where[0]) == 0
    for guess, sure in ((1 - true, np.ones(N)), (true, np.zeros(N)), (RNG.integers(0, G, N), RNG.uniform(size=N))):
        at = speculative.shuffle(guess, room, sure, G)
        np.testing.assert_array_equal(np.bincount(at, minlength=G), np.bincount(room, minlength=G))
    np.testing.assert_array_equal(speculative.shuffle(true, room, np.zeros(N), G), room)
    assert speculative.remaining(room, trace[:, :1], where[0]) == np.sum(true != room)
    assert speculative.remaining([1, 1], [[1, -1], [1, 0]], [0, 1]) == 1  # -1 is no choice; expert 0 is away from 1


def test_tables_and_guesses_are_plain_counts():
    rng, V = np.random.default_rng(4), 5
    trace, tokens = rng.integers(0, E, (60, 3)), rng.integers(0, V, 60)
    where = np.stack([rng.permutation(np.arange(E) % 3) for _ in range(3)])
    made = speculative.tables(trace, tokens, where, V)

    def likeliest(layer, like):
        """(device, share) of the tokens that are like this one; of equal devices the first, of none device 0."""
        counts = [sum(where[layer][trace[m, layer]] == g for m in range(60) if like(m)) for g in range(3)]
        return int(np.argmax(counts)), max(counts) / max(sum(counts), 1)

    devices, sure = made.guess(2, tokens, trace[:, :2])
    for n in range(60):
        by_token = likeliest(2, lambda m, n=n: tokens[m] == tokens[n])
        by_pair = likeliest(2, lambda m, n=n: (trace[m, :2] == trace[n, :2]).all())
        assert (devices[n], sure[n]) == (by_pair if by_pair[1] > by_token[1] else by_token)
    # Two places on each device: the surest two of those that want device 0 get them, and one stays at home in turn.
    at = speculative.shuffle([0, 0, 0, 1], [1, 1, 0, 0], [0.2, 0.9, 0.5, 0.1], 2)
    assert at.tolist() == [1, 0, 0, 1]
