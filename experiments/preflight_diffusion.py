"""What the preflight knows of diffusion objectives: the names they take, and what does not go together."""

from collections.abc import Iterator, Sequence
from typing import Any

# Of models.decoding.diffusion.METHODS those that draw from a model of tokens, not of scores. Written out, because
# settings of generation are checked before jax is imported.
GENERATION = {
    "generate.diffusion.method": (
        "ancestral", "ancestral_two_step", "cached", "first_hitting", "max_prob", "margin", "entropy", "random",
        "left_to_right", "candidate", "threshold", "factor",
    ),
    "generate.diffusion.grid": ("linear", "cosine"),
}  # fmt: skip


def choices() -> dict[str, Sequence[str]]:
    """Key of the config -> the names it takes."""
    from models.objectives import diffusion

    groups = {f"{name}.{key}": table for name in diffusion.GROUPS for key, table in diffusion.CHOICES.items()}
    return {**groups, "block_diffusion.weighting": diffusion.WEIGHTINGS, **GENERATION}


def problems(config: Any) -> Iterator[str]:
    """What masked and block diffusion need of the rows and of each other's options."""
    name = config.objective
    if name not in ("masked_diffusion", "block_diffusion"):
        return
    options, length, window = config[name], config.data.length, config.model.attention.window
    if options.t_min > options.t_max:
        yield f"{name}.t_min={options.t_min} lies above {name}.t_max={options.t_max}; use e.g. {name}.t_min=0.001."
    if name == "masked_diffusion":
        return
    if length % options.block:
        fits = max(size for size in range(1, min(options.block, length) + 1) if length % size == 0)
        yield (
            f"block_diffusion.block={options.block} does not divide data.length={length}; "
            f"use e.g. block_diffusion.block={fits}."
        )
    if window:
        yield (
            f"model.attention.window={window} counts tokens of a row, which block diffusion lays out twice; "
            "use model.attention.window=0."
        )
