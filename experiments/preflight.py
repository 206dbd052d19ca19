"""Everything that can be known to be wrong before a compile, told together, in the config's own words."""

import difflib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from configs import base as base_config

POSITIVE = (
    "data.length", "data.batch_size", "model.vocab_multiple", "model.width", "model.num_layers", "model.num_heads",
    "train.steps", "train.accumulation", "train.log_every", "train.profile_steps", "generate.max_tokens",
    "checkpoint.keep_last",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "data.vocab_size", "data.max_files", "model.vocab_size", "model.num_kv_heads", "model.head_dim",
    "model.logit_scale", "model.softcap", "model.embedding_scale", "model.unroll", "model.attention.window",
    "model.attention.sinks", "model.mlp.hidden", "model.swiglu.hidden", "loss.z_loss", "optimizer.warmup",
    "optimizer.weight_decay", "optimizer.clip", "eval.every", "eval.batches", "eval.batch_size", "eval.sample_tokens",
    "checkpoint.every", "checkpoint.keep_every", "checkpoint.keep_best", "generate.temperature", "generate.top_k",
)  # fmt: skip
SHARES = {  # key: (least, most), both allowed
    "data.validation": (0.0, 0.9), "model.attention.rope_fraction": (0.0, 1.0), "optimizer.final": (0.0, 1.0),
    "optimizer.decay_share": (0.0, 1.0), "optimizer.b1": (0.0, 0.9999), "optimizer.b2": (0.0, 0.99999),
    "optimizer.ema": (0.0, 0.99999), "generate.top_p": (0.0, 1.0), "generate.min_p": (0.0, 1.0),
    "model.init_std": (1e-8, 10.0), "optimizer.learning_rate": (1e-12, 100.0), "optimizer.eps": (0.0, 1.0),
    "model.norm_eps": (0.0, 1.0), "model.attention.rope_theta": (1.0, 1e12),
}  # fmt: skip


class ConfigError(ValueError):
    """What is wrong with a config: one sentence per problem, each naming the key, the value and one that works."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def base() -> dict[str, Any]:
    """The house defaults as a plain dict: what a report compares a config with."""
    return base_config.get_config().to_dict()


def check(config: Any, *, num_devices: int, num_processes: int = 1) -> None:
    """Raises ConfigError with every problem of `config` on `num_devices` devices."""
    problems = list(_shape_problems(config.to_dict(), base()))
    if not problems:  # Values are judged only when all keys and types stand.
        problems += [*_choice_problems(config), *_range_problems(config)]
    if not problems:
        problems += [*_size_problems(config, num_devices, num_processes), *_combination_problems(config)]
    if problems:
        raise ConfigError(problems)


def suggest(name: str, names: Any) -> str:
    """ "did you mean ...? " when a name is near, else ""."""
    near = difflib.get_close_matches(str(name), list(map(str, names)), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; tuples and lists are values."""
    flat = {}
    for key, value in tree.items():
        nested = flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        flat |= nested
    return flat


def _shape_problems(config: Mapping, reference: Mapping, prefix: str = "") -> Iterator[str]:
    """Unknown keys, missing keys, wrong types."""
    for key in config:
        if key not in reference:
            yield f"{prefix}{key} is not a key of the config; {suggest(key, reference)}Known here: {_list(reference)}."
    for key, default in reference.items():
        if key not in config:
            yield f"{prefix}{key} is missing; its default is {default!r}."
            continue
        value = config[key]
        if isinstance(default, Mapping):
            if isinstance(value, Mapping):
                yield from _shape_problems(value, default, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}={value!r} must be a group with the keys {_list(default)}."
        elif not _same_type(value, default):
            kind = type(value).__name__
            yield f"{prefix}{key}={value!r} is a {kind}; it must be a {_kind(default)}, e.g. {default!r}."


def _list(names: Any, limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _kind(default: Any) -> str:
    return {bool: "bool", int: "whole number", float: "number", str: "text", tuple: "tuple"}[type(default)]


def _same_type(value: Any, default: Any) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float) and value == value
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))


