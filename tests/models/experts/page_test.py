"""docs/moe.md lists every public function of the formulas, by import path and arguments, and nothing else."""

import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

from experiments.gallery import formulas
from tests import environment

PAGE = (environment.ROOT / "docs" / "moe.md").read_text()
SECTIONS = re.findall(r"^### [^`\n]*: `([\w.]+)`\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
PACKAGES = ("models.experts", "experiments.routing")
# Not formulas: they speak of modules, configs and devices.
OTHERS = {f"models.experts.{name}" for name in ("channel", "dense_start", "options", "parallel", "schedules", "told")}


def shown(function) -> str:
    """The arguments as the page writes them."""
    names, starred = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.KEYWORD_ONLY and not starred:
            names, starred = [*names, "*"], True
        names.append(p.name if p.default is p.empty else f"{p.name}=")
    return ", ".join(names)


@pytest.mark.parametrize(("module", "text"), SECTIONS, ids=[module for module, _ in SECTIONS])
def test_the_page_lists_the_functions_of_a_module(module, text):
    held = importlib.import_module(module)
    public = {name: shown(f) for name, f in formulas.public(held).items() if inspect.isfunction(f)}
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \| (.+) \|$", text, re.MULTILINE)
    assert {name: arguments for name, arguments, _ in rows} == public
    assert len(rows) == text.count("\n| `") and all(equation for _, _, equation in rows)
    assert all(inspect.getdoc(getattr(held, name)) for name in public)


def test_no_module_is_left_out():
    found = set()
    for package in PACKAGES:
        (folder,) = importlib.import_module(package).__path__
        found |= {f"{package}.{each.name}" for each in pkgutil.iter_modules([folder])}
    listed = {module for module, _ in SECTIONS}
    assert found - OTHERS <= listed and pathlib.Path(environment.ROOT, "docs", "moe.md").exists()
