"""The exact probability of bytes under a small model against enumeration by the definition, in float64."""

import functools
import math
import re
import types

import jax
import numpy as np
import pytest

from data.tokenizers import covers, endings
from experiments import modes
from experiments.settings.errors import ConfigError
from experiments.training import byte_rows, exact_bytes, train
from tests.data.tokenizers import covers_test
from tests.experiments import tiny as tiny_run
from tests.experiments.cli_test import flags
from tests.plain import tiny

TEXTS = [b"a", b"ab", b"abb", b"abab", b"babba", b"a\xc3b", b"bbbb", b"aba", b"bab", b"abbab"]


class Tokenizer(covers_test.Tiny):
    """Byte pairs over a, b and one byte that begins a character, with a beginning, an end and padding."""

    pieces = (*covers_test.Tiny.pieces[:-1], b"", b"", b"")
    bos, eos, pad, vocab_size = 6, 7, 8, 9


@pytest.fixture(scope="module")
def law():
    """Program, parameters, and the model as log-probabilities [V] after any ids, by whole passes without a state."""
    with jax.enable_x64(True):
        program = tiny.program(tiny.config(model__init_std=1.0))
        params = program.init()["params"]
        whole = jax.jit(lambda params, ids: program.merge(params).logits(
            program.merge(params)(ids, mask=program.objective.mask).features
        ))  # fmt: skip

        @functools.cache
        def model(ids):
            row = np.full((1, 10), Tokenizer.pad, np.int32)
            row[0, : len(ids) + 1] = (Tokenizer.bos, *ids)
            logits = np.asarray(whole(params, row))[0, len(ids), : tiny.V]
            return logits - np.log(np.sum(np.exp(logits)))

        yield program, params, model


def test_it_is_the_sum_over_all_encodings_that_begin_with_the_text(law, x64):
    program, params, model = law
    found = exact_bytes.measured(exact_bytes.make_step(program), params, Tokenizer(), TEXTS)
    for k, text in enumerate(TEXTS):
        log_p = lambda ids: sum(model(ids[:k])[i] for k, i in enumerate(ids))  # noqa: E731
        want = -math.log(sum(math.exp(log_p(ids)) for ids in covers_test.plain_covers(text)))
        own = -log_p(tuple(Tokenizer().encode(text)))
        # Logits are float32: each log-probability is wrong by some units of 2^-24 times a logit, here up to 30.
        np.testing.assert_allclose([found.exact[k], found.canonical[k]], [want, own], rtol=0, atol=2e-5)
        assert found.exact[k] <= found.canonical[k] + 2e-5
    assert found.sizes.tolist() == [len(text) for text in TEXTS]
    assert any(found.exact < found.canonical - 0.1)


def test_the_rows_of_every_byte_are_those_of_the_law_read_byte_by_byte(law, x64):
    program, params, model = law
    found, read, plain = byte_rows.laws(byte_rows.make_step(program), params, Tokenizer(), TEXTS)
    for text, made in zip(TEXTS, found, strict=True):
        want = covers.ByteLaw(Tokenizer(), model)
        for t, byte in enumerate(text):
            joint = want.row().log_joint
            held = np.isfinite(joint)
            np.testing.assert_array_equal(held, np.isfinite(made.rows[t]))
            np.testing.assert_allclose(made.rows[t][held], joint[held], rtol=0, atol=2e-5)
            want.read(byte)
        normalised, log_p = covers.bytes_log_probability(Tokenizer(), model, text)
        np.testing.assert_allclose([made.normalised, made.exact], [-normalised, -log_p], rtol=0, atol=4e-5)
    assert read > plain == sum(len(Tokenizer().encode(text)) for text in TEXTS)


def test_tokens_are_drawn_from_the_model_and_strays_counted(law, x64):
    """A text of one word: every place draws one token, by the inverse of the distribution at its own number."""
    program, params, model = law
    text = b"abba" * 20
    step, pieces = exact_bytes.make_step(program), endings.Pieces(Tokenizer())
    some = [exact_bytes.plan(Tokenizer(), text, pieces)] * 3
    arrays = exact_bytes.packed(some, 4)
    again = exact_bytes.packed(some[:1], 5)
    np.testing.assert_array_equal(arrays["noise"][1], again["noise"][0])
    *_, drawn = step(params, arrays)
    short = arrays["head"][1, :9]
    ids = tuple(int(i) for i in short[1:])
    for k in range(8):
        below = np.cumsum(np.exp(model(ids[:k])))
        token = int(drawn[1, k])
        u = arrays["noise"][1, k]
        assert below[token] >= u - 1e-5 and (token == 0 or below[token - 1] < u + 1e-5)
    found = exact_bytes.measured(step, params, Tokenizer(), [b"abba" * 3] * 6)
    one = exact_bytes.plan(Tokenizer(), b"abba" * 3, pieces)
    assert len(one.head) < 9 and (found.drawn <= len(one.head)).all()
    arrays = exact_bytes.packed([one] * 6, 0)
    *_, drawn = step(params, arrays)
    valid = covers.Valid(Tokenizer())
    for k in range(6):
        draws = [(n, int(i)) for n, i in enumerate(drawn[k, : len(one.head)]) if Tokenizer.pieces[i]]
        assert found.drawn[k] == len(draws)
        assert found.strays[k] == sum(not valid((*one.ids[:n], i)) for n, i in draws)
    assert found.strays.sum() > 0


