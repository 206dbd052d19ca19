"""The config in a workdir: read back, compared with one that is asked for; and whether the folder can be used."""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from configs import base as base_config
from experiments import workdir as files
from experiments.settings import history, identity
from experiments.settings.errors import ConfigError
from experiments.settings.keys import flatten, shape_problems, short, tidy


def holds_checkpoint(workdir: str) -> bool:
    """Whether a run has saved there."""
    return found(workdir, lambda folder: any(folder.glob("checkpoints/*.sha256.json")))


def found(text: str, look: Callable[[pathlib.Path], bool]) -> bool:
    """Whether `look` finds something at a path that a person typed; what cannot be one does not exist."""
    try:
        return look(pathlib.Path(text.replace("\0", "\ufffd")).expanduser())
    except (RuntimeError, OSError):  # "~nobody"; a name that is too long
        return False


def check_workdir(config: Any, workdir: pathlib.Path) -> None:
    """Raises ConfigError or OSError when `workdir` cannot be written, or belongs to a run of another config.

    The difference is shown; keys that decide nothing may differ (`identity`). Nothing is left behind.
    """
    place = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not place.is_dir():
        part = "" if place == workdir else f" lies in {place}, which"
        raise ConfigError([f"--workdir={workdir}{part} is a file; give a folder, e.g. --workdir=runs/first."])
    saved = read_saved(workdir)
    if saved is None and any((workdir / files.CHECKPOINTS).glob("*")):
        raise ConfigError([f"--workdir={workdir} holds checkpoints but no {files.CONFIG}; give a new folder."])
    try:  # A file without a name, gone when it is closed.
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise files.explain(error, workdir) from error
    if saved is not None:
        check_same(config, saved, workdir)


def check_same(config: Any, saved: Mapping, workdir: pathlib.Path) -> None:
    """Raises ConfigError, with the difference, unless the run of `config` is that of `saved`: see `identity`."""
    saved, asked = history.filled(files.plain(saved)), files.plain(config.to_dict())
    old, new = flatten(saved), flatten(asked)
    differing = identity.differing(saved, asked)
    if differing:
        lines = [f"  {k}: {_there(old, k)} there, {_there(new, k)} asked for" for k in differing[:12]]
        more = [f"  and {len(differing) - 12} more"] if len(differing) > 12 else []
        raise ConfigError([
            "\n".join([f"--workdir={workdir} belongs to a run of another config; give a new folder:", *lines, *more])
        ])  # fmt: skip


def _there(flat: dict[str, Any], key: str) -> str:
    return short(flat[key]) if key in flat else "absent"


def read_saved(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config in a workdir as a plain dict, None where there is none. ConfigError when it is damaged."""
    try:
        saved = files.read_json(workdir / files.CONFIG)
    except ValueError:
        saved = {}
    if saved is not None and not isinstance(saved.get("config"), dict):
        raise ConfigError([
            f"--workdir={workdir}: {files.CONFIG} is damaged; restore it from a copy, or give a new folder."
        ])  # fmt: skip
    return saved and saved["config"]


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
    later, unread = history.later(history.changed(saved)), tidy(config)
    _tell(workdir, "is older than", later)
    _tell(workdir, "has settings that nothing reads:", {key: unread[key] for key in unread if key not in later})
    return config


def _tell(workdir: pathlib.Path, what: str, settings: Mapping[str, Any]) -> None:
    if settings:
        _once(f"--workdir={workdir} {what} {', '.join(f'{key}={short(value)}' for key, value in settings.items())}.")


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
