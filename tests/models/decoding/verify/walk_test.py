"""Walks along trees: the law of repeated rounds is the target's, drawn and by enumeration; masks, commits, greedy
paths."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from models.decoding.verify import laws, siblings, walk
from models.decoding.verify.walk import Walk
from models.mixers import slots

V = 3
RNG = np.random.default_rng(3)
TARGET, DRAFT = RNG.dirichlet(np.ones(V), V), RNG.dirichlet(np.ones(V), V)  # Chains: rows are the laws after a token.
START = 1


def after(chain):
    """The chain as laws of the next token, given a prefix behind START."""
    return lambda prefix: chain[prefix[-1] if prefix else START]


@pytest.mark.parametrize("drafts", [1, 2, 4])
def test_rounds_of_a_chain_give_the_law_of_the_target(drafts, x64):
    emit = functools.cache(
        lambda prefix: laws.one_tree(siblings.recursive, after(TARGET), after(DRAFT), (1,) * drafts, True, prefix[-1:])
    )
    found, count = laws.rounds(emit, 4, V)
    wanted = laws.sequential(after(TARGET), 4, V)
    assert laws.total_variation(found, wanted) < 1e-13
    assert 1 < count < 4


@pytest.mark.parametrize(
    ("name", "widths", "replace"),
    [
        ("recursive", (2, 2), True),
        ("recursive", (2, 2), False),
        ("recursive", (3, 1, 2), False),
        ("kseq", (2, 2), True),
        ("kseq", (3, 1), True),
        ("children", (2, 1), False),
    ],
)
def test_rounds_of_a_tree_give_the_law_of_the_target(name, widths, replace, x64):
    emit = functools.cache(
        lambda prefix: laws.one_tree(siblings.RULES[name], after(TARGET), after(DRAFT), widths, replace, prefix[-1:])
    )
    found, _ = laws.rounds(emit, 4, V)
    assert laws.total_variation(found, laws.sequential(after(TARGET), 4, V)) < 1e-13


def test_expected_tokens_of_a_round_are_the_geometric_sum(x64):
    """One law for every prefix: acceptance a at every depth, so (1 - a^(g+1)) / (1 - a) tokens."""
    p, q = TARGET[0], DRAFT[0]
    a = np.minimum(p, q).sum()
    for g in (1, 2, 3):
        strings = laws.one_tree(siblings.recursive, lambda _: p, lambda _: q, (1,) * g, True)
        mean = sum(len(string) * mass for string, mass in strings.items())
        assert abs(mean - (1 - a ** (g + 1)) / (1 - a)) < 1e-13
        for n in range(1, g + 1):
            share = sum(mass for string, mass in strings.items() if len(string) == n)
            assert abs(share - a ** (n - 1) * (1 - a)) < 1e-13


def test_an_early_exit_draft_is_verified_with_the_law_of_the_exit_that_was_taken(x64):
    """A draft that leaves at its first layer where that layer is sure: any policy of the prefix is lossless."""
    early, late = RNG.dirichlet(np.ones(V), V), DRAFT

    def exits(prefix):
        first = after(early)(prefix)
        return first if first.max() > 0.5 else after(late)(prefix)

    assert len({after(early)((x,)).max() > 0.5 for x in range(V)}) == 2  # Both exits are taken.
    emit = lambda prefix: laws.one_tree(siblings.recursive, after(TARGET), exits, (1, 1), True, prefix)  # noqa: E731
    found, _ = laws.rounds(emit, 3, V)
    assert laws.total_variation(found, laws.sequential(after(TARGET), 3, V)) < 1e-13


# A tree of nine nodes: 0; 1 2 3 below it; 4 5 below 1; 6 below 2; 7 below 4; 8 below 7.
PARENT = np.array([-1, 0, 0, 0, 1, 1, 2, 4, 7])


def test_children_ancestors_and_depths():
    table = walk.children_of(jnp.asarray(PARENT), width=3)
    wanted = [
        [1, 2, 3],
        [4, 5, -1],
        [6, -1, -1],
        *[[-1] * 3] * 1,
        [7, -1, -1],
        [-1] * 3,
        [-1] * 3,
        [8, -1, -1],
        [-1] * 3,
    ]
    assert table.tolist() == wanted
    without = walk.children_of(jnp.asarray(PARENT), jnp.arange(9) != 2, width=3)
    assert without[0].tolist() == [1, 3, -1] and without[1].tolist() == [4, 5, -1]
    sees = np.zeros((9, 9), bool)
    for i in range(9):
        j = i
        while j >= 0:
            sees[i, j] = True
            j = PARENT[j]
    np.testing.assert_array_equal(slots.ancestors(jnp.asarray(PARENT)), sees)
    assert slots.depths(jnp.asarray(PARENT)).tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 4]
    np.testing.assert_array_equal(slots.ancestors(walk.chain(6)), np.tril(np.ones((7, 7), bool)))
    two = slots.ancestors(jnp.stack([jnp.asarray(PARENT), walk.chain(8)]))
    np.testing.assert_array_equal(two[0], sees)


def test_a_commit_reads_the_accepted_nodes_into_a_row():
    path, count, length = jnp.array([[1, 4, 7, -1], [3, -1, -1, -1]]), jnp.array([3, 1]), jnp.array([5, 2])
    found = walk.commit_map(path, count, length, 16)
    assert found[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 12, *range(9, 16)]
    assert found[1].tolist() == [0, 1, 2, 5, *range(4, 16)]


def test_the_greedy_path_is_the_longest_chain_of_best_tokens():
    token = jnp.array([9, 1, 2, 3, 4, 5, 6, 7, 8])
    best = jnp.array([1, 4, 0, 0, 7, 0, 0, 3, 2])
    found = walk.longest_greedy_path(best, token, walk.children_of(jnp.asarray(PARENT)))
    assert found.path[:4].tolist() == [1, 4, 7, -1] and int(found.count) == 3 and int(found.token) == 3
    none = walk.longest_greedy_path(jnp.zeros(9, int), token, walk.children_of(jnp.asarray(PARENT)))
    assert none.path.tolist() == [-1] * 8 and int(none.count) == 0 and int(none.token) == 0


def plain_walk(p, token, uniform, noise):
    """Greedy-sampled children: the walk step by step, with the chances of `children` by hand."""
    node, path = 0, []
    while True:
        kids = [i for i in range(len(PARENT)) if PARENT[i] == node]
        left, law = 1.0, p[node].copy()
        for rank, kid in enumerate(kids):
            if uniform[len(path), rank] < law[token[kid]] / left:
                break
            left -= law[token[kid]]
            law[token[kid]] = 0
        else:
            with np.errstate(divide="ignore"):
                return path, int(np.argmax(np.log(law) + noise[len(path)]))
        path.append(kid)
        node = kid


def test_a_walk_is_the_plain_one(x64):
    rng = np.random.default_rng(1)
    token = np.array([0, 1, 2, 3, 0, 4, 1, 2, 3])
    table = walk.children_of(jnp.asarray(PARENT), width=3)
    run = jax.jit(lambda p, u, g: walk.walk(siblings.children, p, jnp.asarray(token), table, jnp.zeros_like(p), u, g))
    lengths = []
    for _ in range(400):
        p = rng.dirichlet(np.full(5, 0.5), 9)
        uniform, noise = rng.uniform(size=(4, 3)), rng.gumbel(size=(5, 5))
        found = run(p, uniform, noise)
        path, last = plain_walk(p, token, uniform, noise)
        assert found.path.tolist() == path + [-1] * (4 - len(path))
        assert int(found.count) == len(path) and int(found.token) == last
        lengths.append(len(path))
    assert set(lengths) >= {0, 1, 2, 3}


def test_sampled_walks_follow_the_law(x64):
    """100,000 walks of a drawn tree, drafts of an iid tree of two children: chi-square at 1e-4 of the first two tokens.

    A total variation of 0.02 moves the statistic by at least 4 n (0.02)^2 / (pairs' largest share) = 100,000 * 0.0016,
    160 and more, where 1e-4 of 8 degrees lies at 32.
    """
    n, parent = 100_000, jnp.array([-1, 0, 0, 1, 2])
    table = walk.children_of(parent, width=2)
    p_after, q_after = jnp.asarray(TARGET), jnp.asarray(DRAFT)

    def one(key):
        keys = jax.random.split(key, 6)
        first = jax.random.categorical(keys[0], jnp.log(q_after[START]), shape=(2,))
        second = jax.random.categorical(keys[1], jnp.log(q_after[first]))
        token = jnp.concatenate([jnp.array([START]), first, second])
        law = jnp.concatenate([q_after[START][None]] * 3 + [q_after[first]])
        uniform, noise = jax.random.uniform(keys[2], (2, 2)), jax.random.gumbel(keys[3], (3, V))
        found = walk.walk(siblings.kseq, p_after[token], token, table, law, uniform, noise)
        text = jnp.where(found.path >= 0, token[jnp.maximum(found.path, 0)], found.token)
        end = jnp.where(found.count > 1, text[1], found.token)
        later = jax.random.categorical(keys[4], jnp.log(p_after[text[0]]))  # Of rounds of one token: drawn after it.
        return text[0], jnp.where(found.count >= 1, end, later)

    a, b = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n))
    counts = np.bincount(np.asarray(a) * V + np.asarray(b), minlength=V * V)
    wanted = (TARGET[START][:, None] * TARGET).reshape(-1)
    assert stats.chisquare(counts, wanted * n).pvalue > 1e-4
    wrong = wanted.copy()
    wrong[0], wrong[-1] = wrong[0] + 0.02, wrong[-1] - 0.02
    assert stats.chisquare(counts, wrong * n).pvalue < 1e-4  # The test can fail.


def test_the_pairs_of_laws_are_whole():
    """`drawn` gives probabilities that sum to 1, with and without replacement."""
    for q, k, replace in itertools.product((DRAFT[0], np.array([0.5, 0.5, 0])), (1, 2, 3), (True, False)):
        assert abs(sum(weight for _, weight, _ in laws.drawn(q, k, replace)) - 1) < 1e-14
    assert Walk._fields == ("path", "count", "token")
