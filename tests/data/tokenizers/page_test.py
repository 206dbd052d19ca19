"""docs/tokens.md lists every public function of the family, with its parameters and its first sentence."""

import pytest

from tests import environment, formulas

PAGE = environment.ROOT / "docs" / "tokens.md"
MODULES = [
    *(
        f"data.tokenizers.{name}"
        for name in ("covers", "endings", "pairs", "unigram", "mixture", "theory", "lzw", "lib", "digits", "dynamic")
    ),
    *(f"data.tokenizers.{name}" for name in ("morphology", "patches", "measures", "romanise", "sampled")),
    "data.catalogues",
    "models.transplant",
    "models.hypernetwork",
    *(f"models.segments.{name}" for name in ("cuts", "magnet", "mrt5", "hnet", "words", "hamburger")),
]


@pytest.mark.parametrize("module", MODULES)
def test_the_page_is_of_the_code(module):
    rows = formulas.listed(PAGE)
    wanted = [formulas.row(path) for path in formulas.public(module)]
    assert wanted and [rows.get(path) for path in formulas.public(module)] == wanted, "\n".join(wanted)


def test_the_page_names_nothing_else():
    known = {path for module in MODULES for path in formulas.public(module)}
    assert set(formulas.listed(PAGE)) == known