def test_of_long_documents_some_places_are_drawn_at():
    made = exact_bytes.Read(1000, tuple(range(300)), tuple(range(290)), (), ())
    assert made.places == [290 * k // exact_bytes.DRAWS for k in range(exact_bytes.DRAWS)]
    assert len(set(made.places)) == exact_bytes.DRAWS and made.places[-1] < 290
    valid, text = covers.Valid(Tokenizer()), b"abbab" * 4
    ids = tuple(Tokenizer().encode(text))
    places, following = [0, 3, 4, 9], [2, 0, 0, 3]
    want = [valid((*ids[:k], i)) for k, i in zip(places, following, strict=True)]
    assert endings.continuations(Tokenizer(), ids, places, following) == want
    assert set(want) == {True, False}


def test_rows_that_begin_others_are_read_once():
    made = exact_bytes.plan(Tokenizer(), b"babbabbab", endings.Pieces(Tokenizer()))
    assert all(row[0] == made.rows[0][0] for row in made.rows)
    for row in made.rows:
        assert not any(other != row and other[: len(row)] == row for other in made.rows)
    whole = [(*made.head, *made.rows[r][: k + 1], int(i)) for r, k, last in made.asked for i in last]
    assert whole[0][1:] == made.ids
    assert sorted(ids[1:] for ids in whole[1:]) == endings.ending(Tokenizer(), b"babbabbab").covers


def test_what_has_no_law_of_bytes_is_refused():
    config = tiny.config("masked_diffusion", eval={"bytes": "exact"})
    program = tiny.program(config)
    with pytest.raises(ConfigError, match="masked_diffusion.*eval.bytes='canonical'"):
        exact_bytes.check(config, program, Tokenizer())
    config = tiny.config(eval={"bytes": "rows"}, data__source="chat")
    with pytest.raises(ConfigError, match="eval.bytes='rows': data.source='chat'"):
        exact_bytes.check(config, tiny.program(config), Tokenizer())
    config = tiny.config(eval={"bytes": "exact"})
    with pytest.raises(ConfigError, match="no bytes"):
        exact_bytes.check(config, tiny.program(config), object())


def test_a_model_of_bytes_prints_one_number_for_all(tmp_path, capsys, one_device):
    """Each byte is a token: every encoding is the text's own, no token is a stray, and every law is the model's."""
    train(tiny_run.config(tmp_path), tmp_path / "run", quiet=True)
    printed = {}
    for how in ("exact", "rows"):
        modes.evaluate(flags(workdir=str(tmp_path / "run")), [("eval.bytes", how)])
        printed[how] = capsys.readouterr().out
    number = r"(?:exact bits per byte =|alone|own law:|probability of the bytes:) ([\d.]+)"
    exact, canonical = re.findall(number, printed["exact"])
    assert exact == canonical and "is encoded to: 0.00 % (" in printed["exact"]
    normalised, whole = map(float, re.findall(number, printed["rows"]))
    assert normalised < whole == pytest.approx(float(exact), abs=2e-4)
    assert "cost: " in printed["exact"] and "cost: " in printed["rows"]


def test_a_tokenizer_that_looks_ahead_is_refused_by_the_rows_in_a_sentence(monkeypatch):
    """Not printed as infinitely unlikely: the text is possible, and the list of its covers is not whole."""
    model = types.SimpleNamespace(program=None, params=None, tokenizer=Tokenizer())
    lost = byte_rows.Law(np.full((4, 256), -np.inf), np.inf, np.inf)
    monkeypatch.setattr(exact_bytes, "beginnings", lambda model: iter([b"a\n\nb"]))
    monkeypatch.setattr(byte_rows, "laws", lambda *given: ([lost], 1, 1))
    monkeypatch.setattr(byte_rows, "make_step", lambda program: None)
    with pytest.raises(ConfigError, match="encodes it by what stands behind it; use eval.bytes='exact'"):
        byte_rows.line(model)
