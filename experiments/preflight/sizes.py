"""What the preflight knows of parametrizations: which parts a rule of sizes is derived for."""

from collections.abc import Iterator
from typing import Any


def problems(config: Any) -> Iterator[str]:
    """Parts whose learning rates no rule of sizes covers."""
    from experiments.program.optimizers import BY_SIZE
    from models.mixers import MIXERS

    model, rule = config.model, config.model.parametrization
    if rule == "standard":
        return
    standard = "use model.parametrization='standard'."
    for key in ("projection", "channel"):
        if model[key] == "pattention":
            yield (
                f"model.parametrization={rule!r} has no rule for model.{key}='pattention', whose scores are normalised "
                f"over parameter tokens and do not grow with the width; {standard}"
            )
    for name in model.mixer.split(","):
        if not getattr(MIXERS[name.strip()], "sized", False):
            sized = ", ".join(name for name, part in MIXERS.items() if getattr(part, "sized", False))
            yield (
                f"model.parametrization={rule!r} has no rule for the inner learning rates of model.mixer="
                f"{name.strip()!r}; use one of {sized}, or model.parametrization='standard'."
            )
    if config.optimizer.name not in BY_SIZE:
        yield (
            f"model.parametrization={rule!r} has no rates for optimizer.name={config.optimizer.name!r}; "
            f"use one of {', '.join(BY_SIZE)}."
        )
