"""Pretrained models of other libraries as configs of this house: what their files say, as values of `model.*`.

`describe(path)` reads a folder in Hugging Face form or one .gguf file, the small text in front alone: no weight is
read, and a field that is not known is refused by name, because it may well change what the model computes.
"""

import json
import os
import pathlib
from typing import Any

from configs.families import gguf_fields, gguf_header, hugging_face
from configs.families.fields import SIZE, Unreadable, whole
from configs.knobs import KNOBS

__all__ = ["Unreadable", "describe", "kind"]


def kind(path: str | os.PathLike) -> str:
    """What is at `path`: "hf", a folder with config.json, or "gguf", a file. Errors: Unreadable."""
    path = pathlib.Path(path).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    if (path / "config.json").is_file():
        return "hf"
    here = "is not there" if not path.exists() else "holds no config.json" if path.is_dir() else "is no .gguf file"
    raise Unreadable(f"{path} {here}; give a folder with config.json and *.safetensors, or one .gguf file.")


def describe(path: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """(family, values by key within `model`, e.g. "attention.rope_theta") of what is at `path`.

    Errors: Unreadable with one sentence: no such model, an unknown architecture, a field that is not known.
    """
    path = pathlib.Path(path).expanduser()
    with whole(path):
        family, values = _described(path)
        for key, value in values.items():
            _check(path, key, value)
    return family, values


def _described(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    if kind(path) == "gguf":
        return gguf_fields.describe(gguf_header.read(path))
    try:
        told = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path / 'config.json'} cannot be read ({error}); bring it back from a copy.") from None
    if not isinstance(told, dict):
        raise Unreadable(f"{path / 'config.json'} is not an object; bring it back from a copy.")
    return hugging_face.describe(told, str(path / "config.json"))


def _check(path: pathlib.Path, key: str, value: Any) -> None:
    """Raises Unreadable unless `value` is of the type that the knob `key` of the model has, and no absurd number."""
    knob = KNOBS.get(f"model.{key}")
    kinds = {float: (int, float), tuple: (tuple, list)}
    if knob is None:
        raise Unreadable(f"{path} asks for model.{key}={value!r}, and there is no such key.")
    if not isinstance(value, kinds.get(type(knob.default), type(knob.default))):
        raise Unreadable(f"{path} asks for model.{key}={value!r}, and a {type(knob.default).__name__} belongs there.")
    if isinstance(value, int | float) and not abs(value) < SIZE:
        raise Unreadable(f"{path} asks for model.{key}={value!r}, which no model has.")
