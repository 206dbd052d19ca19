"""A trained model from its workdir: for generation, evaluation, export and notebooks."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from experiments.program import Program, build, inputs, sharding
from experiments.settings import processes
from experiments.settings.errors import CheckpointError
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import saved_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """Everything a finished (or unfinished) run left."""

    config: Any
    program: Program
    params: Any
    corpus: Any


def load(workdir: str | os.PathLike, config: Any = None) -> Trained:
    """Config, newest parameters and corpus of the run in `workdir`, laid out over the devices that are here.

    `config`: that of the run with other `eval` or `generate` settings; default: as it was saved. Raises ConfigError or
    CheckpointError in one sentence.
    """
    workdir = pathlib.Path(workdir).expanduser()
    config = (config or saved_config(workdir)).copy_and_resolve_references()
    saves = Checkpoints(workdir)
    if not saves.steps():  # Told before the corpus is read.
        raise CheckpointError(f"--workdir={workdir} holds no finished checkpoint; train it first, then read it.")
    # The mesh belongs to the machine that trained; reading needs no particular one.
    config.mesh.update({"data": jax.device_count(), "fsdp": 1, "tensor": 1, "context": 1})
    size, parts = config.eval.batch_size or config.data.batch_size // config.train.accumulation, jax.device_count()
    config.eval.batch_size = max(1, size // parts) * parts
    config.lock()
    corpus = processes.main_first("corpus", lambda: inputs.load(config, expected=inputs.began_with(workdir)))
    program = build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    return Trained(config, program, saves.parameters(program), corpus)
