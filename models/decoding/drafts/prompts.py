"""Parallel prompt decoding: trees whose nodes carry learned prompt tokens (Chen et al. 2024, arXiv:2405.18628).

accuracy[d, r] is the chance that the guess of rank r, d + 1 tokens ahead, is right. A node with n prompt tokens
behind it lets the next step guess n tokens ahead: the states of a chain are the n of the node where a walk ended.
"""

import itertools
from typing import NamedTuple

import numpy as np

from models.decoding.drafts.trees import Path


class Tree(NamedTuple):
    """paths of the nodes below the root, ends: chance that the walk ends at each, prompts: prompt tokens of each."""

    paths: list[Path]
    ends: list[float]
    prompts: list[int]


def best_paths(accuracy: np.ndarray, nodes: int, digits: int | None = None) -> tuple[list[Path], list[float]]:
    """The `nodes` likeliest paths and their products of accuracies, likeliest first; equal ones by rank, parents first.

    digits: products are rounded to so many (the released code: 5), after the order is made.
    """
    accuracy = np.asarray(accuracy, np.float64)
    depth, ranks = accuracy.shape
    every = sorted(path for d in range(1, depth + 1) for path in itertools.product(range(ranks), repeat=d))
    product = {path: float(np.prod([accuracy[d, r] for d, r in enumerate(path)])) for path in every}
    best = sorted(every, key=lambda path: -product[path])[:nodes]
    values = [product[path] for path in best]
    return best, [round(value, digits) for value in values] if digits is not None else values


def end_chances(paths: list[Path], products: list[float]) -> list[float]:
    """Chance that a walk ends at each path: its product less those of its children in the tree."""
    below = {path: 0.0 for path in paths}
    for path, product in zip(paths, products, strict=True):
        if path[:-1] in below:
            below[path[:-1]] += product
    return [product - below[path] for path, product in zip(paths, products, strict=True)]


def expected_tokens(transition: np.ndarray, value: np.ndarray) -> float:
    """sum_n pi_n value_n with pi the stationary law of the chain of states 0..n; state 0 (no prompts) goes to n.

    transition `[n, n + 1]`: from state i + 1 to states 0..n; value `[n]`: accepted guesses of a step in state i + 1.
    """
    transition, value = np.asarray(transition, np.float64), np.asarray(value, np.float64)
    n = len(value)
    whole = np.vstack([np.eye(n + 1)[n], transition])
    system = np.vstack([(whole.T - np.eye(n + 1))[1:], np.ones(n + 1)])
    return float(np.linalg.solve(system, np.eye(n + 1)[n])[1:] @ value)


def prune(ends: list[float], guesses: list[float], states: int, limit: int) -> list[int]:
    """Prompt tokens of each node, `states` each at first, taken away one by one until at most `limit` are left.

    guesses[n - 1] is the sum of products of the tree of state n: taking a node from n to n - 1 prompts loses
    ends (guesses[n - 1] - guesses[n - 2]). The node that loses least gives one up, of equal ones the first; none falls
    below one.
    """
    prompts = [states] * len(ends)
    while sum(prompts) > limit:
        change = [
            end * (guesses[n - 2] - guesses[n - 1]) if n > 1 else -np.inf for end, n in zip(ends, prompts, strict=True)
        ]
        if max(change) == -np.inf:
            break
        prompts[int(np.argmax(change))] -= 1
    return prompts


def dynamic_tree(
    accuracy: np.ndarray, sizes: tuple[int, ...], limit: int, digits: int | None = None
) -> tuple[list[Tree], float]:
    """(the tree of each state 1..n, expected accepted guesses of a step) of sizes[n - 1] nodes in state n.

    In state n the tree has guesses of depth up to n. Its nodes and their prompt tokens are `limit` tokens together.
    """
    ranked = [best_paths(np.asarray(accuracy)[: n + 1], size, digits) for n, size in enumerate(sizes)]
    return _with_prompts(ranked, limit)


def _with_prompts(ranked: list[tuple[list[Path], list[float]]], limit: int) -> tuple[list[Tree], float]:
    states = len(ranked)
    guesses = [sum(products) for _, products in ranked]
    trees, transition = [], []
    for paths, products in ranked:
        ends = end_chances(paths, products)
        prompts = prune(ends, guesses, states, limit - len(paths))
        trees.append(Tree(paths, ends, prompts))
        row = [sum(end for end, n in zip(ends, prompts, strict=True) if n == s) for s in range(1, states + 1)]
        transition.append([1 - sum(row), *row])
    return trees, expected_tokens(np.array(transition), np.array(guesses))


