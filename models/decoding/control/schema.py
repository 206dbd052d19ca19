"""JSON schemas as regular expressions, where they are regular: no reference that comes back to itself.

Objects have their properties in the schema's order, optional ones may be left out, others do not come; a blank may
stand behind colons and commas. Read are: type, properties, required, items, prefixItems, minItems, maxItems, enum,
const, anyOf, oneOf, $ref to $defs, minLength, maxLength, pattern; titles and the like say nothing.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

BLANK = " ?"
CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})'
INTEGER = r"-?(?:0|[1-9][0-9]{0,15})"
NUMBER = INTEGER + r"(?:\.[0-9]{1,16})?(?:[eE][+-]?[0-9]{1,3})?"
SAYS_NOTHING = {"title", "description", "$schema", "$id", "$defs", "definitions", "default", "examples", "format",
                "additionalProperties"}  # fmt: skip
KEYS = {"type", "properties", "required", "items", "prefixItems", "minItems", "maxItems", "enum", "const", "anyOf",
        "oneOf", "$ref", "minLength", "maxLength", "pattern"}  # fmt: skip


def pattern_of(schema: Mapping[str, Any] | str) -> str:
    """The pattern of the texts that are JSON of the schema, written as above.

    Errors: ValueError where the schema is not regular (a reference inside itself, values of any type), or has a key
    that is not read.
    """
    schema = json.loads(schema) if isinstance(schema, str) else schema
    return _pattern(schema, schema, ())


def _pattern(part: Mapping[str, Any], root: Mapping[str, Any], inside: tuple[str, ...]) -> str:
    if unknown := part.keys() - KEYS - SAYS_NOTHING:
        raise ValueError(f"the schema has {min(unknown)!r}, which is not read; say it by type, enum, pattern or anyOf.")
    if "$ref" in part:
        return _pattern(_referred(part["$ref"], root, inside), root, (*inside, part["$ref"]))
    if "const" in part or "enum" in part:
        values = part.get("enum", [part.get("const")])
        return _one_of(re.escape(json.dumps(value, ensure_ascii=False)) for value in values)
    if options := part.get("anyOf", part.get("oneOf")):
        return _one_of(_pattern(option, root, inside) for option in options)
    kind = part.get("type")
    if isinstance(kind, list):
        return _one_of(_pattern({**part, "type": one}, root, inside) for one in kind)
    if kind == "object":
        return _object(part, root, inside)
    if kind == "array":
        return _array(part, root, inside)
    if kind == "string":
        return _string(part)
    plain = {"integer": INTEGER, "number": NUMBER, "boolean": "(?:true|false)", "null": "null"}
    if kind not in plain:
        raise ValueError(f"a part of the schema has the type {kind!r}, which is not regular; an example: 'integer'.")
    return plain[kind]


def _referred(name: str, root: Mapping[str, Any], inside: tuple[str, ...]) -> Mapping[str, Any]:
    if name in inside:
        raise ValueError(
            f"the schema's {name!r} contains itself, which is not regular; use generate.control='json' for it."
        )
    at: Any = root
    try:
        for step in name.removeprefix("#").strip("/").split("/"):
            at = at[step] if step else at
    except (KeyError, TypeError):
        raise ValueError(f"the schema refers to {name!r}, which it lacks; its own parts are '#/$defs/NAME'.") from None
    return at


def _one_of(patterns: Any) -> str:
    return "(?:" + "|".join(patterns) + ")"


def _string(part: Mapping[str, Any]) -> str:
    if "pattern" in part:
        return '"(?:' + part["pattern"].removeprefix("^").removesuffix("$") + ')"'
    least, most = part.get("minLength", 0), part.get("maxLength", "")
    return f'"{CHARACTER}{{{least},{most}}}"'


def _array(part: Mapping[str, Any], root: Mapping[str, Any], inside: tuple[str, ...]) -> str:
    if "prefixItems" in part:
        return r"\[" + f",{BLANK}".join(_pattern(one, root, inside) for one in part["prefixItems"]) + r"\]"
    if "items" not in part:
        raise ValueError("an array of the schema has no 'items'; say their type, e.g. {'type': 'integer'}.")
    item = _pattern(part["items"], root, inside)
    least, most = part.get("minItems", 0), part.get("maxItems")
    if most == 0:
        return r"\[\]"
    more = f"(?:,{BLANK}{item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    return r"\[" + (item + more if least else f"(?:{item}{more})?") + r"\]"


def _object(part: Mapping[str, Any], root: Mapping[str, Any], inside: tuple[str, ...]) -> str:
    required = set(part.get("required", ()))
    properties = part.get("properties", {})
    if missing := required - properties.keys():
        raise ValueError(f"the schema requires {min(missing)!r}, which is none of its properties.")
    entries = [
        (
            re.escape(json.dumps(name, ensure_ascii=False)) + f":{BLANK}" + _pattern(value, root, inside),
            name in required,
        )
        for name, value in properties.items()
    ]
    return r"\{" + _entries(entries) + r"\}"


def _entries(entries: list[tuple[str, bool]]) -> str:
    """Entries in order, with commas between those that come: a first one is chosen, all behind it bring their comma."""
    tail = ""
    starts = []  # The pattern that begins with entry i.
    for pattern, needed in reversed(entries):
        starts.append((pattern + tail, needed))
        tail = (f",{BLANK}{pattern}" if needed else f"(?:,{BLANK}{pattern})?") + tail
    options = []
    for pattern, needed in reversed(starts):
        options.append(pattern)
        if needed:
            return _one_of(options)
    return _one_of([*options, ""])
