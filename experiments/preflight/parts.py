"""What the parts of a model say of themselves: which of their options do not go with the rest of the config."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from configs import knobs
from experiments.preflight.tables import names
from experiments.settings.keys import flatten, range_problems, shape_problems, short, unknown_names
from models.facts import Facts, merged


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
    parts += [(model.channel, CHANNELS[model.channel]), (model.projection, PROJECTIONS[model.projection])]
    told = [
        problem for name, part in parts if hasattr(part, "problems")
        for problem in part.problems(facts.model.get(name, {}), facts)
    ]  # fmt: skip
    for place, differs in enumerate(facts.model["by_position"]):
        if place < len(model.mixer.split(",")):
            name = model.mixer.split(",")[place].strip()
            changed = merged(facts.model, differs)
            if hasattr(MIXERS[name], "problems"):
                told += MIXERS[name].problems(changed.get(name, {}), dataclasses.replace(facts, model=changed))
    yield from dict.fromkeys(told)  # Projection and channel may be of one kind, with one group of options.


def position_problems(facts: Facts) -> Iterator[str]:
    """What is wrong with `model.by_position`: its length, options that are not there, values that cannot be."""
    mixers = [name.strip() for name in facts.model["mixer"].split(",")]
    told = facts.model["by_position"]
    if told and len(told) != len(mixers):
        yield (
            f"model.by_position has {len(told)} groups and model.mixer {len(mixers)} names; give one for each, "
            "{} where nothing differs."
        )
        return
    for i, (mixer, differs) in enumerate(zip(mixers, told, strict=False)):
        parts = {mixer, facts.model["channel"], facts.model["projection"]}
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
