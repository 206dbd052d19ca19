"""What the preflight knows of parametrizations: which parts a rule of sizes is derived for."""

from collections.abc import Iterator, Sequence
from typing import Any


def choices() -> dict[str, Sequence[str]]:
    """Key of the config -> the names it takes."""
    from models.parametrization import RULES

    return {"model.parametrization": tuple(RULES)}


def problems(config: Any) -> Iterator[str]:
    """Parts whose learning rates no rule of sizes covers, and hidden widths that do not follow the width."""
    from experiments.program.optimizers import BY_SIZE
    from models.parametrization import MIXERS

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
        if name.strip() not in MIXERS:
            yield (
                f"model.parametrization={rule!r} has no rule for the inner learning rates of model.mixer="
                f"{name.strip()!r}; use one of {', '.join(MIXERS)}, or model.parametrization='standard'."
            )
    if config.optimizer.name not in BY_SIZE:
        yield (
            f"model.parametrization={rule!r} has no rates for optimizer.name={config.optimizer.name!r}; "
            f"use one of {', '.join(BY_SIZE)}."
        )
    for group in ("mlp", "swiglu"):
        if model.channel == group and model[group].hidden:
            yield (
                f"model.{group}.hidden={model[group].hidden} does not follow the width, which "
                f"model.parametrization={rule!r} goes by; use model.{group}.hidden=0."
            )
