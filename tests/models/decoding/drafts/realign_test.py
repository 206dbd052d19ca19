"""Realignment of left-padded batches, by moving a batch of named slots; and drafting thresholds."""

import jax.numpy as jnp
import numpy as np

from models.decoding.drafts import adaptive, realign


def test_realigned_rows_are_their_tokens_padded_anew():
    length, pad, accepted = np.array([3, 5, 4]), np.array([2, 0, 1]), np.array([4, 1, 2])
    found = realign.eqspec(length, pad, accepted)
    assert found.pad.tolist() == [0, 1, 1] and found.source.shape == (3, 6)
    moved = 0
    for b in range(3):
        old = {pad[b] + i: f"{b}.{i}" for i in range(length[b] + accepted[b] - 1)}  # The last token has no keys yet.
        new = [old[s] if s >= 0 else None for s in found.source[b]]
        assert new == [None] * found.pad[b] + [f"{b}.{i}" for i in range(length[b] + accepted[b] - 1)]
        moved += sum(s >= 0 and s != i for i, s in enumerate(found.source[b]))
    assert found.moved == moved == 6 + 5  # Rows 0 and 1 move, row 2 stays where it is.


def test_equal_rounds_of_equal_rows_move_nothing():
    found = realign.eqspec([4, 4], [0, 0], [2, 2])
    assert found.moved == 0 and found.source.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_cost_of_rounds_is_the_sum_of_their_moves():
    length, accepted = np.array([3, 5]), np.array([[2, 1], [1, 4], [2, 2]])
    # Lengths 3, 5 -> 5, 6 -> 6, 10 -> 8, 12; pads 2, 0 -> 1, 0 -> 4, 0 -> 4, 0: row 0 moves 4 slots, then 5, then none.
    assert realign.cost(length, accepted) == (4 + 5 + 0, (4 + 5) + (5 + 9) + (7 + 11))


def test_uneven_rounds_move_most_of_the_cache_each_time():
    """Eight rows of 64 tokens, four drafts that stay with chance 0.7: what docs/speculation.md says."""
    rng = np.random.default_rng(0)
    stays = np.cumprod(rng.random((100, 64, 8, 4)) < 0.7, axis=-1).sum(axis=-1) + 1
    shares = [np.divide(*realign.cost(np.full(8, 64), accepted)) for accepted in stays]
    # 100 batches whose shares have a deviation of 0.023: five deviations of their mean.
    assert abs(np.mean(shares) - 0.69) < 5 * np.std(shares) / 10 and np.std(shares) < 0.03


def test_rows_of_one_length_make_a_batch():
    assert realign.same_length([3, 5, 3, 5, 5], [True] * 5, 2) == ([0, 2], True)
    assert realign.same_length([3, 5, 3, 5, 5], [True] * 5, 3) == ([1, 3, 4], True)
    assert realign.same_length([3, 5, 3], [True, True, False], 2) == ([0, 1], False)
    assert realign.same_length([3, 3, 3], [True, False, True], 2) == ([0, 2], True)
    assert realign.same_length([4], [True], 2) == ([0], True)


def test_llmcad_verifies_when_confidence_is_used_up(x64):
    assert adaptive.verify_now(np.array([[0.9, 0.2], [0.9, 0.9]]), 0.2).tolist() == [True, False]
    np.testing.assert_array_equal(
        adaptive.next_threshold(np.array([0.01, 0.01]), np.array([True, False])), [0.005, 0.02]
    )


def test_the_first_sure_exit_is_taken():
    confidence = np.array([[0.2, 0.9, 0.95], [0.1, 0.2, 0.3], [0.8, 0.1, 0.1]])
    assert adaptive.exit_layer(confidence, np.array([0.5, 0.5, 0.5])).tolist() == [1, 2, 0]
    assert adaptive.exit_layer(confidence, np.array([0.8, 0.9, 0.5])).tolist() == [2, 2, 2]  # Above, not at.
    np.testing.assert_allclose(adaptive.sorted_loss(np.array([[1.0, 3.0], [2.0, 6.0]])), [1.5, 4.5])


def test_gated_fusion_is_its_formula(x64):
    rng = np.random.default_rng(0)
    h, e, w, b = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(6, 3)), rng.normal(size=3)
    found = adaptive.gated_fusion(jnp.asarray(h), jnp.asarray(e), w, b)
    for i in range(2):
        for d in range(3):
            z = sum(np.concatenate([h[i], e[i]])[j] * w[j, d] for j in range(6)) + b[d]
            g = 1 / (1 + np.exp(-z))
            np.testing.assert_allclose(found[i, d], g * h[i, d] + (1 - g) * e[i, d], rtol=1e-13)
