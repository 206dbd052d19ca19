"""Pages that list plain functions: what a row of such a page must be, from the code."""

import importlib
import inspect
import pathlib


def row(path: str) -> str:
    """`| path | parameters | first paragraph of the docstring |` of a public function or class."""
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    parameters = ", ".join(str(p.replace(annotation=p.empty)) for p in inspect.signature(thing).parameters.values())
    said = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).replace("|", "\\|")
    return f"| `{path}` | `({parameters})` | {said} |"


def public(module: str) -> list[str]:
    """Paths of the functions and classes that a module defines for others, in its order."""
    made = importlib.import_module(module)
    return [
        f"{module}.{name}"
        for name, thing in vars(made).items()
        if not name.startswith("_")
        and (inspect.isfunction(thing) or inspect.isclass(thing))
        and thing.__module__ == module
    ]


def listed(page: pathlib.Path) -> dict[str, str]:
    """Path -> row, of the rows of a page that begin with a path of ours."""
    rows = [line for line in page.read_text().splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in rows}
