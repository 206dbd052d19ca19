"""`--mode=plan`: sizes and costs of a config without training, on this machine or on one that is not here."""

import dataclasses
import itertools
import math
import pathlib
from typing import Any

from experiments import preflight
from experiments import workdir as files
from experiments.planning import compiled as compiling
from experiments.planning import machines, page, text
from experiments.program import Program, build, counting, sharding
from experiments.workdir import companions

__all__ = ["plan", "plan_for"]
plan = text.plan
PAGE, RECORD = "plan.html", "plan.json"


@dataclasses.dataclass(frozen=True)
class Tried:
    """One compile of the step: the settings that differ from the config, the program, and the compiler's figures."""

    changes: dict[str, Any]
    program: Program
    compiled: compiling.Compiled
    roofline: dict[str, float]


def plan_for(config: Any, topology: str, workdir: pathlib.Path) -> str:
    """Compiles the real training step for `topology` and writes plan.html and plan.json to `workdir`.

    Where it does not fit, settings that make it smaller are tried by compiling, the cheapest first, until one fits.
    With `config.plan.search` meshes of the same devices are compiled too and ranked by the time of a step.
    Returns the plan as text. Raises Refused or ConfigError, with what would work.
    """
    devices, chip = machines.devices(topology)
    preflight.check(config, num_devices=len(devices))
    asked = _try(config, {}, devices, chip)
    others = []
    if not asked.compiled.fits:
        for changes in _smaller(config, dict(asked.program.mesh.shape), devices):
            others.append(_try(config, changes, devices, chip))
            if others[-1].compiled.fits:
                break
    elif config.plan.search:
        others = [_try(config, changes, devices, chip) for changes in _meshes(config, devices)]
    record = {
        "topology": topology, "devices": len(devices), "chip": chip and dataclasses.asdict(chip),
        "parameters": counting.parameters(asked.program), "flops_per_token": counting.flops_per_token(asked.program),
        "tried": [_record(tried) for tried in (asked, *others)],
    }  # fmt: skip
    files.write_json(workdir / RECORD, record)
    rows = text.parameter_rows(asked.program)
    files.write_file(workdir / PAGE, page.write(config, record, rows).encode())
    lines = [
        *text.answer(config, record),
        *text.summary(asked.program),
        *text.compiled(record),
        f"written to {workdir / PAGE}",
    ]
    return "\n".join(lines)


def _try(config: Any, changes: dict[str, Any], devices: list[Any], chip: Any) -> Tried:
    made = _changed(config, changes)
    preflight.check(made, num_devices=len(devices))
    program = build(made, vocab_size=text.vocabulary(made), mesh=sharding.make_mesh(made, devices))
    program = companions.attach(program, vocab_size=text.vocabulary(made))
    found = compiling.compile_step(program, chip)
    roofline = compiling.roofline(program, found, chip) if chip and found.fits else {}
    return Tried(changes, program, found, roofline)


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    made = config.copy_and_resolve_references()
    with made.unlocked():
        made.update_from_flattened_dict(changes)
    return made


def _record(tried: Tried) -> dict[str, Any]:
    found = dataclasses.asdict(tried.compiled)
    found["collectives"] = [{**c, "axes": list(c["axes"])} for c in found["collectives"]]
    mesh = {axis: size for axis, size in tried.program.mesh.shape.items() if size > 1}
    return {"changes": tried.changes, "mesh": mesh, **found, "roofline": tried.roofline}


def _smaller(config: Any, mesh: dict[str, int], devices: list[Any]) -> list[dict[str, Any]]:
    """Settings that need less memory, the cheapest in time first; each keeps those before it.

    When a device has one row at a time and still too little, several share the heads and widths of a row.
    """
    steps, changes = [], {}
    if mesh["data"] > 1:
        changes = {"mesh.data": 1, "mesh.fsdp": mesh["data"] * mesh["fsdp"]}
        steps.append(changes)
    if config.model.remat != "full":
        changes = {**changes, "model.remat": "full"}
        steps.append(changes)
    rows = config.data.batch_size // (mesh["data"] * mesh["fsdp"] * mesh["expert"])
    whole = (
        config.model.channel == "moe" and config.model.moe.balance_scope == "global"
    )  # No part of a batch knows that.
    scope = {"model.moe.balance_scope": "accumulated"} if whole else {}
    for factor in (2, 4, 8, 16, 32):
        accumulation = config.train.accumulation * factor
        if rows % accumulation == 0:
            steps.append({**changes, **scope, "train.accumulation": accumulation})
    for tensor in (2, 4):
        fsdp = mesh["data"] * mesh["fsdp"] // tensor
        if mesh["tensor"] == 1 and fsdp and config.data.batch_size % fsdp == 0:
            shared = {"mesh.data": 1, "mesh.fsdp": fsdp, "mesh.tensor": tensor, **scope}
            shared["train.accumulation"] = config.data.batch_size // fsdp
            steps.append({**changes, **shared})
    return [changes for changes in steps if _possible(_changed(config, changes), devices)]


def _meshes(config: Any, devices: list[Any]) -> list[dict[str, Any]]:
    """Other ways to lay the devices along data, fsdp, tensor and expert that pass the preflight, at most five."""
    count = len(devices)
    now = sharding.mesh_shape(config.mesh, count)
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    found = []
    experts = (1, 2, 4, 8) if config.model.channel == "moe" else (1,)
    for fsdp, tensor, expert in itertools.product(reversed(divisors), (1, 2, 4, 8), experts):
        if count % (fsdp * tensor * expert):
            continue
        data = count // (fsdp * tensor * expert)
        mesh = {"data": data, "fsdp": fsdp, "tensor": tensor, "context": 1, "expert": expert}
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        if mesh != now and _possible(_changed(config, changes), devices):
            found.append(changes)
    return sorted(found, key=lambda c: (c["mesh.tensor"], -math.log2(c["mesh.fsdp"])))[:5]


def _possible(config: Any, devices: list[Any]) -> bool:
    try:
        preflight.check(config, num_devices=len(devices))
        build(config, vocab_size=text.vocabulary(config), mesh=sharding.make_mesh(config, devices))
    except ValueError:  # ConfigError, or a dimension that does not divide
        return False
    return True
