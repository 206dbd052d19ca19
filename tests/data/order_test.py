import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import order

few = settings(max_examples=25, deadline=None, derandomize=True)


@few
@given(st.integers(1, 3000), st.integers(-5, 2**63), st.integers(0, 10**6))
def test_permutation_is_a_bijection(count, seed, epoch):
    assert np.array_equal(np.sort(order.permute(np.arange(count), count, seed, epoch)), np.arange(count))


@pytest.mark.parametrize("count", [2**16 + 1, 10**12 + 7])
def test_permutation_of_many_needs_no_memory_and_agrees_alone_or_together(count):
    index = np.random.default_rng(0).integers(0, count, 500)
    together = order.permute(index, count, 3, 4)
    assert together.min() >= 0 and together.max() < count
    assert [order.permute(i, count, 3, 4)[0] for i in index[:20]] == together[:20].tolist()
    assert len(np.unique(together)) == len(np.unique(index))


def test_epochs_may_differ_within_one_call():
    epochs = np.array([0, 5, 0, 9, 5])
    index = np.array([3, 3, 7, 7, 0])
    each = [order.permute(i, 11, 1, e)[0] for i, e in zip(index, epochs, strict=True)]
    assert order.permute(index, 11, 1, epochs).tolist() == each


def test_permutations_are_uniform():
    # 24 permutations of 4 rows over 9,600 epochs: chi-square with 23 degrees of freedom is below 49.7 in 999 of 1,000.
    epochs = np.repeat(np.arange(9600), 4)
    rows = order.permute(np.tile(np.arange(4), 9600), 4, 0, epochs).reshape(-1, 4)
    counts = np.array(list(collections.Counter(map(tuple, rows.tolist())).values()))
    assert len(counts) == 24
    assert ((counts - 400) ** 2 / 400).sum() < 49.7


def test_neighbours_are_not_kept_together():
    # In a random order of n rows, about one pair of neighbours (Poisson, mean 1) stays in place one after the other.
    rows = order.permute(np.arange(5000), 5000, 0, 0)
    assert (np.diff(rows) == 1).sum() < 8
    assert abs(np.corrcoef(np.arange(5000), rows)[0, 1]) < 4 / np.sqrt(5000)


@few
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 1000))
def test_every_prefix_of_a_mixture_is_within_one_of_its_share(numbers, start):
    weights = order.whole_weights(tuple(map(float, numbers)))
    length = start + 2 * sum(weights) + 3
    component, rank = order.interleave(np.arange(length), weights)
    one_hot = component[:, None] == np.arange(len(weights))
    had = np.cumsum(one_hot, axis=0)
    share = np.arange(1, length + 1)[:, None] * np.array(weights) / sum(weights)
    assert np.abs(had - share).max() < 1
    assert np.array_equal(rank, had[np.arange(length), component] - 1)
    later = order.interleave(np.arange(start, length), weights)
    assert np.array_equal(later[0], component[start:]) and np.array_equal(later[1], rank[start:])


@pytest.mark.parametrize(
    ("weights", "whole"),
    [((0.7, 0.2, 0.1), (7, 2, 1)), ((3, 1), (3, 1)), ((50, 50), (1, 1)), ((0.125, 2.5), (1, 20)), ((9.0,), (1,))],
)
def test_weights_are_exact_as_written(weights, whole):
    assert order.whole_weights(weights) == whole


def test_long_weights_are_rounded_to_a_schedule_of_bounded_length():
    weights = (0.1234567891, 0.7, 0.1765432109)
    whole = order.whole_weights(weights)
    assert sum(whole) == 65536
    assert np.abs(np.array(whole) / 65536 - weights).max() <= 1 / 65536


@pytest.mark.parametrize("bad", [0, -1.0, float("nan"), float("inf"), "half", None, True])
def test_a_bad_weight_is_named(bad):
    with pytest.raises(ValueError, match=r"components\[1\].weight=.* use one such as 1.0"):
        order.whole_weights((1.0, bad))


def test_a_weight_too_small_for_a_turn_is_named():
    with pytest.raises(ValueError, match=r"components\[0\].weight=1e-09 is too small"):
        order.whole_weights((1e-9, 1.0))
