"""What the parts of a model say of themselves: which of their options do not go with the rest of the config."""

from collections.abc import Iterator
from typing import Any

from models.facts import Facts


def problems(config: Any, facts: Facts) -> Iterator[str]:
    """Heads that mixers cannot share, then what each mixer, the channel and the projection say of their options."""
    from models.channels import CHANNELS
    from models.mixers import MIXERS
    from models.projections import PROJECTIONS

    model = config.model
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
    yield from dict.fromkeys(told)  # Projection and channel may be of one kind, with one group of options.
