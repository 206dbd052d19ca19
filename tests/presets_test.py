"""Every preset of the house is a record with its sentence, source and claim."""

import importlib
import pathlib

import pytest

from configs.presets import Preset, preset

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = [p for folder in ("", "sweeps") for p in sorted((ROOT / "configs" / folder).glob("*.py"))]
FILES = [path for path in FILES if path.stem not in ("__init__", "base", "presets")]


def test_every_file_of_the_house_has_records_whose_claims_have_evidence():
    assert len(FILES) >= 8
    for path in FILES:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert module.PRESETS, path
        for name, made in module.PRESETS.items():
            assert isinstance(made, Preset), (path, name)
            assert len(made.says) <= 120 and made.says[0].isupper(), (path, name)
            assert not made.claim or (ROOT / "docs" / "claims" / f"{made.claim}.json").exists(), (path, name)


@pytest.mark.parametrize(
    ("says", "source"), [("", "a"), ("a", ""), ("a\nb", "c"), ("a.", "b"), ("a", "b  c"), (" a", "b")]
)
def test_a_record_without_its_sentence_is_refused(says, source):
    with pytest.raises(ValueError, match="must be one sentence on one line"):
        preset({}, says=says, source=source)
