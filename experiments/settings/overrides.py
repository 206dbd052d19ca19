"""`--config=FILE.py:preset` and `--config.KEY=VALUE`: taken from the command line, loaded, applied, or refused."""

import ast
import difflib
import importlib.util
import inspect
import math
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import base as base_config
from experiments.settings.errors import ROOT, Refused
from experiments.settings.history import changed, rows_of
from experiments.settings.keys import assign, flatten

Override = tuple[str, str | None]  # The dotted key and the text behind "="; None where there was none.
_OTHER = {"get_sweep": "--mode=sweep", "get_claim": "--mode=claim", "get_config": "--mode=train"}
_EXAMPLES = {
    "get_config": "configs/quickstart.py",
    "get_sweep": "configs/sweeps/scaling.py",
    "get_claim": "configs/claims/digits_reversed.py",
}
_DEPTH = 30  # Levels of groups in a config; ours have four.
_SIZES = ("eval.batch_size", "data.batch_size")
FREE_TEXT = ("generate.stop",)  # Tuples whose elements are text of a person: their blanks count.
# What other programs call a setting of ours.
_ELSEWHERE = {
    "optimizer.learning_rate": "lr base_lr peak_lr max_lr step_size",
    "optimizer.weight_decay": "wd",
    "optimizer.warmup": "warmup_steps num_warmup_steps warmup_iters",
    "optimizer.clip": "grad_clip clip_grad max_grad_norm clip_norm gradient_clip",
    "optimizer.b1": "beta1 adam_beta1",
    "optimizer.b2": "beta2 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "train.steps": "max_steps num_steps total_steps max_iters iterations training_steps num_train_steps",
    "train.accumulation": "grad_accum gradient_accumulation_steps accum_steps",
    "data.batch_size": "global_batch_size batch bs train_batch_size",
    "data.length": "seq_len seq_length sequence_length max_seq_len max_length block_size context_length ctx",
    "data.path": "dataset data_path data_dir dataset_path",
    "model.width": "d_model hidden_size embed_dim n_embd emb_dim dim hidden_dim",
    "model.num_layers": "n_layers n_layer layers num_hidden_layers depth",
    "model.num_heads": "n_heads n_head heads num_attention_heads",
    "model.num_kv_heads": "n_kv_heads num_key_value_heads n_kv_head",
    "model.head_dim": "d_head head_size d_kv",
    "model.vocab_size": "n_vocab vocab",
    "model.tied": "tie_embeddings tie_word_embeddings",
    "model.param_dtype": "weight_dtype",
    "generate.max_tokens": "max_new_tokens num_tokens",
}
_NICKNAMES = {name: key for key, names in _ELSEWHERE.items() for name in names.split()}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def split(arguments: list[str]) -> tuple[list[Override], list[str]]:
    """Takes `--config.KEY=VALUE`, `--config.KEY VALUE`, `--config.KEY` and `--noconfig.KEY` out of `arguments`."""
    taken, rest, i = [], [], 0
    while i < len(arguments):
        name, equals, value = arguments[i].lstrip("-").partition("=")
        i += 1
        if name.startswith("noconfig.") and arguments[i - 1].startswith("-"):
            taken.append((name.removeprefix("noconfig."), "false"))
        elif name.startswith("config.") and arguments[i - 1].startswith("-"):
            if not equals and i < len(arguments) and not arguments[i].startswith("-"):
                equals, value = "=", arguments[i]
                i += 1
            taken.append((name.removeprefix("config."), value if equals else None))
        elif arguments[i - 1] == "--":
            return taken, rest + arguments[i - 1 :]
        else:
            rest.append(arguments[i - 1])
    return taken, rest


def load(path: str | os.PathLike, function: str = "get_config", kind: type = ConfigDict) -> Any:
    """What a function of a config file returns.

    Args:
      path: `FILE.py` or `FILE.py:preset`.
      function: get_config, get_sweep or get_claim.
      kind: the type that it must return: a config, or the plain dict of a sweep or claim.

    Errors: Refused in one sentence.
    """
    name, colon, preset = os.fspath(path).partition(":")
    file = pathlib.Path(name).expanduser()
    if name and not file.is_file() and (ROOT / name).is_file():
        file = ROOT / name  # One of ours, asked for from another folder.
    if name and file.is_dir():
        raise Refused(f"--config={path} is a folder; give a file, e.g. --config={_EXAMPLES[function]}.")
    if not name or not file.is_file() or file.suffix != ".py":
        raise Refused(f"--config={path} is not a config file; {_near_file(name, colon + preset)}")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A config is a person's file: anything may be wrong with it, sys.exit() too.
        raise Refused(f"--config={path} cannot be read: {_where(error, file)}; correct the file.") from error
    make = getattr(module, function, None)
    if make is None:
        other = next((mode for name, mode in _OTHER.items() if hasattr(module, name)), "")
        hint = f"use it with {other}." if other else f"start from {_EXAMPLES[function]}."
        raise Refused(f"--config={path} has no function {function}(); {hint}")
    try:
        inspect.signature(make).bind(*[preset] * bool(colon))
    except TypeError:
        fix = f"--config={name}" if colon else f"--config={name}:PRESET"
        raise Refused(f"--config={path}: the file takes {'no' if colon else 'a'} preset; use {fix}.") from None
    try:
        config = make(preset) if colon else make()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if type(error) is ValueError and "preset" in _text(error):  # From configs.base.choose: a sentence.
            raise Refused(f"--config={path}: {_text(error)}") from None
        raise Refused(f"--config={path} cannot be made: {_where(error, file)}; correct the file.") from error
    if not isinstance(config, kind):
        raise Refused(f"--config={path}: {function}() gives a {type(config).__name__}; return a {kind.__name__}.")
    if _deep(config):
        raise Refused(
            f"--config={path}: {function}() nests too deep; set the keys of configs/base.py, e.g. config.seed."
        )
    return renamed(config) if isinstance(config, ConfigDict) else config


