"""The keys of a config and what each may hold, judged without jax: unknown, missing, of another type, out of range.

What several keys make together is the preflight's.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from configs import base as base_config
from experiments.settings.errors import ConfigError
from experiments.settings.limits import NOT_NEGATIVE, POSITIVE, SHARES


def base() -> dict[str, Any]:
    """The house defaults as a plain dict: what a report compares a config with."""
    return base_config.get_config().to_dict()


def check_keys(config: Any) -> None:
    """Raises ConfigError for unknown keys, missing keys and wrong types: the part that needs no other module."""
    if problems := list(shape_problems(config.to_dict(), base())):
        raise ConfigError(problems)


def suggest(name: str, names: Any) -> str:
    """ "did you mean ...? " when a name is near, else ""."""
    near = difflib.get_close_matches(str(name), list(map(str, names)), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; tuples and lists are values."""
    flat = {}
    for key, value in tree.items():
        nested = flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        flat |= nested
    return flat


def shape_problems(config: Mapping, reference: Mapping, prefix: str = "") -> Iterator[str]:
    """Unknown keys, missing keys, wrong types."""
    for key in config:
        if key not in reference:
            yield f"{prefix}{key} is not a key of the config; {suggest(key, reference)}Known here: {_list(reference)}."
    for key, default in reference.items():
        if key not in config:
            yield f"{prefix}{key} is missing; its default is {short(default)}."
            continue
        value = config[key]
        if isinstance(default, Mapping):
            if isinstance(value, Mapping):
                yield from shape_problems(value, default, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}={short(value)} must be a group with the keys {_list(default)}."
        elif not _same_type(value, default):
            kind = "" if isinstance(value, float) and value != value else f"is a {type(value).__name__}; it "
            yield f"{prefix}{key}={short(value)} {kind}must be a {_kind(default)}, e.g. {default!r}."
        elif isinstance(default, tuple):
            yield from _element_problems(f"{prefix}{key}", value)


def _element_problems(key: str, value: Any) -> Iterator[str]:
    """The elements of a tuple: settings of a source in data.components, else text."""
    mapping = key == "data.components"
    for i, element in enumerate(value):
        if not isinstance(element, Mapping if mapping else str):
            like = "a group like {'source': 'stdlib', 'weight': 1.0}" if mapping else f"text, e.g. {key}=('a', 'b')"
            yield f"{key}[{i}]={short(element)} must be {like}."


def short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _list(names: Any, limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _kind(default: Any) -> str:
    return {bool: "bool", int: "whole number", float: "number", str: "text", tuple: "tuple"}[type(default)]


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and value == value
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))


def unknown_names(flat: Mapping[str, Any], choices: Mapping[str, Any]) -> Iterator[str]:
    """Values that are not among the choices of their key."""
    for key, table in choices.items():
        if flat[key] not in table:
            names = ", ".join(name or '""' for name in table)
            yield f"{key}={short(flat[key])} is unknown; {suggest(flat[key], table)}choose one of: {names}."


def range_problems(config: Mapping, only: str = "") -> Iterator[str]:
    """Numbers outside their range. `config` is a plain dict; `only`: keys that start so."""
    flat, defaults = flatten(config), flatten(base())
    for key, value in flat.items():
        if not key.startswith(only) or not isinstance(value, int | float | tuple | list) or isinstance(value, bool):
            continue
        limit = f"{short(value, 40)} must"
        if key in SHARES:
            least, most = SHARES[key]
            if not least <= value <= most:
                yield f"{key}={limit} lie between {least:g} and {most:g}, e.g. {defaults[key]!r}."
        elif key in POSITIVE and value < 1:
            yield f"{key}={limit} be at least 1, e.g. {defaults[key]!r}."
        elif key in NOT_NEGATIVE and value < 0:
            yield f"{key}={limit} not be negative, e.g. {defaults[key]!r}."
        elif isinstance(value, int | float) and not abs(value) < 2**31:
            yield f"{key}={limit} be below {2**31}, e.g. {defaults[key]!r}."
        elif key == "generate.stop" and "" in value:
            yield f"{key}={limit} not hold the empty text, which stops at once; e.g. ('\\n\\n',)."
