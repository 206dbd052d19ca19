"""What does not go with `model.kind="swiftkv"`, each with a value that works, and what it can start from."""

from collections.abc import Iterator
from typing import Any

from experiments.workdir.saved import holds_checkpoint


def problems(config: Any) -> Iterator[str]:
    """Sentences about a model whose later layers read an early one."""
    if config.model.kind != "swiftkv":
        return
    from experiments.program import objective
    from models.rewired import sizes

    try:
        sizes(config.model.swiftkv.to_dict(), config.model.num_layers)
    except ValueError as error:
        yield str(error)
    why = "model.kind='swiftkv'"
    for key, value, works in (
        ("model.mixer", config.model.mixer, "attention"),
        ("init.grow_from", config.init.grow_from, ""),
        ("init.pretrained", config.init.pretrained, ""),
    ):
        if value != works:
            yield f"{key}={value!r} does not go with {why}; use {key}={works!r}."
    if config.model.channel == "moe":
        yield f"model.channel='moe' does not go with {why}; use model.channel='swiglu'."
    if not objective(config.objective).causal:
        yield f"objective={config.objective!r} is not causal and {why} is; use objective='next_token'."
    if config.generate.drafter == "exit":
        yield f"generate.drafter='exit' does not go with {why}; use generate.drafter='lookup'."


def start_problems(config: Any) -> Iterator[str]:
    """A run that this one cannot begin from; of it the config alone is read."""
    start = config.init.rewire_from
    if not start or config.model.kind != "swiftkv":
        return
    from experiments.preflight import starts
    from models import rewiring

    named = start == "teacher"
    if named and (config.objective != "swiftkv" or config.companions.teacher.workdir in ("", "self")):
        yield "init.rewire_from='teacher' names no run; use objective='swiftkv' and a companions.teacher.workdir."
        return
    start = config.companions.teacher.workdir if named else start
    if named and not starts.others(config) and not holds_checkpoint(start):
        return  # Of a teacher that is not there yet its own key is told of.
    yield from starts.problems("rewire_from", start, config, rewiring.problems)
