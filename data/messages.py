"""Sentences about values and files: of a value that is not in a table, with the nearest name that is; of damage."""

import difflib
from collections.abc import Iterable


def unknown(key: str, value: object, options: Iterable[str]) -> ValueError:
    """A ValueError that names the key, the value, the nearest valid value (if one is near) and all valid values."""
    names = sorted(options)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? It can be" if near else "use"
    return ValueError(f"{key}={value!r} is not known; {hint} one of {', '.join(map(repr, names))}.")


def why(error: Exception) -> str:
    """What an error says of a file, on one line; only a ValueError is a sentence of ours."""
    said = " ".join(str(error).split())[:200]
    return said if isinstance(error, ValueError) else f"it is damaged: {type(error).__name__} {said}"
