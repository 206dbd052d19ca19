"""Paths of tokens through layers of a few modules (Duo-LLM: big, small, skip): what every one costs and gives.

The protocol: one token takes a path, all others a fixed one, so that the loss at that token depends on its path alone.
What a token gains by a path is measured by itself; tokens that all choose at once see each other's choices, too.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def every(layers: int, modules: int) -> np.ndarray:
    """All `modules ** layers` paths in lexicographic order, `[P, L]`."""
    return np.array([*itertools.product(range(modules), repeat=layers)], np.int32)


def table(losses: Callable[[np.ndarray], Any], fixed: Sequence[int], tokens: int, modules: int) -> np.ndarray:
    """The loss at each token on every path, all others on the path `fixed`: `[T, P]`.

    Args:
      losses: modules `[L, R, T]` of R copies of one text -> the loss at every token of each, `[R, T]`.
      fixed: the module of each layer, `[L]`.
      tokens: T.
      modules: how many there are.
    """
    fixed, at, found = np.asarray(fixed), np.arange(tokens), []
    for path in every(len(fixed), modules):
        index = np.broadcast_to(fixed[:, None, None], (len(fixed), tokens, tokens)).astype(np.int32)
        index[:, at, at] = path[:, None]
        found.append(np.asarray(losses(index))[at, at])
    return np.stack(found, axis=-1)


def cost(paths: Any, costs: Sequence[float]) -> np.ndarray:
    """sum_l cost of the module in layer l: paths `[..., L]`: `[...]`."""
    return np.asarray(costs)[np.asarray(paths)].sum(axis=-1)


def within(found: Any, layers: int, costs: Sequence[float], budget: Any) -> tuple[np.ndarray, np.ndarray]:
    """(the least loss of each token, the path that has it `[T, L]`) of all paths that cost at most `budget`.

    Args:
      found: `[T, P]` of `table`.
      layers: L.
      costs: of each module.
      budget: a number, or one a token `[T]`. Errors: ValueError where no path is cheap enough.
    """
    paths, found = every(layers, len(costs)), np.asarray(found)
    open_ = cost(paths, costs)[None] <= np.broadcast_to(budget, len(found))[:, None]
    if not open_.any(axis=1).all():
        raise ValueError(f"budget={np.min(budget)} is below the cheapest path; use at least {layers * min(costs)}.")
    best = np.where(open_, found, np.inf).argmin(axis=1)
    return found[np.arange(len(found)), best], paths[best]


def chosen(found: Any, paths: Any, modules: int) -> np.ndarray:
    """The loss of each token on the path that a router chose for it: `table` `[T, P]`, paths `[T, L]`: `[T]`."""
    found, paths = np.asarray(found), np.asarray(paths)
    number = np.ravel_multi_index(paths.T, (modules,) * paths.shape[1])
    return found[np.arange(len(found)), number]
