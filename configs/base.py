"""The config with the house defaults, from which an experiment starts to state only what differs.

    config = base.get_config()
    config.model.num_layers = 12

Every knob stands once, with its sentence, in configs/knobs (docs/knobs.md is the same as one page). A part is named in
its socket (`config.model.mixer = "attention"`) and reads the group that carries its name (`config.model.attention`), so
that one line swaps the part and nothing else.
"""

import difflib

from ml_collections import ConfigDict

from configs import knobs


def get_config() -> ConfigDict:
    """The whole configuration with the house defaults: a small byte-level Transformer."""
    return ConfigDict(knobs.defaults())


def choose(key: str, value: str, table: dict):
    """`table[value]`, or a ValueError that names the key, the value and the nearest name."""
    if value in table:
        return table[value]
    near = difflib.get_close_matches(value, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{key}={value!r} is unknown; {hint}choose one of: {', '.join(table)}.")
