"""Devices of a torus in the order of a walk that only ever steps to a neighbour and ends beside where it began."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models import transfers

Place = tuple[int, ...]


def cycle(sides: Sequence[int]) -> list[Place] | None:
    """All places of a box of these sides, each a neighbour of the next and the last of the first; None: there is none.

    Of a plane: along its first row, to and fro through the other rows but for their first column, and back by that. A
    box of more dimensions is the plane of a path through its first ones and of its last. Needs an even number of
    places, and two sides above 1 where there are more than two.
    """
    sides = [side for side in sides if side > 1] or [1]
    places = math.prod(sides)
    if places <= 2:
        return list(itertools.product(*map(range, sides)))
    if len(sides) < 2 or places % 2:
        return None
    *first, last = sides
    rows, path = last, list(_path(first))
    if rows % 2:  # An even side is walked to and fro.
        return [(*path[i], j) for j, i in _plane(len(path), rows, turned=True)]
    return [(*path[i], j) for j, i in _plane(rows, len(path))]


def _path(sides: Sequence[int]) -> Iterator[Place]:
    """All places of a box, each a neighbour of the next."""
    if not sides:
        yield ()
        return
    *first, last = sides
    for number, place in enumerate(_path(first)):
        row = range(last)
        for j in row if number % 2 == 0 else reversed(row):
            yield (*place, j)


def _plane(rows: int, columns: int, turned: bool = False) -> Iterator[tuple[int, int]]:
    """(row, column) of a cycle through a plane with an even number of rows; `turned`: (column, row)."""
    walk = [(0, j) for j in range(columns)]
    for i in range(1, rows):
        inner = range(columns - 1, 0, -1) if i % 2 else range(1, columns)
        walk += [(i, j) for j in inner]
    walk += [(i, 0) for i in range(rows - 1, 0, -1)]
    return iter((j, i) if turned else (i, j) for i, j in walk)


def rings(devices: Sequence[Any], shape: Mapping[str, int]) -> np.ndarray | None:
    """Devices in the `shape` of a mesh, those of each row along fsdp in a cycle of neighbours.

    None: they are so few that any two exchange beside other work (`transfers.MOST`), an axis besides data and fsdp is
    cut too, or there is no such cycle.
    """
    ways = shape["fsdp"]
    if len(devices) <= transfers.MOST or ways < 2 or math.prod(shape.values()) != shape["data"] * ways:
        return None
    at = {tuple(device.coords): device for device in devices if hasattr(device, "coords")}
    if len(at) < len(devices):  # More than one to a place.
        return None
    low = [min(axis) for axis in zip(*at, strict=True)]
    sides = [max(axis) + 1 - first for axis, first in zip(zip(*at, strict=True), low, strict=True)]
    if math.prod(sides) != len(at):
        return None
    boxes = [box for box in itertools.product(*map(_divisors, sides)) if math.prod(box) == ways and cycle(box)]
    if not boxes:
        return None
    box = min(boxes, key=lambda box: (max(box), box))
    kept = [i for i, side in enumerate(box) if side > 1]
    found = []
    for corner in itertools.product(*(range(first, first + n, m) for first, n, m in zip(low, sides, box, strict=True))):
        for place in cycle(box):
            here = list(corner)
            for axis, step in zip(kept, place, strict=True):
                here[axis] += step
            found.append(at[tuple(here)])
    return np.array(found, dtype=object).reshape(tuple(shape.values()))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
