"""Models that the parts of decoding read beside the one that writes: a drafter's, a guide's."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.program import Program
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.workdir import companions
from experiments.workdir.checkpoints import Checkpoints


def load(program: Program, tokenizer: Any, runs: Mapping[str, str]) -> tuple[dict[str, Program], dict[str, Any]]:
    """Structure and parameters of every run in `runs`, on the mesh of `program`.

    Args:
      program: of the model that writes.
      tokenizer: its tokenizer, which the others share.
      runs: workdirs by "NAME.FIELD", the rest of their keys behind `generate.`.

    Errors: ConfigError or CheckpointError in one sentence.
    """
    programs, params = {}, {}
    for name, workdir in runs.items():
        key = f"generate.{name}={workdir}"
        if not workdir:
            raise ConfigError([f"generate.{name}='' names no run; give the --workdir of a smaller trained model."])
        programs[name] = companions.structure(program, f"generate.{name}=", workdir, tokenizer.vocab_size)
        if not programs[name].objective.causal:
            raise ConfigError([
                f"{key} was trained with objective={programs[name].config.objective!r}, which sees both sides of a "
                "token, and is asked for the next one; give a run with objective='next_token'."
            ])  # fmt: skip
        saves = Checkpoints(pathlib.Path(workdir).expanduser())
        if not saves.steps():
            raise CheckpointError(f"{key} holds no finished checkpoint; give the workdir of a trained model.")
        theirs = saves.newest_about().get("tokenizer")
        if theirs != tokenizer.hash:
            raise CheckpointError(
                f"{key} was trained with another tokenizer ({str(theirs)[:12]}) than this model has "
                f"({tokenizer.hash[:12]}): its ids mean other text; give a run of the same tokenizer."
            )
        _, params[name], _ = saves.read_parameters(programs[name])
    return programs, params
