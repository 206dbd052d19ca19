"""The config in a workdir: read back, compared with one that is asked for; and whether the folder can be used."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from configs import base as base_config
from experiments import workdir as files
from experiments.settings.errors import ConfigError
from experiments.settings.keys import flatten, shape_problems, short

# Keys that may change between two starts of one run: they decide nothing about its numbers.
NOT_IDENTITY = ("generate", "plan", "train.profile_step", "train.profile_steps", "train.wandb")


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

    The difference is shown; keys in NOT_IDENTITY may differ. Nothing is left behind.
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
    """Raises ConfigError, with the difference, unless `config` is the `saved` one but for keys in NOT_IDENTITY."""
    old, new = flatten(files.plain(saved)), flatten(files.plain(config.to_dict()))
    differing = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(NOT_IDENTITY)]
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
    """The config of the run in `workdir`, not locked. ConfigError when there is none, or it is damaged."""
    saved = read_saved(workdir)
    if saved is None:
        raise ConfigError([f"--workdir={workdir} holds no run; give the --workdir of a trained model."])
    config = base_config.get_config()
    known = _tuples(saved, config.to_dict())
    if problems := list(shape_problems(known, config.to_dict())):
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ConfigError(
            [f"--workdir={workdir}: {problems[0].removesuffix('.')}{more}: the run is of another version."]
        )
    config.update(known)
    return config


def _tuples(saved: Mapping, defaults: Mapping) -> dict[str, Any]:
    """JSON has lists where configs have tuples."""
    fixed = {}
    for key, value in saved.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _tuples(value, default)
        fixed[key] = tuple(value) if isinstance(default, tuple) and isinstance(value, list) else value
    return fixed
