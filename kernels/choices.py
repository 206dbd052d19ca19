"""How a kernel is cut on a chip: what was measured there, one table an op, and else the default of the kernel.

A kernel asks `chosen(...)` while it is traced. The tables are `kernels/OP/choices.json`:

    {"cpu": {"chunked forward, T 2048, S 2048": {"choice": [256, 512], "default": [512, 512],
                                                "times_faster": 1.08, "row": "attention/causal_2k/fwd"}}}

by the name that jax gives the chip (`jax.devices()[0].device_kind`). `--mode=bench --tune` searches and writes them;
nothing is measured at any other time. A program that is compiled for a chip that is not here takes the defaults. Other
tiles add in another order, so that a table that has changed changes the last bits of a run.
"""

import contextlib
import contextvars
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax

FILE = "choices.json"
ROOT = pathlib.Path(__file__).parent
Choice = tuple[int, ...]


class Question(NamedTuple):
    """What a kernel asked: its op (a folder of kernels/), and of which kernel and which shapes."""

    op: str
    of: str


class Asked(NamedTuple):
    """The platform and the default of a question, and what else may be tried."""

    platform: str
    default: Choice
    tried: tuple[Choice, ...]


_asked: contextvars.ContextVar[dict[Question, Asked] | None] = contextvars.ContextVar("asked", default=None)
_given: contextvars.ContextVar[Mapping[Question, Choice]] = contextvars.ContextVar("given", default={})  # noqa: B039


def chosen(op: str, of: str, platform: str, default: Choice, tried: tuple[Choice, ...] = ()) -> Choice:
    """The numbers that the table of `op` has for `of` on the chip that is here, else `default`.

    Args:
      op: a folder of kernels/, e.g. attention.
      of: the kernel and the class of its shapes, e.g. "pallas_gpu forward, H 64, S 2048"; see `length`.
      platform: whose kernel it is, cpu, gpu or tpu. With another device at hand the default is taken.
      default: what is right on every chip, e.g. (block_q, block_k).
      tried: what a search tries beside it.
    """
    question = Question(op, of)
    if (asked := _asked.get()) is not None:
        asked[question] = Asked(platform, default, tried)
    if question in (given := _given.get()):
        return given[question]
    device = jax.devices()[0]
    if device.platform != platform:
        return default
    found = table(op).get(device.device_kind, {}).get(of)
    return tuple(found["choice"]) if found else default


def length(tokens: int) -> int:
    """The least power of two that is not below `tokens`, 1 of 0: lengths of one class are cut alike."""
    return 1 << max(0, tokens - 1).bit_length()


@functools.cache
def table(op: str) -> dict:
    """What stands in the file of `op`; {} where nothing was measured."""
    path = ROOT / op / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def edited(op: str, chip: str, of: str, row: Mapping) -> tuple[pathlib.Path, bytes]:
    """The file of `op` and its contents with one measured row; without a `choice` without what stood there.

    Whoever writes them calls `table.cache_clear()`.
    """
    made = {name: dict(rows) for name, rows in table(op).items()}
    made.setdefault(chip, {}).pop(of, None)
    if "choice" in row:
        made[chip][of] = dict(row)
    made = {name: dict(sorted(rows.items())) for name, rows in sorted(made.items()) if rows}
    return ROOT / op / FILE, (json.dumps(made, indent=1) + "\n").encode()


@contextlib.contextmanager
def asking() -> Iterator[dict[Question, Asked]]:
    """Collects what is asked inside, by the thread that opened it and by those that copy its context."""
    token = _asked.set(found := {})
    try:
        yield found
    finally:
        _asked.reset(token)


@contextlib.contextmanager
def given(answers: Mapping[Question, Choice]) -> Iterator[None]:
    """Inside, `chosen` answers so. What was traced before is forgotten on both ends: jax would take it again."""
    token = _given.set({**_given.get(), **answers})
    jax.clear_caches()
    try:
        yield
    finally:
        _given.reset(token)
        jax.clear_caches()
