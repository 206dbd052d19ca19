"""What a mode is to read: the config of a file or of a workdir, jax on its devices, and the trained model.

What a person can have got wrong is found before anything heavy is imported: jax only after the keys of the config
stand, checkpoints only where a model is asked for.
"""

import os
from typing import Any

from experiments import preflight
from experiments import workdir as files
from experiments.settings import identity, keys, named, overrides, processes, smoke, versions
from experiments.settings.errors import ConfigError, Refused
from experiments.workdir.saved import as_begun, check_same, saved_config

Changes = list[overrides.Override]
TOGETHER = ("train", "evaluate", "plan")  # Modes that many processes can run as one.
READING = ("eval", "generate", "seed")  # What the command line may change of a trained model;
MOVED = ("data.path", "data.components", "data.cache_dir")  # and where its text lies now: the same one, by its hash.


def config(flags: Any, changes: Changes) -> Any:
    """The config to run, its keys and types checked: the file, else the workdir's own; then the changes; locked."""
    if flags.config is not None:
        made = overrides.load(flags.config)
    elif flags.workdir and (named.workdir(flags) / files.CONFIG).exists():
        made = saved_config(named.workdir(flags))
    else:
        raise Refused("--config is missing; try --config=configs/quickstart.py.")
    overrides.apply(made, changes)
    keys.check_keys(made)
    if flags.smoke:  # What was asked for by name holds in the small run too.
        made = overrides.apply(smoke.shrink(made), changes)
    return made.lock()


def start_jax(flags: Any) -> Any:
    """jax, once its versions agree, the other processes are there and its devices answer."""
    problem = versions.disagreement()
    if problem:
        raise Refused(problem)
    if flags.num_processes > 1 and flags.mode not in TOGETHER:
        raise Refused(f"--num_processes={flags.num_processes}: --mode={flags.mode} is for one process; leave it away.")
    processes.quiet_tpu(os.environ)
    processes.join(flags.coordinator, flags.num_processes, flags.process_id)
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/tessera/jax"))
    jax.config.update("jax_compilation_cache_dir", cache)
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = str(error).splitlines()[0].split(" (set JAX_PLATFORMS")[0].rstrip(".")
        raise Refused(f"JAX_PLATFORMS={asked!r}: {said}; use JAX_PLATFORMS=cpu.") from error
    return jax


def checked(flags: Any, changes: Changes, *, begun: bool = False) -> Any:
    """The config to run, after the whole preflight on the devices that are here; `begun` as in `preflight.check`."""
    made = config(flags, changes)
    jax = start_jax(flags)
    preflight.check(made, num_devices=jax.device_count(), begun=begun)
    return made


def trained_config(flags: Any, changes: Changes) -> Any:
    """The config of the run in the workdir, with what the command line may say about reading it."""
    workdir = named.workdir(flags)
    made = saved_config(workdir)
    if flags.config is not None:  # The command that trained it, with another --mode: the same run, or a refusal.
        asked = config(flags, changes)
        check_same(as_begun(asked, workdir), made.to_dict(), workdir, reading=True)
        for key in (*READING, *MOVED):
            group, _, leaf = key.rpartition(".")
            overrides.value_at(made, group)[leaf] = overrides.value_at(asked, key)
    else:
        was, changes = keys.flatten(made.to_dict()), overrides.today(made, changes)
        overrides.apply(made, changes)
        keys.check_keys(made)
        _check_reading(was, keys.flatten(made.to_dict()))
    preflight.check_generation(made.generate.to_dict())
    asked = {key for key, _ in changes} if flags.config is None else None
    if problems := list(keys.unread_problems(made.to_dict(), only=asked)):
        raise ConfigError(problems)
    return made.lock()


def _check_reading(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises Refused where a saved config (dotted key -> value) differs in more than reading a model may change."""
    differ = [
        key for key in now
        if key.split(".")[0] not in READING and key not in MOVED and not identity.same(was.get(key), now[key])
    ]  # fmt: skip
    if differ:
        asked = ", ".join(f"--config.{key}" for key in differ)
        has = ", ".join(f"{key}={keys.short(was.get(key))}" for key in differ)
        raise Refused(
            f"{asked} cannot change a trained model; change eval or generate, or train another: this one has {has}."
        )


def bare(flags: Any) -> bool:
    """Whether --config names a model to be read and there is no run in a workdir to read it from."""
    return flags.config is not None and not (flags.workdir and (named.workdir(flags) / files.CONFIG).exists())


def readable(flags: Any, changes: Changes) -> Any:
    """The config of the run in the workdir; of pretrained weights that no run has taken up, that of --config."""
    if bare(flags):
        made = config(flags, changes)
        if made.init.pretrained:
            return made
    return trained_config(flags, changes)


def step(flags: Any) -> str:
    """The checkpoint that --step names, "" for the newest good one."""
    return getattr(flags, "step", "").strip()


def trained(flags: Any, made: Any) -> Any:
    """The model in the workdir, whose saved config `made` is one that can be built, whoever wrote it."""
    preflight.check_values(made)
    if made.init.pretrained and bare(flags):
        import jax

        preflight.check(made, num_devices=jax.device_count())
        from experiments.pretrained import loaded

        return loaded.load(made)
    from experiments.workdir import trained

    return trained.load(named.workdir(flags), made, step=step(flags))
