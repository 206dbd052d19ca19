"""MInference's patterns and SwiftKV's formulas against loops in numpy."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from kernels.attention import patterns
from models import swiftkv
from tests.plain import cache as plain
from tests.plain.layers import softmax

pytestmark = pytest.mark.usefixtures("x64")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_shape_and_its_pairs():
    for T, s, W in ((20, 3, 5), (6, 4, 9), (12, 0, 4)):
        mask = patterns.a_shape(T, s, W)
        for i, j in itertools.product(range(T), range(T)):
            assert mask[i, j] == (j <= i and (j < s or i - j < W))
        assert patterns.a_shape_pairs(T, s, W) == mask.sum()
    assert patterns.a_shape_pairs(256, 4, 32) == 8586


def test_vertical_slash_is_found_and_covered():
    T, N, K, H = 150, 4, 2, 6
    q, k, v = drawn(T, N, H) * 2, drawn(T, K, H, seed=1), drawn(T, K, H, seed=2)
    _, p = plain.attention(q, k)
    rows = np.asarray(patterns.last_rows(q, k, 64))
    for n, r in itertools.product(range(N), (0, 30, 63)):
        i = T - 64 + r
        np.testing.assert_allclose(rows[n, r, : i + 1], p[n][i], atol=1e-13)
        assert (rows[n, r, i + 1 :] == 0).all()
    sums = np.asarray(patterns.diagonal_sums(rows))
    for n, d in itertools.product(range(N), (0, 1, 86, 87, 149)):
        want = sum(rows[n, r, T - 64 + r - d] for r in range(64) if T - 64 + r - d >= 0)
        assert sums[n, d] == pytest.approx(want, abs=1e-13)
    columns, distances = (np.asarray(x) for x in patterns.vertical_slash(rows, 40, 60, first=5, near=7))
    for n in range(N):
        far = sorted(range(5, T), key=lambda j: -rows[n, :, j].sum())[:35]
        assert list(columns[n]) == sorted([*range(5), *far])
        far = sorted(range(7, T), key=lambda d: -sums[n, d])[:53]
        assert list(distances[n]) == sorted([*range(7), *far])
    mask = np.asarray(patterns.vertical_slash_mask(columns, distances, T))
    for n, i, j in itertools.product((0, 3), range(0, T, 7), range(T)):
        assert mask[n, i, j] == (j <= i and (j in columns[n] or i - j in distances[n]))
    slash = np.asarray(patterns.vertical_slash_mask(columns[:, :0], distances, T))
    tiles = np.asarray(patterns.expanded(patterns.vertical_slash_blocks(distances, T, 16), T, 16))
    assert (tiles >= slash).all()
    every = patterns.vertical_slash(rows, T, 1)[0]
    dense = np.asarray(patterns.masked_attention(q, k, v, patterns.vertical_slash_mask(every, distances, T)))
    np.testing.assert_allclose(dense[T - 1, 3], p[3][T - 1] @ v[:, 1], atol=1e-12)
    tails = np.asarray(patterns.vertical_slash_blocks(jnp.array([[0, 20]]), 64, 16))[0]
    for a, b in itertools.product(range(4), range(4)):
        meets = any((a * 16 + r - d) // 16 == b and a * 16 + r >= d for r in range(16) for d in (0, 20))
        assert tails[a, b] >= meets


def test_block_sparse_and_the_search():
    T, N, K, H = 44, 4, 2, 6
    q, k = drawn(T, N, H) * 2, drawn(T, K, H, seed=1)
    blocks = np.asarray(patterns.block_sparse(q, k, 2, 8))
    for n, a in itertools.product(range(N), range(6)):
        score = [q[a * 8 : a * 8 + 8, n].mean(0) @ k[b * 8 : b * 8 + 8, n // 2].mean(0) for b in range(a + 1)]
        assert set(np.flatnonzero(blocks[n, a])) == set(np.argsort(score)[::-1][:2])
    wide = np.asarray(patterns.expanded(blocks, T, 8))
    for n, i, j in itertools.product(range(N), range(T), range(T)):
        assert wide[n, i, j] == (j <= i and blocks[n, i // 8, j // 8])
    choices = (("a_shape", 2, 3), ("block_sparse", 2, 8), ("vertical_slash", T, 50))
    best, mass = patterns.search(q, k, choices)
    assert (best == 2).all()
    np.testing.assert_allclose(mass[2], 1, atol=1e-13)
    _, p = plain.attention(q, k)
    want = np.mean([sum(p[1][i][j] for j in range(i + 1) if j < 2 or i - j < 3) for i in range(T)])
    assert mass[0, 1] == pytest.approx(want, abs=1e-13)
    with pytest.raises(ValueError, match="use a_shape, vertical_slash or block_sparse"):
        patterns.pattern_mask(q, k, "b_shape", 1, 1)


def test_swiftkv():
    assert swiftkv.sources(8, 4, 2) == [0, 1, 2, 3, 4, 4, 6, 6] and swiftkv.sources(5, 2, 2) == [0, 1, 2, 2, 4]
    assert swiftkv.sources(4, 4) == [0, 1, 2, 3]
    assert [swiftkv.kv_fraction(32, 16, g) for g in (1, 2, 4, 8, 16)] == [1.0, 0.75, 0.625, 0.5625, 0.53125]
    assert swiftkv.kv_fraction(32, 16, 2, bits=8) == 0.375
    llama = {"width": 4096, "heads": 32, "head_width": 128, "hidden": 14336, "kv": 8}
    assert swiftkv.prefill_fraction(32, 16, **llama) == pytest.approx(0.51923, abs=5e-6)
    assert swiftkv.prefill_fraction(32, 32, **llama) == 1
    w = drawn(5, 3)
    want = [w[0], w[1], (w[2] + w[3]) / 2, (w[2] + w[3]) / 2, w[4]]
    np.testing.assert_allclose(swiftkv.merged_weights(w, 2, 2), want, atol=1e-15)
    for shared, group, word in ((0, 1, "shared=0 is not a layer of 4; use 2"), (5, 1, "shared=5"), (2, 0, "group=0")):
        with pytest.raises(ValueError, match=word):
            swiftkv.sources(4, shared, group)


def test_swiftkv_distillation_averages_over_all_tokens():
    student, teacher, scored = drawn(6, 5), drawn(6, 5, seed=1), np.array([0, 1, 1, 0, 1, 0.0])
    h, teacher_h = drawn(6, 3, seed=2), drawn(6, 3, seed=3)
    kl = 0.0
    for t in np.flatnonzero(scored):
        p, s = softmax(teacher[t] / 3), softmax(student[t] / 3)
        kl += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, s, strict=True))
    want = 9 * kl / 6 + 0.5 * ((h - teacher_h) ** 2).sum() / 18
    got = swiftkv.distillation(student, teacher, scored, h, teacher_h, temperature=3.0, weight=0.5)
    assert float(got) == pytest.approx(want, abs=1e-13)
    assert float(swiftkv.distillation(teacher, teacher, scored, h, h)) == pytest.approx(0, abs=1e-15)
