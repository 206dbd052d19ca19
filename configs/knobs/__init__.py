"""Every knob of the house: a line each, in the file of what reads it. `KNOBS` is all of them, by dotted key.

The config (`configs.base.get_config`), ranges and names that the preflight knows, smoke sizes, docs/knobs.md, what is
refused because nothing reads it, and the identity of a run all come from these lines. A new part brings its group in
the file of its kind, and nothing else: what stands in `mixers` and `channels` is `model.NAME`, the rest is `NAME`.
"""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from configs.knobs import channels, data, decoding, mixers, model, objectives, run, training
from configs.knobs.kinds import NEVER, Group, Knob, Reader, group, part, whole

__all__ = ["GROUPS", "KNOBS", "NEVER", "Knob", "Reader", "defaults", "nested", "unread", "without"]


def _groups(room: ModuleType) -> Iterator[tuple[str, Group]]:
    return ((name, value) for name, value in vars(room).items() if isinstance(value, Group))


def _all() -> Group:
    top = group()
    top.seed = whole(
        0, "Folds into initialisation, data order and sampling; nothing else draws random numbers.", least=0
    )
    top.objective = part("next_token", "models.objectives:OBJECTIVES", "What is learned.")
    top.data, top.model, top.generate = data.data, model.model, decoding.generate
    for room in (mixers, channels):
        for name, value in _groups(room):
            setattr(top.model, name, value)
    for room in (objectives, training, run):
        for name, value in _groups(room):
            setattr(top, {"evaluation": "eval"}.get(name, name), value)  # `eval` is Python's own.
    return top


_TOP = _all()
KNOBS: dict[str, Knob] = dict(_TOP.knobs())
GROUPS: dict[str, str] = dict(_TOP.sentences())  # the sentence of every group


def defaults() -> dict[str, Any]:
    """The default of every knob, as a nested dict."""
    return nested({key: knob.default for key, knob in KNOBS.items()})


def nested(flat: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """The nested dict of values by joined key, e.g. {"model.width": 256} -> {"model": {"width": 256}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(separator)
        at = tree
        for name in groups:
            at = at.setdefault(name, {})
        at[leaf] = value
    return tree


def without(knob: Knob, flat: Mapping[str, Any]) -> tuple[Reader, ...]:
    """Why nothing reads `knob` in a config (dotted key -> value): readers of which none is there; () where it is read.

    A key that is absent is no reason.
    """
    for ways in knob.of:
        if not any(way.key not in flat or way.matches(flat[way.key]) for way in ways):
            return ways
    return ()


def unread(flat: Mapping[str, Any]) -> dict[str, tuple[Reader, ...]]:
    """Keys of a config (dotted key -> value) that nothing in it reads, and why: see `without`."""
    found: dict[str, tuple[Reader, ...]] = {}
    flat = dict(flat)
    while True:
        more = {key: without(knob, flat) for key, knob in KNOBS.items() if key in flat and key not in found}
        more = {key: reason for key, reason in more.items() if reason}
        if not more:
            return found
        found |= more
        flat |= {key: KNOBS[key].default for key in more}  # A part that is named where nothing reads it reads nothing.