def _choice_problems(config: Any) -> Iterator[str]:
    """Names that are not in their socket's table."""
    import data
    from experiments import optimizers, program, sharding
    from models import block, channels, norms, parameters, projections
    from models.mixers import MIXERS

    dtypes = ("float32", "bfloat16", "float16", "float64")
    choices = {
        "objective": program.OBJECTIVES,
        "data.source": (*data.SOURCES, "mixture"),
        "data.tokenizer": data.TOKENIZERS,
        "data.packing": data.PACKINGS,
        "model.channel": channels.CHANNELS,
        "model.projection": projections.PROJECTIONS,
        "model.norm": norms.NORMS,
        "model.final_norm": ("same", *norms.NORMS),
        "model.init": parameters.INITS,
        "model.dtype": dtypes,
        "model.param_dtype": dtypes,
        "model.remat": block.REMAT,
        "model.mlp.activation": channels.ACTIVATIONS,
        "optimizer.name": optimizers.OPTIMIZERS,
        "optimizer.schedule": optimizers.SCHEDULES,
    }
    flat = flatten(config.to_dict())
    pairs = [(key, flat[key], table) for key, table in choices.items()]
    pairs += [("model.mixer", name.strip(), MIXERS) for name in config.model.mixer.split(",")]
    pairs += [("optimizer.decay_roles", role, parameters.ROLES) for role in config.optimizer.decay_roles]
    for axis, names in config.sharding.to_dict().items():
        pairs += [(f"sharding.{axis}", name, sharding.AXES) for name in names]
    for key, value, table in pairs:
        if value not in table:
            yield f"{key}={value!r} is unknown; {suggest(value, table)}Choose one of: {', '.join(table)}."


def _range_problems(config: Any) -> Iterator[str]:
    flat, defaults = flatten(config.to_dict()), flatten(base())
    for key in POSITIVE:
        if flat[key] < 1:
            yield f"{key}={flat[key]!r} must be at least 1, e.g. {defaults[key]!r}."
    for key in NOT_NEGATIVE:
        if flat[key] < 0:
            yield f"{key}={flat[key]!r} must not be negative, e.g. {defaults[key]!r}."
    for key, (least, most) in SHARES.items():
        if not least <= flat[key] <= most:
            yield f"{key}={flat[key]!r} must lie between {least:g} and {most:g}, e.g. {defaults[key]!r}."


def _size_problems(config: Any, num_devices: int, num_processes: int) -> Iterator[str]:
    """What must divide what, each with a value that works."""
    from experiments import sharding

    model, data = config.model, config.data
    if not model.head_dim and model.width % model.num_heads:
        yield (
            f"model.width={model.width} does not divide by model.num_heads={model.num_heads}; "
            f"use e.g. model.width={_nearest_multiple(model.width, model.num_heads)}."
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        fits = max(k for k in range(1, model.num_kv_heads + 1) if model.num_heads % k == 0)
        yield (
            f"model.num_kv_heads={model.num_kv_heads} must divide model.num_heads={model.num_heads}; "
            f"use e.g. model.num_kv_heads={fits}."
        )
    pattern = len(model.mixer.split(","))
    if model.num_layers % pattern:
        near = _nearest_multiple(model.num_layers, pattern)
        yield (
            f"model.num_layers={model.num_layers} does not repeat the {pattern} mixers of model.mixer; "
            f"use e.g. model.num_layers={near}."
        )
    try:
        mesh = sharding.mesh_shape(config.mesh, num_devices)
    except ValueError as error:
        yield str(error)
        return
    if mesh["context"] > 1:
        yield f"mesh.context={mesh['context']}: no mixer here can cut the sequence yet; use mesh.context=1."
    parts = config.train.accumulation * max(mesh["data"] * mesh["fsdp"], num_processes)
    if data.batch_size % parts:
        yield (
            f"data.batch_size={data.batch_size} does not divide over {parts} (train.accumulation="
            f"{config.train.accumulation} x {parts // config.train.accumulation} devices of mesh.data and mesh.fsdp); "
            f"use e.g. data.batch_size={_nearest_multiple(data.batch_size, parts)}."
        )
    size, parts = config.eval.batch_size, max(mesh["data"] * mesh["fsdp"], num_processes)
    if size % parts:
        yield (
            f"eval.batch_size={size} does not divide over {parts} devices of mesh.data and mesh.fsdp; "
            f"use e.g. eval.batch_size={_nearest_multiple(size, parts)}."
        )


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)


