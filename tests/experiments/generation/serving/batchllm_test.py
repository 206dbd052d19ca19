"""Sharing of beginnings against sets of beginnings and against all ways to group few prompts."""

import itertools

import numpy as np

from experiments.generation.serving import batchllm
from experiments.generation.serving.batchllm import Group

PROMPTS = ("abcd", "abce", "abf", "ab", "g", "abcd")


def words(rng, n, longest, letters=3):
    return ["".join(rng.choice(list("abcdef")[:letters], rng.integers(1, longest + 1))) for _ in range(n)]


def test_the_tree_counts_beginnings():
    root = batchllm.prefix_tree(PROMPTS)
    shape = {"".join(node.tokens): (node.depth, node.ends) for node in root.walk()}
    assert shape == {
        "": (0, ()),
        "ab": (2, (3,)),
        "c": (3, ()),
        "d": (4, (0, 5)),
        "e": (4, (1,)),
        "f": (3, (2,)),
        "g": (1, (4,)),
    }
    assert batchllm.trie_nodes(PROMPTS) == 7 and batchllm.all_tokens(PROMPTS) == 18
    assert sorted(root.prompts) == list(range(6)) and batchllm.trie_nodes([]) == 0
    rng = np.random.default_rng(0)
    for _ in range(100):
        prompts = words(rng, 12, 9, letters=2)
        assert batchllm.trie_nodes(prompts) == len({p[:i] for p in prompts for i in range(1, len(p) + 1)})
        for node in batchllm.prefix_tree(prompts).walk():
            assert len({prompts[i][: node.depth] for i in node.prompts}) == 1
            assert len(node.children) + len(node.ends) > 1 or node.ends or not node.depth


def every_grouping(prompts):
    """The least that is read, over all choices of a beginning for each prompt."""
    best = batchllm.all_tokens(prompts)
    for cuts in itertools.product(*(range(len(p) + 1) for p in prompts)):
        shared = {p[:c] for p, c in zip(prompts, cuts, strict=True)}
        best = min(best, sum(map(len, shared)) + sum(len(p) - c for p, c in zip(prompts, cuts, strict=True)))
    return best


def test_one_level_is_the_best_of_all_groupings():
    rng, gaps = np.random.default_rng(1), 0
    for k in range(60):
        prompts = words(rng, 5, 5, letters=2 + k % 2)
        groups, local = batchllm.one_level(prompts), batchllm.one_level_local(prompts)
        read = batchllm.one_level_tokens(prompts, groups)
        assert read == every_grouping(prompts)
        for found in (groups, local):
            assert sorted(i for g in found for i in g.prompts) == list(range(5))
            assert all(len({prompts[i][: g.prefix] for i in g.prompts}) == 1 for g in found)
            assert all(len(prompts[i]) >= g.prefix for g in found for i in g.prompts)
        assert batchllm.trie_nodes(prompts) <= read <= batchllm.one_level_tokens(prompts, local)
        gaps += batchllm.trie_nodes(prompts) < read < batchllm.all_tokens(prompts)
    assert gaps > 10


def test_one_level_by_hand():
    """A child leaves where (prompts - 1) x its tokens are more than the tokens before it, which are read twice then."""
    stays = ["aaab", "aaac", "aaadd", "aaadd"]  # "dd" saves 2, "aaa" twice costs 3.
    assert batchllm.one_level(stays) == batchllm.one_level_local(stays) == [Group(3, (0, 1, 2, 3))]
    assert batchllm.one_level_tokens(stays, [Group(3, (0, 1, 2, 3))]) == 3 + 1 + 1 + 2 + 2
    leaves = ["aaab", "aaac", "aaadddd", "aaadddd"]  # "dddd" saves 4.
    for found in (batchllm.one_level(leaves), batchllm.one_level_local(leaves)):
        assert sorted((g.prefix, tuple(sorted(g.prompts))) for g in found) == [(3, (0, 1)), (7, (2, 3))]
    assert batchllm.one_level(["ab", "cd"]) == batchllm.one_level_local(["ab", "cd"]) == [Group(0, (0, 1))]
    assert batchllm.one_level([]) == [] == batchllm.one_level_local([])


def test_groups_with_long_answers_come_first():
    """Ratios: 8 / (2 + 1 + 2) = 1.6; 9 / 4 = 2.25; 1 / 4."""
    prompts, answers = [3, 4, 4, 4], [5, 3, 9, 1]
    groups = [Group(2, (0, 1)), Group(0, (2,)), Group(0, (3,))]
    assert [batchllm.ratio(prompts, answers, g) for g in groups] == [1.6, 2.25, 0.25]
    assert batchllm.group_order(prompts, answers, groups) == [1, 0, 2]
    assert [batchllm.group_memory(prompts, answers, g) for g in groups] == [2 + 6 + 5, 13, 5]


def test_memory_alone_limits_a_batch():
    assert batchllm.fitting(0, [3, 3, 4, 1], 10) == 3
    assert batchllm.fitting(1, [3, 3, 4, 1], 10) == 2
    assert batchllm.fitting(0, [11, 1], 10) == 1 and batchllm.fitting(1, [10], 10) == 0
    assert batchllm.fitting(0, [1] * 1000, 1000) == 1000 and batchllm.fitting(0, [], 5) == 0
