"""From the file of a sweep to its trials: plain configs, named, counted and checked before anything runs.

A file of configs/sweeps has `get_sweep() -> dict` with the keys

    base       a ConfigDict
    trials     a list of {dotted key: value}, one for each trial; a value may be a function of the trial's config, which
               is called when all plain values are set
    grid       {dotted key: list of values}: every combination, with each of `trials`
    search     settings of `experiments.sweep.search`, which asks Optuna for values instead; the ends of its ranges are
               checked before anything runs, what lies between before its batch
    study      settings of `experiments.scaling.study`, run on the finished table
    resources  what a launcher for many machines should ask for, in that library's own words
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import knobs
from experiments import preflight
from experiments import workdir as files
from experiments.settings import keys, overrides, smoke
from experiments.settings.errors import ConfigError, Refused
from experiments.workdir.saved import as_begun, came_later, check_workdir, holds_checkpoint

KEYS = ("base", "trials", "grid", "search", "study", "resources")
# Groups of a config that do not change what is built, and so neither its FLOPs nor whether it can be.
_NOT_BUILT = ("seed", "eval", "generate", "checkpoint", "init", "train.steps", "train.log_every")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run.

    name: differs from those of the other trials.
    values: the settings of this trial, dotted key -> plain value.
    config: locked.
    digest: hash of the config and name of the folder.
    placed: name of an older folder with the run, if there is one.
    """

    name: str
    values: dict[str, Any]
    config: ConfigDict
    digest: str


def load(path: str) -> dict[str, Any]:
    """The sweep of `FILE.py` or `FILE.py:preset`. Refused where its keys are not those of a sweep."""
    sweep = overrides.load(path, "get_sweep", dict)
    for key in sweep:
        if key not in KEYS:
            raise Refused(
                f"--config={path}: {key!r} is not a key of a sweep; {keys.suggest(key, KEYS)}use {', '.join(KEYS)}."
            )
    listed = sweep.get("trials", [{}])
    if not (isinstance(listed, list | tuple) and listed and all(isinstance(values, Mapping) for values in listed)):
        raise Refused(f"--config={path}: trials must be a list of {{dotted key: value}}, e.g. [{{'model.width': 64}}].")
    for key, values in sweep.get("grid", {}).items():
        if not (isinstance(values, list | tuple) and values):
            raise Refused(f"--config={path}: grid[{key!r}]={values!r} is no list of values; use e.g. [0, 1].")
    if not isinstance(sweep.get("base"), ConfigDict):
        raise Refused(f"--config={path}: base={sweep.get('base')!r} is no config; use e.g. base.get_config().")
    return sweep