def _deep(config: Any) -> bool:
    """Whether groups, lists and tuples nest deeper than any config of ours; it does not recurse."""
    layer = [config]
    for _ in range(_DEPTH):
        layer = [
            inner
            for item in layer
            for inner in (dict.values(item) if isinstance(item, dict) else _inside(item))
            if isinstance(inner, dict | list | tuple | ConfigDict)
        ]
        if not layer:
            return False
    return True


def _inside(item: Any) -> list:
    return [item[key] for key in item] if isinstance(item, ConfigDict) else list(item)


def apply(config: ConfigDict, overrides: list[Override]) -> ConfigDict:
    """`config` with the overrides set, each as the type that its key has. Refused, all problems together."""
    problems = []
    for key, text in today(config, overrides):
        problem = unknown(config, key.split("."))
        if not problem:
            value, problem = parse(key, text, value_at(config, key))
            if not problem:
                group, _, leaf = key.rpartition(".")
                value_at(config, group)[leaf] = value
        problems += [problem] if problem else []
    if problems:
        raise Refused("\n".join(problems))
    return config


def renamed(config: ConfigDict) -> ConfigDict:
    """`config`, in which keys that a file of an older house sets became those of today, in place: `eval.batches` with
    the file's own batch size, so that trials and command lines that change that one evaluate the same rows."""
    before = config.to_dict()
    was, now = flatten(before), changed(before)
    gone = [key for key in was if key not in now]
    with config.unlocked():
        for key in gone:
            group, _, leaf = key.rpartition(".")
            del value_at(config, group)[leaf]
        for key, value in now.items() if gone else ():
            if key not in was or was[key] != value:
                assign(config, key, value)
    return config


def today(config: ConfigDict, overrides: list[Override]) -> list[Override]:
    """Overrides of a key that has another name and meaning today, as they would be typed today: `eval.batches` is so
    many batches of rows before accumulation: runs that accumulate are measured on the rows of those that do not.
    """
    if "eval" not in config or "rows" not in config.eval or "batches" in config.eval:
        return overrides
    typed = {key: text for key, text in overrides if text is not None}
    if not typed.get("eval.batches", "").isdigit():
        return overrides
    sizes = {key: int(typed[key]) for key in _SIZES if typed.get(key, "").isdigit()}
    flat = {key: value_at(config, key) for key in _SIZES} | sizes | {"train.accumulation": 1}
    rows = ("eval.rows", str(rows_of(int(typed["eval.batches"]), flat)))
    return [rows if key == "eval.batches" else (key, text) for key, text in overrides]


def value_at(config: ConfigDict, key: str) -> Any:
    """The value or group behind a dotted key that is there; "" is the config itself."""
    for part in filter(None, key.split(".")):
        config = config[part]
    return config


def parse(key: str, text: str | None, default: Any) -> tuple[Any, str]:
    """`text` as a value of the type of `default`, and "" or what is wrong with it."""
    if isinstance(default, ConfigDict):
        first = next((name for name in default if not isinstance(default[name], ConfigDict | tuple)), "...")
        wrong = f"--config.{key}{'' if text is None else f'={text}'} is a group; set one of its keys, e.g. "
        return None, f"{wrong}--config.{key}.{first}={shown(default.get(first))}."
    if text is None and not isinstance(default, bool):
        return None, f"--config.{key} has no value; give one, e.g. --config.{key}={shown(default)}."
    try:
        return _read(text, default, free=key in FREE_TEXT), ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        kind = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a tuple"}.get(
            type(default), "text"
        )
        given = text if len(text) <= 60 else text[:57] + "..."
        return None, f"--config.{key}={given} must be {kind}, e.g. --config.{key}={shown(default)}."


