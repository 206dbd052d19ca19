"""Random and Bayesian search through Optuna, resumable to the same bits.

`sweep["search"]`: `method` (random, tpe), `space` ({dotted key: range}, a range being ("log", low, high),
("uniform", low, high), ("int", low, high) or ("choice", value, ...)), `trials` (how many), `batch` (asked together;
results become known to the search batch by batch, whatever `--jobs` is), `metric` (of result.json, the least is best),
`seed`.

Optuna's journal in the workdir holds finished trials only, in their order. The values of a batch depend on the trials
of earlier batches and on (seed, number of the trial), so a search that was killed asks for the same values again.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from experiments.settings.errors import Refused
from experiments.settings.keys import suggest
from experiments.workdir import disk

JOURNAL = "optuna.log"
METHODS = ("random", "tpe")
_DEFAULTS = {"method": "tpe", "trials": 20, "batch": 4, "metric": "eval/bits_per_byte", "seed": 0}
_RANGES = ("log", "uniform", "int", "choice")


def settings(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The search of a sweep with defaults. Errors: Refused, in one sentence, for a setting that cannot be."""
    given = dict(sweep["search"])
    known = (*_DEFAULTS, "space")
    for key in given:
        if key not in known:
            raise Refused(f"search.{key} is not a setting; {suggest(key, known)}use {', '.join(known)}.")
    made = _DEFAULTS | given
    if made["method"] not in METHODS:
        hint = suggest(made["method"], METHODS)
        raise Refused(f"search.method={made['method']!r} is unknown; {hint}choose one of: {', '.join(METHODS)}.")
    if not made.get("space"):
        raise Refused("search.space is empty; use e.g. {'optimizer.learning_rate': ('log', 1e-4, 1e-2)}.")
    for key, (kind, *ends) in made["space"].items():
        ordered = kind == "choice" or (len(ends) == 2 and ends[0] < ends[1])
        if kind not in _RANGES or not ends or not ordered or (kind == "log" and ends[0] <= 0):
            raise Refused(f"search.space[{key!r}]={(kind, *ends)} is no range; use e.g. ('log', 1e-4, 1e-2).")
    if min(made["trials"], made["batch"]) < 1:
        raise Refused(f"search.trials={made['trials']} and search.batch={made['batch']} must be at least 1, e.g. 4.")
    if "grid" in sweep or len(sweep.get("trials", ())) > 1:
        raise Refused("search cannot be combined with grid or several trials; use a search, or a list.")
    return made


def corners(sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points at both ends of every range of a search, which the preflight can judge before anything runs."""
    space = settings(sweep)["space"]
    fixed = dict((sweep.get("trials") or [{}])[0])
    return [{**fixed, **{key: ends[end] for key, (_, *ends) in space.items()}} for end in (0, -1)]


def run(
    sweep: Mapping[str, Any], workdir: pathlib.Path, go: Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Asks for values and runs them with `go` (points -> rows), batch by batch; returns the rows of all trials."""
    made = settings(sweep)
    fixed = dict((sweep.get("trials") or [{}])[0])
    try:
        import optuna
    except ModuleNotFoundError:
        raise Refused("search needs the package optuna; pip install optuna.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stored = _stored(optuna, workdir)
    space = {key: _distribution(optuna, *range_) for key, range_ in made["space"].items()}
    every: list[dict[str, Any]] = []
    for first in range(0, made["trials"], made["batch"]):
        numbers = range(first, min(first + made["batch"], made["trials"]))
        asked = _ask(optuna, made, space, stored.get_trials(deepcopy=False)[:first], numbers)
        rows = go([{**fixed, **values} for values in asked])
        by_values = [_row_of(rows, values) for values in asked]
        for number, values, row in zip(numbers, asked, by_values, strict=True):
            if number >= len(stored.get_trials(deepcopy=False)):
                stored.add_trial(_told(optuna, values, space, row.get(made["metric"])))
        every += [row for row in rows if row["hash"] not in {known["hash"] for known in every}]
    return every


def draw(sweep: Mapping[str, Any], workdir: pathlib.Path) -> list[pathlib.Path]:
    """Optuna's plots of the search in `workdir`, as files of its folder `search`; returns their paths."""
    import optuna

    from experiments.sweep import pictures

    return pictures.draw(_stored(optuna, workdir), settings(sweep)["metric"], workdir)


def _stored(optuna: Any, workdir: pathlib.Path) -> Any:
    """Optuna's study in the workdir.

    A journal that is damaged (a kill may tear its last line) is moved aside and written anew: what it holds follows
    from the trials on disk.
    """
    try:
        return _opened(optuna, workdir)
    except OSError:
        raise
    except Exception as error:  # Optuna reads its journal as if nothing could be wrong with it.
        aside = disk.move_aside(workdir / JOURNAL, "damaged")
        logging.warning("%s was damaged (%s) and is now %s; it is written anew.", JOURNAL, type(error).__name__, aside)
        return _opened(optuna, workdir)


def _opened(optuna: Any, workdir: pathlib.Path) -> Any:
    from optuna.storages.journal import JournalFileBackend

    os.close(disk.open_to_append(workdir / JOURNAL))  # A plain file, and no link.
    data = disk.read_bytes(workdir / JOURNAL) or b""
    if not data.endswith(b"\n"):  # Optuna would write on behind half a line.
        disk.cut(workdir / JOURNAL, data[: data.rfind(b"\n") + 1])
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(workdir / JOURNAL)))
    return optuna.create_study(storage=storage, study_name="sweep", load_if_exists=True)


def _ask(optuna: Any, made: Mapping, space: Mapping, known: Sequence, numbers: range) -> list[dict[str, Any]]:
    """The values of trials `numbers`, given the trials `known`; nothing is stored."""
    asked = []
    for number in numbers:
        seed = made["seed"] * 1_000_003 + number
        kind = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}[made["method"]]
        memory = optuna.create_study(sampler=kind(seed=seed))
        memory.add_trials(known)
        asked.append(memory.ask(dict(space)).params)
    return asked


def _distribution(optuna: Any, kind: str, *ends: Any) -> Any:
    kinds = optuna.distributions
    if kind == "choice":
        return kinds.CategoricalDistribution(ends)
    if kind == "int":
        return kinds.IntDistribution(*ends)
    return kinds.FloatDistribution(*ends, log=kind == "log")


def _told(optuna: Any, values: Mapping, space: Mapping, outcome: float | None) -> Any:
    """A trial as Optuna stores it; one without an outcome failed."""
    state = optuna.trial.TrialState.FAIL if outcome is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, params=dict(values), distributions=dict(space), value=outcome)


def _row_of(rows: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of the trial that set `values`, as far as it reads them; trials that turned out alike share one."""
    return next((row for row in rows if all(values.get(key, told) == told for key, told in row["values"].items())), {})
