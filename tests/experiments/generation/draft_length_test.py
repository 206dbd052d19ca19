"""The length of drafts that timed rounds choose: by hand, and the text is the same whatever it is."""

import numpy as np
import pytest

from experiments.generation import draft_length, held_out, requests
from experiments.generation.draft_length import Timed
from experiments.generation.drafted import Drafted
from experiments.generation.engine import Engine
from experiments.generation.layers import cut
from experiments.generation.text import Generator
from experiments.settings.errors import ConfigError
from tests.experiments.generation.drafting_test import OPTIONS, PROMPTS, made, plain

ASKED = OPTIONS | {"drafter": "model_draft", "model_draft": {"workdir": "w", "length": 0}}


def beside_itself(decoder, one):
    """Makes the model its own draft, so that every draft stays."""
    decoder.programs["model_draft.workdir"] = one.program
    decoder._beside["model_draft.workdir w"] = cut(one.params)


def always(seconds):
    """`timed` of rounds of which all drafts stay, and that take `seconds(length)`."""

    def timed(decoder, params, options, ids):
        n = options["model_draft"]["length"] if options["drafter"] != "none" else 0
        return Timed(seconds(n), np.eye(n + 1, dtype=int)[n] * 5)

    return timed


def test_stays_are_products_of_the_shares_of_rounds_that_came_so_far():
    """Of 20 rounds 12 kept the first draft; of the 8 of these that wrote two, 2 kept it; of these 2 one the third."""
    one, three = np.array([4, 4]), np.array([4, 6, 1, 1])
    np.testing.assert_allclose(draft_length.stays([one, three], 4), [0.6, 0.6 / 4, 0.6 / 8, 0.0])
    np.testing.assert_array_equal(draft_length.stays([np.array([7])], 2), [0.0, 0.0])


def test_the_length_of_the_most_tokens_a_second_is_chosen():
    """All stay: 1 token in 1 s, 2 in 1.2, 5 in 4; between measured lengths seconds are linear: 3 in 2.13, 4 in 3.07."""
    found = {
        n: always({0: 1.0, 1: 1.2, 4: 4.0}.get)(None, None, draft_length.with_length(ASKED, n), None) for n in (0, 1, 4)
    }
    assert draft_length.chosen(found) == 1  # 1, 1.67, 1.41, 1.30, 1.25 tokens a second
    found[4] = found[4]._replace(seconds=2.0)
    assert draft_length.chosen(found) == 4
    assert draft_length.chosen({0: found[0], 4: found[4]._replace(seconds=6.0)}) == 0
    # Seconds of three drafts lie between those of two and four: 1, 1.82, 2.5, 3.33 and 2.5.
    hand = {0: 1.0, 1: 1.1, 2: 1.2, 4: 1.2}
    found = {n: Timed(s, np.eye(n + 1, dtype=int)[min(n, 3)] * 5) for n, s in hand.items()}
    assert draft_length.chosen(found) == 3


@pytest.mark.parametrize("length", [0, 2])
def test_texts_are_those_of_plain_decoding_whatever_is_chosen(length, monkeypatch, capsys):
    one = made()
    maker = Generator(one.program, one.tokenizer)
    beside_itself(maker.decoder, one)
    pays = {0: 1.0, 1: 5.0, 2: 1.1, 4: 9.0, 8: 19.0, 12: 29.0} if length else {}
    monkeypatch.setattr(draft_length, "timed", always(lambda n: pays.get(n, 1.0 + 5 * n)))
    assert maker(one.params, PROMPTS, ASKED, seed=5) == plain()
    assert maker.drafted.wrote.shape[1] == length + 1
    assert ("2 drafts a round" if length else "no drafts") in capsys.readouterr().err
    record = held_out.record(ASKED, 7, maker.drafted, Drafted(np.zeros((1, 1)), np.zeros(1)))
    assert record["options"] == {"workdir": "w", "length": length}


def test_the_length_is_told_before_the_prompt_is_shown(monkeypatch, capsys):
    """And it is timed once for the texts of a command."""
    one = made()
    maker = Generator(one.program, one.tokenizer)
    beside_itself(maker.decoder, one)
    monkeypatch.setattr(draft_length, "timed", always(lambda n: 1.0 + 5 * n))
    shown = []
    requests.interactive(maker, one.params, PROMPTS[:1], ASKED, seed=5, write=lambda text: shown.append(
        (text, capsys.readouterr().err)
    ))  # fmt: skip
    assert shown[0][0] == PROMPTS[0] and shown[0][1].endswith("timed rounds say no drafts, which would not pay.\n")
    assert not any("timed rounds" in said for _, said in shown[1:]) and "".join(t for t, _ in shown[1:]).strip("\n")


def test_rounds_are_timed_behind_the_prompts(monkeypatch):
    """Of the model as its own draft: each of 4 rounds of 3 rows keeps both drafts, and an engine's rows do, too."""
    one = made()
    maker = Generator(one.program, one.tokenizer)
    beside_itself(maker.decoder, one)
    monkeypatch.setattr(draft_length, "ROUNDS", 4)
    ids = [maker.encode(prompt) for prompt in PROMPTS]
    found = draft_length.timed(maker.decoder, one.params, draft_length.with_length(ASKED, 2), ids)
    assert found.seconds > 0 and found.wrote.tolist() == [0, 0, 12]
    seen = []
    monkeypatch.setattr(draft_length, "timed", lambda *given: seen.append(given) or Timed(1.0, np.array([1])))
    engine = Engine(
        one, lanes=2, capacity=192, temperature=0.0, drafter="model_draft", model_draft=ASKED["model_draft"]
    )
    assert engine.settings["drafter"] == "none" and len(seen) == len(draft_length.LENGTHS)
    assert [len(row) for row in seen[0][3]] == [1, 1]


def test_what_cannot_be_chosen_by_time_is_told():
    one = made()
    maker = Generator(one.program, one.tokenizer)
    drawn = ASKED | {"temperature": 1.0, "verifier": "token"}
    with pytest.raises(ConfigError, match="generate.verifier='token' the text depends on it; use .*'same_draw'"):
        maker(one.params, PROMPTS, drawn)
    with pytest.raises(ConfigError, match=r"length=0 is chosen before texts are written.*model_draft.length=4"):
        maker.decoder.parts([ASKED])