def points(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each trial: every entry of `trials` with every combination of `grid`."""
    grid = sweep.get("grid", {})
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [{**trial, **chosen} for trial in sweep.get("trials") or [{}] for chosen in combinations]


def resolve(
    base: ConfigDict,
    chosen: Sequence[Mapping[str, Any]],
    changes: Sequence[overrides.Override] = (),
    *,
    shrink: bool = False,
    named: Collection[str] = (),
    read: Collection[str] = (),
    workdir: pathlib.Path | None = None,
) -> list[Trial]:
    """Trials of plain configs, each once. Values of the command line, `changes`, win; functions see them, too.

    A setting that one trial reads and another does not (of a mixer, in a sweep over mixers) has its default in the
    other, whose `values` leave it out. A setting that no trial reads is left for the preflight to refuse.

    Args:
      shrink: the smoke form of each.
      named: keys that are in every name, even where all trials agree.
      read: keys that other trials of the sweep read.
      workdir: of the sweep. Where an older house made trials there, all are made as those were, so that they compare.

    Errors: ConfigError with the problems of all trials, each with its name.
    """
    late = {key for values in chosen for key, value in values.items() if callable(value)}
    early = [{key: value for key, value in values.items() if key not in late} for values in chosen]
    configs, plain, problems = [], [], []
    base = overrides.renamed(base.copy_and_resolve_references().unlock())
    changes = overrides.today(base, list(changes))  # By the base's sizes: all trials measure the same rows.
    for name, values, simple in zip(_names(early, (), named), chosen, early, strict=True):
        config = base.copy_and_resolve_references()
        found = [_set(config, key, value) for key, value in simple.items()]
        overrides.apply(config, changes)
        found += [_set(config, key, _called(value, config)) for key, value in values.items() if key in late]
        overrides.apply(config, changes)
        problems += [f"trial {name!r}: {text}" for text in found if text]
        configs.append(config)
        if not any(found):
            plain.append({key: overrides.value_at(config, key) for key in values})
    if problems:
        raise ConfigError(problems)
    if shrink:
        configs = [overrides.apply(smoke.shrink(config), changes) for config in configs]
    if workdir is not None and (later := _came_later(workdir)):
        configs = [as_begun(config, workdir, later) for config in configs]
    some = read_by(configs) | set(read)
    plain = [_own(config, values, some) for config, values in zip(configs, plain, strict=True)]
    trials: dict[str, Trial] = {}
    for name, values, config in zip(_names(plain, late, named), plain, configs, strict=True):
        digest = files.config_hash(config.to_dict())
        trials.setdefault(digest, Trial(name, values, config.lock(), digest))
    return list(trials.values())


def _came_later(workdir: pathlib.Path) -> dict[str, Any]:
    """Knobs that came after the oldest trials in `workdir`, with the values under which those were made."""
    return {key: value for run in files.folders(workdir).values() for key, value in came_later(run).items()}


def read_by(configs: Sequence[ConfigDict]) -> set[str]:
    """Keys that at least one of `configs` reads."""
    flats = [keys.flatten(config.to_dict()) for config in configs]
    return {key for flat in flats for key in flat.keys() - knobs.unread(flat).keys()}


def _own(config: ConfigDict, values: Mapping[str, Any], some: Collection[str]) -> dict[str, Any]:
    """`values` without settings that only other trials read; these get their defaults in the config."""
    foreign = set(knobs.unread(keys.flatten(config.to_dict()))) & set(some)
    for key in foreign:
        keys.assign(config, key, knobs.KNOBS[key].default)
    return {key: value for key, value in values.items() if key not in foreign}


def placed(trials: Sequence[Trial], workdir: pathlib.Path) -> list[Trial]:
    """The trials, each with the name of the folder of `workdir` that holds its run, if one does."""
    found = files.folders(workdir)
    return [
        dataclasses.replace(trial, digest=found[trial.digest].name) if trial.digest in found else trial
        for trial in trials
    ]


def _set(config: ConfigDict, key: str, value: Any) -> str:
    """Sets one key and returns the problem with it, "" if there is none."""
    if problem := overrides.unknown(config, key.split(".")):
        return problem.replace("--config.", "")
    if isinstance(value, Exception):
        return f"{key} cannot be computed: {type(value).__name__}: {value}; correct its function."
    before = overrides.value_at(config, key)
    if isinstance(before, ConfigDict):
        return f"{key}={value!r} replaces a group; set one of its keys, e.g. {key}.{next(iter(before))}."
    group, _, leaf = key.rpartition(".")
    try:
        overrides.value_at(config, group)[leaf] = value
    except (TypeError, ValueError):
        return f"{key}={value!r} is a {type(value).__name__}; use a value like {before!r}."
    return ""


def _called(value: Any, config: ConfigDict) -> Any:
    """The result of a function of the config, or the exception that it raises; other values unchanged."""
    if not callable(value):
        return value
    try:
        return value(config)
    except Exception as error:  # A person's function: anything may be wrong with it.
        return error


def _names(
    chosen: Sequence[Mapping[str, Any]], computed: Collection[str] = (), named: Collection[str] = ()
) -> list[str]:
    """Names of the trials: the settings that differ, by the last word of each key if that is enough: "width=64 seed=1".

    A `computed` key is in the names if trials differ in nothing else, a key of `named` always.
    """
    keys = dict.fromkeys(key for values in chosen for key in values)
    varied = [key for key in keys if key in named or len({repr(values.get(key)) for values in chosen}) > 1]
    kept = [key for key in varied if key not in computed]
    for key in varied:
        if key in computed and _distinct(chosen, [*kept, key]) > _distinct(chosen, kept):
            kept.append(key)
    leaves = [key.rpartition(".")[2] for key in kept]
    short = {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(kept, leaves, strict=True)}
    return [" ".join(f"{short[k]}={_shown(values[k])}" for k in kept if k in values) or "base" for values in chosen]


def _distinct(chosen: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> int:
    return len({repr([values.get(key) for key in keys]) for values in chosen})


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def check(trials: Sequence[Trial], workdir: pathlib.Path) -> dict[str, float]:
    """The whole preflight of every trial, its corpus and its structure; then the training FLOPs of each, by digest.

    Corpora are read (and so cached) here, once, before several processes ask for the same one. Errors: ConfigError
    with the problems of all trials, each with its name.
    """
    import jax

    problems = []
    for trial in trials:
        try:
            begun = holds_checkpoint(str(workdir / trial.digest))
            preflight.check(trial.config, num_devices=jax.device_count(), begun=begun)
            preflight.check_platform(trial.config, jax.default_backend())
            check_workdir(trial.config, workdir / trial.digest)
        except ConfigError as error:
            problems += [f"trial {trial.name!r}: {text}" for text in error.problems]
    if problems:
        raise ConfigError(problems)
    return _work(trials)


def _work(trials: Sequence[Trial]) -> dict[str, float]:
    """Training FLOPs by digest; a trial that cannot be built, or does not fit its corpus, is refused."""
    from experiments.preflight import corpus as preflight_corpus
    from experiments.program import build, counting, inputs, sharding

    corpora, flops, work, problems = {}, {}, {}, []
    for trial in trials:
        config = trial.config
        key = files.digest({**config.data.to_dict(), "batch_size": 0, "length": 0})
        try:
            if key not in corpora:
                corpora[key] = inputs.load(config)
            preflight_corpus.check_corpus(config, corpora[key])
            kind = _kind(config)
            if kind not in flops:
                vocabulary = corpora[key].tokenizer.vocab_size
                program = build(config, vocab_size=vocabulary, mesh=sharding.make_mesh(config))
                preflight_corpus.check_memory(program)
                flops[kind] = counting.flops_per_token(program)["total"]
        except ConfigError as error:
            problems += [f"trial {trial.name!r}: {text}" for text in error.problems]
        except (ValueError, OSError) as error:
            problems.append(f"trial {trial.name!r}: {error}")
        else:
            tokens = config.train.steps * config.data.batch_size * config.data.length
            work[trial.digest] = tokens * flops[kind]
    if problems:
        raise ConfigError(problems)
    return work


def _kind(config: ConfigDict) -> str:
    flat = keys.flatten(config.to_dict())
    return files.digest({key: value for key, value in flat.items() if not key.startswith(_NOT_BUILT)})
