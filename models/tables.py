"""Tables whose parts are found by name: a module of the socket's folder states what it brings."""

import importlib
import pkgutil
from typing import Any


def found(package: str) -> dict[str, Any]:
    """The `PARTS` (name -> part) of all modules of a package that have some, modules in the order of their names.

    Args:
      package: its dotted name; the package may call this while it is imported.

    Errors: ValueError where two modules bring parts of one name.
    """
    parts: dict[str, Any] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        brought = getattr(importlib.import_module(f"{package}.{module.name}"), "PARTS", {})
        if twice := parts.keys() & brought.keys():
            raise ValueError(f"{package}.{module.name} brings {min(twice)!r}, which another module there brings.")
        parts |= brought
    return parts
