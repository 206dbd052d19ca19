"""Builders of draft trees against brute force: largest path products, DySpec's draws, EAGLE-2's beam, Sequoia's
program."""

import itertools

import numpy as np
import pytest

from models.decoding.drafts import sequoia, trees


def chain(V, seed=0, alpha=0.7):
    """A draft whose law depends on the last two tokens."""
    table = np.random.default_rng(seed).dirichlet(np.full(V, alpha), (V + 1, V + 1))
    return lambda path: table[tuple(([V, V, *path])[-2:])]


def product(draft, path):
    return float(np.prod([draft(path[:i])[x] for i, x in enumerate(path)]))


def paths_of(grown):
    """Tokens from the root to each node."""
    found = []
    for token, parent in zip(grown.token, grown.parent, strict=True):
        found.append(() if parent < 0 else (*found[parent], int(token)))
    return found


@pytest.mark.parametrize("nodes", [1, 5, 8])
def test_the_best_first_tree_holds_the_largest_products(nodes):
    for seed in range(5):
        draft = chain(3, seed)
        every = [path for d in range(1, nodes + 1) for path in itertools.product(range(3), repeat=d)]
        best = sorted((product(draft, path) for path in every), reverse=True)[:nodes]
        found = trees.best_first(draft, nodes)
        assert found.token[0] == -1 and found.parent[0] == -1 and found.value[0] == 1 and len(found.token) == nodes + 1
        assert all(parent < i for i, parent in enumerate(found.parent))
        np.testing.assert_allclose(found.value[1:], best, rtol=1e-13)  # In order, largest first.
        for path, value in zip(paths_of(found), found.value, strict=True):
            np.testing.assert_allclose(value, product(draft, path), rtol=1e-13)
        assert len(set(paths_of(found))) == nodes + 1


def test_dyspec_draws_siblings_without_repetition_and_values_are_chances():
    """Replays the draws: each node's value is v R(y), slots pop in order of their v."""
    for seed in range(5):
        draft, rng = chain(4, seed), np.random.default_rng(seed)
        laws = []

        def choose(law, rng=rng, laws=laws):
            laws.append(law)
            return rng.choice(len(law), p=law)

        found = trees.dyspec(draft, 14, choose=choose)
        left, popped = {}, []
        for i, path in enumerate(paths_of(found)[1:], start=1):
            above, y = path[:-1], path[-1]
            if above not in left:
                left[above] = (found.value[found.parent[i]], draft(above))
            v, law = left[above]
            np.testing.assert_allclose(laws[i - 1], law, atol=1e-14)
            popped.append(v)
            np.testing.assert_allclose(found.value[i], v * law[y], rtol=1e-12)
            rest = np.where(np.arange(4) == y, 0, law)
            left[above] = (v * (1 - law[y]), rest / rest.sum())
        assert all(a >= b - 1e-15 for a, b in zip(popped, popped[1:], strict=False))
        assert len(set(paths_of(found))) == 15


def test_dyspec_stops_at_its_threshold_and_where_a_law_is_used_up():
    draft = lambda path: np.array([0.6, 0.4]) if not path else np.array([1.0, 0.0])  # noqa: E731
    found = trees.dyspec(draft, 50, choose=lambda law: int(np.argmax(law)), threshold=0.5)
    assert found.parent.tolist()[:3] == [-1, 0, 1] and found.value[1:].min() == 0.6
    flat = trees.dyspec(lambda path: np.array([0.5, 0.5]), 50, choose=lambda law: int(np.argmax(law)), threshold=0.2)
    # Two nodes of 1/2, four of 1/4; behind each of these one of 1/8, whose sibling's slot is worth 1/8.
    assert len(flat.token) == 1 + 2 + 4 + 4 and sorted(set(flat.value)) == [0.125, 0.25, 0.5, 1.0]
    alone = trees.dyspec(lambda path: np.array([1.0]) if not path else np.zeros(1), 9, choose=lambda law: 0)
    assert alone.token.tolist() == [-1, 0]


