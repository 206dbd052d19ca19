"""The names that a knob takes, from the tables of the house."""

import importlib

from configs import knobs


def names(knob: knobs.Knob) -> tuple[str, ...]:
    """The names that a knob takes: its own, and those of its table, "module:NAME" or "module:NAME.key"."""
    if not knob.table:
        return knob.choices
    module, _, path = knob.table.partition(":")
    name, _, key = path.partition(".")
    table = getattr(importlib.import_module(module), name)
    return (*knob.choices, *(table[key] if key else table))
