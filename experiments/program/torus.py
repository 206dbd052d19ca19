"""Devices of a torus in boxes, in which ranks that differ in one bit lie along one side of it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def boxes(devices: Sequence[Any], shape: Mapping[str, int]) -> np.ndarray | None:
    """Devices in the `shape` of a mesh, those of each row along fsdp a box of the torus, row by row.

    Its sides are powers of two and near to one another; see `models.transfers.orders`. None: an axis besides data and
    fsdp is cut too, or there is no such box.
    """
    ways = shape["fsdp"]
    if ways < 2 or math.prod(shape.values()) != shape["data"] * ways:
        return None
    at = {tuple(device.coords): device for device in devices if hasattr(device, "coords")}
    if len(at) < len(devices):  # More than one to a place.
        return None
    low = [min(axis) for axis in zip(*at, strict=True)]
    sides = [max(axis) + 1 - first for axis, first in zip(zip(*at, strict=True), low, strict=True)]
    found = [box for box in itertools.product(*map(_powers, sides)) if math.prod(box) == ways]
    if math.prod(sides) != len(at) or not found:
        return None
    box = min(found, key=lambda box: (max(box), box))
    corners = itertools.product(*(range(first, first + n, m) for first, n, m in zip(low, sides, box, strict=True)))
    inside = list(itertools.product(*map(range, box)))
    ordered = [at[tuple(map(sum, zip(corner, place, strict=True)))] for corner in corners for place in inside]
    return np.array(ordered, dtype=object).reshape(tuple(shape.values()))


def _powers(side: int) -> list[int]:
    """The powers of two that divide a side."""
    return [1 << i for i in range(side.bit_length()) if side % (1 << i) == 0]
