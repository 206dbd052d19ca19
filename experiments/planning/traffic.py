"""Bytes that a compiled program moves between the chip's memory and the device's: its instructions and its kernels.

The text of a compiled program shows a kernel's arrays, not how often the kernel reads them. A block stays on the chip
while its index stays: it is moved once for each change along the grid. An array that a kernel copies by itself, and a
block whose index hangs on data, count as moved once.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.planning import hlo
from kernels import lowering

_SLICES = ("dynamic-slice", "slice", "gather")


def scheduled(found: Mapping[str, list[hlo.Instruction]]) -> float:
    """Bytes that the scheduled instructions read and write in HBM a step, on each device.

    Arrays in on-chip memory do not count. Where a fusion only slices an operand, the slices count; where it writes a
    slice in place, that slice. A kernel counts its operands and results once.

    Args:
      found: see `hlo.computations`.
    """
    total = 0.0
    for repeat, instructions in hlo.scheduled(found):
        shapes = {i.name: i.shape for i in instructions}
        for instruction in instructions:
            if instruction.op in hlo.FREE or instruction.op.removesuffix("-start").removesuffix("-done") in hlo.KINDS:
                continue
            total += repeat * of(instruction, shapes, found)
    return total


def of(instruction: hlo.Instruction, shapes: Mapping[str, str], found: Mapping[str, list[hlo.Instruction]]) -> float:
    """Bytes of one instruction, read and written."""
    given = [shapes.get(name, "") for name in instruction.operands]
    if instruction.op in ("copy-start", "slice-start"):  # Its result is a tuple of its operand and what is copied.
        copied = hlo.size(instruction.shape) - sum(map(hlo.size, given))
        kept = sum(map(hlo.in_hbm, given))
        return hlo.in_hbm(instruction.shape) - kept + (copied if kept else 0)
    if instruction.op == "fusion" and (fused := hlo.bodies(instruction, found)):
        body = found[fused[0]]
    else:  # As a fusion of one.
        parameters = enumerate(instruction.operands)
        body = [hlo.Instruction(name, given[n], "parameter", (str(n),), "") for n, name in parameters] + [instruction]
    local = {i.name: i for i in body}
    updates = [i for i in body if i.op == "dynamic-update-slice"]
    in_place = {_origin(i.operands[0], local) for i in updates}
    whole = sum(hlo.size(i.shape) - hlo.size(local[i.operands[1]].shape) for i in updates)
    total = max(0.0, hlo.in_hbm(instruction.shape) - whole)
    for parameter in (i for i in body if i.op == "parameter"):
        read = hlo.in_hbm(given[parameter.place])
        users = [i for i in body if parameter.name in i.operands]
        if parameter.name in in_place and all(i.op in ("dynamic-update-slice", "bitcast") for i in users):
            continue
        if users and all(i.op in _SLICES for i in users):
            read = min(read, sum(hlo.size(i.shape) for i in users))
        total += read
    return total


def _origin(name: str, local: Mapping[str, hlo.Instruction]) -> str:
    """The array behind bitcasts."""
    while local[name].op == "bitcast":
        name = local[name].operands[0]
    return name


def moved(array: tuple[int, ...], block: tuple[int, ...], index: np.ndarray) -> int:
    """Elements of an array that a grid moves between the chip's memory and the device's.

    Args:
      array: its shape.
      block: the block's shape, as many axes.
      index: `[steps, axes]`, the block at each step in the order of the grid.
    """
    changes = 1 + int(np.any(index[1:] != index[:-1], axis=1).sum())
    return changes * math.prod(min(b, n) for b, n in zip(block, array, strict=True))


def again(jaxpr: Any, platform: str = "tpu") -> float:
    """Bytes that the kernels of a traced program move beyond their arrays' sizes, each array once; see `kernels`."""
    return sum(times * (moves - once) for _, times, once, moves in kernels(jaxpr, platform))


def kernels(jaxpr: Any, platform: str = "tpu") -> list[tuple[str, int, float, float]]:
    """(name, how often it runs, bytes of its arrays, bytes that it moves each time) of each Pallas kernel.

    Args:
      jaxpr: `jax.jit(f).trace(...).jaxpr`. Bodies of scans count as often as they run, those of other loops once; of
        branches that data choose, the one that moves most.
      platform: the one that the program is for: tpu, cuda.
    """
    found: list[tuple[str, int, float, float]] = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            found.append((str(equation.params.get("name")), 1, *_kernel(equation)))
            continue
        inside = [kernels(inner, platform) for inner in _inner(equation, platform)]
        if equation.primitive.name == "cond":
            inside = [max(inside, key=lambda branch: sum(times * moves for _, times, _, moves in branch))]
        repeat = equation.params["length"] if equation.primitive.name == "scan" else 1
        found += [(name, repeat * times, *sizes) for branch in inside for name, times, *sizes in branch]
    return found


def _inner(equation: Any, platform: str) -> Iterator[Any]:
    """The programs within an equation, of those for different platforms the one for `platform`."""
    params = dict(equation.params)
    if equation.primitive.name == "by_platform":  # kernels/lowering.py
        choices = dict(params["choices"])
        run = choices.get(platform, choices[lowering.OTHERWISE])
        if not isinstance(run, str):
            yield jax.make_jaxpr(run)(*[v.aval for v in equation.invars]).jaxpr
        return
    if names := params.pop("branches_platforms", None):
        chosen = next((i for i, some in enumerate(names) if some and platform in some), names.index(None))
        params["branches"] = params["branches"][chosen : chosen + 1]
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one


def _kernel(equation: Any) -> tuple[float, float]:
    """(bytes of its arrays, bytes that its grid moves of them)."""
    mapping = equation.params["grid_mapping"]
    static = all(isinstance(n, int) for n in mapping.grid)
    once, moves = 0.0, 0.0
    for one in mapping.block_mappings:
        array, maps = one.array_aval, one.index_map_jaxpr
        size = count = math.prod(array.shape)
        if static and len(maps.jaxpr.invars) == len(mapping.grid):  # Others read lists that are data.
            block = tuple(getattr(b, "block_size", b) for b in one.block_shape)
            block = tuple(b if isinstance(b, int) else 1 for b in block)  # An axis that is left out is one long.
            count = max(size, moved(array.shape, block, _indices(maps, mapping.grid)))
        once, moves = once + size * array.dtype.itemsize, moves + count * array.dtype.itemsize
    return once, moves


def _indices(maps: Any, grid: tuple[int, ...]) -> np.ndarray:
    """`[steps, axes]`: the index map at every place of the grid, the last axis fastest."""
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid)).astype(np.int32)
    run = functools.partial(jax.core.eval_jaxpr, maps.jaxpr, maps.consts)
    found = jax.vmap(lambda place: jnp.stack([jnp.asarray(i, jnp.int32) for i in run(*place)]))(jnp.asarray(places))
    return np.asarray(found)
