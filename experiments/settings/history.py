"""How a config that an older house saved reads today: keys that were renamed or changed their meaning, and keys that
came later.

A knob that is added needs nothing here: its line in configs/knobs says `before=`, the value under which runs were made
that lack the key. A key that goes away or changes its meaning needs a line in `CHANGES`: a function of the whole config
(dotted key -> value) that gives the config as it would be written today. It must leave a config of today alone, so it
acts on the old key, which no longer exists. For one key under another name:

    renamed("eval.batches", "eval.rows", value=rows_of)
"""

from collections.abc import Callable, Mapping
from typing import Any

from configs import knobs
from experiments.settings.identity import same
from experiments.settings.keys import flatten

Change = Callable[[dict[str, Any]], dict[str, Any]]


def renamed(old: str, *new: str, value: Callable[[Any, Mapping], Any] = lambda value, flat: value) -> Change:
    """A change by which the key `old` became `new` (one or several keys), each `value(old value, flat config)`."""

    def change(flat: dict[str, Any]) -> dict[str, Any]:
        if old not in flat:
            return flat
        rest = {key: kept for key, kept in flat.items() if key != old}
        return {**rest, **{key: value(flat[old], flat) for key in new}}

    return change


def rows_of(batches: Any, flat: Mapping[str, Any]) -> Any:
    """`eval.rows` where a config says `eval.batches`: the rows that one device evaluated then. A value that is damaged
    stays, and is refused like any other."""
    try:
        return batches * (flat.get("eval.batch_size") or flat["data.batch_size"] // flat["train.accumulation"])
    except (KeyError, TypeError, ZeroDivisionError):
        return batches


def control_renamed(old: str, new: str) -> Change:
    """A change by which an entry of `generate.control` has another name; its options are renamed by themselves."""

    def change(flat: dict[str, Any]) -> dict[str, Any]:
        named = flat.get("generate.control")
        if not isinstance(named, str):
            return flat
        names = [new if name.strip() == old else name for name in named.split(",")]
        return {**flat, "generate.control": ",".join(names)}

    return change


CHANGES: tuple[Change, ...] = (  # In the order in which they came.
    renamed("eval.batches", "eval.rows", value=rows_of),
    renamed("generate.exits.threshold", "generate.early_exit.threshold"),
    renamed("generate.exits.stops", "generate.early_exit.stops"),
    control_renamed("exits", "early_exit"),
)


def filled(saved: Mapping) -> dict[str, Any]:
    """The nested config `saved` as today's house would write it: changed keys, then keys that came later."""
    flat = changed(saved)
    return knobs.nested({**flat, **later(flat)})


def changed(saved: Mapping) -> dict[str, Any]:
    """The nested config `saved` after all `CHANGES`: dotted key -> value."""
    flat = flatten(saved)
    for change in CHANGES:
        flat = change(flat)
    return flat


def later(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that came after a saved config (dotted key -> value), with the values under which its run was made."""
    damaged = tuple(f"{key}." for key in flat)  # A value where a group belongs: told elsewhere.
    return {
        key: knob.before
        for key, knob in knobs.KNOBS.items()
        if key not in flat and knob.before is not knobs.NEVER and not key.startswith(damaged)
    }


def came_later(record: Mapping[str, Any]) -> dict[str, Any]:
    """Knobs that came after a run began, with the values under which it was made.

    Args:
      record: the run's config.json. The knobs are those that its config lacks, and those listed in `record["later"]`:
        what it lacked when a newer version wrote the file again.
    """
    flat, noted = changed(record["config"]), record.get("later", [])
    values = {key: knobs.KNOBS[key].before for key in noted if isinstance(key, str) and key in knobs.KNOBS}
    return {key: value for key, value in values.items() if key in flat and same(flat[key], value)} | later(flat)
