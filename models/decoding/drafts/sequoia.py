"""Sequoia's dynamic program: the tree of m nodes and l levels that accepts most (Chen et al. 2024, arXiv:2402.12374).

acceptance[b] is the chance that the child of rank b is the one that stays, of children drawn one after another. All
sizes count the root: a tree of one node and one level is the last token alone and gives one token.
"""

from typing import NamedTuple

import numpy as np


class Best(NamedTuple):
    """nodes m, levels l, and the time of a token: (l draft_time + target_time(m)) / expected tokens."""

    nodes: int
    levels: int
    time: float


def table(acceptance: np.ndarray, nodes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """(T `[nodes + 1, levels + 1, B + 1]`, the split y of each entry): expected tokens of the best tree.

    T[m, l, b]: m nodes, at most l levels, b children at the root; -inf where there is no such tree.
    T[1, l, 0] = 1; T[m, l, b] = max_y T[y, l, b-1] + acceptance[b-1] max_c T[m-y, l-1, c], of equal y the smallest: the
    child of rank b gets m - y nodes.
    """
    acceptance = np.asarray(acceptance, np.float64)
    B = len(acceptance)
    T = np.full((nodes + 1, levels + 1, B + 1), -np.inf)
    split = np.zeros(T.shape, int)
    T[1, 1:, 0] = 1.0
    for m in range(2, nodes + 1):
        for l in range(2, levels + 1):
            below = T[1:m, l - 1].max(axis=-1)[::-1]  # Of m - y nodes, y = 1 .. m - 1.
            for b in range(1, B + 1):
                with np.errstate(invalid="ignore"):
                    value = T[1:m, l, b - 1] + np.where(np.isneginf(below), -np.inf, acceptance[b - 1] * below)
                y = int(np.argmax(value))
                T[m, l, b], split[m, l, b] = value[y], y + 1
    return T, split


def best_size(T: np.ndarray, draft_time: float, target_time: dict[int, float]) -> Best:
    """The size of least time per token: target_time says what a pass over m nodes costs, for every m that is allowed.

    A tree of l levels costs l steps of the draft. Of equal times the first.
    """
    found = Best(0, 0, np.inf)
    for m, cost in target_time.items():
        for l in range(T.shape[1]):
            tokens = T[m, l].max()
            if tokens > 0 and (l * draft_time + cost) / tokens < found.time:
                found = Best(m, l, (l * draft_time + cost) / tokens)
    return found


def tree(T: np.ndarray, split: np.ndarray, nodes: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """(parent, rank) `[nodes]` of the best tree, level by level; the root first, of parent -1.

    Errors: ValueError where `nodes` do not fit into `levels`.
    """
    if np.isneginf(T[nodes, levels].max()):
        raise ValueError(f"{nodes} nodes do not fit into {levels} levels; take fewer nodes or more levels.")
    parent, rank = [-1], [0]
    states = [(nodes, levels, int(np.argmax(T[nodes, levels])))]
    at = 0
    while at < len(states):
        children = _children(T, split, *states[at])
        for r, state in enumerate(children):
            parent.append(at)
            rank.append(r)
            states.append(state)
        at += 1
    return np.array(parent), np.array(rank)


def _children(T: np.ndarray, split: np.ndarray, m: int, l: int, b: int) -> list[tuple[int, int, int]]:
    """(nodes, levels, children) of each child, by rank."""
    found = []
    while b > 0:
        y = split[m, l, b]
        found.append((m - y, l - 1, int(np.argmax(T[m - y, l - 1]))))
        m, b = y, b - 1
    return found[::-1]
