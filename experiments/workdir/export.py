"""Parameters as one `safetensors` file, which any framework reads, and back."""

import json
import math
import os
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as serialize

from configs.knobs import nested
from experiments import workdir as files

FILE = files.EXPORTS["safetensors"]


def save(params: Any, config: dict[str, Any], path: str | os.PathLike) -> int:
    """Writes parameters (names joined by "/") with the config as metadata, whole or not at all; returns their count.

    Raises `experiments.workdir.WorkdirError` when the file cannot be written.
    """
    flat = {name: np.asarray(value, order="C") for name, value in _flatten(jax.device_get(params)).items()}
    files.write_file(path, serialize(flat, metadata={"config": json.dumps(config), "format": "tessera"}))
    return sum(math.prod(value.shape) for value in flat.values())


def load(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
    """`(params, config)` of a file that `save` wrote; arrays are numpy."""
    with safe_open(os.fspath(path), framework="numpy") as file:
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = json.loads((file.metadata() or {}).get("config", "{}"))
    return nested(flat, "/"), config


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("/"): tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flatten(value, f"{prefix}{key}/").items()}
