"""Runs that differ in their seeds only, as groups with a label: what a page of several runs compares."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from experiments import workdir as files
from experiments.report import data
from experiments.report.data import BITS, Run, number
from experiments.workdir import provenance

SETTINGS, CHARACTERS = 3, 48  # at most in a label
SEARCHED = 24  # settings, the first that differ, among which those that tell groups apart are looked for


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one config that differ in their seeds only."""

    runs: tuple[Run, ...]
    label: str = ""

    @property
    def seeds(self) -> list[tuple]:
        return [seeds(run) for run in self.runs]


def seeds(run: Run) -> tuple:
    """All values of a run's config whose key is `seed`, in order of their keys, but for those of generation."""
    return tuple(json.dumps(value) for key, value in sorted(run.config.items()) if _is_seed(key))


def _is_seed(key: str) -> bool:
    return key.split(".")[-1] == "seed" and not key.startswith("generate.")


def group(runs: Sequence[Run], names: Sequence[str] = ()) -> list[Group]:
    """Groups runs by their config without its seeds, in order of first appearance, and labels each group.

    Args:
      runs: to be grouped. A run without a config stands alone.
      names: what each run is called, if the one who asks knows: a group has the name of its first run. Else labels are
        the settings that differ; where these are many, up to three that tell all groups apart, those of few values
        first (of a grid of widths and mixers these two, not the steps that follow from them); or the names of the
        workdirs.
    """
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        rest = {key: value for key, value in run.config.items() if not _is_seed(key)}
        found.setdefault(files.digest(rest) if rest else f"alone {i}", []).append(i)
    firsts = [some[0] for some in found.values()]
    labels = [names[i] for i in firsts] if names else _labels([runs[i] for i in firsts])
    if len(set(labels)) < len(labels):
        labels = [runs[i].name for i in firsts]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i + 1})" for i, label in enumerate(labels)]
    parts = [tuple(runs[i] for i in some) for some in found.values()]
    return [Group(part, label) for part, label in zip(parts, labels, strict=True)]


def _labels(firsts: Sequence[Run]) -> list[str]:
    """A label for the first run of each group, see `group`."""
    differing = [key for key in differences(firsts) if not _is_seed(key)]
    values = {key: len({json.dumps(run.config.get(key)) for run in firsts}) for key in differing[:SEARCHED]}
    some = [keys for count in range(1, SETTINGS + 1) for keys in itertools.combinations(values, count)]
    some.sort(key=lambda keys: max(values[key] for key in keys))  # What has few values was chosen, not derived.
    for keys in itertools.chain([differing] if len(differing) <= SETTINGS else [], some):
        made = [", ".join(_setting(key, run.config[key]) for key in keys if key in run.config) for run in firsts]
        if len(set(made)) == len(made) and max(map(len, made)) <= CHARACTERS:
            return [label or run.name for label, run in zip(made, firsts, strict=True)]
    return [run.name for run in firsts]


def _setting(key: str, value: Any) -> str:
    name = key.split(".")[-1].replace("_", " ")
    if isinstance(value, float):  # A name need not have all digits; the table of settings has them.
        value = float(f"{value:.4g}")
    return str(value) if isinstance(value, str) and value else f"{name} {value}"


def differences(runs: Sequence[Run]) -> list[str]:
    """The config keys, in order of appearance, whose values are not the same in all runs; missing counts as a value."""
    configs = [run.config for run in runs if run.config]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    absent = object()
    return [key for key in keys if any(config.get(key, absent) != configs[0].get(key, absent) for config in configs)]


def code_notes(runs: Sequence[Run]) -> list[str]:
    """Which runs were made by other code than the first one that says what made it: a sentence for each code."""
    told = [(run, data.mapping(run.run, "code")) for run in runs]
    told = [(run, code) for run, code in told if code.get("hash")]
    others: dict[str, list[str]] = {}
    for run, code in told[1:]:
        if said := provenance.differs(told[0][1], code):
            others.setdefault(said, []).append(run.name)
    return [
        f"{told[0][0].name} and {_listed(names)} were made by different code: {said}." for said, names in others.items()
    ]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} others ({', '.join([*names[:3], *['…'][: len(names) - 3]])})"


def finals(some: Group, key: str) -> list[float]:
    """The last value of `key` of every run."""
    return [number(run.last(key) or run.result, key) for run in some.runs]


def kinds(groups: Sequence[Group]) -> set[str]:
    """The kinds of likelihood of all runs, see `data.kind`."""
    return {data.kind(run.last(BITS) or {}) for some in groups for run in some.runs if run.metrics}


def outcomes(groups: Sequence[Group]) -> tuple[list[list[float]], float]:
    """Bits per byte of every run, by group, and the FLOPs at which they are read: NaN stands for the end of training.

    They are read at equal compute if the runs end at different compute and all were evaluated at the shared one.
    """
    shared = data.shared_compute([run for some in groups for run in some.runs])
    ends = [finals(some, BITS) for some in groups]
    equal = [[data.at_compute(run, shared) for run in some.runs] for some in groups]
    usable = all(math.isfinite(value) for values in equal for value in values)
    return (equal, shared) if usable and equal != ends else (ends, math.nan)
