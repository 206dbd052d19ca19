"""Segments of bytes against loops in numpy and float64: MAGNET, MrT5, H-Net, words, HAMburger."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.segments import hamburger, hnet, magnet, mrt5, words

pytestmark = pytest.mark.usefixtures("x64", "one_device")
B, T, D = 3, 9, 4


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


BOUNDARIES = np.array([[0, 1, 0, 0, 1, 1, 0, 0, 0], [0] * 9, [1, 0, 0, 0, 0, 0, 0, 0, 1]], float)


def test_magnet_pools_whole_segments_and_reads_the_last_whole_one():
    hidden, null = drawn(B, T, D), drawn(D, seed=1)
    got = magnet.pool(jnp.asarray(BOUNDARIES), jnp.asarray(hidden), jnp.asarray(null), 4)
    read = magnet.upsample(jnp.asarray(BOUNDARIES), got)
    for b in range(B):
        segments, open_ = [null], []
        for t in range(T):
            open_.append(hidden[b, t])
            if BOUNDARIES[b, t]:
                segments.append(np.mean(open_, 0))
                open_ = []
            np.testing.assert_allclose(read[b, t], segments[-1], atol=1e-8)
        np.testing.assert_allclose(got[b, : len(segments)], segments, atol=1e-8)


def test_magnet_is_causal():
    def read(hidden):
        return magnet.upsample(BOUNDARIES, magnet.pool(jnp.asarray(BOUNDARIES), hidden, jnp.zeros(D), 4))

    slopes = jax.jacobian(read)(jnp.asarray(drawn(B, T, D)))
    for t, s in itertools.combinations(range(T), 2):
        assert not np.asarray(slopes)[:, t, :, :, s].any(), (t, s)
    assert np.asarray(slopes)[0, 4, :, 0, 4].any(), "a boundary byte reads its own segment"


def test_magnet_noise_and_threshold():
    logits, noise = drawn(50), np.random.default_rng(2).random(50)
    soft = magnet.relaxed_bernoulli(jnp.asarray(logits), jnp.asarray(noise), 0.5)
    plain = 1 / (1 + np.exp(-(logits + np.log(noise / (1 - noise))) / 0.5))
    np.testing.assert_allclose(soft, plain, rtol=1e-12)
    hard, slope = jax.vmap(jax.value_and_grad(magnet.straight_through))(soft)
    np.testing.assert_allclose(hard, plain > 0.5, atol=1e-15)
    np.testing.assert_allclose(slope, 1)
    assert magnet.relaxed_bernoulli(jnp.array(99.0), jnp.array(0.0)) == pytest.approx(0.5), "both are clamped"


def test_magnet_gradient_of_the_boundaries_goes_through_their_sums():
    hidden, weight = drawn(1, 4, 2), drawn(1, 4, 2, seed=3)

    def value(b):
        return jnp.sum(weight * magnet.upsample(b, magnet.pool(b, jnp.asarray(hidden), jnp.ones(2), 2)))

    b = jnp.array([[0.0, 1.0, 0.0, 1.0]])
    # Weights are 1 - (s - sums) where s = sums: their slope with respect to a sum is 1, held to a chain rule by hand.
    slope = np.zeros(4)
    segments = [np.ones(2), hidden[0, :2].mean(0), hidden[0, 2:].mean(0)]
    reads, members = [0, 1, 1, 2], [0, 0, 1, 1]
    for j in range(4):
        for t in range(4):
            if j <= t:  # normalised over one chosen row: w / w, its slope is 0 up to 1e-9
                slope[j] += 0
        for t in range(4):
            s = reads[t]
            if not s:
                continue
            inside = [u for u in range(4) if members[u] == s - 1]
            for u in inside:
                if j < u:
                    slope[j] += weight[0, t] @ (hidden[0, u] - segments[s]) / len(inside)
    np.testing.assert_allclose(jax.grad(value)(b)[0], slope, atol=1e-7)


@pytest.mark.parametrize("prior", [0.08, 0.2, 0.5])
def test_magnet_prior(prior):
    plain = [-math.log(math.comb(20, k) * prior**k * (1 - prior) ** (20 - k)) for k in range(21)]
    np.testing.assert_allclose(magnet.binomial_nats(jnp.arange(21.0), 20.0, prior), plain, rtol=1e-12)
    counts = BOUNDARIES.sum(1).astype(int)
    nats = [-math.log(math.comb(T, k) * prior**k * (1 - prior) ** (T - k)) for k in counts]
    np.testing.assert_allclose(magnet.prior_loss(jnp.asarray(BOUNDARIES), prior), np.mean(nats) / T, rtol=1e-12)
    mask = np.arange(T) < np.array([[9], [5], [4]])
    nats = []
    for row, kept in zip(BOUNDARIES, mask, strict=True):
        n, k = int(kept.sum()), int(row[kept].sum())
        nats.append(-math.log(math.comb(n, k) * prior**k * (1 - prior) ** (n - k)))
    padded = magnet.prior_loss_padded(jnp.asarray(BOUNDARIES), jnp.asarray(mask), prior)
    np.testing.assert_allclose(padded, np.mean(nats), rtol=1e-12)
    assert int(np.argmin(magnet.binomial_nats(jnp.arange(101.0), 100.0, prior))) == round(100 * prior)


def test_magnet_compression():
    two = BOUNDARIES[[0, 2]]
    rate, share = magnet.compression(jnp.asarray(two), jnp.ones((2, T)))
    np.testing.assert_allclose([rate, share], [np.mean([9 / 3, 9 / 2]), np.mean([3 / 9, 2 / 9])])


def test_mrt5_gate_and_deletion():
    hidden, scale, weight = drawn(B, T, D), drawn(D, seed=4), drawn(D, seed=5)
    logits = mrt5.gate_logits(jnp.asarray(hidden), scale, weight, 1.0)
    plain = np.empty((B, T))
    for b, t in np.ndindex(B, T):
        rms = math.sqrt((hidden[b, t] ** 2).mean() + 1e-6)
        plain[b, t] = sum(hidden[b, t, d] / rms * scale[d] * weight[d] for d in range(D)) + 1
    np.testing.assert_allclose(logits, plain, rtol=1e-12)
    pad = np.zeros((B, T), bool)
    pad[1, 6:] = True
    gates = mrt5.gate(logits, -30.0, pad)
    np.testing.assert_allclose(gates, np.where(pad, -30, -30 / (1 + np.exp(plain))), rtol=1e-12)
    kept = mrt5.hard_delete(gates, -15.0)
    moved = mrt5.gather(jnp.asarray(hidden), kept.index)
    for b in range(B):
        want = [t for t in range(T) if plain[b, t] > 0 and not pad[b, t]]
        assert kept.index[b, : len(want)].tolist() == want and kept.count[b] == len(want)
        assert kept.mask[b].tolist() == [0.0] * len(want) + [-1e9] * (T - len(want))
        np.testing.assert_allclose(moved[b, : len(want)], hidden[b, want])
    assert mrt5.deleted_share(gates, -15.0, ~pad) == pytest.approx(((plain <= 0) & ~pad).sum() / (~pad).sum())


def test_mrt5_soft_deletion_at_its_limit_is_hard_deletion():
    q, k, v = (drawn(1, 2, T, D, seed=s) for s in (6, 7, 8))
    scores = np.einsum("bntd,bnsd->bnts", q, k)
    keep = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1], bool)
    soft = mrt5.soft_delete(jnp.asarray(scores), jnp.where(keep, 0.0, -1e9)[None])
    got = jnp.einsum("bnts,bnsd->bntd", jax.nn.softmax(soft, -1), v)
    hard = jnp.einsum("bnts,bnsd->bntd", jax.nn.softmax(scores[..., keep], -1), v[:, :, keep])
    np.testing.assert_allclose(got, hard, atol=1e-13)
    one = mrt5.softmax1(jnp.asarray(scores))
    np.testing.assert_allclose(one, np.exp(scores) / (1 + np.exp(scores).sum(-1, keepdims=True)), rtol=1e-12)


def test_mrt5_losses_and_controllers():
    gates, logits = -30 / (1 + np.exp(drawn(2, 6))), drawn(2, 6)
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    chosen = gates[mask]
    np.testing.assert_allclose(mrt5.gate_mean_loss(jnp.asarray(gates), mask), chosen.mean(), rtol=1e-12)
    np.testing.assert_allclose(mrt5.gate_variance_loss(jnp.asarray(gates), mask), -chosen.var(ddof=1), rtol=1e-12)
    np.testing.assert_allclose(mrt5.logits_mean_loss(jnp.asarray(logits), mask), logits[mask].mean(), rtol=1e-12)
    cut = np.maximum(logits[mask], -0.3).mean()
    np.testing.assert_allclose(mrt5.logits_mean_loss(jnp.asarray(logits), mask, -0.3), cut, rtol=1e-12)
    p = 1 / (1 + np.exp(-logits))
    h = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    each, whole = mrt5.entropy_terms(jnp.log(jnp.asarray(p)))
    m = p.mean(1)
    np.testing.assert_allclose(each, h.mean(1), rtol=1e-12)
    np.testing.assert_allclose(whole, -(m * np.log(m) + (1 - m) * np.log(1 - m)), rtol=1e-12)
    np.testing.assert_allclose(mrt5.scores_loss(jnp.array([1.0, 7.0, 6.0])), (0 + 2 + 1) / 3)
    state, value = mrt5.pi_controller(mrt5.Controller(0.02, 0.001), 0.5, 0.3, p=0.5, i=0.1)
    np.testing.assert_allclose(state, (0.9 * 0.02 + 0.1 * 0.5 * 0.2, 0.001 + 0.1 * 0.2))
    assert value == pytest.approx(sum(state))
    assert mrt5.pi_controller(mrt5.Controller(), 0.1, 0.9)[1] == 0
    assert mrt5.i_controller(0.2, 0.5, 0.1, i=0.5) == pytest.approx(0.4) and mrt5.i_controller(0.0, 0.1, 0.9) == 0


def test_hnet_routes_by_the_angle_to_the_byte_before():
    hidden, Wq, Wk = drawn(B, T, D), drawn(D, D, seed=9), drawn(D, D, seed=10)
    first = np.zeros((B, T), bool)
    first[:, 0] = first[1, 5] = True
    got = hnet.routing(jnp.asarray(hidden), Wq, Wk, first)
    for b, t in np.ndindex(B, T):
        if first[b, t]:
            want = 1.0
        else:
            q, k = hidden[b, t - 1] @ Wq, hidden[b, t] @ Wk
            want = (1 - q @ k / np.linalg.norm(q) / np.linalg.norm(k)) / 2
        np.testing.assert_allclose(got.probability[b, t], want, rtol=1e-12)
        assert got.boundary[b, t] == (want > 0.5)
        np.testing.assert_allclose(got.chosen[b, t], max(want, 1 - want), rtol=1e-12)


def test_hnet_smooths_over_chunks_and_gives_each_byte_its_chunk():
    p = np.random.default_rng(3).random((B, T))
    p[:, 0] = 1
    routed = hnet.Routing(jnp.asarray(p), jnp.asarray(p > 0.5), jnp.asarray(np.maximum(p, 1 - p)))
    hidden = drawn(B, T, D)
    M = int((p > 0.5).sum(1).max())
    chunks, valid = hnet.chunk(jnp.asarray(hidden), routed.boundary, M)
    got = hnet.dechunk(chunks, routed)
    for b in range(B):
        at = np.flatnonzero(p[b] > 0.5)
        np.testing.assert_allclose(chunks[b, : len(at)], hidden[b, at])
        assert valid[b].sum() == len(at)
        ema = np.zeros(D)
        for t in range(T):
            if p[b, t] > 0.5:
                share = min(max(p[b, t], 1e-4), 1 - 1e-4)
                ema = share * hidden[b, t] + (1 - share) * ema
            np.testing.assert_allclose(got[b, t], ema, rtol=1e-10)
    value, slope = jax.value_and_grad(lambda c: jnp.sum(hnet.confident(got, c)))(routed.chosen)
    np.testing.assert_allclose(value, jnp.sum(got), rtol=1e-12)
    np.testing.assert_allclose(slope, jnp.sum(got, -1), rtol=1e-12)


def test_hnet_ratio_loss():
    p = np.random.default_rng(5).random((B, T))
    routed = hnet.Routing(jnp.asarray(p), jnp.asarray(p > 0.5), None)
    mask = np.arange(T) < np.array([[9], [4], [6]])
    for N, kept in itertools.product((3.0, 6.0), (None, mask)):
        chosen = p if kept is None else p[kept]
        F, G = (chosen > 0.5).mean(), chosen.mean()
        want = N / (N - 1) * ((N - 1) * F * G + (1 - F) * (1 - G))
        np.testing.assert_allclose(hnet.ratio_loss(routed, N, kept), want, rtol=1e-12)
    even = hnet.Routing(jnp.full((1, 4), 0.25), jnp.array([[True, False, False, False]]), None)
    assert hnet.ratio_loss(even, 4.0) == pytest.approx(1.0)


def test_words_join_and_can_be_streamed():
    text = "It's  a dóg, 12.5 (ok)\n\nend ".encode()
    parts = words.split(text)
    assert b"".join(parts) == text
    assert parts[:4] == [b"It", b"'", b"s", b" "] and " dóg".encode() in parts and b" (" in parts
    starts = np.asarray(words.word_starts(jnp.asarray(list(text))))
    for k in range(1, len(text)):
        np.testing.assert_array_equal(words.word_starts(jnp.asarray(list(text[:k]))), starts[:k])
    assert words.word_starts(jnp.array([97, 256, 257, 98])).all() and words.split(b"") == []


def test_pools_of_words():
    hidden, word = drawn(2, 6, D), np.array([[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 3, 3]])
    mean = words.pool_mean(jnp.asarray(hidden), jnp.asarray(word), 4)
    last = words.pool_last(jnp.asarray(hidden), jnp.asarray(word), 4)
    for b, w in np.ndindex(2, 4):
        mine = hidden[b, word[b] == w]
        np.testing.assert_allclose(mean[b, w], mine.mean(0) if len(mine) else 0, atol=1e-14)
        np.testing.assert_allclose(last[b, w], mine[-1] if len(mine) else 0, atol=1e-14)


def test_the_mass_of_all_texts_of_a_model_of_words_is_one():
    def row(before, word):
        rng = np.random.default_rng([len(before), *map(len, before), 7, *word])
        return np.log(rng.dirichlet(np.ones(3)))

    whole, tail = words.total_mass(row, (0, 1), 2, 7)
    assert 0.2 < whole < 1 and whole + tail == pytest.approx(1, abs=1e-13)
    text = ((0, 1), (1,))
    plain = [row((), ())[0], row((), (0,))[1], row((), (0, 1))[2], row(((0, 1),), ())[1], row(((0, 1),), (1,))[2]]
    assert words.text_log_probability(text, row, 2) == pytest.approx(sum(plain))


def test_hamburger_merges_positions_and_stops():
    S, N = 4, 2
    make = lambda i, o, seed: (drawn(i, o, seed=seed), drawn(o, seed=seed + 50))  # noqa: E731
    query, key, value, out = make(D, D, 1), make(D + D // 2, D, 2), make(D + D // 2, D, 3), make(D, D, 4)
    embedded, position = drawn(3, D), drawn(S, D // 2, seed=9)
    got = hamburger.merge(jnp.asarray(embedded), position, query, key, value, out, N)
    mean, H = embedded.mean(0), D // N
    q = mean @ query[0] + query[1]
    placed = [np.concatenate([embedded[s], position[s]]) for s in range(3)]
    joined = np.zeros(D)
    for n in range(N):
        part = slice(n * H, (n + 1) * H)
        logits = np.array([q[part] @ (x @ key[0] + key[1])[part] / math.sqrt(H) for x in placed])
        weights = np.exp(logits) / np.exp(logits).sum()
        joined[part] = sum(w * (x @ value[0] + value[1])[part] for w, x in zip(weights, placed, strict=True))
    np.testing.assert_allclose(got, mean + joined @ out[0] + out[1], rtol=1e-12)
    one = hamburger.merge(jnp.asarray(embedded[:1]), position, query, key, value, out, N)
    np.testing.assert_array_equal(one, embedded[0])
    assert hamburger.positions(3, [1, 4, 2]).tolist() == [0, 1, 2, 3, 7, 9]
    assert hamburger.stop_targets([1, 3]).tolist() == [1, 0, 0, 1]
    assert hamburger.emitted([0.05, 0.05, 0.2, 0.9]) == 3 and hamburger.emitted([0.05] * 9) == 4
    assert hamburger.emitted([0.05, 0.4, 0.6], confidence=None) == 3


def test_the_entropy_of_a_confidence():
    plain = lambda p, V: -(p * math.log(p) + (V - 1) * ((1 - p) / (V - 1)) * math.log((1 - p) / (V - 1)))  # noqa: E731
    assert hamburger.largest_entropy(0.7, 1000) == pytest.approx(plain(0.7, 1000))
    assert hamburger.largest_entropy(1.0, 5) == 0
    with pytest.raises(ValueError, match="must be in 0..1"):
        hamburger.largest_entropy(0.0, 5)
