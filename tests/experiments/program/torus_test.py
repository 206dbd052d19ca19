"""Rows of a mesh on a large torus are boxes, in which ranks that differ in one bit lie along one side."""

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


@pytest.mark.parametrize(
    ("sides", "data", "fsdp", "box"),
    [((8, 8, 1), 4, 16, (4, 4, 1)), ((8, 8, 1), 1, 64, (8, 8, 1)), ((4, 4, 4), 2, 32, (2, 4, 4)),
     ((12, 4, 1), 3, 16, (4, 4, 1)), ((16, 2, 1), 4, 8, (4, 2, 1))],
)  # fmt: skip
def test_rows_of_a_mesh_are_boxes_and_gathers_are_told_so(sides, data, fsdp, box):
    """Boxes begin anywhere in a pod, and its devices come in any order. Exchanges go along one side, a power of two
    far, never farther than the one before them, and a device reaches all others of its row by them."""
    chips = [Chip((x + 4, y, z)) for x, y, z in itertools.product(*map(range, sides))]
    random.Random(0).shuffle(chips)
    shape = {"data": data, "fsdp": fsdp, "tensor": 1, "context": 1, "expert": 1}
    found = torus.boxes(chips, shape)
    assert found.shape == (data, fsdp, 1, 1, 1) and set(found.flat) == set(chips)
    rows = np.array([[chip.coords for chip in row] for row in found.reshape(data, fsdp)])
    assert (np.ptp(rows, axis=1) + 1 == box).all()
    orders = transfers.orders(types.SimpleNamespace(devices=found, axis_names=tuple(shape), shape=shape), "fsdp")
    assert len(orders) == sum(side > 1 for side in box)
    for bits in orders:
        assert sorted(bits) == [1 << i for i in range(len(bits))] and 1 << len(bits) == fsdp
        apart = [np.abs(rows - rows[:, np.arange(fsdp) ^ bit]).reshape(-1, 3) for bit in bits]
        assert all((np.sort(each) == [0, 0, each[0].max()]).all() for each in apart)
        far = [each[0].max() for each in apart]
        assert far == sorted(far, reverse=True) and not any(n & (n - 1) for n in far)


def test_two_parts_go_along_different_sides_at_a_time():
    chips = [Chip((x, y, 0)) for x, y in itertools.product(range(8), range(8))]
    mesh = types.SimpleNamespace(devices=np.array(chips, object), axis_names=("fsdp",), shape={"fsdp": 64})
    assert transfers.orders(mesh, "fsdp") == ((32, 4, 16, 2, 8, 1), (4, 32, 2, 16, 1, 8))


def along(places, copies):
    """Orders of one row of a mesh that has as many rows as `copies`."""
    devices = np.empty((copies, len(places)), object)
    for copy, (rank, place) in itertools.product(range(copies), enumerate(places)):
        devices[copy, rank] = Chip((*place, copy))
    shape = {"data": copies, "fsdp": len(places)}
    return transfers.orders(types.SimpleNamespace(devices=devices, axis_names=tuple(shape), shape=shape), "fsdp")


def test_what_lies_in_no_box_has_an_order_on_few_chips_alone():
    """A row that is not a box, one along both sides at once and one three apart; three devices have none at all."""
    assert along([(0, 0), (0, 1), (2, 0), (2, 1)], 16) == ((2, 1), (2, 1))
    for places in ([(0, 0), (0, 1), (2, 0), (3, 1)], [(0, 0), (1, 1)], [(0, 0), (3, 0)]):
        assert along(places, 16) == () != along(places, 4)
    assert along([(0, 0), (0, 1), (2, 0), (3, 2)], 1) == ((2, 1), (2, 1))
    assert along([(0, 0), (1, 0), (2, 0)], 1) == ()
    mesh = types.SimpleNamespace(devices=np.array(jax.devices()[:2]), axis_names=("fsdp",), shape={"fsdp": 2})
    assert transfers.orders(mesh, "fsdp") == ()


def test_other_meshes_are_left_to_jax():
    shape = {"data": 2, "fsdp": 16, "tensor": 1, "context": 1, "expert": 1}
    chips = [Chip(place) for place in itertools.product(range(4), range(8), range(1))]
    assert torus.boxes(chips, shape) is not None
    assert torus.boxes(chips, shape | {"data": 1, "tensor": 2}) is None
    assert torus.boxes(chips, shape | {"data": 32, "fsdp": 1}) is None
    assert (
        torus.boxes(chips[:31] + [Chip((9, 9, 0))], shape) is None
    )  # Not full, or of sides that are no powers of two.
    assert torus.boxes([Chip((x, 0, 0)) for x in range(24)], shape | {"data": 2, "fsdp": 12}) is None
    assert torus.boxes(jax.devices(), shape) is None
