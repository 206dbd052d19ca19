"""A sample of `python -m tests.attack`: a few cases of those attacks that take seconds."""

import pytest

from tests import attack


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return attack.world(tmp_path_factory.mktemp("attacked"), seed=1)


@pytest.mark.parametrize(("name", "share"), [("flips", 0.03), ("two_starts", 0.05)])
def test_an_attack_finds_nothing(made, name, share):
    assert list(attack.ATTACKS[name](made, share)) == []


def test_an_attack_sees_what_is_lost_touched_or_no_sentence(made, tmp_path):
    """The attacks' own eyes: each kind of harm is a problem that they name."""
    assert attack.told(2, "error: a sentence\n  more of it") == [] == attack.told(0, "a warning")
    assert (
        attack.told(1, "Traceback (most recent call last):\nValueError: x")
        and attack.told(2, "")
        and attack.told(-9, "")
    )
    with made.copy() as workdir:
        before = attack.snapshot(workdir)
        assert attack.lost(before, workdir) == []
        step = attack.newest(workdir)[0]
        step.rename(step.with_name("damaged-12"))
        assert attack.lost(before, workdir) == []  # Moved aside is not lost.
        (step.with_name("damaged-12") / "about/metadata").unlink()
        assert attack.lost(before, workdir) == [f"lost checkpoints/{step.name}/about/metadata"]
        (workdir / "metrics.jsonl").write_text("")
        assert "differs in metrics.jsonl" in attack._differs(made, workdir)
