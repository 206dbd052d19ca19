"""The knobs of configs/base.py with their sentences."""

import ast
import dataclasses
import inspect
import io
import re
import tokenize

from configs import base


@dataclasses.dataclass(frozen=True)
class Knob:
    """`key`: dotted. `default`: as it is written. `says`: the sentence beside it, "" where there is none. A group has
    the default "" and ends with a dot."""

    key: str
    default: str
    says: str


def knobs() -> list[Knob]:
    """Every knob and group of the house, in the order of configs/base.py: the one place that knows where they are."""
    return _of_comments(inspect.getsource(base))


def _of_comments(source: str) -> list[Knob]:
    """Reads `get_config` of `source`: assignments to `config`, and the comments on their lines or right above."""
    behind, alone = _comments(source)
    (function,) = [n for n in ast.parse(source).body if getattr(n, "name", "") == "get_config"]
    names, found = {"config": ""}, []
    for node in function.body:
        if not isinstance(node, ast.Assign) or (place := _place(node.targets, names)) is None:
            continue
        lines = range(node.lineno, node.end_lineno + 1)
        says = " ".join([*_above(node.lineno, alone), *(behind[line] for line in lines if line in behind)])
        if not (isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "ConfigDict"):
            found.append(Knob(place, ast.unparse(node.value), says))
            continue
        names.update({target.id: place for target in node.targets if isinstance(target, ast.Name)})
        inner = node.value.args[0] if node.value.args else ast.Dict([], [])
        if place:
            found.append(Knob(f"{place}.", "", says))
        found += [
            Knob(f"{place}.{key.value}", ast.unparse(value), "")
            for key, value in zip(inner.keys, inner.values, strict=True)
        ]
    return found


def _place(targets: list[ast.expr], names: dict[str, str]) -> str | None:
    """The dotted key that is assigned, "" for the config itself; None where it is no part of it."""
    for target in targets:
        parts = []
        while isinstance(target, ast.Attribute):
            parts.insert(0, target.attr)
            target = target.value
        if isinstance(target, ast.Name) and target.id in names and parts:
            return ".".join(filter(None, [names[target.id], *parts]))
    return "" if any(getattr(target, "id", "") == "config" for target in targets) else None


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those behind code, and those that have their line for themselves."""
    behind, alone = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            where = behind if token.line[: token.start[1]].strip() else alone
            said = re.sub(r"\s*#\s*before: .*", "", token.string)  # For saved configs, not for a reader.
            where[token.start[0]] = re.sub(r"\s+", " ", said.lstrip("# "))
    return behind, alone


def _above(line: int, alone: dict[int, str]) -> list[str]:
    """The comments of the lines right above `line`."""
    first = line
    while first - 1 in alone:
        first -= 1
    return [alone[k] for k in range(first, line)]
