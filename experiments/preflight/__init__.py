"""Everything that can be known to be wrong before a compile, told together, in the config's own words."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from configs import knobs
from experiments.preflight import companions as preflight_companions
from experiments.preflight import experts as preflight_experts
from experiments.preflight import growth as preflight_growth
from experiments.preflight import mesh as preflight_mesh
from experiments.preflight import objectives as preflight_objectives
from experiments.preflight import optimizer as preflight_optimizer
from experiments.preflight import parts as preflight_parts
from experiments.preflight import pretrained as preflight_pretrained
from experiments.preflight import rewired as preflight_rewired
from experiments.preflight import segments as preflight_segments
from experiments.preflight import sizes as preflight_sizes
from experiments.preflight.tables import names
from experiments.settings.errors import ConfigError
from experiments.settings.keys import (
    base,
    check_keys,
    flatten,
    range_problems,
    shape_problems,
    short,
    unknown_names,
    unread_problems,
)
from experiments.workdir.saved import found, holds_checkpoint
from models.facts import Facts, largest_divisor, listed, nearest_multiple

# Settings of generation that are names, checked before jax is imported.
GENERATION = {key: knob.choices for key, knob in knobs.KNOBS.items() if key.startswith("generate.") and knob.choices}


def check(config: Any, *, num_devices: int, begun: bool = False) -> None:
    """Raises ConfigError with every problem of `config` on `num_devices` devices.

    `begun`: the run has saved, and goes on alone: what it was started from need not be there any more.
    """
    check_values(config)  # Combinations are judged only when every value is valid by itself.
    problems = [*unread_problems(config.to_dict()), *_size_problems(config)]
    problems += [*preflight_mesh.problems(config, num_devices), *_combination_problems(config, begun)]
    if problems:
        raise ConfigError(problems)


def check_values(config: Any) -> None:
    """Raises ConfigError with every value of `config` that cannot be, whatever the others are."""
    check_keys(config)  # Raises for unknown keys and wrong types, so that all values can be read below.
    if problems := [*_choice_problems(config), *range_problems(config.to_dict())]:
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


def check_generation(options: Mapping[str, Any], *, tables: bool = False) -> None:
    """Raises ConfigError when `options` (as `config.generate`) cannot be drawn with.

    `tables`: looks names of parts up, too, which imports jax.
    """
    options, defaults = {"generate": dict(options)}, {"generate": base()["generate"]}
    problems = list(shape_problems(options, defaults))
    if not problems:
        problems = [
            *range_problems(options, only="generate."),
            *unknown_names(flatten(options), GENERATION),
        ]
        if tables:
            of = {key: knob for key, knob in knobs.KNOBS.items() if key.startswith("generate.") and knob.table}
            named = {key: names(knob) for key, knob in of.items()}
            problems += [*unknown_names(flatten(options), named), *_control_problems(options["generate"]["control"])]
            problems += memory_problems(options["generate"]) if not problems else []
    if problems:
        raise ConfigError(problems)


def memory_problems(generate: Mapping[str, Any], mixers: str | None = None) -> Iterator[str]:
    """What does not fit of `generate.memory` and its options, and of the `model.mixer` that it is for, if given."""
    from models.mixers import MIXERS
    from models.mixers.memory import MEMORIES, group

    name = generate["memory"]
    if generate.get("prefill", "dense") != "dense":
        yield from _prefill_problems(generate, MEMORIES[name].looks, mixers)
    yield from MEMORIES[name].problems(generate.get(group(name), {}))
    words = [] if mixers is None or name == "full" else [word.strip() for word in mixers.split(",")]
    if words and not any(getattr(MIXERS[word], "grows", False) for word in words):
        yield (
            f"generate.memory={name!r} chooses among the keys of attention, and model.mixer={mixers!r} keeps none; use "
            "generate.memory='full'."
        )


def _prefill_problems(generate: Mapping[str, Any], looks: bool, mixers: str | None) -> Iterator[str]:
    """What does not go with sparse prefill: a memory that `looks` at all of a prompt, mixers without attention, words
    that are no patterns."""
    from models.mixers import MIXERS
    from models.mixers.prefill import parsed

    prefill, patterns = generate["prefill"], generate["minference"]["patterns"]
    if looks:
        yield (
            f"generate.prefill={prefill!r} does not form what generate.memory={generate['memory']!r} looks at in a "
            "prompt; use generate.memory='full', or generate.prefill='dense'."
        )
    if mixers is not None and not any(getattr(MIXERS[word.strip()], "grows", False) for word in mixers.split(",")):
        yield (
            f"generate.prefill={prefill!r} is of attention, and model.mixer={mixers!r} has none; use "
            "generate.prefill='dense'."
        )
    try:
        if not patterns.strip().endswith(".json"):
            parsed(patterns)
    except ValueError as problem:
        yield str(problem)


def _control_problems(control: str) -> Iterator[str]:
    """Names of `generate.control` that are no entries of its socket."""
    from models.decoding.control import CONTROLS

    for name in filter(None, map(str.strip, control.split(","))):
        yield from unknown_names({"generate.control": name}, {"generate.control": CONTROLS})


def _choice_problems(config: Any) -> Iterator[str]:
    """Names that are not in their socket's table."""
    import jax

    import data
    from experiments.program import sharding
    from models import parameters
    from models.channels import CHANNELS
    from models.mixers import MIXERS

    # Without loss scaling float16 loses gradients; float64 is float32 unless jax is told otherwise.
    dtypes = ("float32", "bfloat16", "float64") if jax.config.jax_enable_x64 else ("float32", "bfloat16")
    own_tokenizer = _is_path(config.data.tokenizer)
    choices = {key: names(knob) for key, knob in knobs.KNOBS.items() if knob.choices or knob.table}
    choices |= {
        "model.channel": (config.model.channel,),  # A list: see below.
        "data.source": (*data.SOURCES, "mixture", *(f"task:{name}" for name in data.TASKS)),
        "data.tokenizer": (config.data.tokenizer,) if own_tokenizer else data.TOKENIZERS,
        "model.dtype": dtypes,
        "model.param_dtype": dtypes,
        "parallel.schedule": ("auto", *preflight_mesh.schedules(config)),
    }
    flat = flatten(config.to_dict())
    yield from unknown_names(flat, choices)
    pairs = [("model.mixer", name, MIXERS) for name in listed(config.model.mixer)]
    pairs += [("model.channel", name, CHANNELS) for name in listed(config.model.channel)]
    pairs += [("optimizer.decay_roles", role, parameters.ROLES) for role in config.optimizer.decay_roles]
    for axis, cut in config.sharding.to_dict().items():
        pairs += [(f"sharding.{axis}", name, sharding.AXES) for name in cut]
    for key, value, table in pairs:
        yield from unknown_names({key: value}, {key: table})
    yield from _control_problems(config.generate.control)


