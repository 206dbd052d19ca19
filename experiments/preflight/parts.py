"""What the parts of a model say of themselves: which of their options do not go with the rest of the config."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from configs import knobs
from experiments.preflight.tables import names
from experiments.settings.keys import flatten, range_problems, shape_problems, short, unknown_names
from models.facts import Facts, listed, merged

KINDS = ("experts", "small", "constant", "copy", "zero", "null")


def problems(config: Any, facts: Facts) -> Iterator[str]:
    """Heads that mixers cannot share, then what each mixer, the channel and the projection say of their options."""
    from models.channels import CHANNELS
    from models.mixers import MIXERS
    from models.projections import PROJECTIONS

    model = config.model
    if wrong := list(position_problems(facts)):
        yield from wrong
        return
    names = list(dict.fromkeys(name.strip() for name in model.mixer.split(",")))
    whole = [name for name in names if not getattr(MIXERS[name], "grouped", False)]
    if whole and model.num_kv_heads not in (0, model.num_heads):
        yield (
            f"model.num_kv_heads={model.num_kv_heads} is for attention, and model.mixer={whole[0]!r} has keys for "
            "every head; use model.num_kv_heads=0."
        )
    parts = [(name, MIXERS[name]) for name in names]
    parts += [(name, CHANNELS[name]) for name in dict.fromkeys(listed(model.channel))]
    parts += [(model.projection, PROJECTIONS[model.projection])]
    told = [
        problem for name, part in parts if hasattr(part, "problems")
        for problem in part.problems(facts.model.get(name, {}), facts)
    ]  # fmt: skip
    for (mixer, channel), differs in zip(_places(facts), facts.model["by_position"], strict=False):
        changed = merged(facts.model, differs)
        for name, part in ((mixer, MIXERS[mixer]), (channel, CHANNELS[channel])):
            if hasattr(part, "problems"):
                told += part.problems(changed.get(name, {}), dataclasses.replace(facts, model=changed))
    mixtures = [
        merged(facts.model, differs)["moe"]
        for (_, channel), differs in zip(_places(facts), facts.model["by_position"], strict=False) if channel == "moe"
    ]  # fmt: skip
    for name in ("k", *KINDS):
        if len({options[name] for options in mixtures}) > 1:
            told.append(f"model.by_position gives model.moe.{name} two values; layers report one, give all the same.")
    yield from dict.fromkeys(told)  # Projection and channel may be of one kind, with one group of options.


def _places(facts: Facts) -> list[tuple[str, str]]:
    """Mixer and channel of each place of the period."""
    mixers, channels = listed(facts.model["mixer"]), listed(facts.model["channel"])
    return [*zip(mixers, channels * len(mixers) if len(channels) == 1 else channels, strict=True)]


def position_problems(facts: Facts) -> Iterator[str]:
    """What is wrong with `model.channel` and `model.by_position`: their lengths, options and values that cannot be."""
    mixers, channels = listed(facts.model["mixer"]), listed(facts.model["channel"])
    told = facts.model["by_position"]
    if len(channels) not in (1, len(mixers)):
        yield (
            f"model.channel has {len(channels)} names and model.mixer {len(mixers)}; give one for all, or one for each."
        )
        return
    if told and len(told) != len(mixers):
        yield (
            f"model.by_position has {len(told)} groups and model.mixer {len(mixers)} names; give one for each, "
            "{} where nothing differs."
        )
        return
    for i, (place, differs) in enumerate(zip(_places(facts), told, strict=False)):
        parts = {*place, facts.model["projection"]}
        for name, options in differs.items():
            if name not in parts or not isinstance(facts.model.get(name), dict):
                known = " or ".join(sorted(repr(part) for part in parts if isinstance(facts.model.get(part), dict)))
                yield f"model.by_position[{i}] has {short(name)}, which is no part of that layer; use {known}."
                continue
            found = shape_problems({name: merged(facts.model[name], options)}, {name: knobs.defaults()["model"][name]})
            found = list(found) or [*range_problems({"model": {name: options}}), *_named(name, options)]
            yield from (f"model.by_position[{i}]: {problem}" for problem in found)


def _named(group: str, options: dict) -> Iterator[str]:
    """Names that are not in their tables."""
    flat = flatten({"model": {group: options}})
    tables = {key: names(knobs.KNOBS[key]) for key in flat if knobs.KNOBS[key].choices or knobs.KNOBS[key].table}
    yield from unknown_names(flat, tables)
