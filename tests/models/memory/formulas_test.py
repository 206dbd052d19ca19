"""Each formula of docs/cache.md against loops in numpy, and identities by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import noise
from models.mixers.memory import budgets, edit, merging, scores, selection, token_select
from tests.plain import cache as plain
from tests.plain.layers import softmax

pytestmark = pytest.mark.usefixtures("x64")
CLOSE = {"atol": 1e-13, "rtol": 1e-13}  # sums of at most 30 numbers of order 10, in float64


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def attended(n=9, N=4, seed=0):
    """(p, seen) of a causal prompt."""
    seen = np.tril(np.ones((n, n), bool))
    x = drawn(N, n, n, seed=seed) * 2
    return np.stack([[[*softmax(x[a, i, : i + 1]), *[0.0] * (n - i - 1)] for i in range(n)] for a in range(N)]), seen


def test_the_hash_is_its_definition_in_either_width():
    at = [(0, 0, 0, 0), (7, 3, 100000, 99999), (-1, 1, 2, 3), (2**31 - 1, 0, 5, 5)]
    for case in at:
        want = plain.gumbel(case[0] & plain.MASK, *case[1:])
        assert float(noise.gumbel(*case, dtype=jnp.float64)) == pytest.approx(want, abs=1e-13)
        assert float(noise.gumbel(*case, dtype=jnp.float32)) == pytest.approx(want, abs=4e-6)
    g = np.asarray(noise.gumbel(1, 0, jnp.arange(300)[:, None], jnp.arange(300), dtype=jnp.float64))
    # mean gamma, variance pi^2/6; four standard errors of 90,000 draws (kurtosis 5.4 for the variance)
    assert abs(g.mean() - 0.5772156649) < 4 * math.sqrt(1.645 / 90000)
    assert abs(g.var() - math.pi**2 / 6) < 4 * 1.645 * math.sqrt(4.4 / 90000)
    near = np.corrcoef(g[:, :-1].ravel(), g[:, 1:].ravel())[0, 1], np.corrcoef(g[:-1].ravel(), g[1:].ravel())[0, 1]
    assert max(map(abs, near)) < 4 / 299


def test_column_sums_and_what_is_made_of_them():
    p, seen = attended()
    w = np.array([0.7**a for a in range(8, -1, -1)])
    np.testing.assert_allclose(scores.a2sf_weights(0.7, 9, jnp.float64), w, **CLOSE)
    np.testing.assert_array_equal(scores.a2sf_weights(0.0, 3, jnp.float64), [0, 0, 1])
    np.testing.assert_allclose(scores.column_sums(p), p.sum(1), **CLOSE)
    np.testing.assert_allclose(scores.column_sums(p, w), sum(w[i] * p[:, i] for i in range(9)), **CLOSE)
    state = np.zeros((4, 9))
    for i in range(9):
        state = scores.a2sf(state, p[:, i], 0.7)
    np.testing.assert_allclose(state, scores.column_sums(p, w), **CLOSE)
    np.testing.assert_allclose(scores.h2o(state, p[:, 0]), state + p[:, 0], **CLOSE)
    np.testing.assert_allclose(scores.by_key_head(p, 2)[1], p[2] + p[3], **CLOSE)
    released = [1 / math.exp(-0.3 * (i - (9 - 4 - 1))) for i in range(9)]
    np.testing.assert_allclose(scores.a2sf_released_weights(0.3, 4, 9, jnp.float64), released, **CLOSE)
    np.testing.assert_array_equal(scores.a2sf_weights(1e-3, 2000, jnp.float32)[:1000], 0)  # harmless


def test_softmax_of_what_is_seen_and_logits():
    q, k = drawn(5, 4, 6), drawn(7, 2, 6, seed=1)
    x = np.asarray(scores.logits(q, k))
    for n, i, j in itertools.product(range(4), range(5), range(7)):
        assert x[n, i, j] == pytest.approx(q[i, n] @ k[j, n // 2] / math.sqrt(6), abs=1e-13)
    np.testing.assert_allclose(scores.logits(q, k, 1.0), x * math.sqrt(6), **CLOSE)
    seen = np.array([[1, 0, 1, 1, 0, 0, 1], [0] * 7], bool)
    p = np.asarray(scores.softmax(x[:, :2], seen))
    np.testing.assert_allclose(p[1, 0][seen[0]], softmax(x[1, 0][seen[0]]), **CLOSE)
    assert (p[:, 1] == 0).all() and (p[:, 0][:, ~seen[0]] == 0).all()


def test_keyformer():
    x, g = drawn(2, 3, 5), drawn(2, 3, 5, seed=1)
    seen = np.tril(np.ones((3, 5), bool), 2)
    y = np.asarray(scores.keyformer(x, g, 1.4, seen))
    for n, i in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(y[n, i, : i + 3], softmax((x[n, i, : i + 3] + g[n, i, : i + 3]) / 1.4), **CLOSE)
    assert float(scores.keyformer_temperature(3, 10)) == 1.3 and float(scores.keyformer_temperature(10, 10, 4.0)) == 4.0
    drawn_noise = scores.keyformer_noise(5, 3, jnp.array([10, 11]), jnp.array([0, 4, 9]), jnp.float64)
    assert drawn_noise.shape == (3, 2, 3)
    assert float(drawn_noise[2, 1, 1]) == pytest.approx(plain.gumbel(5, 2, 11, 4), abs=1e-13)
    np.testing.assert_allclose(scores.keyformer(x, 0.0, 1.0, seen), scores.softmax(x, seen), **CLOSE)


def test_scissorhands_tova_snap_and_pools():
    p, seen = attended()
    votes = np.asarray(scores.scissorhands(p, seen))
    for n, i, j in itertools.product(range(4), range(9), range(9)):
        assert votes[n, i, j] == (j <= i and p[n, i, j] < 1 / (i + 1))
    np.testing.assert_allclose(scores.tova(p[:, -1]), (p[0, 8] + p[1, 8] + p[2, 8] + p[3, 8]) / 4, **CLOSE)
    x = np.array([1.0, 5.0, 2.0, 8.0, -1.0])
    np.testing.assert_allclose(scores.pool(x, 3), [2, 8 / 3, 5, 3, 7 / 3], **CLOSE)
    np.testing.assert_array_equal(scores.pool(x, 3, "max"), [5, 5, 8, 8, 8])
    for kernel, kind in ((4, "mean"), (3, "median")):
        with pytest.raises(ValueError, match="use 5, 'mean'"):
            scores.pool(x, kernel, kind)
    raw = p[:, 6:, :6].sum(1)
    np.testing.assert_allclose(scores.snap(p, 3, 1), raw, **CLOSE)
    np.testing.assert_allclose(scores.snap(p[:, 6:], 3, 1), raw, **CLOSE)
    want = [[sum(row[max(0, j - 2) : j + 3]) / 5 for j in range(6)] for row in raw]
    np.testing.assert_allclose(scores.snap(p, 3), want, **CLOSE)
    np.testing.assert_allclose(scores.ems(np.array([1.0, 3.0]), np.array([4.0, 1.0])), [0.525, 0.475], **CLOSE)


def test_the_best_stay_and_of_equal_ones_the_latest():
    score, can = np.array([3.0, 1.0, 3.0, 9.0, 3.0, 0.0]), np.array([1, 1, 1, 0, 1, 1], bool)
    for count in range(7):
        order = sorted((i for i in range(6) if can[i]), key=lambda i: (score[i], i))
        want = order[max(0, len(order) - count) :]
        assert list(np.flatnonzero(scores.keep_best(score, can, count))) == sorted(want)
    later = np.array([9, 8, 1, 7, 0, 6])
    assert list(np.flatnonzero(scores.keep_best(score, can, 2, later))) == [0, 2]
    both = scores.keep_best(np.stack([score, -score]), can, np.array([1, 2]))
    assert [list(np.flatnonzero(row)) for row in both] == [[4], [1, 5]]


def test_keep_works_on_slots_in_any_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        position = rng.permutation(np.array([*range(10), -1, -1]))
        score = rng.integers(0, 4, 12).astype(float)
        budget, recent, sinks = rng.integers(0, 11), rng.integers(0, 4), rng.integers(0, 3)
        cache = [{"at": int(at), "score": s} for at, s in zip(position, score, strict=True) if at >= 0]
        want = [c["at"] for c in plain.trimmed(cache, 9, budget, recent, sinks)]
        kept = np.asarray(scores.keep(score, position, 9, budget=budget, recent=recent, sinks=sinks))
        assert sorted(position[kept]) == want


def test_the_oracle_keeps_the_most_mass_of_all_choices():
    p = softmax(drawn(7) * 2)
    for count in (1, 3, 6):
        kept = scores.oracle(p, np.ones(7, bool), count)
        best = max(p[list(some)].sum() for some in itertools.combinations(range(7), count))
        assert float(scores.kept_mass(p, kept)) == pytest.approx(best, abs=1e-15)


def test_budgets():
    assert (budgets.tokens(64, 10), budgets.tokens(0.25, 10), budgets.tokens(1, 10)) == (64, 2, 1)
    with pytest.raises(ValueError, match="budget=-1 is negative"):
        budgets.tokens(-1, 10)
    assert budgets.from_bytes(100_000, layers=4, heads=2, width=64, itemsize=2, extra=8) == 100_000 // (8 * 264)
    assert budgets.to_bytes([3, 5], heads=2, width=64, itemsize=2, extra=8) == 8 * 2 * 264
    assert budgets.h2o(99) == (9, 9) and budgets.h2o(10, 0.25, 0.5) == (2, 5)
    assert budgets.keyformer(101) == (42, 18)
    counts = budgets.pyramid(320, 64, 4096, 32)
    assert counts[:2] == [500, 485] and counts[-1] == 35 and sum(counts) == 8560
    levelled = budgets.level(counts, 32 * 256)
    assert sum(levelled) == 8192 and max(levelled) <= 485 and levelled[-5:] == counts[-5:]
    assert budgets.level([1, 1], 0) == [0, 0] and budgets.level([3, 3], 5) == [3, 2]
    short = budgets.pyramid(320, 64, 300, 4)
    assert short[0] == 236 and short == [236, 236 + (276 - 236) // 3 * 0 - (236 - 276) // 3, 264, 278]


def test_prefix_counts_against_loops():
    rng = np.random.default_rng(2)
    a = rng.gamma(0.3, size=(5, 40))
    curve = budgets.prefix_curve(a)
    for layer, row in zip(a, curve, strict=True):
        ordered = sorted(layer, reverse=True)
        np.testing.assert_allclose(row, [sum(ordered[: m + 1]) / sum(layer) for m in range(40)], rtol=1e-12)
    for t in (0.0, 0.3, 0.9, 1.0):
        want = [next((m + 1 for m in range(40) if row[m] >= t), 40) for row in curve]
        assert list(budgets.prefix_counts(curve, t)) == want
        assert list(budgets.prefix_forgotten(curve, t, 5)) == [max(0, 40 - m - 5) for m in want]
    exactly = budgets.prefix_curve(np.ones((1, 4)))  # 1/4, 1/2, 3/4, 1: a mass that is the threshold reaches it
    assert [int(budgets.prefix_counts(exactly, t)[0]) for t in (0.25, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]
    found = budgets.prefix_search(a, 0.5, sinks=4)
    assert found.sum() <= 100 and found.sum() > 95
    low, high = 0.0, 1.0  # the released loop, once more
    while True:
        t = (low + high) / 2
        counts = np.array([max(0, 40 - (int((row < t).sum()) + 1) - 5) for row in curve])
        if abs(counts.sum() - 100) < 5:
            break
        low, high = (low, t) if counts.sum() < 100 else (t, high)
    assert list(found) == [int(c * 100 / counts.sum()) for c in counts]
    assert (budgets.prefix_search(a, 0.0) == 0).all()
    same = budgets.prefix_search(np.tile(a[:1], (3, 1)), 0.4)
    assert len(set(same.tolist())) == 1
    jumps = np.tile(np.ones(40), (4, 1))  # all scores equal: sums jump by 4, and the search ends
    assert budgets.prefix_search(jumps, 0.33, near=1).sum() <= 53


def test_the_threshold_rule_is_max_min_optimal():
    rng = np.random.default_rng(3)
    for total in (3, 6, 9, 12):
        a = rng.gamma(0.5, size=(3, 4))
        curve = budgets.prefix_curve(a)
        counts = budgets.prefix_exact(a, total)
        assert counts.sum() == total
        mass = lambda c: min(curve[i, m - 1] for i, m in enumerate(c))  # noqa: B023, E731
        every = [c for c in itertools.product(range(1, 5), repeat=3) if sum(c) == total]
        assert mass(counts) == pytest.approx(max(map(mass, every)), abs=1e-15)
    with pytest.raises(ValueError, match="total=13 is not within 3 layers of 1 to 4 tokens; use 6"):
        budgets.prefix_exact(a, 13)


def test_merging_is_a_mean_over_classes():
    x, classes, counts = drawn(6, 3), np.array([0, 2, 1, 2, 0, 4]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    means, total = merging.merge(x, classes, 4)
    np.testing.assert_allclose(means, [x[2], (x[1] + x[3]) / 2, np.zeros(3), x[5]], **CLOSE)
    assert list(total) == [1, 2, 0, 1]
    means, total = merging.merge(x, classes, 4, counts)
    np.testing.assert_allclose(means[1], (2 * x[1] + 4 * x[3]) / 6, **CLOSE)
    assert list(total) == [3, 6, 0, 6]
    np.testing.assert_allclose(merging.added(x[0], jnp.asarray(3.0), x[1]), (3 * x[0] + x[1]) / 4, **CLOSE)
    kept = np.array([1, 0, 1, 0, 0, 1], bool)
    assert list(merging.kept_classes(kept)) == [1, 0, 2, 0, 0, 3]
    near = merging.nearest(kept, kept, ~kept)
    assert list(near) == [0, 0, 2, 2, 5, 5] and list(merging.to_classes(near, kept)) == [1, 1, 2, 2, 3, 3]
    assert list(merging.to_classes(np.array([0, -1, 2, -1, 5, 5]), kept)) == [1, 0, 2, 0, 3, 3]


def test_elastic_as_intended_and_as_released():
    a = drawn(14)
    kept, target = merging.elastic(a, 5, sinks=2)
    middle = sorted(range(2, 13), key=lambda i: a[i])
    want = sorted([0, 1, 13, *middle[5:]])
    assert list(np.flatnonzero(kept)) == want
    assert list(target) == [i if i in want else min(want, key=lambda c: (abs(c - i), c)) for i in range(14)]
    kept, thrown, anchors = merging.elastic_released(a, 5, sinks=2)
    order = np.argsort(a[2:13], kind="stable")
    chosen = [i + 2 for i in range(11) if order[i] > 5]
    assert list(np.flatnonzero(kept)) == sorted([0, 1, 13, *chosen])
    assert list(thrown) == [i for i in range(11) if order[i] <= 5]
    assert list(anchors) == [min(chosen, key=lambda c: (abs(c - i), c)) for i in thrown]
    x = drawn(14, 3, seed=1)
    means = np.asarray(merging.elastic_released_means(x, thrown, anchors))
    for i in range(14):
        same = [x[i], *[x[t] for t, c in zip(thrown, anchors, strict=True) if c == i]]
        np.testing.assert_allclose(means[i], np.mean(same, axis=0), **CLOSE)
    with pytest.raises(ValueError, match="forget=11 leaves no anchor"):
        merging.elastic_released(a, 11, sinks=2)


def test_ems_classes_are_three():
    a, k = np.arange(10.0), np.zeros((10, 2))
    k[:, 0], k[:, 1] = np.cos(np.arange(10) * 0.5), np.sin(np.arange(10) * 0.5)  # cosine of i and j: cos((i - j) / 2)
    kept, target = merging.ems(a, k, budget=4, recent=2, least=0.5)
    assert list(np.flatnonzero(kept)) == [6, 7, 8, 9]  # of 0..5 the better half is 3, 4, 5
    assert list(target) == [-1, -1, -1, -1, 6, 6, 6, 7, 8, 9]  # cos(1.5) < 0.5: token 3 is too far from 6
    assert list(merging.ems(a, k, budget=4, recent=2, least=0.0)[1][:6]) == [-1, -1, -1, 6, 6, 6]
    index, cosine = merging.most_similar(k, k, np.array([1] + [0] * 8 + [1], bool))
    assert int(index[2]) == 0 and float(cosine[2]) == pytest.approx(math.cos(1.0), abs=1e-15)


def test_lococo_mixes_rows_that_sum_to_one():
    n, H, C, w = 11, 3, 4, 5
    x, kernel, bias, score = drawn(n, 2 * H), drawn(C, 2 * H, w, seed=1), drawn(C, seed=2), drawn(n, seed=3)
    W = np.asarray(merging.lococo_weights(x, kernel, bias, score, 0.3))
    best = sorted(sorted(range(n), key=lambda i: score[i])[-C:])
    for c in range(C):
        raw = [sum(kernel[c, :, i] @ x[t + i - w // 2] for i in range(w) if 0 <= t + i - w // 2 < n) for t in range(n)]
        want = 0.3 * softmax(np.maximum(np.array(raw) + bias[c], 0))
        want[best[c]] += 0.7
        np.testing.assert_allclose(W[c], want, atol=1e-12)
    np.testing.assert_allclose(W.sum(1), 1, atol=1e-14)
    evicted = np.asarray(merging.lococo_weights(x, kernel, bias, score, 0.0))
    np.testing.assert_array_equal(evicted @ x, x[best])
    assert list(np.flatnonzero(merging.lococo_kept(score, 5, 2))) == sorted(
        [9, 10, *sorted(range(9), key=lambda i: score[i])[-3:]]
    )


def test_token_select_votes():
    q, k = drawn(4, 6), drawn(9, 2, 6, seed=1)
    can = np.array([0, 0, 1, 1, 1, 1, 1, 0, 0], bool)
    for released in (False, True):
        votes = np.asarray(selection.token_select_votes(q, k, can, released=released))
        want = np.zeros(9)
        for n in range(4):
            h, scale = (n % 2, 1.0) if released else (n // 2, 6**-0.5)
            want[2:7] += softmax(np.array([q[n] @ k[j, h] * scale for j in range(2, 7)]))
        np.testing.assert_allclose(votes, want, **CLOSE)
        assert votes.sum() == pytest.approx(4, abs=1e-13)
    smooth = np.asarray(selection.token_select_votes(q, k, can, released=True, smooth=3))
    np.testing.assert_allclose(smooth[2:7], [max(want[max(2, j - 1) : min(7, j + 2)]) for j in range(2, 7)], **CLOSE)
    assert (smooth[~can] == 0).all()
    held = np.array([1] * 8 + [0], bool)
    got = np.flatnonzero(selection.token_select(want, can, held, 2))
    assert list(got) == sorted([0, 1, 7, *sorted(range(2, 7), key=lambda j: want[j])[-2:]])
    narrow = np.asarray(selection.token_select_votes(q, k, can, dtype=jnp.bfloat16))
    assert 0 < abs(narrow - np.asarray(selection.token_select_votes(q, k, can))).max() < 0.05
    assert bool(selection.same_query(q, q * 2)) and not bool(selection.same_query(q, -q))
    turned = np.array([1.0, 0.0]), np.array([math.cos(0.4), math.sin(0.4)])
    assert bool(selection.same_query(*turned, least=0.92)) and not bool(selection.same_query(*turned, least=0.93))
    assert list(selection.ranks(np.array([1, 0, 1, 1], bool))) == [0, 1, 1, 2]


def test_quest_bounds_every_product_and_is_exact_for_single_tokens():
    q, k = drawn(4, 6), drawn(11, 2, 6, seed=1)
    held = np.arange(11) < 10
    for page in (1, 3, 4):
        bound = np.asarray(
            selection.quest_bound(
                q,
                *selection.quest_pages(k, held, page),
            )
        )
        assert bound.shape == (4, -(-11 // page))
        for n, at in itertools.product(range(4), range(bound.shape[1])):
            tokens = [j for j in range(at * page, at * page + page) if j < 10]
            if not tokens:
                assert bound[n, at] == -np.inf
                continue
            keys = k[tokens, n // 2]
            want = sum(max(x * keys[:, c].min(), x * keys[:, c].max()) for c, x in enumerate(q[n]))
            assert bound[n, at] == pytest.approx(want, abs=1e-13)
            products = keys @ q[n]
            assert bound[n, at] >= products.max() - 1e-13
            assert page > 1 or bound[n, at] == pytest.approx(products.max(), abs=1e-13)
    chosen = np.asarray(selection.quest(bound, held, 5, 4, 1))
    for n in range(4):
        assert list(np.flatnonzero(chosen[n])) == [j for j in range(10) if j // 4 == int(np.argmax(bound[n]))]
    assert (np.asarray(selection.quest(bound, held, 99, 4)) == held).all()


@pytest.mark.parametrize("pairing", ("half", "interleaved"))
def test_rotation_and_rerotation(pairing):
    k = drawn(5, 2, 6)
    old, new = np.array([0, 1, 2, 3, 7]), np.array([3, 0, 2, 11, 5])
    turned = np.asarray(edit.rotate(k, old[:, None], theta=50.0, pairing=pairing))
    for s, h in itertools.product(range(5), range(2)):
        np.testing.assert_allclose(turned[s, h], plain.turn(k[s, h], int(old[s]), 50.0, pairing), **CLOSE)
    again = edit.rerotate(turned, old[:, None], new[:, None], theta=50.0, pairing=pairing)
    np.testing.assert_allclose(again, edit.rotate(k, new[:, None], theta=50.0, pairing=pairing), **CLOSE)
    with pytest.raises(ValueError, match="use 'half' or 'interleaved'"):
        edit.rotate(k, 0, pairing="pairs")


def test_an_edited_prompt_keeps_what_it_shares():
    old, new = list(b"def add(a, b): return a + b"), list(b"def plus(a, b): return a + b")
    source = edit.edited(old, new).source
    assert bytes(old[i] for i in source if i >= 0) == b"def (a, b): return a + " and source[-1] == -1
    assert all(old[i] == new[j] for j, i in enumerate(source) if i >= 0)
    assert list(source[source >= 0]) == sorted(source[source >= 0])
    assert edit.edited(old, new).computed == pytest.approx(5 / 28)
    same = edit.edited(old, old)
    assert list(same.source[:-1]) == list(range(26)) and same.computed == 1 / 27
    k, v = drawn(27, 2, 6), drawn(27, 2, 6, seed=1)
    rotated = edit.rotate(k, np.arange(27)[:, None], theta=50.0)
    moved, values = (np.asarray(x) for x in edit.pie(rotated, v, source, theta=50.0))
    for j, i in enumerate(source):
        np.testing.assert_allclose(values[j], v[i] if i >= 0 else 0)
        want = [plain.turn(k[i, h], j, 50.0) for h in range(2)] if i >= 0 else np.zeros((2, 6))
        np.testing.assert_allclose(moved[j], want, **CLOSE)


def test_the_best_are_the_same_by_slot_and_in_place():
    for seed, count in itertools.product(range(4), (0, 1, 3, 6)):
        rng = np.random.default_rng(seed)
        score, some = jnp.asarray(rng.integers(0, 4, 12) * 1.0), jnp.asarray(rng.random(12) < 0.6)
        slots = np.asarray(token_select.best_slots(score, some, 6, count))
        flags = np.asarray(token_select.best_of(score, some, 6, count))
        assert np.flatnonzero(flags).tolist() == slots[slots >= 0].tolist()


def test_what_holds_is_counted_up_to_each_place():
    """In blocks and across their ends; a rank is what stands before."""
    for S in (1, selection.BLOCK, selection.BLOCK + 1, 3 * selection.BLOCK - 5):
        flags = np.random.default_rng(S).random((2, S)) < 0.7
        counted = np.asarray(selection.counts(jnp.asarray(flags)))
        assert counted.tolist() == np.cumsum(flags, axis=-1).tolist()
        assert np.asarray(selection.ranks(jnp.asarray(flags))).tolist() == (counted - flags).tolist()


@pytest.mark.parametrize("wide", [False, True])
def test_the_nth_largest_is_found_by_digits(wide):
    """Signs, ties, zeros of both signs and minus infinity; the order of all entries is that of the numbers."""
    with jax.enable_x64(wide):
        rng = np.random.default_rng(0)
        x = np.concatenate(
            [rng.normal(size=9) * 10.0 ** rng.integers(-9, 9, 9), [0.0, -0.0, 1.5, 1.5, -np.inf, -2e-30]]
        )
        x = x.astype(np.float64 if wide else np.float32)
        nth = jax.jit(selection.nth_largest)
        for n, want in enumerate(sorted(x, reverse=True), 1):
            order, found = map(np.asarray, nth(x, n))
            assert ((order == found) == (x == want)).all()
        assert np.argsort(order[:9]).tolist() == np.argsort(x[:9]).tolist()
