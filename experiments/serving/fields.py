"""Fields of a JSON body, each with what it may hold; what else comes is refused in a sentence that names it."""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.serving.wrong import Wrong

Read = Callable[[str, Any], Any]
"""(name, value of JSON) -> what a request holds. Errors: Wrong."""


def parsed(body: bytes) -> dict[str, Any]:
    """The object that a body holds. Errors: Wrong for all else, NaN and half characters included."""

    def refuse(word: str) -> None:
        raise Wrong(f"{word} is no number of JSON; leave the field away, or give a finite number.", code="invalid_json")

    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Wrong(f"byte {error.start} of the body is not UTF-8; send JSON in UTF-8.", code="invalid_json") from None
    try:
        made = json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise Wrong("the body nests too deep; send one flat object of JSON.", code="invalid_json") from None
    except ValueError as error:
        raise Wrong(f"the body is not JSON ({error}); send one object.", code="invalid_json") from None
    if not isinstance(made, dict):
        raise Wrong(f"the body is {shown(made)}; send one object, in braces.", code="invalid_json")
    return made


def shown(value: Any) -> str:
    """A value of JSON in a sentence, cut where it is long."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _wrong(name: str, value: Any, must: str) -> Wrong:
    return Wrong(f"{name}={shown(value)} must be {must}.", param=name)


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`."""

    least: float
    most: float
    example: float

    def __call__(self, name: str, value: Any) -> float:
        """See `Read`."""
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        # A whole number of JSON may be larger than any float.
        if not plain or not self.least <= value <= self.most or not math.isfinite(value):
            must = f"a number from {self.least:g} to {self.most:g}, e.g. {self.example:g}"
            raise _wrong(name, value, must)
        return float(value)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`."""

    least: int
    most: int
    example: int

    def __call__(self, name: str, value: Any) -> int:
        """See `Read`."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not self.least <= value <= self.most:
            raise _wrong(name, value, f"a whole number from {self.least} to {self.most}, e.g. {self.example}")
        return value


def switch(name: str, value: Any) -> bool:
    """true or false; see `Read`."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def text(name: str, value: Any) -> str:
    """A text that UTF-8 can hold; see `Read`."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Wrong(f"{name} holds half of a surrogate pair, which is no character.", param=name) from None
    return value


@dataclasses.dataclass(frozen=True)
class Only:
    """A field that is known and can say one thing here."""

    values: Sequence[Any]
    why: str

    def __call__(self, name: str, value: Any) -> None:
        """See `Read`."""
        if not any(type(value) is type(one) and value == one for one in self.values):
            raise Wrong(f"{name}={shown(value)}: {self.why}; leave it away.", param=name, code="unsupported")


def passed_over(name: str, value: Any) -> None:
    """A field that changes nothing here; see `Read`."""


def taken(body: Mapping[str, Any], known: Mapping[str, Read]) -> dict[str, Any]:
    """The fields of a body; one that is null counts as not said. Errors: Wrong, also for a name that is not known."""
    made = {}
    for name, value in body.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}?" if near else "docs/server.md lists the fields."
            raise Wrong(f"{shown(name)} is no field of this request; {hint}", param=name[:60], code="unknown_field")
        if value is not None:
            made[name] = known[name](name, value)
    return made
