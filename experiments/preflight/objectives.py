"""What the preflight knows of diffusion and any-order objectives: their names, and what does not go together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.preflight import mesh as preflight_mesh

SCORE_METHODS = ("analytic", "euler", "released")
CONFIDENT = ("max_prob", "margin", "entropy", "random", "left_to_right", "candidate", "drawn", "threshold", "factor")
CACHES = ("prefix", "dual", "free", "adaptive")
# The methods of models.decoding.diffusion. Written out, because settings of generation are checked before jax is
# imported.
GENERATION = {
    "generate.diffusion.method": (
        "", "ancestral", "ancestral_two_step", "cached", "first_hitting", *CONFIDENT, *SCORE_METHODS, "guided",
    ),
    "generate.diffusion.cache": ("", *CACHES),
    "generate.diffusion.rule": ("match", "top_k", "threshold", "ratio", "sample", "always", "never"),
    "generate.diffusion.grid": ("linear", "cosine"),
    "generate.diffusion.block_from": ("row", "prompt"),
    "generate.insertion.stop": ("sample", "threshold", "never"),
}  # fmt: skip
FILLED = ("masked_diffusion", "block_diffusion", "score_entropy")  # By models.decoding.diffusion.
TIMED = ("masked_diffusion", "score_entropy", "neodiff")  # They tell the model a time that it asks for.
NO_Z_LOSS = ("score_entropy", "insertion", "neodiff")  # The log-partition is part of what they learn.
LAID_OUT_TWICE = ("block_diffusion", "any_subset")
OWN_SAMPLER = ("any_subset", "insertion", "neodiff")  # Not one of models.decoding.diffusion.


def choices() -> dict[str, Sequence[str]]:
    """Key of the config -> the names it takes."""
    from models.objectives import diffusion, insertion, score_entropy

    tables = {**dict.fromkeys(diffusion.GROUPS, diffusion.CHOICES), "score_entropy": score_entropy.CHOICES}
    groups = {f"{name}.{key}": names for name, table in tables.items() for key, names in table.items()}
    groups |= {"block_diffusion.weighting": diffusion.WEIGHTINGS, "insertion.weighting": insertion.WEIGHTINGS}
    return {**groups, **GENERATION}


def method(objective: str, chosen: str) -> str:
    """The method to draw with: `chosen`, or the objective's own where nothing is."""
    return chosen or ("analytic" if objective == "score_entropy" else "ancestral")


def problems(config: Any) -> Iterator[str]:
    """What objectives need of the model, of the rows and of their own options."""
    name, length, model = config.objective, config.data.length, config.model
    if model.time_features % 2:
        yield (
            f"model.time_features={model.time_features} must be even (a cosine and a sine each); "
            f"use e.g. model.time_features={model.time_features + 1}."
        )
    if model.time_features and name not in TIMED:
        yield (
            f"model.time_features={model.time_features} wants a time, which objective={name!r} does not tell; "
            "use model.time_features=0."
        )
    if model.self_condition and name != "neodiff":
        yield (
            f"model.self_condition=True wants an earlier prediction, which objective={name!r} does not make; "
            "use model.self_condition=False."
        )
    if config.loss.z_loss and name in NO_Z_LOSS:
        yield f"loss.z_loss={config.loss.z_loss} has no meaning for objective={name!r}; use loss.z_loss=0.0."
    if model.attention.window and name in LAID_OUT_TWICE:
        yield (
            f"model.attention.window={model.attention.window} counts tokens of a row, which objective={name!r} lays "
            "out twice; use model.attention.window=0."
        )
    if name == "neodiff" and not model.time_features:
        yield (
            "model.time_features=0 does not tell a token its noise, which objective='neodiff' needs; "
            "use e.g. model.time_features=64."
        )
    if name in FILLED:
        options = config[name]
        if options.t_min > options.t_max:
            yield f"{name}.t_min={options.t_min} lies above {name}.t_max={options.t_max}; use e.g. {name}.t_min=0.001."
    yield from sampling_problems(config, config.generate)
    if name == "insertion" and config.data.isolate:
        yield "data.isolate=True parts a row, which objective='insertion' reads as one string; use data.isolate=False."
    if name == "any_subset" and config.any_subset.rate_min > config.any_subset.rate_max:
        rates = config.any_subset
        yield (
            f"any_subset.rate_min={rates.rate_min} lies above any_subset.rate_max={rates.rate_max}; "
            f"use e.g. any_subset.rate_min={rates.rate_max}."
        )
    if name == "block_diffusion" and length % config.block_diffusion.block:
        block = config.block_diffusion.block
        fits = preflight_mesh.largest_divisor(length, block)
        yield (
            f"block_diffusion.block={block} does not divide data.length={length}; "
            f"use e.g. block_diffusion.block={fits}."
        )


