"""Which settings decide the numbers of a run: what two starts of one run must share, and what names a trial's folder.

A new knob must change nothing here for runs that were made without it: a knob at the value under which they were made
(`before`) is left out, as is every knob that nothing in the config reads.
"""

from collections.abc import Mapping
from typing import Any

from configs import knobs
from experiments.settings.keys import flatten

# Keys that may change between two starts of one run: they decide nothing about its numbers.
NOT_IDENTITY = (
    "generate", "plan", "eval.sample_prompt", "train.profile_step", "train.profile_steps", "train.wandb"
)  # fmt: skip


def canonical(config: Mapping) -> dict[str, Any]:
    """Dotted key -> value of what decides the numbers of a run. Keys that the house does not know are kept."""
    flat = flatten(config)
    out = {key for key in flat if key.startswith(NOT_IDENTITY)} | set(knobs.unread(flat))
    out |= {key for key, knob in knobs.KNOBS.items() if key in flat and same(flat[key], knob.before)}
    return {key: value for key, value in flat.items() if key not in out}


def differing(old: Mapping, new: Mapping) -> list[str]:
    """Dotted keys that decide the numbers of one of two configs, and are not the same in both."""
    decide = {**canonical(old), **canonical(new)}
    old, new = flatten(old), flatten(new)
    return [key for key in {**old, **new} if key in decide and not same(old.get(key), new.get(key))]


def same(a: Any, b: Any) -> bool:
    """Equality under which a tuple equals the list that JSON makes of it."""
    listed = lambda x: [listed(i) for i in x] if isinstance(x, tuple | list) else x  # noqa: E731
    return listed(a) == listed(b)


MAY_CHANGE = {  # Key or group that may change between two starts of one run -> why the run stays itself.
    "mesh": "the same numbers on other devices, to rounding",
    "sharding": "where arrays lie",
    "parallel": "how devices exchange what they share",
    "eval": "what is measured, not what is trained",
    "checkpoint": "when a run saves, and what it keeps",
    "train.log_every": "lines of metrics",
    "data.cache_dir": "where tokens are kept",
    "data.path": "moved data: the hash of the corpus must be the same",
    "data.components": "moved data: the hash of the corpus must be the same",
} | dict.fromkeys(NOT_IDENTITY, "nothing of it is trained") | {
    key: "a moved companion: the checksum of its parameters must be the same"
    for key in knobs.KNOBS if key.startswith("companions.") and key.endswith(".workdir")
}  # fmt: skip
MAY_GROW = ("train.steps",)  # A run can be made longer, never shorter.
ABSENT = type("Absent", (), {"__repr__": lambda self: "absent"})()


def another_run(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """Key -> (old, new) for each difference that makes `new` the config of another run; empty for the same run.

    This alone decides whether a start resumes the run that is there. A key that one of them lacks is `ABSENT` there.
    """
    before, now = flatten(old), flatten(new)
    pairs = {key: (before.get(key, ABSENT), now.get(key, ABSENT)) for key in differing(old, new)}
    return {key: pair for key, pair in pairs.items() if not _may_change(key, *pair)}


def _may_change(key: str, old: Any, new: Any) -> bool:
    if key in MAY_GROW and isinstance(old, int) and isinstance(new, int):
        return new > old
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
