"""Everything that can be known to be wrong before a compile, told together, in the config's own words."""

import difflib
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from configs import base as base_config
from experiments import preflight_diffusion, preflight_mesh, preflight_mixers, preflight_sizes
from experiments.errors import ConfigError
from experiments.limits import NOT_NEGATIVE, POSITIVE, SHARES

# Keys that may change between two starts of one run: they decide nothing about its numbers.
NOT_IDENTITY = ("generate", "plan", "train.profile_step", "train.profile_steps", "train.wandb")


def base() -> dict[str, Any]:
    """The house defaults as a plain dict: what a report compares a config with."""
    return base_config.get_config().to_dict()


def check_keys(config: Any) -> None:
    """Raises ConfigError for unknown keys, missing keys and wrong types: the part that needs no other module."""
    if problems := list(_shape_problems(config.to_dict(), base())):
        raise ConfigError(problems)


def check(config: Any, *, num_devices: int) -> None:
    """Raises ConfigError with every problem of `config` on `num_devices` devices."""
    check_keys(config)  # Values are judged only when all keys and types stand,
    problems = [*_choice_problems(config), *_range_problems(config.to_dict())]
    if not problems:  # and what they make together only when each stands alone.
        problems += _size_problems(config)
        problems += [*preflight_mesh.problems(config, num_devices), *_combination_problems(config)]
    if problems:
        raise ConfigError(problems)


def check_platform(config: Any, platform: str) -> None:
    """Raises ConfigError when the config names a kernel that `platform` (cpu, gpu, tpu) has not."""
    problems = []
    for group, options in config.model.to_dict().items():
        name = options.get("implementation", "") if isinstance(options, Mapping) else ""
        owner = {"tpu": "tpu", "gpu": "gpu"}.get(name.removeprefix("pallas_").split("_")[0], platform)
        if owner != platform:
            problems.append(
                f"model.{group}.implementation={name!r} runs on {owner} only and this is a {platform}; "
                f"use model.{group}.implementation='' for the best one here."
            )
    if problems:
        raise ConfigError(problems)


def check_generation(options: Mapping[str, Any]) -> None:
    """Raises ConfigError when `options` (as `config.generate`) cannot be drawn with."""
    options, defaults = {"generate": dict(options)}, {"generate": base()["generate"]}
    problems = list(_shape_problems(options, defaults))
    if not problems:
        problems = [
            *_range_problems(options, only="generate."),
            *_unknown_names(flatten(options), preflight_diffusion.GENERATION),
        ]
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
            yield f"{prefix}{key} is missing; its default is {_short(default)}."
            continue
        value = config[key]
        if isinstance(default, Mapping):
            if isinstance(value, Mapping):
                yield from _shape_problems(value, default, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}={_short(value)} must be a group with the keys {_list(default)}."
        elif not _same_type(value, default):
            kind = "" if isinstance(value, float) and value != value else f"is a {type(value).__name__}; it "
            yield f"{prefix}{key}={_short(value)} {kind}must be a {_kind(default)}, e.g. {default!r}."
        elif isinstance(default, tuple):
            yield from _element_problems(f"{prefix}{key}", value)


