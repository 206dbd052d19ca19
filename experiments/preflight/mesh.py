"""What the preflight knows of meshes: what each axis must divide, and what can share a sequence between devices."""

import math
from collections.abc import Iterator
from typing import Any

from models.facts import nearest_multiple


def problems(config: Any, num_devices: int) -> Iterator[str]:
    """What the mesh and the sizes of model and batch ask of each other, each with a value that works."""
    from experiments.program import sharding

    try:
        mesh = sharding.mesh_shape(config.mesh, num_devices)
    except ValueError as error:
        yield str(error)
        return
    yield from _row_problems(config, mesh)
    yield from _head_problems(config, mesh)
    yield from _stream_problems(config, mesh)
    if config.sharding.sequence not in ((), ("context",)):
        yield (
            f"sharding.sequence={config.sharding.sequence!r} must be () or ('context',): no other mesh axis can "
            "cut a sequence."
        )
    elif mesh["context"] > 1 and config.sharding.sequence:
        yield from _sequence_problems(config, mesh)


def _row_problems(config: Any, mesh: dict[str, int]) -> Iterator[str]:
    """Rows of a batch over devices."""
    from experiments.program import sharding

    rows, accumulation = sharding.rows(config), config.train.accumulation
    devices = math.prod(mesh[axis] for axis in rows)
    *before, last = [f"mesh.{axis}" for axis in rows if axis != "expert" or mesh["expert"] > 1] or ["sharding.batch"]
    named = f"{', '.join(before)} and {last}" if before else last
    parts, size = accumulation * devices, config.data.batch_size
    if size % parts:
        yield (
            f"data.batch_size={size} does not divide over {parts} (train.accumulation={accumulation} x {devices} "
            f"devices of {named}); use e.g. data.batch_size={nearest_multiple(size, parts)}."
        )
    if config.eval.batch_size % devices:
        yield (
            f"eval.batch_size={config.eval.batch_size} does not divide over {devices} devices of {named}; "
            f"use e.g. eval.batch_size={nearest_multiple(config.eval.batch_size, devices)}."
        )


def _head_problems(config: Any, mesh: dict[str, int]) -> Iterator[str]:
    """Heads over devices: each computes whole ones."""
    cut = [axis for axis in config.sharding.heads if mesh[axis] > 1]
    ways = math.prod(mesh[axis] for axis in cut)
    counted = [("num_heads", config.model.num_heads), ("num_kv_heads", config.model.num_kv_heads)]
    if config.model.kind == "segmented":
        counted.append(("segmented.heads", config.model.segmented.heads))
    for key, heads in counted:
        if heads % ways:
            axes = " x ".join(f"mesh.{axis}={mesh[axis]}" for axis in cut)
            yield (
                f"{axes}, the devices of sharding.heads, must divide model.{key}={heads}; use e.g. "
                f"model.{key}={-(-heads // ways) * ways}, or mesh.{cut[-1]}={math.gcd(heads, mesh[cut[-1]])}."
            )


def _stream_problems(config: Any, mesh: dict[str, int]) -> Iterator[str]:
    """Tokens of the residual stream over devices that otherwise share heads and hidden widths."""
    twice = [axis for axis in config.sharding.stream if axis in (*config.sharding.batch, *config.sharding.sequence)]
    if twice:
        yield (
            f"sharding.stream={config.sharding.stream!r}: mesh axis {twice[0]!r} already cuts the rows or sequences of "
            "a batch; use sharding.stream=('tensor',)."
        )
        return
    ways = math.prod(mesh[axis] for axis in (*config.sharding.sequence, *config.sharding.stream))
    length = config.data.length
    if any(mesh[axis] > 1 for axis in config.sharding.stream) and length % ways:
        yield (
            f"data.length={length} cannot be cut over the {ways} devices of sharding.stream and sharding.sequence; "
            f"use e.g. data.length={-(-length // ways) * ways}, or sharding.stream=()."
        )


def schedules(config: Any) -> tuple[str, ...]:
    """The names that `parallel.schedule` takes beside "auto"; "usp:4" is one of them, whatever its number."""
    from kernels import context_attention

    name = config.parallel.schedule
    return (*context_attention.SCHEDULES, *([name] if name.startswith("usp:") else []))


def _sequence_problems(config: Any, mesh: dict[str, int]) -> Iterator[str]:
    """Tokens of a sequence over devices: who can do it, and what the schedule must divide."""
    from experiments import program
    from models.mixers import MIXERS

    P, implementation = mesh["context"], config.model.attention.implementation
    for mixer in dict.fromkeys(part.strip() for part in config.model.mixer.split(",")):
        if not getattr(MIXERS[mixer], "context_parallel", False):
            yield f"mesh.context={P}: model.mixer={mixer!r} cannot share a sequence among devices; use mesh.context=1."
    if implementation:
        yield (
            f"model.attention.implementation={implementation!r} is not what mesh.context={P} runs, which has its own "
            "kernels; use model.attention.implementation=''."
        )
    goal = program.objective(config.objective)
    if goal.copies > 1:
        yield (
            f"mesh.context={P}: objective={config.objective!r} holds every token of a row more than once, which no "
            "schedule cuts evenly; use mesh.context=1."
        )
    elif not getattr(goal, "context_parallel", False):
        yield (
            f"mesh.context={P}: objective={config.objective!r} reads its tokens in the order of the row, which is cut "
            "otherwise; use mesh.context=1."
        )
    else:
        yield from _schedule_problems(config, mesh)


def _schedule_problems(config: Any, mesh: dict[str, int]) -> Iterator[str]:
    """What the schedule must divide: tokens of a row, and heads where it deals them out."""
    from experiments import program
    from experiments.program import sharding
    from kernels import context_attention

    P, length = mesh["context"], config.data.length
    name = sharding.schedule(config, mesh, program.objective(config.objective).mask)
    try:
        dealt = context_attention.exchange_of(name, P).ulysses
    except ValueError as error:  # A group of "usp:3" that does not divide P.
        yield f"parallel.{error}"
        return
    yield from _layout_problems(config, name, P)
    step = context_attention.multiple(name, P)
    if length % step:
        yield (
            f"data.length={length} cannot be cut over mesh.context={P} by parallel.schedule={name!r}, which needs a "
            f"multiple of {step}; use e.g. data.length={-(-length // step) * step}."
        )
    heads = config.model.num_heads // math.prod(mesh[axis] for axis in config.sharding.heads)
    if heads % dealt:
        yield (
            f"parallel.schedule={name!r} cannot deal the {heads} heads of a device (model.num_heads over mesh.tensor) "
            f"to {dealt} devices; use parallel.schedule='auto'."
        )


def _layout_problems(config: Any, name: str, P: int) -> Iterator[str]:
    """Whether every mixer can follow the order in which the schedule keeps tokens."""
    from experiments.program import sharding
    from kernels import context_attention

    fits, kind = sharding.layouts(config), context_attention.exchange_of(name, P).layout.kind
    if not fits:
        yield (
            f"mesh.context={P}: the mixers of model.mixer={config.model.mixer!r} share sequences in orders that "
            "exclude each other; use mesh.context=1."
        )
    elif kind not in fits:
        yield (
            f"parallel.schedule={name!r} keeps tokens {kind}, which model.mixer={config.model.mixer!r} cannot follow; "
            f"use parallel.schedule={sharding.RING[fits[0]]!r}."
        )
