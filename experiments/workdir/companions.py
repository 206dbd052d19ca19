"""Where the companions of a run come from: the workdirs of other runs, or the run itself as it begins.

    program = attach(program, ..)        their structure, from their configs
    read = load(program, ..)             their parameters, and what the run's checkpoints say of them
    save_start(program, ..)              WORKDIR/start: what a run that is its own companion goes on with

A run that goes on reads the same companions or none: `about` of a checkpoint holds the step and the checksum of each.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import workdir as files
from experiments.program import Program, build, companions
from experiments.settings import processes
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import disk
from experiments.workdir.checkpoints import Checkpoints, averaged
from experiments.workdir.saved import saved_config
from models.objectives import companions as names


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters of each companion on the mesh, and {"workdir", "step", "checksum"} of each, by its name."""

    params: dict[str, Any]
    facts: dict[str, dict[str, Any]]


def attach(program: Program, *, vocab_size: int) -> Program:
    """`program` with the structure of the companions that its objective reads, on its mesh. Nothing is allocated.

    Args:
      program: as `build` made it.
      vocab_size: ids of the tokenizer, which companions share.

    Errors: ConfigError in one sentence with the key of the config.
    """
    made = {}
    for name in names(program.objective):
        workdir = program.config.companions[name].workdir
        itself = workdir == companions.SELF
        key = f"companions.{name}.workdir="
        made[name] = companions.itself(program) if itself else structure(program, key, workdir, vocab_size)
    return dataclasses.replace(program, companions=made) if made else program


def structure(program: Program, key: str, workdir: str, vocab_size: int) -> Program:
    """The program of the run in `workdir` on the mesh of `program`.

    Args:
      program: whose mesh and shardings it has.
      key: "KEY=" of the config, for error messages.
      workdir: of the other run.
      vocab_size: ids of the tokenizer.

    Errors: ConfigError.
    """
    try:
        config = saved_config(pathlib.Path(workdir).expanduser()).copy_and_resolve_references()
    except ConfigError as error:
        raise ConfigError([problem.replace("--workdir=", key) for problem in error.problems]) from error
    config.mesh, config.sharding = program.config.mesh, program.config.sharding.copy_and_resolve_references()
    if program.spec.partition.schedule:  # Both read one batch, whose tokens lie in one order.
        config.parallel.schedule = program.spec.partition.schedule
    try:
        return build(config.lock(), vocab_size=vocab_size, mesh=program.mesh)
    except ValueError as error:
        raise ConfigError([f"{key}{workdir} does not lie on this mesh: {error}"]) from error


def load(program: Program, workdir: pathlib.Path, *, tokenizer: Any, params: Any, about: Mapping[str, Any]) -> Loaded:
    """The companions of `program`, laid out over its mesh.

    Args:
      program: from `attach`.
      workdir: of the run.
      tokenizer: of the run.
      params: parameters that the run begins with; copied if the run is its own companion and begins now.
      about: description in the checkpoint that the run resumes from; empty if it begins now.

    Errors: ConfigError and CheckpointError, one sentence, where a companion was trained with another tokenizer, has no
    such parameters, or is not the one that the run began with.
    """
    found, facts = {}, {}
    for name, beside in program.companions.items():
        options, before = program.config.companions[name], about.get("companions", {}).get(name)
        if options.workdir != companions.SELF:
            step, found[name] = _trained(beside, name, options, tokenizer, before)
        elif about:
            step, found[name], _ = Checkpoints(workdir, folder=files.START).read_parameters(beside, step=0)
        else:  # The state's own arrays are given away at the first step.
            copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=beside.shardings["params"])
            step, found[name] = 0, copy(params)
        facts[name] = {"workdir": options.workdir, "step": step, "checksum": companions.checksum(found[name])}
        if about and (before or {}).get("checksum") != facts[name]["checksum"]:  # It may have been moved.
            raise CheckpointError(
                f"companions.{name}.workdir={options.workdir} holds other parameters at step {step} than those with "
                f"which the run in --workdir={workdir} began; bring the old files back, or start again in a new folder."
            )
    return Loaded(found, facts)


def save_start(program: Program, workdir: pathlib.Path, params: Mapping[str, Any]) -> None:
    """Writes WORKDIR/start if the run begins now and is its own companion; otherwise writes nothing."""
    mine = [name for name in program.companions if program.config.companions[name].workdir == companions.SELF]
    if not mine:
        return
    saves = Checkpoints(workdir, folder=files.START)
    if processes.is_main():
        disk.remove(saves.root)  # Of a run that was killed before its first checkpoint.
    processes.wait_for_all("start")
    step = jax.device_put(jnp.zeros((), jnp.int32), program.shardings["step"])
    try:
        saves.save(0, {"step": step, "params": params[mine[0]]}, {})
    finally:
        saves.close()


def _trained(
    beside: Program, name: str, options: Any, tokenizer: Any, before: Mapping[str, Any] | None
) -> tuple[int, Any]:
    """Step and parameters of a companion: of its newest good checkpoint, or of the one that the run began with."""
    key = f"companions.{name}.workdir={options.workdir}"
    saves = Checkpoints(pathlib.Path(options.workdir).expanduser())
    if not saves.steps():
        raise CheckpointError(f"{key} holds no finished checkpoint; give the workdir of a trained model.")
    step = before["step"] if before else None
    if step is not None and step not in saves.steps():
        raise CheckpointError(
            f"{key} no longer holds step {step}, with which this run began; bring that checkpoint back, or start again "
            "in a new folder."
        )
    theirs = saves.newest_about().get("tokenizer")
    if theirs != tokenizer.hash:
        path = str(pathlib.Path(options.workdir) / files.TOKENIZER)
        raise CheckpointError(
            f"{key} was trained with another tokenizer ({str(theirs)[:12]}) than this run has ({tokenizer.hash[:12]}): "
            f"its ids mean other text; use data.tokenizer={path!r} and data.vocab_size=0."
        )
    step, params, about = saves.read_parameters(beside, step=step, average=options.average)
    if options.average and not averaged(about):
        raise ConfigError([
            f"companions.{name}.average=True, and {options.workdir} kept no average; "
            f"use companions.{name}.average=False."
        ])  # fmt: skip
    return step, params