def _element_problems(key: str, value: Any) -> Iterator[str]:
    """The elements of a tuple: settings of a source in data.components, else text."""
    mapping = key == "data.components"
    for i, element in enumerate(value):
        if not isinstance(element, Mapping if mapping else str):
            like = "a group like {'source': 'stdlib', 'weight': 1.0}" if mapping else f"text, e.g. {key}=('a', 'b')"
            yield f"{key}[{i}]={_short(element)} must be {like}."


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


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
    import jax

    import data
    from experiments import grown, optimizers, sharding
    from kernels import pattention as parameter_tokens
    from kernels.attention import IMPLEMENTATIONS
    from models import block, channels, norms, parameters, pattention, projections
    from models.mixers import MIXERS
    from models.objectives import OBJECTIVES

    # Without loss scaling float16 loses gradients; float64 is float32 unless jax is told otherwise.
    dtypes = ("float32", "bfloat16", "float64") if jax.config.jax_enable_x64 else ("float32", "bfloat16")
    own_tokenizer = config.data.tokenizer.endswith(".json") or "/" in config.data.tokenizer
    choices = {
        "objective": OBJECTIVES,
        "data.source": (*data.SOURCES, "mixture", *(f"task:{name}" for name in data.TASKS)),
        "data.tokenizer": (config.data.tokenizer,) if own_tokenizer else data.TOKENIZERS,
        "data.packing": data.PACKINGS,
        "model.channel": channels.CHANNELS,
        "model.projection": projections.PROJECTIONS,
        "model.norm": norms.NORMS,
        "model.final_norm": ("same", *norms.NORMS),
        "model.init": parameters.INITS,
        "model.dtype": dtypes,
        "model.param_dtype": dtypes,
        "model.remat": block.REMAT,
        "model.attention.implementation": ("", *IMPLEMENTATIONS),
        "model.mlp.activation": channels.ACTIVATIONS,
        "model.pattention.normalization": parameter_tokens.NORMALIZATIONS,
        "model.pattention.gelu": parameter_tokens.GELUS,
        "model.pattention.init_values": pattention.INIT_VALUES,
        "model.pattention.top_by": pattention.ROUTERS,
        "model.pattention.implementation": ("", *parameter_tokens.IMPLEMENTATIONS),
        "init.grow_optimizer": grown.OPTIMIZERS,
        "parallel.schedule": ("auto", *preflight_mesh.schedules(config)),
        "optimizer.name": optimizers.OPTIMIZERS,
        "optimizer.schedule": optimizers.SCHEDULES,
        **preflight_diffusion.choices(),
        **preflight_mixers.choices(),
        **preflight_sizes.choices(),
    }
    flat = flatten(config.to_dict())
    yield from _unknown_names(flat, choices)
    pairs = [("model.mixer", name.strip(), MIXERS) for name in config.model.mixer.split(",")]
    pairs += [("optimizer.decay_roles", role, parameters.ROLES) for role in config.optimizer.decay_roles]
    for axis, names in config.sharding.to_dict().items():
        pairs += [(f"sharding.{axis}", name, sharding.AXES) for name in names]
    for key, value, table in pairs:
        yield from _unknown_names({key: value}, {key: table})


def _unknown_names(flat: Mapping[str, Any], choices: Mapping[str, Any]) -> Iterator[str]:
    """Values that are not among the choices of their key."""
    for key, table in choices.items():
        if flat[key] not in table:
            names = ", ".join(name or '""' for name in table)
            yield f"{key}={_short(flat[key])} is unknown; {suggest(flat[key], table)}choose one of: {names}."


def _range_problems(config: Mapping, only: str = "") -> Iterator[str]:
    """Numbers outside their range. `config` is a plain dict; `only`: keys that start so."""
    flat, defaults = flatten(config), flatten(base())
    for key, value in flat.items():
        if not key.startswith(only) or not isinstance(value, int | float | tuple | list) or isinstance(value, bool):
            continue
        limit = f"{_short(value, 40)} must"
        if key in SHARES:
            least, most = SHARES[key]
            if not least <= value <= most:
                yield f"{key}={limit} lie between {least:g} and {most:g}, e.g. {defaults[key]!r}."
        elif key in POSITIVE and value < 1:
            yield f"{key}={limit} be at least 1, e.g. {defaults[key]!r}."
        elif key in NOT_NEGATIVE and value < 0:
            yield f"{key}={limit} not be negative, e.g. {defaults[key]!r}."
        elif isinstance(value, int | float) and not abs(value) < 2**31:
            yield f"{key}={limit} be below {2**31}, e.g. {defaults[key]!r}."
        elif key == "generate.stop" and "" in value:
            yield f"{key}={limit} not hold the empty text, which stops at once; e.g. ('\\n\\n',)."


