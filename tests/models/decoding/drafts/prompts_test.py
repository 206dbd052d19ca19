"""Parallel prompt decoding: the best paths, the pruning, the chain of states and the mask, against loops and
simulation."""

import itertools

import numpy as np
import pytest

from models.decoding.drafts import prompts

ACCURACY = np.array([[0.5, 0.2, 0.05], [0.3, 0.15, 0.1], [0.2, 0.1, 0.02]])


def test_the_best_paths_are_the_largest_products():
    paths, products = prompts.best_paths(ACCURACY, 12)
    every = {
        path: np.prod([ACCURACY[d, r] for d, r in enumerate(path)])
        for n in (1, 2, 3)
        for path in itertools.product(range(3), repeat=n)
    }
    np.testing.assert_allclose(products, sorted(every.values(), reverse=True)[:12], rtol=1e-14)
    assert all(every[path] == pytest.approx(value) for path, value in zip(paths, products, strict=True))
    assert all(path[:-1] in paths for path in paths if len(path) > 1)
    _, rounded = prompts.best_paths(ACCURACY / 3, 12, digits=5)
    assert all(value == round(value, 5) for value in rounded) and rounded[0] == 0.16667


def test_end_chances_leave_out_what_goes_on():
    paths, products = [(0,), (0, 0), (1,), (0, 1)], [0.5, 0.15, 0.2, 0.075]
    np.testing.assert_allclose(prompts.end_chances(paths, products), [0.275, 0.15, 0.2, 0.075], rtol=1e-14)


def test_the_chain_of_states_gives_the_long_run_mean():
    rng = np.random.default_rng(0)
    move, value = rng.dirichlet(np.ones(4), 3), np.array([0.4, 0.9, 1.3])
    whole = np.vstack([[0, 0, 0, 1], move])
    power = np.linalg.matrix_power(whole, 4096)[0]
    assert prompts.expected_tokens(move, value) == pytest.approx(power[1:] @ value, rel=1e-12)
    stays = np.array([[0, 0, 0, 1.0]] * 3)
    assert prompts.expected_tokens(stays, value) == pytest.approx(1.3)


def test_pruning_takes_from_the_node_that_loses_least():
    """By hand: losses of a prompt are end * (f3 - f2) = 0.1 end from 3 to 2, then end * (f2 - f1) = 0.4 end from 2 to
    1."""
    ends, guesses = [0.5, 0.3, 0.1], [0.5, 0.9, 1.0]
    assert prompts.prune(ends, guesses, 3, 9) == [3, 3, 3]
    assert prompts.prune(ends, guesses, 3, 8) == [3, 3, 2]
    assert prompts.prune(ends, guesses, 3, 7) == [3, 2, 2]  # 0.03 of the second beside 0.04 of the third.
    assert prompts.prune(ends, guesses, 3, 6) == [3, 2, 1]  # 0.04 beside 0.05 of the first.
    assert prompts.prune(ends, guesses, 3, 5) == [2, 2, 1]
    assert prompts.prune(ends, guesses, 3, 0) == [1, 1, 1]


def test_a_dynamic_tree_counts_its_tokens_and_its_chances():
    trees, value = prompts.dynamic_tree(ACCURACY, (3, 5, 6), 15)
    rows, guesses = [], []
    for state, tree in enumerate(trees, start=1):
        assert len(tree.paths) + sum(tree.prompts) <= 15 and max(map(len, tree.paths)) <= state
        row = np.zeros(4)
        for end, n in zip(tree.ends, tree.prompts, strict=True):
            row[n] += end
        row[0] = 1 - row.sum()
        rows.append(row)
        guesses.append(sum(np.prod([ACCURACY[d, r] for d, r in enumerate(path)]) for path in tree.paths))
    whole = np.linalg.matrix_power(np.vstack([[0, 0, 0, 1], rows]), 4096)[0]
    assert value == pytest.approx(whole[1:] @ guesses, rel=1e-12)


def test_the_search_finds_the_best_sizes():
    limit = 14
    _, sizes = prompts.best_tree(ACCURACY, limit)
    values = {
        (3, two, three): prompts.dynamic_tree(ACCURACY, (3, two, three), limit)[1]
        for two, three in itertools.product(range(3, 8), repeat=2)
    }
    assert values[sizes] == max(values.values())


def test_the_mask_of_prompts():
    """Nodes 0 - 1 - 2 and 3 below 0; two prompts behind node 1, one behind node 3: slots 4, 5 and 6."""
    sees, depth = prompts.mask([-1, 0, 1, 0], [0, 2, 0, 1])
    wanted = {0: {0}, 1: {0, 1}, 2: {0, 1, 2}, 3: {0, 3}, 4: {0, 1, 4}, 5: {0, 1, 4, 5}, 6: {0, 3, 6}}
    assert {i: set(np.flatnonzero(row)) for i, row in enumerate(sees)} == wanted
    assert depth.tolist() == [0, 1, 2, 1, 2, 3, 2]
