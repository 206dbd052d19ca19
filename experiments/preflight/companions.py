"""What the preflight says of the trained models that an objective reads beside its own."""

import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.settings.errors import ConfigError
from experiments.workdir.saved import holds_checkpoint, saved_config


def problems(config: Any) -> Iterator[str]:
    """Companions that are missing, or that read a row in another way; of their runs it reads the configs alone."""
    from models import objectives

    name = config.objective
    goal = objectives.OBJECTIVES[name]
    for role in objectives.companions(goal):
        key, workdir = f"companions.{role}.workdir", config.companions[role].workdir
        if not workdir:
            yield f"objective={name!r} reads a {role}; use {key}=WORKDIR of a trained run, or {key}='self'."
        elif workdir != "self" and holds_checkpoint(workdir):
            try:
                saved = saved_config(pathlib.Path(workdir).expanduser())
            except ConfigError as error:
                yield str(error).replace("--workdir=", f"{key}=")
                continue
            if goal.causal and not objectives.OBJECTIVES[saved.objective].causal:
                yield (
                    f"{key}={workdir!r} was trained with objective={saved.objective!r}, which sees both sides of a "
                    f"token, and objective={name!r} predicts the next one; use a run with objective='next_token'."
                )
