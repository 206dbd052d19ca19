"""Numbers that JSON does not have, as the files of a workdir spell them."""

import json
import math

import pytest

from experiments import workdir as files


@pytest.mark.parametrize(("number", "text"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN")])
def test_numbers_that_are_not_finite_are_words(number, text, tmp_path):
    assert files.plain(number) == text and json.loads(files.line({"step": 1, "x": [number]}))["x"] == [text]
    back = files.revive({"a": [text]})["a"][0]
    assert isinstance(back, float) and (back == number or math.isnan(number) and math.isnan(back))
    files.write_json(tmp_path / "v.json", {"loss": number})
    assert f'"{text}"' in (tmp_path / "v.json").read_text()
