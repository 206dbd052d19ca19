"""Trees of drafts: fixed templates, and builders that spend a number of nodes where acceptance is likeliest (host).

A tree is a list of parents, parent[i] < i, with node 0 the root (the last token of the text) of parent -1. Of a path a
node is named by its ranks: (0, 2) is the third child of the first child of the root.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

Path = tuple[int, ...]
Draft = Callable[[Path], np.ndarray]  # Tokens below the root -> probabilities of the next one, `[V]`.


class Template(NamedTuple):
    """parent, depth, rank `[N]` (0 at the root, whose parent is -1), mask `[N, N]`, leaves `[L, D + 1]`: nodes from the
    root to each leaf, -1 behind them."""

    parent: np.ndarray
    depth: np.ndarray
    rank: np.ndarray
    mask: np.ndarray
    leaves: np.ndarray


class Grown(NamedTuple):
    """token, parent `[N]` (the root's token is -1), value `[N]`: the estimate that the builder ordered nodes by."""

    token: np.ndarray
    parent: np.ndarray
    value: np.ndarray


# How many children the node of each path has, by its ranks as digits; paths that are not named have none.
TEMPLATES: dict[str, dict[str, int]] = {
    # Token Recycling (Luo et al. 2024, arXiv:2408.08696), 80 nodes below the root.
    "recycling": {
        "": 8, "0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1,
        "00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1, "10": 2, "11": 1, "20": 1, "30": 1,
        "40": 1, "50": 1, "000": 5, "001": 2, "002": 1, "003": 1, "004": 1, "010": 1, "020": 1, "100": 1, "200": 1,
        "300": 1, "0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1, "00000": 2, "00010": 1,
    },
    # Medusa (Cai et al. 2024, arXiv:2401.10774), 63 nodes below the root.
    "medusa": {
        "": 10, "0": 10, "1": 7, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1, "8": 1, "9": 1,
        "00": 10, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1, "10": 2, "20": 1, "000": 2,
    },
}  # fmt: skip


def from_counts(counts: Mapping[str, int]) -> list[Path]:
    """The paths of a template of `TEMPLATES`, shorter ones first."""
    paths = [(*map(int, name), rank) for name, many in counts.items() for rank in range(many)]
    return sorted(paths, key=lambda path: (len(path), path))


def template(paths: Iterable[Path]) -> Template:
    """The tree of `paths`, which hold every prefix of their own: nodes by depth, then by ranks.

    Errors: ValueError where a path's parent is missing.
    """
    order = sorted(map(tuple, paths), key=lambda path: (len(path), path))
    index = {(): 0} | {path: i + 1 for i, path in enumerate(order)}
    for path in order:
        if path[:-1] not in index:
            raise ValueError(f"the path {path} has no parent {path[:-1]} in the template; add it.")
    parent = np.array([-1] + [index[path[:-1]] for path in order])
    depth = np.array([0] + [len(path) for path in order])
    inner = set(parent.tolist())
    leaves = [[0, *(index[path[: d + 1]] for d in range(len(path)))] for path in order if index[path] not in inner]
    deepest = int(depth.max())
    padded = np.array([row + [-1] * (deepest + 1 - len(row)) for row in leaves or [[0]]])
    return Template(parent, depth, np.array([0] + [path[-1] for path in order]), ancestors(parent), padded)


def ancestors(parent: np.ndarray) -> np.ndarray:
    """Whether node j is node i or above it, `[N, N]`."""
    mask = np.eye(len(parent), dtype=bool)
    for i, above in enumerate(parent):
        if above >= 0:
            mask[i] |= mask[above]
    return mask


def best_first(draft: Draft, nodes: int) -> Grown:
    """The `nodes` largest path products of the draft, by a heap: a node's value is its product of probabilities."""
    return dyspec(draft, nodes, choose=None)


def dyspec(draft: Draft, nodes: int, *, choose: Callable[[np.ndarray], int] | None, threshold: float = 0.0) -> Grown:
    """DySpec's tree (Xiong et al. 2024, arXiv:2410.11744): a heap of slots, one for each place where a node may go.

    A slot has a value v, the chance that the walk reaches it, and the law R that its token is drawn from. The slot of
    the largest v gets y; the node's value is v R(y). Two slots follow: for its first child, (v R(y), the draft's law
    behind it), and for its next sibling, (v (1 - R(y)), R without y, normalised).

    Args:
      draft: tokens below the root -> probabilities `[V]`.
      nodes: how many nodes below the root.
      choose: R -> y, a draw. None takes the argmax and orders slots by v max R: the tree then holds exactly the largest
        path products.
      threshold: slots of a smaller value are not filled (the layer-wise variant's rule).

    Returns:
      nodes in the order of their making, the root first with value 1.
    """
    token, parent, value = [-1], [-1], [1.0]
    heap: list[tuple] = []
    order = itertools.count()  # Of equal slots the one that was made first.

    def push(chance: float, above: int, path: Path, law: np.ndarray) -> None:
        key = chance * law.max() if choose is None else chance
        if law.any() and key >= threshold and key > 0:
            heapq.heappush(heap, (-key, next(order), above, path, chance, law))

    push(1.0, 0, (), np.asarray(draft(()), np.float64))
    while heap and len(token) <= nodes:
        _, _, above, path, chance, law = heapq.heappop(heap)
        y = int(np.argmax(law)) if choose is None else int(choose(law))
        token.append(y)
        parent.append(above)
        value.append(chance * law[y])
        if len(token) > nodes:
            break
        push(chance * law[y], len(token) - 1, (*path, y), np.asarray(draft((*path, y)), np.float64))
        rest = np.where(np.arange(len(law)) == y, 0.0, law)
        if choose is None:  # Values are products of the draft's own probabilities: nothing is normalised.
            push(chance, above, path, rest)
        elif rest.sum() > 0:
            push(chance * (1 - law[y]), above, path, rest / rest.sum())
    return Grown(np.array(token), np.array(parent), np.array(value))


def eagle2(draft: Draft, *, depth: int, top_k: int, nodes: int) -> Grown:
    """EAGLE-2's tree (Li et al. 2024, arXiv:2406.16858): a beam of top_k nodes a level, then the best of all scored
    nodes.

    The root's top_k tokens are scored; `depth` times the top_k best of the last level are expanded to top_k children
    each, a child's score being the sum of log-probabilities along its path. The `nodes` largest scores are kept, in the
    order of their making: scores never grow along a path, so that parents are among them. Equal scores: the earlier.

    Returns:
      nodes by level, the root first; value is the score, 0 at the root.
    """
    scored: list[tuple[float, Path, int, int]] = []  # Score, tokens, index of the parent in `scored`, token.

    def expand(beam: list[tuple[float, Path, int]]) -> list[int]:
        first = len(scored)
        for score, path, index in beam:
            with np.errstate(divide="ignore"):
                log_p = np.log(np.asarray(draft(path), np.float64))
            for y in np.argsort(-log_p, kind="stable")[:top_k]:
                scored.append((score + log_p[y], (*path, int(y)), index, int(y)))
        return sorted(range(first, len(scored)), key=lambda i: -scored[i][0])[:top_k]

    level = expand([(0.0, (), -1)])
    for _ in range(depth):
        level = expand([(scored[i][0], scored[i][1], i) for i in level])
    best = sorted(range(len(scored)), key=lambda i: -scored[i][0])[:nodes]
    kept = {old: new + 1 for new, old in enumerate(sorted(best))} | {-1: 0}
    rows = [(scored[i][3], kept[scored[i][2]], scored[i][0]) for i in sorted(best)]
    token, parent, value = zip((-1, -1, 0.0), *rows, strict=True)
    return Grown(np.array(token), np.array(parent), np.array(value))