def _size_problems(config: Any) -> Iterator[str]:
    """What must divide what in a model, each with a value that works."""
    model = config.model
    if not model.head_dim and model.width % model.num_heads:
        yield (
            f"model.width={model.width} does not divide by model.num_heads={model.num_heads}; "
            f"use e.g. model.width={preflight_mesh.nearest_multiple(model.width, model.num_heads)}."
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        fits = preflight_mesh.largest_divisor(model.num_heads, model.num_kv_heads)
        yield (
            f"model.num_kv_heads={model.num_kv_heads} must divide model.num_heads={model.num_heads}; "
            f"use e.g. model.num_kv_heads={fits}."
        )
    pattern = len(model.mixer.split(","))
    if model.num_layers % pattern:
        near = preflight_mesh.nearest_multiple(model.num_layers, pattern)
        yield (
            f"model.num_layers={model.num_layers} does not repeat the {pattern} mixers of model.mixer; "
            f"use e.g. model.num_layers={near}."
        )


def _combination_problems(config: Any) -> Iterator[str]:
    """Parts that do not go together."""
    from experiments import grown
    from experiments.program import objective
    from models.mixers import MIXERS

    if objective(config.objective).bidirectional:
        for name in config.model.mixer.split(","):
            if not MIXERS[name.strip()].bidirectional:
                yield (
                    f"model.mixer={name!r} is causal and objective={config.objective!r} is not; "
                    "use model.mixer='attention'."
                )
    yield from preflight_diffusion.problems(config)
    yield from preflight_mixers.problems(config)
    yield from preflight_sizes.problems(config)
    if config.optimizer.name == "schedule_free" and config.optimizer.schedule != "constant":
        yield (
            f"optimizer.schedule={config.optimizer.schedule!r} decays a rate that schedule_free must keep; "
            "use optimizer.schedule='constant'."
        )
    path, tokenizer, warm, grow = config.data.path, config.data.tokenizer, config.init.warm_start, config.init.grow_from
    if config.data.source == "text" and not path:
        yield "data.path='' names no corpus for data.source='text'; use a file, folder or glob, e.g. 'corpus.txt'."
    elif config.data.source == "text" and "*" not in path and not _found(path, pathlib.Path.exists):
        yield f"data.path={_short(path)} does not exist; give a file, folder or glob that does, e.g. 'corpus.txt'."
    if tokenizer == "bpe" and 0 < config.data.vocab_size < 260:
        yield f"data.vocab_size={config.data.vocab_size} is too small for data.tokenizer='bpe'; use e.g. 4096."
    if ("/" in tokenizer or tokenizer.endswith(".json")) and not _found(tokenizer, pathlib.Path.is_file):
        yield f"data.tokenizer={_short(tokenizer)} is not a saved tokenizer; use 'bytes' or 'bpe'."
    for key, start in (("warm_start", warm), ("grow_from", grow)):
        if start and not holds_checkpoint(start):
            yield f"init.{key}={_short(start)} holds no finished checkpoint; give the --workdir of a trained model."
    yield from grown.problems(config)


def holds_checkpoint(workdir: str) -> bool:
    """Whether a run has saved there."""
    return _found(workdir, lambda folder: any(folder.glob("checkpoints/*.sha256.json")))


def _found(text: str, look: Callable[[pathlib.Path], bool]) -> bool:
    """Whether `look` finds something at a path that a person typed; what cannot be one does not exist."""
    try:
        return look(pathlib.Path(text.replace("\0", "\ufffd")).expanduser())
    except (RuntimeError, OSError):  # "~nobody"; a name that is too long
        return False


def check_workdir(config: Any, workdir: pathlib.Path) -> None:
    """Raises ConfigError or OSError when `workdir` cannot be written, or belongs to a run of another config.

    The difference is shown; keys in NOT_IDENTITY may differ. Nothing is left behind.
    """
    from experiments import workdir as files

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
    from experiments import workdir as files

    old, new = flatten(files.plain(saved)), flatten(files.plain(config.to_dict()))
    differing = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith(NOT_IDENTITY)]
    if differing:
        lines = [f"  {k}: {_there(old, k)} there, {_there(new, k)} asked for" for k in differing[:12]]
        more = [f"  and {len(differing) - 12} more"] if len(differing) > 12 else []
        raise ConfigError([
            "\n".join([f"--workdir={workdir} belongs to a run of another config; give a new folder:", *lines, *more])
        ])  # fmt: skip


def _there(flat: dict[str, Any], key: str) -> str:
    return _short(flat[key]) if key in flat else "absent"


def read_saved(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config in a workdir as a plain dict, None where there is none. ConfigError when it is damaged."""
    from experiments import workdir as files

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
    if problems := list(_shape_problems(known, config.to_dict())):
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
