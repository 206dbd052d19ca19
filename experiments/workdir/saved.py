"""The config in a workdir: read back, compared with one that is asked for; and whether the folder can be used."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from configs import base as base_config
from configs import knobs
from experiments import workdir as files
from experiments.settings import history, identity
from experiments.settings.errors import ConfigError
from experiments.settings.keys import assign, flatten, shape_problems, short, tidy
from experiments.workdir import disk, vouched

_NAMED = 4  # Settings that a warning names; of more it says how many.


def holds_checkpoint(workdir: str) -> bool:
    """Whether `workdir` holds a checkpoint."""
    return found(workdir, lambda folder: bool(vouched.finished(folder / files.CHECKPOINTS)))


def found(text: str, look: Callable[[pathlib.Path], bool]) -> bool:
    """Whether `look` finds something at a path that a person typed; False for text that cannot be a path."""
    try:
        return look(pathlib.Path(text.replace("\0", "\ufffd")).expanduser())
    except (RuntimeError, OSError, ValueError):  # "~nobody"; a name that is too long, or of no file system
        return False


def check_workdir(config: Any, workdir: pathlib.Path, *, overwrite: bool = False) -> None:
    """Raises ConfigError or OSError when `workdir` cannot be written, or belongs to a run of another config.

    The message shows how the configs differ; keys in `identity.MAY_CHANGE` may. The check leaves no file behind.

    Args:
      overwrite: a run that is there will be moved aside, so its config is not compared.
    """
    place = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not place.is_dir():
        part = "" if place == workdir else f" lies in {place}, which"
        raise ConfigError([f"--workdir={workdir}{part} is a file; give a folder, e.g. --workdir=runs/first."])
    saved = None if overwrite else read_saved(workdir)
    if saved is None and not overwrite and disk.names(workdir / files.CHECKPOINTS):
        raise ConfigError([
            f"--workdir={workdir} holds checkpoints but no {files.CONFIG}; give a new folder, or add --overwrite to "
            "move them aside."
        ])  # fmt: skip
    try:
        disk.probe(place)
    except OSError as error:
        raise files.explain(error, workdir) from error
    if saved is not None:
        check_same(config, saved, workdir)


def check_same(config: Any, saved: Mapping, workdir: pathlib.Path, *, reading: bool = False) -> None:
    """Raises ConfigError, with the difference, unless `config` is of the run of the `saved` one (see `identity`).

    Args:
      reading: the model is only read, and nothing is trained; more keys may differ then.
    """
    differing = identity.another_run(history.filled(files.plain(saved)), files.plain(config.to_dict()))
    if differing:
        lines = [f"  {k}: {_shown(was)} there, {_shown(asked)} asked for" for k, (was, asked) in differing.items()]
        more = [f"  and {len(lines) - 12} more"] if len(lines) > 12 else []
        hint = (
            "leave --config away to read the model with its own:" if reading
            else "give a new folder, or add --overwrite to move that run aside and start over:"
        )  # fmt: skip
        raise ConfigError([
            "\n".join([f"--workdir={workdir} belongs to a run of another config; {hint}", *lines[:12], *more])
        ])  # fmt: skip


def _shown(value: Any) -> str:
    return repr(value) if value is identity.ABSENT else short(value)


def read_saved(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config in a workdir as a plain dict, None where there is none. ConfigError when it is damaged."""
    record = _record(workdir)
    return record and record["config"]


