"""Trees of drafts whose shape is known before: named ones, widths by depth, and Sequoia's best for given chances."""

import functools
from collections.abc import Iterator

import numpy as np

from models.decoding.drafts import sequoia, trees
from models.decoding.drafts.trees import Template

SAYS = "recycling, medusa, widths by depth (4x2x1), or sequoia:NODES:LEVELS:CHANCES (sequoia:16:5:0.6,0.2,0.1)"


@functools.cache
def named(name: str) -> Template:
    """The tree that a knob names: `SAYS`. "1x1x1" is a chain of three drafts.

    NODES and LEVELS of Sequoia's count the root; CHANCES are those of the children of one node to stay, by rank.

    Errors: ValueError in one sentence.
    """
    kind, *rest = name.split(":")
    try:
        if name in trees.TEMPLATES:
            return trees.template(trees.from_counts(trees.TEMPLATES[name]))
        if kind == "sequoia":
            nodes, levels, chances = int(rest[0]), int(rest[1]), [float(x) for x in rest[2].split(",")]
        else:
            widths = [int(width) for width in name.split("x")]
            if min(widths) < 1:
                raise ValueError
    except (ValueError, IndexError):
        raise ValueError(f"{name!r} names no tree of drafts; use {SAYS}.") from None
    if kind == "sequoia":
        T, split = sequoia.table(np.array(chances), nodes, levels)
        return _of_parents(*sequoia.tree(T, split, nodes, levels))
    paths = [()]
    level = [()]
    for width in widths:
        level = [(*path, rank) for path in level for rank in range(width)]
        paths += level
    return trees.template(paths[1:])


def _of_parents(parent: np.ndarray, rank: np.ndarray) -> Template:
    """The tree of `parent [N]` whose children have `rank [N]`."""
    paths: list[tuple[int, ...]] = [()]
    for above, place in zip(parent[1:], rank[1:], strict=True):
        paths.append((*paths[above], int(place)))
    return trees.template(paths[1:])


def problems(key: str, name: str) -> Iterator[str]:
    """A sentence where the value `name` of the knob `key` names no tree."""
    try:
        named(name)
    except ValueError as error:
        yield f"{key}={error}"


def is_chain(tree: Template) -> bool:
    """Whether every node but the last has one child."""
    return len(tree.parent) == int(tree.depth.max()) + 1
