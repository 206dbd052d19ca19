"""What a person gives is taken as given, or refused in a sentence: text keeps its blanks, a config may be anything."""

import sys

import pytest

from configs import base
from experiments import modes
from experiments.report import data, page
from experiments.settings import overrides
from experiments.settings.errors import Refused
from tests.experiments.cli_test import flags


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("\n", ("\n",)), (" ", (" ",)), (" r", (" r",)), ("\\n", ("\\n",)), ("a, b", ("a", " b")),
        ("\t,\n\n", ("\t", "\n\n")),
        ("('a,b', ' ')", ("a,b", " ")), ("", ()), ("()", ()), (" (", (" (",)),
    ],
)  # fmt: skip
def test_free_text_keeps_its_blanks(text, stop):
    config = overrides.apply(base.get_config(), [("generate.stop", text)])
    assert config.generate.stop == stop


@pytest.mark.parametrize("stop", [("\n",), (" ",), ("a", " b"), ("(",), ("[x",), ("a,b",), ("'",), (), ("\\n", "\n")])
def test_what_is_shown_can_be_typed(stop):
    import shlex

    (typed,) = shlex.split(overrides.shown(stop))
    assert overrides.parse("generate.stop", typed, ()) == (stop, "")


@pytest.mark.parametrize("text", [",", "a,,b", "a,"])
def test_an_empty_text_is_no_stop_and_is_refused(text):
    with pytest.raises(Refused, match="generate.stop="):
        overrides.apply(base.get_config(), [("generate.stop", text)])


def test_names_between_commas_need_no_care():
    config = overrides.apply(base.get_config(), [("optimizer.decay_roles", " kernel , embedding,")])
    assert config.optimizer.decay_roles == ("kernel", "embedding")


ENDS = "class Odd({}):\n    def __str__(self):\n        raise SystemExit(0)\n"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("def get_config():\n    import sys\n    sys.exit()", "SystemExit"),
        ("def get_config():\n    raise RecursionError('x')", "RecursionError: x"),
        ("def get_config():\n    return get_config()", "RecursionError"),
        ("x = " + "(" * 3000 + ")" * 3000, "nested|Error"),
        ("class Odd(BaseException):\n    pass\nraise Odd('x')", "Odd: x"),
        (ENDS.format("Exception") + "raise Odd()", "Odd .line 4"),
        (ENDS.format("ValueError") + "raise Odd('preset')", "Odd .line 4"),
        (ENDS.format("object") + "raise ValueError(Odd())", "ValueError .line 4"),
        (ENDS.format("object") + "def get_config():\n    raise ValueError(Odd())", "ValueError .line 5"),
        ("raise SyntaxError", "SyntaxError"),
        ("raise SyntaxError(5)", "SyntaxError: 5"),
    ],
)
def test_a_config_file_that_ends_the_program_is_refused(tmp_path, body, why):
    (tmp_path / "c.py").write_text(body)
    with pytest.raises(Refused, match=why):
        overrides.load(tmp_path / "c.py")


def test_a_value_that_ends_the_program_when_it_is_shown_is_refused(tmp_path, capsys, monkeypatch):
    """The sentence of a value that is none shows the value, and so runs its code."""
    import main

    (tmp_path / "c.py").write_text(
        "from configs import base\nclass Odd:\n    def __repr__(self):\n        raise SystemExit(0)\n"
        "def get_config():\n    c = base.get_config()\n    with c.unlocked():\n        del c.seed\n"
        "        c.seed = Odd()\n    return c\n"
    )
    monkeypatch.setattr(main.processes, "leave", sys.exit)
    monkeypatch.setattr(main, "FLAGS", flags(mode="plan", config=str(tmp_path / "c.py"), simulate=0))
    with pytest.raises(SystemExit) as left:
        main.main(["main.py"], [])
    assert left.value.code == 2 and "holds values whose code ends the program" in capsys.readouterr().err


def test_a_warning_is_a_sentence_without_file_and_thread(caplog, monkeypatch):
    import main

    handler = main.logging.get_absl_handler().python_handler
    monkeypatch.setattr(handler, "formatter", handler.formatter)
    monkeypatch.setattr(main, "FLAGS", flags(mode="plan", simulate=0))
    monkeypatch.setattr(modes, "run", lambda *_: main.logging.warning("checkpoint %d is damaged", 6))
    main.main(["main.py"], [])
    assert handler.format(caplog.records[-1]) == "warning: checkpoint 6 is damaged"


@pytest.mark.parametrize("kind", ["{'a': x}", "[x]", "(x,)"])
def test_a_config_that_nests_deep_is_refused(tmp_path, kind):
    (tmp_path / "c.py").write_text(
        "from configs import base\n"
        f"def get_config():\n    x = 1\n    for _ in range(3000):\n        x = {kind}\n"
        "    c = base.get_config()\n    c.unlock()\n    c.data.components = (x,)\n    return c\n"
    )
    with pytest.raises(Refused, match="nests too deep|cannot be made"):
        overrides.load(tmp_path / "c.py")


@pytest.mark.parametrize("kind", ["?", 3, None, ["="]])
def test_a_kind_of_likelihood_that_nobody_knows_is_none(kind):
    assert data.kind({"eval/kind": kind}) == "~" and data.kind({}) == "=" and data.kind({"eval/kind": "<="}) == "<="
    assert page.bits({"eval/kind": kind, data.BITS: 1.5}).startswith("~ ")
