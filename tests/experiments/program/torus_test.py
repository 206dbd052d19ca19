"""Rows of a mesh on a large torus are cycles of neighbours."""

import dataclasses
import itertools
import random
import types

import jax
import numpy as np
import pytest

from experiments.program import torus
from models import transfers


@dataclasses.dataclass(frozen=True)
class Chip:
    coords: tuple[int, ...]


def neighbours(a, b):
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) == 1


@pytest.mark.parametrize(
    "sides", [(2,), (2, 2), (4, 4), (2, 8), (3, 4), (4, 3), (5, 2), (1, 4, 4), (2, 2, 2), (3, 3, 2), (4, 4, 8)]
)
def test_a_cycle_goes_through_all_places_from_neighbour_to_neighbour(sides):
    walk = torus.cycle(sides)
    assert sorted(walk) == sorted(itertools.product(*(range(side) for side in sides if side > 1)))
    assert all(neighbours(a, b) for a, b in zip(walk, walk[1:] + walk[:1], strict=True))


@pytest.mark.parametrize("sides", [(3, 3), (16,), (3, 5, 1)])
def test_a_line_and_an_odd_plane_have_no_cycle(sides):
    assert torus.cycle(sides) is None


@pytest.mark.parametrize(
    ("sides", "data", "fsdp"), [((8, 8, 1), 4, 16), ((8, 8, 1), 1, 64), ((4, 4, 4), 2, 32), ((8, 16, 1), 16, 8)]
)
def test_rows_of_a_mesh_are_cycles_and_gathers_are_told_so(sides, data, fsdp):
    """Boxes begin anywhere in a pod, and its devices come in any order."""
    chips = [Chip((x + 4, y, z)) for x, y, z in itertools.product(*map(range, sides))]
    random.Random(0).shuffle(chips)
    shape = {"data": data, "fsdp": fsdp, "tensor": 1, "context": 1, "expert": 1}
    found = torus.rings(chips, shape)
    assert found.shape == (data, fsdp, 1, 1, 1) and set(found.flat) == set(chips)
    rows = found.reshape(data, fsdp)
    assert all(neighbours(a.coords, b.coords) for a, b in zip(rows.flat, np.roll(rows, -1, 1).flat, strict=True))
    mesh = types.SimpleNamespace(devices=found, axis_names=tuple(shape), shape=shape)
    assert transfers.ring(mesh, "fsdp") and transfers.ring(mesh, "data") == (data == 1)


def test_other_meshes_are_left_to_jax():
    shape = {"data": 2, "fsdp": 16, "tensor": 1, "context": 1, "expert": 1}
    chips = [Chip(place) for place in itertools.product(range(4), range(8), range(1))]
    assert torus.rings(chips, shape) is not None
    assert torus.rings(chips[:16], shape | {"data": 1}) is None  # Few.
    assert torus.rings(chips, shape | {"data": 1, "tensor": 2}) is None
    assert torus.rings(chips, shape | {"data": 32, "fsdp": 1}) is None
    assert torus.rings(chips[:31] + [Chip((9, 9, 0))], shape) is None  # No box.
    assert torus.rings(jax.devices(), shape) is None
