"""The keys of a config and what each may hold, judged without jax: unknown, missing, of another type, out of range, or
set although nothing reads it. All of it follows from configs/knobs.

Rules about several keys together are in `experiments/preflight`.
"""

import difflib
import functools
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from configs import base as base_config
from configs import knobs
from experiments.settings.errors import ConfigError


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


# Tuples of groups, with an example of one.
_SETTINGS = {
    "data.components": "{'source': 'stdlib', 'weight': 1.0}",
    "model.by_position": "{'attention': {'window': 512}}",
}


def _element_problems(key: str, value: Any) -> Iterator[str]:
    """The elements of a tuple: settings in those of `_SETTINGS`, else text."""
    mapping = key in _SETTINGS
    for i, element in enumerate(value):
        if not isinstance(element, Mapping if mapping else str):
            like = f"a group like {_SETTINGS[key]}" if mapping else f"text, e.g. {key}=('a', 'b')"
            yield f"{key}[{i}]={short(element)} must be {like}."


def short(value: Any, limit: int = 80) -> str:
    try:
        text = repr(value)
    except ValueError:  # A whole number of more than 4,300 digits.
        text = f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _list(names: Any, limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _kind(default: Any) -> str:
    return {bool: "bool", int: "whole number", float: "number", str: "text", tuple: "tuple"}[type(default)]


def _huge(value: int | float) -> bool:
    """Whether a whole number is beyond every float; of floats none is, infinity neither."""
    return isinstance(value, int) and abs(value) > sys.float_info.max


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and value == value and not _huge(value)
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
    """Sentences about numbers outside their range.

    Args:
      config: a plain dict.
      only: prefix of the keys to judge; "" is all.
    """
    for key, value in flatten(config).items():
        if not key.startswith(only) or not isinstance(value, int | float | tuple | list) or isinstance(value, bool):
            continue
        limit, knob = f"{short(value, 40)} must", knobs.KNOBS[key]
        example = f"e.g. {knob.default!r}."
        if knob.least is not None and knob.most is not None:
            if not knob.least <= value <= knob.most:
                yield f"{key}={limit} lie between {knob.least:g} and {knob.most:g}, {example}"
        elif knob.least is not None and value < knob.least:
            yield f"{key}={limit} {'be at least ' + f'{knob.least:g}' if knob.least else 'not be negative'}, {example}"
        elif isinstance(value, int | float) and not abs(value) < 2**31:
            yield f"{key}={limit} be below {2**31}, {example}"
        elif key == "generate.stop" and "" in value:
            yield f"{key}={limit} not hold the empty text, which stops at once; e.g. ('\\n\\n',)."


def unread_problems(config: Mapping, only: Collection[str] | None = None) -> Iterator[str]:
    """Settings other than their defaults that nothing reads, because the parts that would are not named.

    Args:
      config: a plain dict with every key.
      only: keys to judge; None: all.
    """
    flat = flatten(config)
    unread = functools.cache(lambda: knobs.unread(flat))
    for key in knobs.KNOBS if only is None else only:
        default = knobs.KNOBS[key].default
        reasons = () if flat[key] == default else knobs.without(knobs.KNOBS[key], flat)
        if not reasons:  # What is not read by way of another setting is told there.
            continue
        told = " and ".join(f"{way.key}={short(flat[way.key], 40)}" for way in reasons)
        verb = "with" if reasons[0].names == ("*",) else "by"
        instead = _read_instead(key, reasons, flat, unread())
        yield f"{key}={short(flat[key], 40)} is not used {verb} {told}{instead}; use {key}={short(default, 40)}."


def _read_instead(key: str, reasons: Collection[knobs.Reader], flat: Mapping[str, Any], unread: Collection[str]) -> str:
    """ "; it reads ..." with keys that the parts in the places of `reasons` do read, of the same group if there are."""
    places = {way.key for way in reasons}
    read = [
        other
        for other, knob in knobs.KNOBS.items()
        if other in flat and other not in unread
        and any(way.key in places and way.names != ("*",) for ways in knob.of for way in ways)
    ]  # fmt: skip
    near = [other for other in read if other.split(".")[0] == key.split(".")[0]] or read
    return f"; it reads {_list(near, 4)}" if near else ""


def tidy(config: Any) -> dict[str, Any]:
    """Sets what nothing reads to its default, in place. Returns what was changed, with the value that it had."""
    flat, changed = flatten(config.to_dict()), {}
    for key in knobs.unread(flat):
        if flat[key] != knobs.KNOBS[key].default:
            changed[key] = flat[key]
            assign(config, key, knobs.KNOBS[key].default)
    return changed


def assign(config: Any, key: str, value: Any) -> None:
    """Sets the dotted key of a config or a nested dict."""
    *groups, leaf = key.split(".")
    for name in groups:
        config = config[name]
    config[leaf] = value
