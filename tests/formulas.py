"""Pages that list plain functions: what a row of such a page must be, from the code."""

import importlib
import inspect
import pathlib

from experiments.gallery import formulas


def row(path: str) -> str:
    """`| path | parameters | first paragraph of the docstring |` of a public function or class."""
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    parameters = ", ".join(str(p.replace(annotation=p.empty)) for p in inspect.signature(thing).parameters.values())
    return f"| `{path}` | `({parameters})` | {formulas.says(thing)} |"


def public(module: str) -> list[str]:
    """Paths of the functions and classes that a module defines for others, in its order."""
    return [f"{module}.{name}" for name in formulas.public(importlib.import_module(module))]


def listed(page: pathlib.Path) -> dict[str, str]:
    """Path -> row, of the rows of a page that begin with a path of ours."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in rows}
