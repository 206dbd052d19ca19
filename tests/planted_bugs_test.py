"""The list of planted bugs stays whole, and the command tells what is seen from what survives."""

import ast
import collections
import pathlib

import pytest

from tests import environment, planted, planted_bugs

BUGS = planted.bugs()


def test_there_are_enough_of_them_in_every_room():
    assert len(BUGS) >= 60 and len({bug.name for bug in BUGS}) == len(BUGS)
    rooms = collections.Counter(room(bug.file) for bug in BUGS)
    assert all(rooms[name] >= 5 for name in ("kernels", "models", "objectives", "decoding", "experiments", "data"))


def room(file: str) -> str:
    parts = pathlib.Path(file).parts
    return parts[1] if parts[0] == "models" and parts[1] in ("objectives", "decoding") else parts[0]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_still_applies(bug):
    """Its old text is there once, what comes of it is still Python, and its tests are there."""
    text = (environment.ROOT / bug.file).read_text()
    changed = bug.applied(text)
    assert changed != text and ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    for test in bug.tests:
        file, *names = test.split("::")
        assert (environment.ROOT / file).exists(), test  # a file, or a folder of them
        for name in names:
            assert f"def {name.partition('[')[0]}(" in (environment.ROOT / file).read_text(), test


def test_a_bug_that_no_longer_applies_is_said():
    bug = BUGS[0]
    with pytest.raises(ValueError, match="0 times; write it anew in tests/planted"):
        bug.applied("nothing")
    with pytest.raises(ValueError, match="2 times"):
        bug.applied(bug.old + bug.old)


def test_only_tests_that_ran_and_failed_have_seen_a_bug(tmp_path):
    """A failing test, a passing one, a module that does not import, none at all."""
    (tmp_path / "part.py").write_text("def one():\n    return 1\n")
    (tmp_path / "good_test.py").write_text("import part\n\n\ndef test_one():\n    assert part.one() == 1\n")
    (tmp_path / "blind_test.py").write_text("def test_one():\n    assert True\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = *_test.py\npythonpath = .\n")
    bug = planted.Bug("one is two", "part.py", "return 1", "return 2", ("good_test.py",))
    found, by = planted_bugs.plant(bug, tmp_path)
    assert found == planted_bugs.SEEN and by == "good_test.py::test_one"
    assert (tmp_path / "part.py").read_text() == "def one():\n    return 1\n"  # mended
    for tests, new, wanted in (
        (("blind_test.py",), "return 2", planted_bugs.SURVIVED),
        (("good_test.py",), "return )", "no verdict"),
        (("missing_test.py",), "return 2", "no verdict"),
    ):
        bug = planted.Bug("another", "part.py", "return 1", new, tests)
        assert planted_bugs.plant(bug, tmp_path)[0].startswith(wanted)


def test_bugs_are_chosen_by_words():
    assert planted_bugs.chosen("") == BUGS
    assert {bug.file for bug in planted_bugs.chosen("mixers/linear.py")} == {"models/mixers/linear.py"}
    assert planted_bugs.chosen("no such word") == ()
