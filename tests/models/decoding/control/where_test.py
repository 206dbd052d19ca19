"""Predicates as a control: what is parsed, which tokens it leaves, and what becomes of a text that cannot fulfil it."""

import itertools
import types

import numpy as np
import pytest

from experiments.generation import engine as engines
from experiments.generation.text import Generator
from models.decoding.control import Host, predicates, where
from tests.experiments.generation.generate_test import OPTIONS, generator
from tests.models.decoding.control.parts_test import Letters
from tests.models.decoding.stream_test import DEFAULTS, V

pytestmark = pytest.mark.usefixtures("one_device")
SOURCES = {
    "len(text) < 3": lambda t: len(t) < 3,
    "len(words(text)) <= 2 and 'b' not in text": lambda t: len(t.split()) <= 2 and "b" not in t,
    "2 <= len(text) < 4": lambda t: 2 <= len(t) < 4,
    "len(text) == 2 or text in ['a', 'ba']": lambda t: len(t) == 2 or t in ("a", "ba"),
    "letters(text) and not ('ab' in text)": lambda t: t.isalpha() and "ab" not in t,
    "text != 'a' and len(text) != 2": lambda t: t != "a" and len(t) != 2,
    "len(sentences(text)) > 1": lambda t: sum(bool(x.strip()) for x in t.replace("!", ".").split(".")) > 1,
    "digits(text)": lambda t: t != "" and all("0" <= c <= "9" for c in t),
    "len(lines(text)) >= 2": lambda t: t.count("\n") + (not t.endswith("\n") and t != "") >= 2,
}
ALPHABET = ("a", "b", " ", ".", "1", "\n")


@pytest.mark.parametrize("source", SOURCES)
def test_a_predicate_is_what_python_makes_of_it_and_its_mask_is_sound(source):
    """All texts of up to four characters: the value; and no token is forbidden behind which some of them fulfils it."""
    made, plain = predicates.parse(source), SOURCES[source]
    texts = ["".join(x) for n in range(5) for x in itertools.product(ALPHABET, repeat=n)]
    fulfilled = [text for text in texts if plain(text)]
    for text in texts:
        assert made(text, True) == (plain(text), predicates.FIN)
        if len(text) < 3:
            mask = predicates.allowed(made, text, [*ALPHABET, ""], len(ALPHABET))
            assert mask[-1] == plain(text)
            for token, may in zip(ALPHABET, mask, strict=False):
                assert may or not any(one.startswith(text + token) for one in fulfilled)
    assert fulfilled


@pytest.mark.parametrize("source", [
    "text < 3", "len(words)", "__import__('os')", "len(text) < x", "'a' < 'b'", "text in [1]", "len(text) in [2]",
    "foo(text)", "a b", "len(text) < True", "",
])  # fmt: skip
def test_what_is_no_predicate_is_refused_with_an_example(source):
    with pytest.raises(ValueError, match="an example: "):
        predicates.parse(source)
    with pytest.raises(ValueError, match="holds for no text"):
        where.Where().given({"where": {"predicate": "1 < 0"}}, None, {})


def looked(text, predicate, *, left, stop=False):
    """What the host leaves behind a text of letters."""
    options = {"where": {"predicate": predicate, "stop": stop}, "max_tokens": len(text) + left}
    row = Host(options, Letters(), np.asarray([Letters.bos, *(ord(c) - 97 for c in text)]), 1)
    mask = where.Where().between(row, {"allowed": np.ones(V, bool)})["allowed"]
    return "".join("$" if i == Letters.eos else chr(97 + i) for i in np.flatnonzero(mask))


def test_masks_by_hand():
    everything = "".join(chr(97 + i) for i in range(V - 3))
    assert looked("ab", "len(text) < 3", left=5) == "$"
    assert looked("a", "len(text) < 3", left=5) == everything + "$"
    assert looked("a", "'b' in text", left=5) == everything
    assert looked("ab", "'b' in text", left=5, stop=True) == "$"
    assert looked("ab", "'b' in text", left=5) == everything + "$"
    assert looked("", "text in ['ab', 'cd']", left=5) == "ac"
    assert looked("ab", "'b' in text", left=1) == "$"
    with pytest.raises(ValueError, match="at the limit"):
        looked("a", "'b' in text", left=1)


def test_characters_of_several_tokens_are_read_whole():
    class Bytes(Letters):
        pieces = (b"\xc3", b"\xa9", b"a", *Letters.pieces[3:])

    row = Host(
        {"where": {"predicate": "len(text) < 2", "stop": False}, "max_tokens": 9},
        Bytes(),
        np.asarray([Bytes.bos, 0]),
        1,
    )
    mask = where.Where().between(row, {"allowed": np.ones(V, bool)})["allowed"]
    # é is one character; a byte that is none and an a are two; what is no character yet counts as none.
    assert mask[[1, Bytes.eos]].all() and not mask[2]
    found = list(where.ways(b"a\xc3", "'\u00e9' in text"))
    assert found[0] == "a\u00e9" and all(len(one) == 2 and one[1].encode()[:1] == b"\xc3" for one in found)
    assert list(where.ways(b"ab", "")) == ["ab"] and list(where.ways(b"\xe2\x82", "\u20ac"))[0] == "\u20ac"


def test_answers_fulfil_their_predicates_and_others_end_with_a_message():
    maker, params = generator()
    had, options = maker.program.config, DEFAULTS | OPTIONS | {"control": "where", "max_tokens": 12}
    config = types.SimpleNamespace(
        seed=had.seed, data=had.data, generate=types.SimpleNamespace(to_dict=lambda: options)
    )
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    served = engines.Engine(trained, lanes=2, capacity=64)
    asked = ["len(text) < 4", "text in ['yes', 'no']", "len(text) == 2 and letters(text)", ""]
    ids = [served.admit("a", number=i, where={"predicate": one}) for i, one in enumerate(asked)]
    bad = served.admit("a", where={"predicate": "len(text) > 40"})
    found = {result.id: result for result in served.results()}
    for i, one in zip(ids, asked, strict=True):
        assert (
            not one or SOURCES.get(one, lambda t: True)(found[i].text) and predicates.parse(one)(found[i].text, True)[0]
        )
    assert len(found[ids[0]].text) < 4 and found[ids[1]].text in ("yes", "no") and found[ids[0]].reason == "end"
    assert found[bad].failed and "at the limit" in found[bad].reason
    alone = Generator(maker.program, maker.tokenizer)
    once = alone(params, ["a"], options | {"where": {"predicate": "len(text) < 4", "stop": False}}, seed=3)
    assert (
        once
        == alone(params, ["a", "b"], options | {"where": {"predicate": "len(text) < 4", "stop": False}}, seed=3)[:1]
    )
