"""The real training step, compiled for a machine that need not be here, and the compiler's figures of it."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np

from experiments.planning import hlo, traffic, waiting
from experiments.planning.chips import Chip
from experiments.program import Program, companions, counting, in_order, sharding
from kernels import platforms


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compile. Bytes are per device.

    fits: whether the compiler could place it; of a chip without a compiler here, whether `needed` is within its memory.
    needed: bytes in all, or of the temporaries alone where they are too many.
    available: bytes of the chip, 0 if unknown.
    memory: bytes of arguments, of outputs beyond them, of temporaries at their peak, and of the program.
    largest: (bytes, name) of the largest arrays that the step makes.
    collectives: empty where it does not fit.
    traffic: HBM bytes read and written a step; empty where it does not fit.
    compile_seconds: that the compile took here.
    played: seconds of a step in its schedule, see `waiting.played`; empty of a chip that is not described.
    """

    fits: bool
    needed: float
    available: float
    memory: dict[str, float]
    largest: list[tuple[float, str]]
    collectives: list[hlo.Collective]
    traffic: float
    compile_seconds: float = 0.0
    played: dict[str, float] = dataclasses.field(default_factory=dict)


def compile_step(program: Program, chip: Chip | None) -> Compiled:
    """Compiles the training step of `program` for the devices of its mesh."""
    more = [companions.abstract(program)] if program.companions else []
    described = chip is not None and chip.compiler == "tpu"
    traced = program.train_step().trace(state_shapes(program), batch_shapes(program), *more)
    began = time.perf_counter()
    try:
        compiled = platforms.compile_described(traced) if described else traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(_too_large(str(error)), compile_seconds=time.perf_counter() - began)
    took = time.perf_counter() - began
    found, text = compiled.memory_analysis(), compiled.as_text()
    kept = {
        "arguments": found.argument_size_in_bytes,
        "new outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
    }
    temporaries = found.temp_size_in_bytes
    if described:  # That counts what is never there at once; the peak counts what lies in VMEM.
        temporaries = min(temporaries, found.peak_memory_in_bytes - sum(kept.values()))
    memory = kept | {"temporaries": temporaries, "program": found.generated_code_size_in_bytes}
    computations = hlo.computations(text)
    mesh = dict(program.mesh.shape)
    needed = sum(memory.values())
    return Compiled(
        fits=described or chip is None or needed <= chip.hbm,
        needed=needed,
        available=chip.hbm if chip else 0.0,
        memory=memory,
        largest=hlo.largest(computations),
        collectives=hlo.collectives(computations, mesh),
        traffic=traffic.scheduled(computations),
        compile_seconds=took,
        played=waiting.played(computations, list(program.mesh.devices.flat), chip) if described else {},
    )


def state_shapes(program: Program) -> Any:
    """The state of `program` as it lies on its mesh, without its numbers."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(place, program.abstract, program.shardings)


def batch_shapes(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch as the loader makes it and `experiments.program.inputs.prepare` hands it on, without its numbers."""
    config = program.config
    shape = (config.data.batch_size, config.data.length)
    kinds = {"tokens": np.int32, "targets": np.int32, "scored": np.bool_}
    if config.data.isolate or not program.objective.causal:
        kinds |= {"positions": np.int32, "segment_ids": np.int32}
    if config.model.roles:
        kinds["roles"] = np.int32
    batch = in_order({name: np.zeros(shape, kind) for name, kind in kinds.items()}, program.spec.partition)
    where = sharding.batch_sharding(config, program.mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for name, x in batch.items()}


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _amount(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)B?", text).groups()
    return float(number) * _UNITS[unit]


def _too_large(message: str) -> Compiled:
    """The compiler's figures when the program does not fit: needed, available, and the largest allocations."""
    number = r"([\d.]+[KMGT]?)B?"
    used = re.search(rf"Used {number} of {number} hbm", message)
    used = used or re.search(rf"\({number}\) exceeds available HBM \({number}\)", message)
    needed, available = (_amount(used[1]), _amount(used[2])) if used else (0.0, 0.0)
    sizes = re.findall(r"Size: ([\d.]+[KMGT]?)B?\s+(.*?)(?=\n\s*={5,}|\n\s*\d+\. Size|\Z)", message, re.DOTALL)
    largest = [(_amount(size), _operation(rest)) for size, rest in sizes]
    return Compiled(False, needed, available, {}, largest[:8], [], 0.0)


def _operation(text: str) -> str:
    named, shape = re.search(r'op_name="([^"]*)"', text), re.search(r"Shape: (\S+)", text)
    return " ".join(part for part in (shape and shape[1].split("{")[0], named and hlo.short(named[1])) if part)


def roofline(program: Program, compiled: Compiled, chip: Chip) -> dict[str, float]:
    """Seconds of one step if each part ran at the chip's ceiling, and the tokens a second and days that follow.

    price: US dollars for all steps on all devices, `plan.price` or the chip's an hour; 0 where neither is known.
    compute: the analytic FLOPs of the step, the forward pass twice under full rematerialisation.
    memory: bytes that the scheduled program reads and writes in HBM.
    A collective has a ring along one axis of the torus, both ways at once (a permute: one way). Overlapped transfers
    are hidden as far as there is work beside them; others add to the step.
    """
    data, train = program.config.data, program.config.train
    tokens = data.batch_size * data.length
    again = 4 / 3 if program.spec.remat == "full" else 1.0
    compute = counting.flops_per_token(program)["total"] * tokens * again / program.mesh.size / chip.flops
    memory = compiled.traffic / chip.bandwidth
    hidden = sum(_seconds(c, chip) for c in compiled.collectives if c.overlapped)
    exposed = sum(_seconds(c, chip) for c in compiled.collectives if not c.overlapped)
    step = max(compute, memory, hidden) + exposed
    hours = step * train.steps / 3600 * program.mesh.size
    return {
        "compute_seconds": compute, "memory_seconds": memory, "overlapped_seconds": hidden, "exposed_seconds": exposed,
        "step_seconds": step, "tokens_per_second": tokens / step, "days": step * train.steps / 86400,
        "chip_hours": hours, "price": hours * (program.config.plan.price or chip.price),
        "mfu": compute / again / step,
    }  # fmt: skip


def _seconds(collective: hlo.Collective, chip: Chip) -> float:
    ways = 1 if collective.kind == "collective-permute" else 2
    return collective.times * collective.sent / (ways * chip.link)