def _combination_problems(config: Any) -> Iterator[str]:
    """Parts that do not go together."""
    from experiments.program import objective
    from models.mixers import MIXERS

    if objective(config.objective).bidirectional:
        for name in config.model.mixer.split(","):
            if not MIXERS[name.strip()].bidirectional:
                yield (
                    f"model.mixer={name!r} is causal and objective={config.objective!r} is not; "
                    "use model.mixer='attention'."
                )
    if config.optimizer.name == "schedule_free" and config.optimizer.schedule != "constant":
        yield (
            f"optimizer.schedule={config.optimizer.schedule!r} decays a rate that schedule_free must keep; "
            "use optimizer.schedule='constant'."
        )
    if config.data.source == "text" and not config.data.path:
        yield "data.path='' names no corpus for data.source='text'; use a file, folder or glob, e.g. 'corpus.txt'."
    path = config.data.path
    if config.data.source == "text" and path and "*" not in path and not pathlib.Path(path).expanduser().exists():
        yield f"data.path={path!r} does not exist; give a file, folder or glob that does."
    if config.data.tokenizer == "bpe" and 0 < config.data.vocab_size < 260:
        yield f"data.vocab_size={config.data.vocab_size} is too small for data.tokenizer='bpe'; use e.g. 4096."
    if config.init.warm_start and not pathlib.Path(config.init.warm_start).expanduser().is_dir():
        yield f"init.warm_start={config.init.warm_start!r} is not a workdir; give the --workdir of a finished run."


def check_corpus(config: Any, corpus: Any) -> None:
    """Raises ConfigError when the tokenizer needs a larger vocabulary than the config fixes."""
    from experiments.program import objective

    needed = corpus.tokenizer.vocab_size + objective(config.objective).extra_tokens
    if config.model.vocab_size and config.model.vocab_size < needed:
        raise ConfigError([
            f"model.vocab_size={config.model.vocab_size} is smaller than the {needed} ids of tokenizer "
            f"{corpus.tokenizer.name!r} and objective {config.objective!r}; use model.vocab_size=0 for what is needed."
        ])  # fmt: skip


def check_workdir(config: Any, workdir: pathlib.Path, *, ignore: tuple[str, ...] = ()) -> None:
    """Raises ConfigError, with the difference, when `workdir` belongs to a run of another config."""
    from experiments import workdir as files

    saved = files.read_json(workdir / files.CONFIG)
    if saved is None:
        if workdir.exists() and not workdir.is_dir():
            raise ConfigError([f"--workdir={workdir} is a file; give a folder, e.g. --workdir=runs/first."])
        if (workdir / files.CHECKPOINTS).exists():
            raise ConfigError([f"--workdir={workdir} holds checkpoints but no {files.CONFIG}; give a new folder."])
        return
    old, new = flatten(saved["config"]), flatten(files.plain(config.to_dict()))
    differing = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(ignore)]
    if differing:
        lines = [f"  {k}: {old.get(k, 'absent')!r} there, {new.get(k, 'absent')!r} asked for" for k in differing[:12]]
        more = [f"  and {len(differing) - 12} more"] if len(differing) > 12 else []
        raise ConfigError([
            "\n".join([f"--workdir={workdir} belongs to a run of another config; give a new folder:", *lines, *more])
        ])  # fmt: skip


def check_memory(program: Any) -> None:
    """Raises ConfigError when the state and its gradients alone exceed what a device has."""
    import jax

    from experiments import counting

    needed = counting.memory(program)
    least = needed["state"] + needed["gradients"]
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    there = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.platform == "cpu":
        least *= jax.local_device_count()  # Pretended devices share one memory.
    if least > there:
        raise ConfigError([
            f"model.width={program.config.model.width} with model.num_layers={program.config.model.num_layers} needs "
            f"{least / 2**30:.1f} GiB for parameters, gradients and optimizer, and {there / 2**30:.1f} GiB are here; "
            f"use more devices on mesh.fsdp (now {program.mesh.shape['fsdp']}) or a smaller model."
        ])  # fmt: skip


def check_same_corpus(about: Mapping, corpus: Any, workdir: pathlib.Path) -> None:
    """Raises ConfigError when a run would go on with other data than it began with."""
    for name, now in (("corpus", corpus.hash), ("tokenizer", corpus.tokenizer.hash)):
        if about.get(name, now) != now:
            raise ConfigError([
                f"the {name} of --workdir={workdir} had the hash {about[name][:12]} and has {now[:12]} now; "
                "bring the old files back, or start again in a new folder."
            ])  # fmt: skip
