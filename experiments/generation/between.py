"""What controls do on the host: once for a request (`Control.given`), e.g. the tables of a constraint, and between two
rounds of a row (`Control.between`), e.g. the mask of a grammar."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.generation import requests, speakers
from experiments.settings.errors import ConfigError
from models.decoding.control import Control, Host
from models.decoding.stream import Parts, Progress

NOT_FINITE = "the model's numbers are not finite"
NO_TOKEN = f"its controls leave no token, or {NOT_FINITE}"
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


def parsed(
    parts: Parts, options: Mapping[str, Any], tokenizer: Any, prompt: str | np.ndarray | requests.Spoken
) -> tuple[np.ndarray, Given]:
    """Ids of a prompt `[n]`, the start of a document included, and what the control that reads it says of its row; ids
    `[n]` are taken as they are, with the kinds that they come with.

    Errors: ConfigError with the sentence of that control.
    """
    told = [part.count for name, part in parts.control if name == "roles"]
    if told:
        ids, role = speakers.read(tokenizer, prompt, told[0], marked=options["roles"]["marked"])
        return ids, {"roles": {"prompt": role}}
    prompt = prompt.ids if isinstance(prompt, requests.Spoken) else prompt
    if not isinstance(prompt, str):
        return np.asarray(prompt, np.int32), {}
    for name, part in parts.control:
        try:
            made = part.parsed(options, tokenizer, prompt)
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        if made is not None:
            return made[0], {name: made[1]}
    return requests.encode(tokenizer, prompt), {}


def entering(parts: Parts) -> bool:
    """Whether some control changes how prompts are read."""
    own = [type(part) for _, part in parts.control]
    return any(part.enters is not Control.enters or part.placed is not Control.placed for part in own)


def together(first: Given, second: Given) -> Given:
    """The entries of both."""
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in {**first, **second}}


def by_row(each: Sequence[Given]) -> Given:
    """What rows of one batch start with, the rows in front; all of them have the same entries or sizes of zeros."""
    names = {(name, key) for given in each for name, mine in given.items() for key in mine}
    made: dict[str, dict[str, Any]] = {}
    for name, key in sorted(names):
        mine = [np.asarray(given[name][key]) if key in given.get(name, {}) else None for given in each]
        shape = np.max([x.shape for x in mine if x is not None], axis=0).astype(int)
        dtype = next(x.dtype for x in mine if x is not None)
        rows = np.zeros((len(each), *shape), dtype)
        for row, x in enumerate(mine):
            if x is not None:
                rows[(row, *(slice(n) for n in x.shape))] = x
        made.setdefault(name, {})[key] = rows
    return made


def started(p: Progress, entries: Given) -> Progress:
    """`p` with these entries in the sides of all its rows."""
    if not entries:
        return p

    def whole(old: Any, new: Any) -> Any:
        new = np.asarray(new)
        if new.ndim and new.shape[-1] < old.shape[-1]:
            new = np.pad(new, [(0, 0)] * (new.ndim - 1) + [(0, old.shape[-1] - new.shape[-1])])
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
