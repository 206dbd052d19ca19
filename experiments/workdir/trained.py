"""A trained model from its workdir: for generation, evaluation, export and notebooks."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import jax

from experiments.program import Program, build, inputs, sharding
from experiments.settings import processes
from experiments.settings.errors import CheckpointError
from experiments.workdir import vocabulary
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.saved import saved_config


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run read from its workdir, finished or not. The corpus is read when it is first used.

    about: the description saved with the checkpoint.
    step: the step of the checkpoint.
    tokenizer: the one in the workdir.
    """

    config: Any
    program: Program
    params: Any
    tokenizer: Any
    workdir: pathlib.Path
    step: int
    about: dict[str, Any]

    @functools.cached_property
    def corpus(self) -> Any:
        """The corpus that the run was trained on. Raises ConfigError if the files at its path have changed since."""
        vocabulary.check_template(self.about, self.config.data.template, self.workdir)
        named = vocabulary.of_run(self.workdir, self.about)
        corpus = processes.main_first(
            "corpus", lambda: inputs.load(self.config, tokenizer=named, expected=self.about.get("corpus", ""))
        )
        vocabulary.check_same_corpus(self.about, corpus, self.workdir)
        return corpus


def load(workdir: str | os.PathLike, config: Any = None, *, step: str = "") -> Trained:
    """Config, parameters and tokenizer of the run in `workdir`, laid out over the devices that are here.

    Args:
      workdir: of a run that has saved; it may have been moved or copied, and its corpus may be gone.
      config: that of the run with other `eval` or `generate` settings; default: as it was saved.
      step: which checkpoint: a number, "best" (the lowest held-out loss), or "" for the newest good one.

    Errors: ConfigError or CheckpointError in one sentence.
    """
    workdir = pathlib.Path(workdir).expanduser()
    saved = saved_config(workdir)
    config = (config or saved).copy_and_resolve_references()
    saves = Checkpoints(workdir, config=config.to_dict() | {"seed": saved.seed})  # A reader may draw with another.
    if not saves.steps():
        raise CheckpointError(f"--workdir={workdir} holds no finished checkpoint; train it first, then read it.")
    chosen = saves.named(step)
    # The mesh belongs to the machine that trained; reading needs no particular one.
    config.mesh.update({"data": jax.device_count(), "fsdp": 1, "tensor": 1, "context": 1, "expert": 1})
    size, parts = config.eval.batch_size or config.data.batch_size // config.train.accumulation, jax.device_count()
    config.eval.batch_size = max(1, size // parts) * parts
    about = saves.newest_about() if chosen is None else saves.about(chosen)
    config.data.template = vocabulary.template_now(about, config.data.template, workdir)
    config.lock()
    tokenizer = vocabulary.load(workdir)
    if tokenizer is None:  # It was lost: the corpus, where it is still the same, makes it anew.
        tokenizer = processes.main_first(
            "tokenizer", lambda: inputs.load(config, expected=about.get("corpus", ""))
        ).tokenizer
    vocabulary.check_tokenizer(about, tokenizer, workdir)
    program = build(config, vocab_size=tokenizer.vocab_size, mesh=sharding.make_mesh(config))
    found, params, about = saves.read_parameters(program, step=chosen)
    vocabulary.check_tokenizer(about, tokenizer, workdir)
    if config.generate.chat:
        vocabulary.check_template(about, config.data.template, workdir)
    return Trained(config, program, params, tokenizer, workdir, found, about)
