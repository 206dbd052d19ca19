"""Token Recycling against loops: drafts level by level, rows overwritten by the last node of each token."""

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.drafts import recycling, trees


def test_drafts_are_entries_of_the_parents_row():
    made = trees.template(trees.from_counts(trees.TEMPLATES["recycling"]))
    matrix = np.random.default_rng(0).integers(0, 50, (50, 8))
    draft = jax.jit(lambda matrix, root: recycling.draft(matrix, root, made.parent, made.depth, made.rank))
    found = draft(jnp.asarray(matrix), jnp.array([3, 49]))
    for row, root in zip(np.asarray(found), (3, 49), strict=True):
        wanted = [root]
        for i in range(1, 81):
            wanted.append(matrix[wanted[made.parent[i]], made.rank[i]])
        assert row.tolist() == wanted
    two = jnp.stack([jnp.asarray(matrix), jnp.asarray(matrix[::-1])])
    own = draft(two, jnp.array([3, 49]))
    np.testing.assert_array_equal(own[0], found[0])
    first = np.flatnonzero(made.depth == 1)
    np.testing.assert_array_equal(own[1][first], matrix[::-1][49])
    empty = draft(jnp.zeros((50, 8), int), jnp.array([7, 7]))
    assert empty[0].tolist() == [7] + [0] * 80


def test_the_last_node_of_a_token_gives_its_row():
    rng = np.random.default_rng(1)
    matrix, token = rng.integers(0, 9, (9, 3)), np.array([4, 2, 4, 7, 2, 4])
    logits = rng.normal(size=(6, 9))
    valid = np.array([True, True, True, True, True, False])
    found = recycling.update(jnp.asarray(matrix), jnp.asarray(token), jnp.asarray(logits), jnp.asarray(valid))
    wanted = matrix.copy()
    for i in range(6):
        if valid[i]:
            wanted[token[i]] = sorted(range(9), key=lambda v: -logits[i, v])[:3]
    np.testing.assert_array_equal(found, wanted)
    every = recycling.update(jnp.asarray(matrix), jnp.asarray(token), jnp.asarray(logits))
    assert every[4].tolist() == sorted(range(9), key=lambda v: -logits[5, v])[:3]
