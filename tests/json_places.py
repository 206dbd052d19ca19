"""Places in JSON values, for tests that put anything anywhere."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any


def places(told: Any, at: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, as a path of keys and indices."""
    for key, value in told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(told: Any, at: Sequence, value: Any) -> Any:
    """A copy of `told` with `value` at the place `at`."""
    told = copy.deepcopy(told)
    inner = told
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return told