def _read(text: str | None, default: Any, *, free: bool = False) -> Any:
    if isinstance(default, bool):
        return True if text is None else _word(text)
    if isinstance(default, int):
        return _whole(text)
    if isinstance(default, float):
        number = float(text)
        if math.isnan(number):
            raise ValueError(text)
        return number
    if isinstance(default, tuple):
        return _texts(text) if free else _tuple(text)
    return text


def _whole(text: str) -> int:
    """128, 1_000 and 1e3 are whole numbers, 1.5 is not."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _word(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError(text)
    return _WORDS[text.lower()]


def _tuple(text: str) -> tuple:
    """A Python literal, or words between commas: "('a','b')", "a,b", "a" and "" are tuples."""
    if text.strip()[:1] in ("(", "["):
        value = ast.literal_eval(text.strip())
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _texts(text: str) -> tuple:
    """A Python literal, or texts between commas, each with its blanks; a text that is empty is nobody's wish."""
    if text[:1] in ("(", "["):
        return _tuple(text)
    words = tuple(text.split(",")) if text else ()
    if not all(words):
        raise ValueError(text)
    return words


def unknown(config: Any, parts: list[str]) -> str:
    """A sentence when the dotted key is not in the config, else ""."""
    at = config
    for depth, part in enumerate(parts):
        if not isinstance(at, ConfigDict) or part not in at:
            here, asked = ".".join(parts[:depth]), ".".join(parts)
            if not isinstance(at, ConfigDict):
                return f"--config.{asked} is not a key of the config; {here} is one value: --config.{here}={shown(at)}."
            near = difflib.get_close_matches(part, list(at), n=1, cutoff=0.5)
            closest = ""
            if near:
                rest = parts[depth + 1 :] if isinstance(at[near[0]], ConfigDict) else []
                closest = ".".join([*parts[:depth], near[0], *rest])
            # A key of that very name before a group, or nothing, that is only spelled alike.
            named = "" if closest in flatten(config.to_dict()) else _key_of_name(config, parts[-1])
            found = _NICKNAMES.get(parts[-1]) or named or closest
            hint = f"did you mean --config.{found}?" if found else ""
            known = ", ".join(list(at)[:12]) + (", ...; docs/knobs.md lists all" if len(at) > 12 else "")
            hint += " " * bool(hint)
            return f"--config.{asked} is not a key of the config; {hint}Known in {here or 'it'}: {known}."
        at = at[part]
    return ""


def meant(name: str) -> str:
    """The dotted key of the config that a flag without `--config.` names, whole or by its last part; "" for none."""
    config = base_config.get_config()
    if not unknown(config, name.split(".")):
        return name
    group, _, rest = name.partition(".")
    if rest and group in config:  # A group of ours; what is wrong with the rest is said then.
        return name
    if rest and difflib.get_close_matches(group, ("config",)):  # --confg.KEY
        return rest
    return _NICKNAMES.get(name) or _key_of_name(config, name)


def _key_of_name(config: ConfigDict, name: str) -> str:
    """The dotted key of that very name in any group, the least deep one; "" where there is none."""
    found = [key for key in _dotted(config) if key.rpartition(".")[2] == name]
    return min(found, key=lambda key: key.count("."), default="")


def _dotted(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key and group of a config."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ConfigDict):
            yield from _dotted(value, f"{prefix}{key}.")


def shown(value: Any) -> str:
    """The value in the form that the command line takes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        plain = value and all(isinstance(v, str) and v and "," not in v for v in value)
        words = plain and value[0][0] not in "(["
        return shlex.quote(",".join(value) if words else str(value))
    return shlex.quote(str(value))


def _near_file(name: str, preset: str) -> str:
    """A file that was perhaps meant, with `:PRESET` as it was given."""
    files = {path: path for path in sorted(str(p) for p in pathlib.Path("configs").glob("**/*.py"))}
    files = {path: path for path in files if not path.endswith("__init__.py")}
    by_stem = {pathlib.Path(path).stem: path for path in files}
    near = difflib.get_close_matches(name, files, n=1)
    stem = difflib.get_close_matches(pathlib.Path(name).stem, by_stem, n=1) if not near and name else []
    found = near[0] if near else by_stem[stem[0]] if stem else ""
    return f"did you mean --config={found}{preset}?" if found else "try --config=configs/quickstart.py."


def _where(error: BaseException, file: pathlib.Path) -> str:
    """An exception in one line, with the line of `file` that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if pathlib.Path(f.filename) == file]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f" (line {lines[-1]})" if lines else ""
    said = (_text(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}{': ' if said else ''}{said}{place}"


def _text(error: BaseException) -> str:
    """What an exception says of itself, "" where that, too, is code that fails or ends the program."""
    try:
        said = error.msg if isinstance(error, SyntaxError) else error
        return "" if said is None else str(said)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def command(program: str = "python") -> str:
    """How this process was started, as one would type it again: `python main.py ...` or `tessera ...`."""
    return shlex.join(sys.argv if sys.argv[0] == "tessera" else [program, *sys.argv])
