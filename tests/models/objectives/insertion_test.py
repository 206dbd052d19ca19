"""Insertion targets and losses: exact check 16, first part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import insertion


@pytest.mark.parametrize("dropped", [{0, 2, 3}, [0, 2, 3], np.array([True, False, True, True, False])])
def test_target_by_hand(dropped, x64):
    """Check 16: x = [5,7,5,9,2], positions {0,2,3} dropped: 1/3 at (BOS,5), (after 7,5), (after 7,9)."""
    got = np.asarray(insertion.target(np.array([5, 7, 5, 9, 2]), dropped, 10))
    expected = np.zeros((6, 10))
    expected[0, 5] = expected[1, 5] = expected[1, 9] = 1 / 3
    np.testing.assert_allclose(got, expected, atol=1e-15)


def test_target_counts_repeats_and_may_be_empty():
    got = np.asarray(insertion.target(np.array([4, 4, 1]), [0, 1], 5))
    assert got[0, 4] == 1 and got.sum() == 1
    assert not np.asarray(insertion.target(np.array([4, 4, 1]), np.zeros(3, bool), 5)).any()


def test_corrupt_is_uniform_in_number_and_place():
    x = jnp.tile(jnp.array([3, 1, 2, 0, 0]), (30_000, 1))
    lengths = jnp.full(30_000, 3)
    noised = jax.jit(lambda k: insertion.corrupt(k, x, lengths, vocab_size=4, weighted=True))(jax.random.key(0))
    count, z = np.asarray(noised.count), np.asarray(noised.z)
    assert (z[:, 0] == 4).all() and (np.asarray(noised.weight) == 4).all()
    numbers = np.bincount(3 - count, minlength=4)
    assert ((numbers - 7500) ** 2 / 7500).sum() < 21.1  # chi-square, 3 dof, 1e-4
    names, seen = np.unique(z[count == 2][:, 1:3], axis=0, return_counts=True)
    assert names.tolist() == [[1, 2], [3, 1], [3, 2]] and np.abs(seen - seen.mean()).max() < 5 * seen.mean() ** 0.5
    np.testing.assert_array_equal(noised.stop, count == 3)
    sums = np.asarray(noised.target).sum((1, 2))
    np.testing.assert_allclose(sums, (count < 3) * 1.0, atol=1e-6)
    for row in (0, 1, 2, 3):  # targets agree with a single call
        keep = [v in z[row, 1 : count[row] + 1] for v in (3, 1, 2)]
        one = insertion.target(np.array([3, 1, 2, 0, 0]), ~np.array([*keep, True, True]), 4)
        np.testing.assert_allclose(noised.target[row], one, atol=1e-6)


def test_losses_by_hand(x64):
    rng = np.random.default_rng(0)
    x = np.array([[3, 1, 2], [0, 1, 2]])
    dropped = np.array([[True, False, True], [False, False, False]])
    target = insertion.target(x, dropped, 4)
    z = jnp.array([[4, 1, 5, 5], [4, 0, 1, 2]])
    noised = insertion.Deletion(z, jnp.array([1, 3]), target, jnp.array([False, True]), jnp.array([2.0, 1.0]))
    logits, stop = rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 2))
    p = np.exp(logits[0, :2]) / np.exp(logits[0, :2]).sum()
    got = np.asarray(insertion.token_loss(jnp.asarray(logits), noised))
    np.testing.assert_allclose(got[0], [2 * 0.5 * -np.log(p[0, 3]), 2 * 0.5 * -np.log(p[1, 2]), 0, 0], atol=1e-12)
    assert not got[1].any()
    log_s = stop - np.log(np.exp(stop).sum(-1, keepdims=True))
    np.testing.assert_allclose(insertion.stop_loss(jnp.asarray(stop), noised), [-2 * log_s[0, 0], -log_s[1, 1]])
    grad = jax.grad(lambda g: insertion.token_loss(g, noised).sum())(jnp.asarray(logits))
    assert np.isfinite(grad).all()


def test_frozen_tokens_survive():
    x = jnp.tile(jnp.arange(4), (64, 1))
    frozen = jnp.zeros_like(x, bool).at[:, 2].set(True)
    noised = insertion.corrupt(jax.random.key(1), x, vocab_size=4, frozen=frozen)
    assert (np.asarray(noised.z) == 2).any(1).all() and int(noised.count.min()) == 1
