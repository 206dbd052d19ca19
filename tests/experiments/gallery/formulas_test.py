"""The tables of plain functions in docs/ are those of the code."""

import pytest

from experiments.gallery import formulas
from models.mixers.memory.rules import RULES
from tests import environment

DOCS = environment.ROOT / "docs"


@pytest.mark.parametrize("name", formulas.PAGES)
def test_the_page_is_what_the_code_says(name):
    """Else run: python -m experiments.gallery.formulas."""
    text = (DOCS / f"{name}.md").read_text()
    assert text == formulas.page(name, text)


@pytest.mark.parametrize("name", formulas.PAGES)
def test_the_tests_that_a_page_names_are_there(name):
    text = (DOCS / f"{name}.md").read_text()
    named = {word for word in text.replace("`", " ").replace("/", " ").split() if word.endswith("_test.py")}
    there = {path.name for path in (environment.ROOT / "tests").rglob("*_test.py")}
    assert named <= there, named - there


def test_a_function_without_its_equation_is_refused():
    with pytest.raises(ValueError, match="has no docstring"):
        formulas.says(lambda x: x)


def test_the_page_of_caches_states_every_policy_and_its_options():
    text = (DOCS / "cache.md").read_text()
    for name, rule in RULES.items():
        own = {
            key: field.default for key, field in rule.__dataclass_fields__.items() if key not in ("theta", "pairing")
        }
        options = ", ".join(f"{key}={default!r}" for key, default in own.items())
        assert f"| `{name}` | {f'`{options}`' if options else ''} | " in text, name