def test_eagle2_is_its_beam_and_the_best_of_all_that_was_scored():
    draft, k, depth = chain(6), 3, 2
    for nodes in (4, 9, 3 + 2 * 9):
        found = trees.eagle2(draft, depth=depth, top_k=k, nodes=nodes)
        # Brute force: levels of (path, log-probability), k children of each of the k best of the level before.
        top = lambda path: np.argsort(-draft(path))[:k].tolist()  # noqa: E731
        levels = [[((y,), np.log(draft(())[y])) for y in top(())]]
        for _ in range(depth):
            beam = sorted(levels[-1], key=lambda node: -node[1])[:k]
            levels.append([((*path, y), s + np.log(draft(path)[y])) for path, s in beam for y in top(path)])
        scored = [node for level in levels for node in level]
        best = sorted(scored, key=lambda node: -node[1])[:nodes]
        wanted = [path for path, _ in scored if path in {path for path, _ in best}]
        assert paths_of(found)[1:] == wanted
        np.testing.assert_allclose(found.value[1:], [dict(scored)[path] for path in wanted], rtol=1e-13)


def test_templates_are_whole():
    sizes = {"recycling": [1, 8, 21, 25, 15, 8, 3], "medusa": [1, 10, 28, 23, 2]}
    for name, counts in trees.TEMPLATES.items():
        paths = trees.from_counts(counts)
        made = trees.template(reversed(paths))
        assert np.bincount(made.depth).tolist() == sizes[name]
        for i, path in enumerate([(), *paths]):
            assert made.depth[i] == len(path) and made.rank[i] == (path[-1] if path else 0)
            sees = [j for j, other in enumerate([(), *paths]) if path[: len(other)] == other]
            assert np.flatnonzero(made.mask[i]).tolist() == sees
        ends = {tuple(row[row >= 0]) for row in made.leaves}
        assert len(ends) == len(paths) + 1 - len({path[:-1] for path in paths})
        for row in ends:
            assert row[0] == 0 and all(made.parent[b] == a for a, b in itertools.pairwise(row))
    with pytest.raises(ValueError, match=r"the path \(1, 0\) has no parent \(1,\)"):
        trees.template([(0,), (1, 0)])
    assert trees.template([]).leaves.tolist() == [[0]]


def every_tree(m, levels, B):
    """All ordered trees of m nodes and at most `levels` levels and B children a node, as nested tuples of children."""
    if m < 1 or levels < 1:
        return
    for many in range(min(B, m - 1) + 1):
        for split in itertools.product(range(1, m), repeat=many):
            if sum(split) == m - 1:
                yield from itertools.product(*(list(every_tree(s, levels - 1, B)) for s in split))


def expected(tree, acceptance):
    """Tokens that the tree gives: 1, and of each child its chance times what it gives."""
    return 1 + sum(acceptance[b] * expected(child, acceptance) for b, child in enumerate(tree))


def test_sequoias_program_is_the_best_of_all_trees():
    acceptance = np.array([0.6, 0.2, 0.15])
    T, split = sequoia.table(acceptance, 6, 4)
    for m in range(1, 7):
        for levels in range(1, 5):
            all_trees = list(every_tree(m, levels, 3))
            for b in range(4):
                values = [expected(tree, acceptance) for tree in all_trees if len(tree) == b]
                assert (max(values) if values else -np.inf) == pytest.approx(T[m, levels, b], rel=1e-13)
            if all_trees:
                parent, rank = sequoia.tree(T, split, m, levels)
                tokens, depth = np.ones(m), np.zeros(m, int)
                for i in range(1, m):
                    depth[i] = depth[parent[i]] + 1
                for i in reversed(range(1, m)):
                    tokens[parent[i]] += acceptance[rank[i]] * tokens[i]
                assert tokens[0] == pytest.approx(T[m, levels].max(), rel=1e-13) and depth.max() < levels
                assert np.all(np.diff(depth) >= 0)
    with pytest.raises(ValueError, match="6 nodes do not fit into 1 levels"):
        sequoia.tree(T, split, 6, 1)


def test_the_size_of_least_time():
    T, _ = sequoia.table(np.array([0.8, 0.1]), 8, 5)
    cost = {1: 10.0, 4: 10.5, 8: 14.0}
    found = sequoia.best_size(T, 1.0, cost)
    times = {(m, l): (l + c) / T[m, l].max() for m, c in cost.items() for l in range(6) if np.isfinite(T[m, l].max())}
    assert found.time == min(times.values()) == times[found.nodes, found.levels]
    assert sequoia.best_size(T, 100.0, cost)[:2] == (1, 1)