def _is_path(tokenizer: str) -> bool:
    """Whether `data.tokenizer` names a file or a folder."""
    return "/" in tokenizer or tokenizer.endswith((".json", ".model", ".tiktoken", ".gguf"))


def _heads_or_width(width: int, heads: int) -> str:
    """A setting that makes heads divide a width: that of the two which is the odd one, as widths are multiples of 8."""
    if width % 8 or width > 2**16:
        return f"model.width={nearest_multiple(width, heads)}"
    fits = [n for n in range(1, width + 1) if width % n == 0]
    return f"model.num_heads={min(fits, key=lambda n: (abs(n - heads), -n))}"


def _size_problems(config: Any) -> Iterator[str]:
    """What must divide what in a model, each with a value that works."""
    model = config.model
    if not model.head_dim and model.width % model.num_heads:
        yield (
            f"model.width={model.width} does not divide by model.num_heads={model.num_heads}; "
            f"use e.g. {_heads_or_width(model.width, model.num_heads)}."
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        fits = largest_divisor(model.num_heads, model.num_kv_heads)
        yield (
            f"model.num_kv_heads={model.num_kv_heads} must divide model.num_heads={model.num_heads}; "
            f"use e.g. model.num_kv_heads={fits}."
        )
    if 0 < model.positions < config.data.length:
        yield (
            f"model.positions={model.positions} has no row for the last tokens of data.length={config.data.length}; "
            f"use e.g. model.positions={config.data.length}."
        )
    pattern = len(model.mixer.split(","))
    if model.num_layers % pattern:
        near = nearest_multiple(model.num_layers, pattern)
        yield (
            f"model.num_layers={model.num_layers} does not repeat the {pattern} mixers of model.mixer; "
            f"use e.g. model.num_layers={near}."
        )


def _combination_problems(config: Any, begun: bool) -> Iterator[str]:
    """Parts that do not go together."""
    from data.tokenise import TRAINERS
    from experiments.program import objective
    from models.mixers import MIXERS

    if not objective(config.objective).causal:
        for name in config.model.mixer.split(","):
            if not MIXERS[name.strip()].bidirectional:
                yield (
                    f"model.mixer={name!r} is causal and objective={config.objective!r} is not; "
                    "use model.mixer='attention'."
                )
    groups = config.to_dict()
    facts = Facts(*(groups[name] for name in ("model", "data", "mesh", "sharding", "objective")))
    yield from preflight_objectives.problems(config, facts)
    yield from preflight_parts.problems(config, facts)
    yield from memory_problems(groups["generate"], config.model.mixer)
    yield from preflight_sizes.problems(config)
    yield from preflight_segments.problems(config)
    yield from preflight_segments.of_hamburger(config)
    yield from preflight_rewired.problems(config)
    yield from preflight_experts.problems(config)
    yield from preflight_optimizer.problems(config)
    path, tokenizer, warm, grow = config.data.path, config.data.tokenizer, config.init.warm_start, config.init.grow_from
    of_files, source = config.data.source in ("text", "chat"), config.data.source
    if source == "text" and not path:
        yield f"data.path='' names no corpus for data.source={source!r}; use a file, folder or glob, e.g. 'corpus.txt'."
    elif of_files and path and "*" not in path and "://" not in path and not found(path, pathlib.Path.exists):
        yield f"data.path={short(path)} does not exist; give a file, folder or glob that does, e.g. 'corpus.txt'."
    if tokenizer in TRAINERS and 0 < config.data.vocab_size < 260:
        yield f"data.vocab_size={config.data.vocab_size} is too small for data.tokenizer={tokenizer!r}; use e.g. 4096."
    yield from preflight_companions.problems(config)
    if begun:
        return
    there = lambda path: path.is_file() or (path / "config.json").is_file()  # noqa: E731
    if _is_path(tokenizer) and not found(tokenizer, there):
        yield f"data.tokenizer={short(tokenizer)} is not a saved tokenizer; use 'bytes' or 'bpe'."
    for key, start in (("warm_start", warm), ("grow_from", grow)):
        if start and not holds_checkpoint(start):
            yield f"init.{key}={short(start)} holds no finished checkpoint; give the --workdir of a trained model."
    yield from preflight_growth.problems(config)
    yield from preflight_experts.start_problems(config)
    yield from preflight_rewired.start_problems(config)
    yield from preflight_pretrained.problems(config)
