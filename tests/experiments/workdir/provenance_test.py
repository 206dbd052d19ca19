"""What a run says of the code that made it."""

import hashlib
import subprocess

import pytest

from experiments import workdir as files
from experiments.report import data, grouping
from experiments.settings import errors
from experiments.workdir import provenance


@pytest.fixture
def checkout(tmp_path):
    """A repository of one committed file in a room of the house."""
    root = tmp_path / "clone"
    (root / "models").mkdir(parents=True)
    (root / "models" / "part.py").write_text("x = 1\n")
    _git(root, "init", "-q")
    _git(root, "add", ".")
    _git(root, "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "-m", "one")
    return root


def _git(root, *words):
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout


def test_a_committed_checkout_is_its_commit(checkout):
    found = provenance.facts(checkout)
    assert found["commit"] == _git(checkout, "rev-parse", "HEAD").strip()
    assert found["changed"] == [] and "diff" not in found and provenance.difference(checkout) == b""
    assert found["packages"]["jax"] and found["command"] and found["host"]


def test_a_change_is_named_hashed_and_kept(checkout, tmp_path, monkeypatch):
    before = provenance.facts(checkout)
    (checkout / "models" / "part.py").write_text("x = 2\n")
    (checkout / "new.py").write_text("")
    found = provenance.facts(checkout)
    text = provenance.difference(checkout)
    assert found["changed"] == ["models/part.py", "new.py"] and found["hash"] != before["hash"]
    assert b"-x = 1\n+x = 2\n" in text and found["diff"] == hashlib.sha256(text).hexdigest()[:12]

    monkeypatch.setattr(provenance, "difference", lambda *root: text)
    provenance.write(tmp_path)
    assert (tmp_path / provenance.DIFF).read_bytes() == text
    monkeypatch.setattr(provenance, "difference", lambda *root: b"")  # The next start is as committed.
    provenance.write(tmp_path)
    assert not (tmp_path / provenance.DIFF).exists()


def test_a_folder_inside_another_repository_has_no_commit(checkout):
    inside = checkout / "copy"
    (inside / "models").mkdir(parents=True)
    assert "commit" not in provenance.facts(inside)


def test_without_git_the_rest_is_said(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = provenance.facts(checkout)
    assert "commit" not in found and found["hash"] and found["packages"]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"hash": "a"}, {"hash": "a", "commit": "c"}, ""),
        ({"hash": "a"}, {}, ""),
        ({"hash": "a", "commit": "1" * 40}, {"hash": "b", "commit": "2" * 40}, "111111111111 as committed and 2222"),
        (
            {"hash": "a", "commit": "1" * 40},
            {"hash": "b", "commit": "1" * 40, "diff": "d"},
            "and 111111111111 with changes",
        ),
        ({"hash": "a", "commit": "1", "diff": "d"}, {"hash": "b", "commit": "1", "diff": "e"}, "of different texts"),
    ],
)
def test_how_two_runs_differ(one, other, said):
    found = provenance.differs(one, other)
    assert (said in found) if said else found == ""


def test_a_comparison_names_the_runs_made_by_other_code(tmp_path):
    for name, code in (("a", {"hash": "1", "commit": "c"}), ("b", {"hash": "1"}), ("c", {"hash": "2"}), ("d", None)):
        (tmp_path / name).mkdir()
        files.write_run(tmp_path / name, {"code": code} if code else {})
        files.write_config(tmp_path / name, {}, "")
    notes = grouping.code_notes([data.load(tmp_path / name) for name in "abcd"])
    assert notes == ["a and c were made by different code: c as committed and no commit as committed."]
    for name, code in (("e", {"hash": "3", "commit": "c"}), *((name, {"hash": "2"}) for name in "fgh")):
        (tmp_path / name).mkdir()
        files.write_run(tmp_path / name, {"code": code})
        files.write_config(tmp_path / name, {}, "")
    assert grouping.code_notes([data.load(tmp_path / name) for name in "abcdefgh"]) == [
        "a and 4 others (c, f, g, …) were made by different code: c as committed and no commit as committed.",
        "a and e were made by different code: c as committed, of different texts.",
    ]


def test_this_house_has_a_hash():
    assert len(provenance.facts(errors.ROOT)["hash"]) == 12
