"""A trained model from its workdir: for generation, evaluation, export and notebooks."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from configs import base
from experiments import inputs, preflight, sharding
from experiments import workdir as files
from experiments.checkpoints import Checkpoints
from experiments.program import Program, build


@dataclasses.dataclass(frozen=True)
class Trained:
    """Everything a finished (or unfinished) run left."""

    config: Any
    program: Program
    params: Any
    corpus: Any


def read_config(workdir: str | os.PathLike) -> Any:
    """The config of the run in `workdir`. ConfigError in one sentence when there is none."""
    saved = files.read_json(pathlib.Path(workdir).expanduser() / files.CONFIG)
    if saved is None:
        raise preflight.ConfigError([f"--workdir={workdir} holds no run; give the --workdir of a trained model."])
    config = base.get_config()
    config.update(_tuples(saved["config"], config.to_dict()))
    return config.lock()


def load(workdir: str | os.PathLike) -> Trained:
    """Config, newest parameters and corpus of the run in `workdir`, laid out over the devices that are here."""
    config = read_config(workdir)
    with config.unlocked():  # The mesh belongs to the machine that trained; reading needs no particular one.
        config.mesh.update({"data": jax.device_count(), "fsdp": 1, "tensor": 1, "context": 1})
    corpus = inputs.load(config)
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    return Trained(config, program, Checkpoints(pathlib.Path(workdir).expanduser()).parameters(program), corpus)


def _tuples(saved: dict, defaults: dict) -> dict:
    """JSON has lists where configs have tuples."""
    fixed = {}
    for key, value in saved.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _tuples(value, default)
        fixed[key] = tuple(value) if isinstance(default, tuple) else value
    return fixed
