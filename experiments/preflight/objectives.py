"""What the preflight knows of diffusion and any-order objectives: what does not go together."""

from collections.abc import Iterator, Mapping
from typing import Any

from configs.knobs.decoding import CONFIDENT, SCORE_METHODS
from models.facts import Facts


def method(objective: str, chosen: str) -> str:
    """The method to draw with: `chosen`, or the objective's own where nothing is."""
    return chosen or ("analytic" if objective == "score_entropy" else "ancestral")


def problems(config: Any, facts: Facts) -> Iterator[str]:
    """What objectives need of the model, of the rows and of their own options."""
    from models.objectives import OBJECTIVES

    name, model, goal = config.objective, config.model, OBJECTIVES[config.objective]
    if model.time_features % 2:
        yield (
            f"model.time_features={model.time_features} must be even (a cosine and a sine each); "
            f"use e.g. model.time_features={model.time_features + 1}."
        )
    if model.time_features and not getattr(goal, "timed", False):
        yield (
            f"model.time_features={model.time_features} wants a time, which objective={name!r} does not tell; "
            "use model.time_features=0."
        )
    if model.self_condition and not getattr(goal, "predicts_twice", False):
        yield (
            f"model.self_condition=True wants an earlier prediction, which objective={name!r} does not make; "
            "use model.self_condition=False."
        )
    if model.roles == 1:
        yield "model.roles=1 adds one vector to all tokens; use model.roles=2, for what is given and what is written."
    if model.roles and not getattr(goal, "tells_roles", False):
        yield (
            f"model.roles={model.roles} wants to know who a token comes from, which objective={name!r} does not tell; "
            "use objective='next_token'."
        )
    if config.loss.z_loss and not getattr(goal, "adds_z_loss", False):
        yield f"loss.z_loss={config.loss.z_loss} has no meaning for objective={name!r}; use loss.z_loss=0.0."
    if model.attention.window and getattr(goal, "laid_out_twice", False):
        yield (
            f"model.attention.window={model.attention.window} counts tokens of a row, which objective={name!r} lays "
            "out twice; use model.attention.window=0."
        )
    if hasattr(goal, "problems"):
        yield from goal.problems(config.to_dict().get(name, {}), facts)
    yield from sampling_problems(config, config.generate)


def sampling_problems(config: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Settings of generation, as `config.generate`, that the objective of `config` has no sampler for."""
    from models.decoding.drafts import DRAFTERS
    from models.objectives import OBJECTIVES

    chosen, name = options["diffusion"], config.objective
    generator = OBJECTIVES[name].generator
    if generator != "canvas":
        drafter, own = options["drafter"], options.get(options["drafter"], {})
        if generator == "autoregressive":
            yield from DRAFTERS[drafter](**own).problems(config)
        if generator != "autoregressive" and chosen["method"]:
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
