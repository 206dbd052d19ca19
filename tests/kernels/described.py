"""Compiling for chips that are not here, remembered: what the TPU compiler made cannot be read back, its words can."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import types
from collections.abc import Callable
from typing import Any

from experiments.planning import traffic
from kernels import platforms
from tests import environment


def compile_for_tpu(fn: Callable, *shapes: Any, generation: str = "v5e") -> Any:
    """As `kernels.platforms.compile_for_tpu`, once for each program, chip and compiler: `as_text()` and the
    `temp_size_in_bytes` of `memory_analysis()` of what was compiled, now or in an earlier run of the tests."""
    traced = platforms.trace_for_tpu(fn, *shapes, generation=generation)
    program = traced.lower(lowering_platforms=("tpu",)).as_text()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu")]
    key = hashlib.sha256("\0".join([program, generation, *versions]).encode()).hexdigest()
    path = pathlib.Path(environment.CACHE) / f"described-{key}.json"
    if not path.exists():
        compiled = platforms.compile_described(traced)
        said = {"text": compiled.as_text(), "temp_size_in_bytes": compiled.memory_analysis().temp_size_in_bytes}
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(said))
        unfinished.replace(path)
    said = json.loads(path.read_text())
    memory = types.SimpleNamespace(temp_size_in_bytes=said["temp_size_in_bytes"])
    return types.SimpleNamespace(as_text=lambda: said["text"], memory_analysis=lambda: memory)


def moves(fn: Callable, *shapes: Any, generation: str = "v5e") -> dict[str, float]:
    """{kernel: bytes that it moves between HBM and the chip over those of its arrays}; nothing is compiled."""
    traced = platforms.trace_for_tpu(fn, *shapes, generation=generation)
    return {name: moves / once for name, _, once, moves in traffic.kernels(traced.jaxpr.jaxpr)}