def best_tree(accuracy: np.ndarray, limit: int, digits: int | None = None) -> tuple[list[Tree], tuple[int, ...]]:
    """(trees, sizes) of three states that accept most within `limit` tokens: the authors' search.

    State 1 has as many nodes as there are ranks; those of states 2 and 3 run over limit // 4 .. limit // 2.
    """
    ranks = np.shape(accuracy)[1]
    ranked = [best_paths(np.asarray(accuracy)[:n], max(ranks, limit), digits) for n in (1, 2, 3)]
    found, best, sizes = [], -1.0, ()
    for two, three in itertools.product(range(limit // 4, limit // 2 + 1), repeat=2):
        cut = [(paths[:n], products[:n]) for (paths, products), n in zip(ranked, (ranks, two, three), strict=True)]
        trees, value = _with_prompts(cut, limit)
        if value > best:
            found, best, sizes = trees, value, (ranks, two, three)
    return found, sizes


class States(NamedTuple):
    """What a round of each state s = 0..S reads: N nodes and P prompt tokens, those that are not there filled up.

    parent, depth, rank `[S + 1, N]` and node `[S + 1, N]` bool, whether it is there; node 0 is the root. count, first
    `[S + 1, N]`: prompt tokens of each node, and the first of them among the P. above, step `[S + 1, P]`: what a prompt
    token stands behind (a node, or N + an earlier prompt token), and which of its node's prompt tokens it is, from 0;
    prompt `[S + 1, P]` bool, whether it is there.
    """

    parent: np.ndarray
    depth: np.ndarray
    rank: np.ndarray
    node: np.ndarray
    count: np.ndarray
    first: np.ndarray
    above: np.ndarray
    step: np.ndarray
    prompt: np.ndarray


def states(trees: list[Tree], root: int = 0) -> States:
    """The rounds of a chain of states: state s >= 1 drafts trees[s - 1], state 0 the root alone with all prompt tokens.

    root: prompt tokens behind the root in the states from 1 on. 0, as published: where no draft stays the next round
    has nothing to guess from. Paths of trees[s - 1] are at most s long, and a parent stands before its children.
    """
    full = len(trees)
    rounds = [([()], [full]), *(([(), *tree.paths], [root, *tree.prompts]) for tree in trees)]
    deep = max(len(path) for paths, _ in rounds for path in paths)
    wide = max(sum(path[:-1] == above for path in paths[1:] if path) for paths, _ in rounds for above in paths)
    # A verifier reserves N - depth children for a node.
    N, P = max(deep + wide, *(len(paths) for paths, _ in rounds)), max(sum(prompts) for _, prompts in rounds)
    empty = lambda width, kind=int: np.zeros((full + 1, width), kind)  # noqa: E731
    nodes = [*(empty(N) for _ in range(3)), empty(N, bool), *(empty(N) for _ in range(2))]
    made = States(*nodes, empty(P), empty(P), empty(P, bool))
    made.parent[:, 0] = -1
    for s, (paths, prompts) in enumerate(rounds):
        slot = 0
        for i, (path, n) in enumerate(zip(paths, prompts, strict=True)):
            made.node[s, i], made.depth[s, i], made.count[s, i], made.first[s, i] = True, len(path), n, slot
            if path:
                made.parent[s, i], made.rank[s, i] = paths.index(path[:-1]), path[-1]
            for j in range(n):
                made.above[s, slot], made.step[s, slot] = (N + slot - 1 if j else i), j
                made.prompt[s, slot] = True
                slot += 1
    return made


def mask(parent: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mask `[S, S]`, depth `[S]`) of a tree with prompt tokens: nodes first, then the prompts of each node in order.

    parent, prompts `[N]`. A node sees its path; a prompt token sees its node's path, the earlier prompts of its node
    and itself. Prompt j of a node of depth d stands at depth d + 1 + j.
    """
    parent, prompts = np.asarray(parent), np.asarray(prompts)
    N, S = len(parent), len(parent) + int(np.sum(prompts))
    sees, depth = np.zeros((S, S), bool), np.zeros(S, int)
    for i in range(N):
        sees[i, i] = True
        if parent[i] >= 0:
            sees[i] |= sees[parent[i]]
            depth[i] = depth[parent[i]] + 1
    slot = N
    for i in range(N):
        for j in range(prompts[i]):
            sees[slot, :N] = sees[i, :N]
            sees[slot, slot - j : slot + 1] = True
            depth[slot] = depth[i] + 1 + j
            slot += 1
    return sees, depth
