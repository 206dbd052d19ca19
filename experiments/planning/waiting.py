"""How long a compiled program waits for its transfers: its schedule played through on the links of the chips.

That other work stands between the start and the end of a transfer does not say that it lasts as long.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.planning import hlo, traffic
from experiments.planning.chips import Chip

Place = tuple[int, ...]
Link = tuple[Place, int, int]  # from where, along which side, +1 or -1


def played(found: Mapping[str, list[hlo.Instruction]], devices: list[Any], chip: Chip) -> dict[str, float]:
    """Seconds of a step on each device: of its work, of its links (as if one transfer ran at a time), of waiting.

    Instructions run one after another in the order of the schedule, each at the chip's FLOPs (of a kernel by its own
    estimate) or at its bandwidth by its bytes, whichever is longer. A permute takes as long as its most crowded link,
    along one side of the torus after the other, and shares no direction of a side with another. Its "done" waits for
    the rest of it. Other collectives are waited for, both ways round a ring; what XLA runs within its own fusions is
    not seen. A bound by the vendor's figures.

    Args:
      found: see `hlo.computations`.
      devices: in the order of the mesh, with `coords`.
      chip: whose figures count.
    """
    places = [tuple(device.coords) for device in devices]
    total = {"work": 0.0, "links": 0.0, "waiting": 0.0}
    for times, instructions in hlo.scheduled(found):
        for name, seconds in _played(instructions, found, places, chip).items():
            total[name] += times * seconds
    return total


def _played(
    instructions: list[hlo.Instruction], found: Mapping[str, list[hlo.Instruction]], places: list[Place], chip: Chip
) -> dict[str, float]:
    shapes = {i.name: i.shape for i in instructions}
    now, work, links, ends, free = 0.0, 0.0, 0.0, {}, collections.defaultdict(float)
    for i in instructions:
        kind = i.op.removesuffix("-start")
        if kind == "collective-permute":
            crowd, ways = _crowd(i.rest, places)
            lasts = crowd * sum(hlo.size(shapes[name]) for name in i.operands) / chip.link
            ends[i.name] = max([now, *(free[way] for way in ways)]) + lasts
            free.update(dict.fromkeys(ways, ends[i.name]))
            links += lasts
            now = ends[i.name] if i.op == kind else now
        elif i.op == "collective-permute-done":
            now = max(now, ends[i.operands[0]])
        elif kind in hlo.KINDS:
            payload = sum(hlo.size(shapes.get(name, "")) for name in i.operands)
            lasts = hlo.sent(kind, len(hlo.groups(i.rest, len(places))[0]), payload) / (2 * chip.link)
            now, links = now + lasts, links + lasts
        elif i.op not in (*hlo.FREE, "copy-start", "slice-start") and not i.op.endswith("-done"):
            lasts = max(traffic.of(i, shapes, found) / chip.bandwidth, flops(i, shapes, found) / chip.flops)
            now, work = now + lasts, work + lasts
    return {"work": work, "links": links, "waiting": now - work}


def flops(i: hlo.Instruction, shapes: Mapping[str, str], found: Mapping[str, list[hlo.Instruction]]) -> float:
    """Of a kernel by its own estimate; of products, alone or in a fusion, two for each number that is multiplied."""
    if i.op == "custom-call":
        told = re.search(r'"flops":"?(\d+)', i.rest)
        return float(told[1]) if told else 0.0
    if i.op == "fusion":
        inside = [each for name in hlo.bodies(i, found) for each in found[name]]
        shapes = {each.name: each.shape for each in inside}
        return sum(flops(each, shapes, found) for each in inside)
    if i.op not in ("convolution", "dot"):
        return 0.0
    first, second, out = (*(hlo.dims(shapes[name]) for name in i.operands), hlo.dims(i.shape))
    if i.op == "convolution":
        return 2.0 * _pairs(i.rest, first, second, out)
    along = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.rest)[1]
    return 2.0 * math.prod(out) * math.prod(first[int(axis)] for axis in along.split(",") if axis)


def _pairs(rest: str, first: tuple[int, ...], second: tuple[int, ...], out: tuple[int, ...]) -> int:
    """How many pairs of numbers a convolution multiplies; what a window reads of its padding is none.

    Products that have a dimension of batches come as windows over that dimension, most of them padding.
    """
    of, by, to = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest).groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", rest) or ["", ""])[1]))
    pairs = out[to.index("b")] * out[to.index("f")] * second[by.index("i")]
    for n, side in enumerate(sorted(set(to) - {"b", "f"})):
        said = lambda name, default: window[name].split("x")[n] if name in window else default  # noqa: E731, B023
        low, spread = int(said("pad", "0_0").split("_")[0]), int(said("lhs_dilate", "1"))
        starts = np.arange(out[to.index(side)])[:, None] * int(said("stride", "1")) - low
        at = starts + np.arange(second[by.index(side)]) * int(said("rhs_dilate", "1"))
        pairs *= int(((at >= 0) & (at % spread == 0) & (at // spread < first[of.index(side)])).sum())
    return pairs


def _crowd(rest: str, places: list[Place]) -> tuple[int, set[tuple[int, int]]]:
    """How many messages of a permute share its most crowded link, and the directions that it uses."""
    count = collections.Counter(link for pair in hlo.groups(rest, 0) for link in _way(*(places[n] for n in pair)))
    return max(count.values(), default=1), {(side, step) for _, side, step in count}


def _way(start: Place, end: Place) -> Iterator[Link]:
    """The links from one place to another, side by side, without those that close a torus."""
    at = list(start)
    for side, goal in enumerate(end):
        while at[side] != goal:
            step = 1 if goal > at[side] else -1
            yield tuple(at), side, step
            at[side] += step