def _record(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config.json of a workdir, which has a config; as `read_saved`."""
    try:
        record = files.read_json(workdir / files.CONFIG)
    except ValueError:
        record = {}
    if record is not None and "config" not in record:
        raise ConfigError([
            f"--workdir={workdir}: {files.CONFIG} is damaged; restore it from a copy, or give a new folder."
        ])  # fmt: skip
    return record


def saved_config(workdir: pathlib.Path) -> Any:
    """The config of the run in `workdir`, not locked. ConfigError when there is none, or it is damaged.

    A knob that came later has the value under which the run was made, and one that nothing reads its default; both are
    said once.
    """
    saved = read_saved(workdir)
    if saved is None:
        raise ConfigError([f"--workdir={workdir} holds no run; give the --workdir of a trained model."])
    config = base_config.get_config()
    known = _tuples(history.filled(saved), config.to_dict())
    if problems := list(shape_problems(known, config.to_dict())):
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ConfigError(
            [f"--workdir={workdir}: {problems[0].removesuffix('.')}{more}: the run is of another version."]
        )
    config.update(known)
    config.data.cache_dir = _cache(config.data.cache_dir, base_config.get_config().data.cache_dir)
    later, unread = history.later(history.changed(saved)), tidy(config)
    if later:
        changed = {key: value for key, value in later.items() if not identity.same(value, knobs.KNOBS[key].default)}
        _once(
            f"--workdir={workdir} is older than {len(later)} setting{'s' * (len(later) > 1)}; its model was made with "
            + (f"{_listed(changed)}, as it stays." if changed else "their values of today.")
        )
    _tell(workdir, "has settings that nothing reads:", {key: unread[key] for key in unread if key not in later})
    return config


def came_later(workdir: pathlib.Path) -> dict[str, Any]:
    """Knobs that came after the run in `workdir` began, with the values under which it was made; {} where none is."""
    try:
        record = _record(workdir)
    except (ConfigError, files.WorkdirError):  # Told by whoever opens the run.
        return {}
    return {} if record is None else history.came_later(record)


def as_begun(config: Any, workdir: pathlib.Path, later: Mapping[str, Any] | None = None) -> Any:
    """`config`, in which knobs at their default that came after the run in `workdir` have the values of that run.

    So the command that began a run goes on with it when a newer house has other defaults. It is said once.

    Args:
      config: what is asked for; it is not changed.
      workdir: of a run, or one in which no run is.
      later: knobs and values as from `came_later`; None: those of the run in `workdir`.
    """
    later, flat = came_later(workdir) if later is None else later, flatten(config.to_dict())
    default = {key: knobs.KNOBS[key].default for key in later}
    taken = {
        key: value
        for key, value in later.items()
        if identity.same(flat.get(key), default[key]) and not identity.same(value, default[key])
    }
    unread = knobs.unread({**flat, **taken})
    taken = {key: value for key, value in taken.items() if key not in unread}
    if not taken:
        return config
    _tell(workdir, "goes on as it began, with", taken)
    made = config.copy_and_resolve_references().unlock()
    for key, value in taken.items():
        assign(made, key, value)
    return made.lock() if config.is_locked else made


def _cache(saved: str, usual: str) -> str:
    """The cache that a saved config names, where tokens were kept there before; else the usual one.

    The config may be a stranger's, or of another machine: no folder is made where only it says so.
    """
    kept = found(saved, lambda folder: any(disk.is_folder(folder / name) for name in ("corpora", "tokenizers")))
    return saved if kept else usual


def _tell(workdir: pathlib.Path, what: str, settings: Mapping[str, Any]) -> None:
    if settings:
        _once(f"--workdir={workdir} {what} {_listed(settings)}.")


def _listed(settings: Mapping[str, Any]) -> str:
    """The first few settings with their values, and how many more there are."""
    named = [f"{key}={short(value)}" for key, value in list(settings.items())[:_NAMED]]
    return ", ".join(named) + (f" and {len(settings) - _NAMED} more" if len(settings) > _NAMED else "")


@functools.cache
def _once(sentence: str) -> None:
    """Logs a sentence the first time that this process comes to it."""
    logging.warning(sentence)


def _tuples(saved: Mapping, defaults: Mapping) -> dict[str, Any]:
    """JSON has lists where configs have tuples."""
    fixed = {}
    for key, value in saved.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _tuples(value, default)
        fixed[key] = tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    return fixed
