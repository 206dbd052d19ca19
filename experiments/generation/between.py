"""What controls do on the host: once for a request (`Control.given`), e.g. the tables of a constraint, and between two
rounds of a row (`Control.between`), e.g. the mask of a grammar."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.settings.errors import ConfigError
from models.decoding.control import Control, Host
from models.decoding.stream import Parts, Progress

Given = Mapping[str, Mapping[str, Any]]
"""By control and entry of its side: what a request's row starts with."""


def given(parts: Parts, options: Mapping[str, Any], tokenizer: Any, sides: Mapping[str, Any]) -> Given:
    """What the controls make of a request with `config.generate` = options; sides: shapes of their sides.

    Errors: ConfigError with the sentence of a control that cannot do what is asked.
    """
    made = {}
    for name, part in parts.control:
        if type(part).given is not Control.given:
            try:
                made[name] = part.given(options, tokenizer, sides[name])
            except ValueError as error:
                raise ConfigError([str(error)]) from error
    return {name: entries for name, entries in made.items() if entries}


def started(p: Progress, entries: Given) -> Progress:
    """`p` with these entries in the sides of all its rows."""
    if not entries:
        return p

    def whole(old: Any, new: Any) -> Any:
        return jax.device_put(np.broadcast_to(new, old.shape).astype(old.dtype), old.sharding)

    side = dict(p.side)
    for name, mine in entries.items():
        side[name] = side[name] | {key: whole(side[name][key], value) for key, value in mine.items()}
    return dataclasses.replace(p, side=side)


def hosted(parts: Parts, options: Mapping[str, Any]) -> bool:
    """Whether a request with `config.generate` = options is looked at by the host before each of its rounds."""
    return any(part.hosts(options) for _, part in parts.control)


def between(parts: Parts, p: Progress, rows: Mapping[int, Host]) -> tuple[Progress, dict[int, str]]:
    """`p` before its next round, with the sides that controls made of these rows; and the rows in which one failed.

    Args:
      parts: of the round.
      p: whole on this process.
      rows: row of `p` -> what its controls see.
    """
    side, failed = dict(p.side), {}
    for name, part in parts.control:
        mine = {row: host for row, host in rows.items() if row not in failed and part.hosts(host.options)}
        if not mine:
            continue
        whole, changed = jax.tree.map(np.array, side[name]), False
        for row, host in mine.items():
            try:
                new = part.between(host, jax.tree.map(lambda x, row=row: x[row].copy(), whole))
            except Exception as error:  # Whatever it is, it is this row's alone.
                failed[row] = f"generate.control={name!r}: {type(error).__name__}: {error}"
                continue
            if new is not None:
                jax.tree.map(lambda x, y, row=row: x.__setitem__(row, y), whole, new)
                changed = True
        if changed:
            side[name] = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), whole, side[name])
    return dataclasses.replace(p, side=side), failed
