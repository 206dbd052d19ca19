"""Says in one sentence what is wrong with `--config` and its overrides, where absl would print a traceback."""

import difflib
import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict


def load(path: str) -> ConfigDict:
    """The config of `FILE.py` or `FILE.py:argument`, as `--config` loads it. ValueError in one sentence."""
    name, _, argument = path.partition(":")
    file = pathlib.Path(name)
    if not file.is_file():
        near = difflib.get_close_matches(name, [str(p) for p in pathlib.Path("configs").glob("**/*.py")], n=1)
        hint = f"did you mean --config={near[0]}?" if near else "try --config=configs/quickstart.py."
        raise ValueError(f"--config={name} is not a file; {hint}")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def explain(arguments: list[str], error: BaseException) -> str:
    """One sentence for an `error` that parsing `arguments` raised."""
    pairs = [a.lstrip("-").partition("=") for a in arguments if a.startswith(("--config", "-config"))]
    path = next((value for key, _, value in pairs if key == "config"), None)
    try:
        config = load(path) if path else None
    except ValueError as problem:
        return str(problem)
    for key, _, value in pairs:
        if config is None or not key.startswith("config."):
            continue
        problem = _unknown(config, key.removeprefix("config.").split("."))
        if problem:
            return problem
        if key.removeprefix("config.") in str(error) or f"--{key}" in str(error) or key in str(error):
            return _mistyped(config, key.removeprefix("config."), value)
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _unknown(config: Any, parts: list[str]) -> str:
    """A sentence when the dotted key is not in the config, else ""."""
    at = config
    for depth, part in enumerate(parts):
        if not isinstance(at, ConfigDict) or part not in at:
            names = list(at) if isinstance(at, ConfigDict) else []
            here = ".".join(parts[:depth])
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
            hint = f"did you mean --config.{'.'.join([*parts[:depth], near[0]])}? " if near else ""
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            place = f" in {here}" if here else ""
            return f"--config.{'.'.join(parts)} is not a key of the config; {hint}Known{place}: {known}."
        at = at[part]
    return ""


def _mistyped(config: Any, key: str, value: str) -> str:
    at = config
    for part in key.split("."):
        at = at[part]
    kind = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}.get(
        type(at), ""
    )
    return f"--config.{key}={value} does not fit; it must be {kind or type(at).__name__}, e.g. --config.{key}={at}."