def sampling_problems(config: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Settings of generation, as `config.generate`, that the objective of `config` has no sampler for."""
    chosen, name = options["diffusion"], config.objective
    if name not in FILLED:
        if name in OWN_SAMPLER and chosen["method"]:
            yield (
                f"generate.diffusion.method={chosen['method']!r} is not for objective={name!r}, which has a sampler of "
                "its own; use generate.diffusion.method=''."
            )
        return
    how = method(name, chosen["method"])
    if chosen["cache"] or how == "guided":
        yield from _cache_problems(config, chosen, how)
    scores = how in SCORE_METHODS
    if scores and name != "score_entropy":
        yield (
            f"generate.diffusion.method={how!r} follows scores and objective={name!r} has none; "
            "use generate.diffusion.method='ancestral'."
        )
    elif scores and chosen["guidance"]:
        yield (
            f"generate.diffusion.guidance={chosen['guidance']} does not go with method={how!r}; "
            "use generate.diffusion.guidance=0.0."
        )
    if name != "score_entropy" or config.score_entropy.graph != "uniform":
        return
    if not scores:
        yield (
            f"generate.diffusion.method={how!r} fills masks, which score_entropy.graph='uniform' has not; "
            "use generate.diffusion.method='analytic'."
        )
    if chosen["block"]:
        yield (
            f"generate.diffusion.block={chosen['block']} leaves masks for later, which score_entropy.graph='uniform' "
            "has not; use generate.diffusion.block=0."
        )


def _cache_problems(config: Any, chosen: Mapping[str, Any], how: str) -> Iterator[str]:
    """What keeping keys and values between calls, or a guide, asks of the model and of the method."""
    name, model, cache = config.objective, config.model, chosen["cache"]
    asked = f"generate.diffusion.cache={cache!r}" if cache else "generate.diffusion.method='guided'"
    if how == "guided" and not chosen["guide"]:
        yield (
            "generate.diffusion.method='guided' needs an autoregressive run that judges drafts; "
            "use generate.diffusion.guide=WORKDIR."
        )
    elif how not in (*CONFIDENT, "guided"):
        yield (
            f"{asked} goes with methods that reveal the surest tokens, not with generate.diffusion.method={how!r}; "
            "use generate.diffusion.method='max_prob'."
        )
    if name == "score_entropy":
        yield f"{asked} is for masked and block diffusion, not for objective={name!r}; use generate.diffusion.cache=''."
    elif model.time_features:
        yield (
            f"{asked} keeps what was computed at other times, which model.time_features={model.time_features} would "
            "tell apart; use model.time_features=0."
        )
    if chosen["guidance"]:
        yield (
            f"generate.diffusion.guidance={chosen['guidance']} does not go with {asked}; "
            "use generate.diffusion.guidance=0.0."
        )
    if cache == "adaptive" and (chosen["block"] or name == "block_diffusion"):
        yield (
            f"{asked} fills the whole canvas at once, not in blocks; use objective='masked_diffusion' with "
            "generate.diffusion.block=0."
        )
    if cache == "adaptive" and model.attention.window:
        yield f"{asked} knows no model.attention.window={model.attention.window}; use model.attention.window=0."
