"""Constraints: automata against Python's own engine and by enumeration, schemas, predicates, and the laws they make."""

import itertools
import json
import re

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from data.tokenizer import ByteTokenizer
from models.decoding.control import automata, conditional, constraint, predicates, regex, schema
from tests.plain import control as plain

PATTERNS = (
    "a*b", "(?:ab|ba)+", "[a-b]{2,3}", "a|b|", "(a?b){2}c?", "[^a]+", "a.b", "^ab?$", "(?:a|ab)(?:c|bc)", "\\w+c",
    "a{2}", "a{0,2}b{1,}", "(a*)*b", "(?:a|b)*abb", "a+?b", "[\\w]-?", "\\x61\\u0062", "(?:)", "a{0}b",
)  # fmt: skip


def run(made, text):
    state = 0
    for byte in text.encode():
        state = made.next[state, byte] if state >= 0 else -1
    return state >= 0 and bool(made.accepts[state])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_python_matches(pattern):
    made = automata.compile_regex(pattern)
    wanted = plain.matching(pattern, "abc-", 5)
    texts = ["".join(text) for n in range(6) for text in itertools.product("abc-", repeat=n)]
    assert {text for text in texts if run(made, text)} == wanted


@pytest.mark.parametrize("pattern", [".", "[^a]", "[à-ÿ]", "[\\u0400-\\u2fff]", "\\D", "[€-😀]"])
def test_characters_of_all_sizes(pattern):
    made = automata.compile_regex(pattern)
    edges = [0, 9, 10, 47, 58, 96, 97, 98, 127, 128, 223, 224, 255, 256, 0x3FF, 0x400, 0x7FF, 0x800, 0x20AB, 0x20AC]
    edges += [0xFFF, 0x1000, 0x2FFF, 0x3000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x1F5FF, 0x1F600, 0x1F601, 0x3FFFF]
    for point in (*edges, 0x10FFFF):
        flags = re.ASCII
        assert run(made, chr(point)) == bool(re.fullmatch(pattern, chr(point), flags)), hex(point)


def test_the_smallest_automaton_has_one_state_for_each_future():
    """(a|b)*abb has four, [a-b]{2,3} four, and a pattern said twice has as many as said once."""
    for pattern, states in (("(?:a|b)*abb", 4), ("[a-b]{2,3}", 4), ("(?:ab|ab)c", 4), ("(?:a|b|c)*", 1)):
        assert len(automata.compile_regex(pattern).next) == states


@pytest.mark.parametrize("pattern", ["(?=a)", "a(", "a)", "[a", "*a", "a{x}", "\\b", "(a)\\1", "a++", "[b-a]", "a^b"])
def test_what_is_not_read_is_refused_in_one_sentence(pattern):
    with pytest.raises(ValueError, match=r"works|write|smaller"):
        automata.compile_regex(pattern)


def vocabulary():
    """Tokens of one to three letters, one that no text has, and the end, 7."""
    return [b"a", b"b", b"c", b"ab", b"abc", b"zz", None, None]


@pytest.mark.parametrize("pattern", ["a*b", "(?:ab|c)+", "ab?c?", "(?:a|bc)*"])
def test_a_token_may_come_where_some_text_goes_on(pattern):
    """By brute force: a token is allowed iff what stands, and it, and at most three tokens more match."""
    words = vocabulary()
    made = automata.lift(automata.compile_regex(pattern), words, eos=7)
    tails = [b"".join(words[i] for i in tail) for n in range(4) for tail in itertools.product(range(5), repeat=n)]
    good = lambda text: bool(re.fullmatch(pattern.encode(), text))  # noqa: E731
    for n in range(4):
        for text in itertools.product(range(5), repeat=n):
            state, stands = 0, b""
            for token in text:
                state, stands = made.next[state, token] if state >= 0 else -1, stands + words[token]
            if not any(good(stands + tail) for tail in tails):
                assert state == -1
                continue
            mask = automata.allowed(made, state)
            for token in range(5):
                assert mask[token] == any(good(stands + words[token] + tail) for tail in tails), (text, token)
            assert mask[7] == good(stands) and not mask[5:7].any()
            assert automata.matches(made, [*text, 7]) == good(stands)


def test_the_distance_is_the_fewest_tokens_to_an_end():
    words = vocabulary()
    made = automata.lift(automata.compile_regex("a{2}bcab"), words, eos=7)
    state, want = 0, 1 + 3  # a, abc, ab, and the end.
    for token in (0, 4, 3, 7):
        assert made.distance[state] == want
        assert automata.allowed(made, state, want)[token] and not automata.allowed(made, state, want - 1).any()
        state, want = made.next[state, token], want - 1
    assert not automata.allowed(made, 0, 4)[2] and automata.allowed(made, 0, 4)[0]


def test_a_slow_compilation_says_so(monkeypatch, capsys):
    monkeypatch.setattr(constraint, "SLOW", -1.0)
    made = constraint.compiled("slow(a|b)c", ByteTokenizer())
    assert capsys.readouterr().out == f"constraint: {len(made.next)} states were compiled in 0.0 s\n"
    monkeypatch.setattr(constraint, "SLOW", 600.0)
    constraint.compiled("slow(a|b)d", ByteTokenizer())
    assert capsys.readouterr().out == ""


def test_no_token_can_begin_it():
    with pytest.raises(ValueError, match="no sequence of tokens"):
        automata.lift(automata.compile_regex("x+"), vocabulary(), eos=7)
    half = automata.lift(automata.compile_regex("a|bx"), vocabulary(), eos=7)
    assert automata.allowed(half, 0).tolist() == [True] + [False] * 7  # b leads nowhere, since no token has an x.


def test_a_trie_allows_its_texts_and_no_other():
    texts = [(0, 1), (0, 1, 2), (3,), (0, 4)]
    made = automata.trie(texts, 6, eos=5)
    for n in range(5):
        for text in itertools.product(range(6), repeat=n):
            assert automata.matches(made, text) == (text[-1:] == (5,) and text[:-1] in texts)
    with pytest.raises(ValueError, match="ids of text are"):
        automata.trie([(5,)], 6, eos=5)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 4},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["x", "y.z"]}, "maxItems": 2},
        "at": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["age"],
    "$defs": {"point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "boolean"}]}},
}


def test_a_schema_allows_what_the_validator_allows():
    made = automata.compile_regex(schema.pattern_of(SCHEMA))
    good = [{"age": 3}, {"name": "abé", "age": -10}, {"age": 0, "tags": []}, {"age": 1, "at": None}]
    good += [{"name": '"', "age": 1, "tags": ["x", "y.z"]}, {"age": 1, "at": [1.5, True]}]
    good += [{"name": "a", "age": 7, "tags": ["x"], "at": [-2e3, False]}]
    bad = [{}, {"name": "a"}, {"age": "3"}, {"age": 1.5}, {"name": "", "age": 1}, {"name": "abcde", "age": 1}, [1], 3]
    bad += [{"age": 1, "tags": ["q"]}, {"age": 1, "tags": ["x", "x", "x"]}, {"age": 1, "at": [1, 2]}]
    for value in good:
        jsonschema.validate(value, SCHEMA)
        for blanks in ((", ", ": "), (",", ":")):
            assert run(made, json.dumps(value, separators=blanks)), value
        assert run(made, json.dumps(value, ensure_ascii=False))
    for value in bad:
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
        assert not run(made, json.dumps(value)), value
    assert not run(made, '{"age": 1,}') and not run(made, '{"age": 01}') and not run(made, '{,"age": 1}')


def test_random_texts_of_a_schema_are_valid():
    made = automata.compile_regex(schema.pattern_of(SCHEMA))
    words = [bytes([byte]) for byte in range(256)] + [None]
    lifted = automata.lift(made, words, eos=256)
    rng = np.random.default_rng(0)
    for _ in range(50):
        state, text, left = 0, [], 120
        while not text or text[-1] != 256:
            options = np.flatnonzero(automata.allowed(lifted, state, left))
            text.append(int(rng.choice(options)))
            state, left = lifted.next[state, text[-1]], left - 1
        jsonschema.validate(json.loads(bytes(text[:-1]).decode()), SCHEMA)


@pytest.mark.parametrize("bad", [
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"$ref": "#/$defs/none"}, {"type": "what"}, {"type": "array"}, {"type": "integer", "multipleOf": 2},
    {"type": "object", "properties": {}, "required": ["a"]},
])  # fmt: skip
def test_a_schema_that_is_not_regular_or_not_read_is_refused(bad):
    with pytest.raises(ValueError, match="schema"):
        schema.pattern_of(bad)


def test_repeated_and_split_ranges_of_bytes():
    for low, high in ((0, 0x10FFFF), (0x7F, 0x80), (0x7FE, 0x801), (0xFFF, 0x10FFF), (0xD000, 0xE010)):
        points = [p for p in range(low, high + 1, 1 if high - low < 70000 else 37) if not 0xD800 <= p < 0xE000]
        sequences = list(regex.utf8(((low, high),)))
        for point in (*points[:200], *points[-200:], *points[:: max(1, len(points) // 500)]):
            text = chr(point).encode()
            hits = [
                s
                for s in sequences
                if len(s) == len(text) and all(a <= b <= c for (a, c), b in zip(s, text, strict=True))
            ]
            assert len(hits) == 1
    assert regex.inverse(regex.inverse(regex.WORD)) == regex.WORD


LETTERS = ["a", "b", "1", " ", "ab", ""]
PREDICATES = (
    predicates.Less(predicates.Count(), predicates.Constant(4)),
    predicates.Less(predicates.Constant(2), predicates.Count()),
    predicates.Contains("ab"),
    ~predicates.Contains("ba"),
    predicates.OneOf(("ab", "abb", "b1")),
    predicates.Characters(str.isalpha),
    predicates.Less(predicates.Count(str.split), predicates.Constant(2)) & predicates.Contains("1"),
    predicates.OneOf(("a",)) | (predicates.Contains("b") & ~predicates.Contains("1")),
    ~(predicates.Characters(str.isdigit) | predicates.Less(predicates.Constant(2), predicates.Count())),
)


@pytest.mark.parametrize("expression", PREDICATES)
def test_the_mask_of_a_predicate_is_sound_and_what_ends_fulfils_it(expression):
    """By brute force over texts of five tokens: nothing that can be fulfilled is forbidden, and FIN never lies."""
    most, eos = 4, 5
    tails = ["".join(tail) for n in range(3) for tail in itertools.product(LETTERS[:5], repeat=n)]
    true = lambda text: bool(expression(text, True)[0])  # noqa: E731
    for n in range(most - 1):
        for text in map("".join, itertools.product(LETTERS[:5], repeat=n)):
            value, final = expression(text, False)
            if final == predicates.FIN:
                assert all(true(text + tail) == value for tail in tails), (text, value)
            if predicates.may_stop(expression, text):
                assert all(map(true, (text + tail for tail in tails)))
            mask = predicates.allowed(expression, text, LETTERS, eos)
            assert mask[eos] == true(text)
            for token in range(5):
                if any(true(text + LETTERS[token] + tail) for tail in tails):
                    assert mask[token], (text, LETTERS[token])
    assert any(not predicates.allowed(expression, "ab1", LETTERS, eos)[i] for i in range(6)) or true("ab1")


def test_what_stays_of_a_comparison():
    """The table of the paper: True stays if left shrinks and right grows; False if left grows and right shrinks."""
    for left, right in itertools.product((predicates.FIN, predicates.VAR, predicates.INC, predicates.DEC), repeat=2):
        for value in (True, False):
            shrinking, growing = (left, right) if value else (right, left)
            stays = shrinking in ("fin", "dec") and growing in ("fin", "inc")
            assert predicates.less_final(value, left, right) == ("fin" if stays else "var")


def world():
    """A chain over a, b, c and the end, and the constraint (ab|c)*: a text that begins with ab or c. Start: after c."""
    chain = np.random.default_rng(3).dirichlet(np.ones(4), 4)
    made = automata.lift(automata.compile_regex("(?:ab|c)+"), [b"a", b"b", b"c", None], eos=3)
    texts = {}
    for n in range(5):
        for text in itertools.product(range(3), repeat=n):
            whole = (*text, 3)
            texts[whole] = np.prod([chain[a, b] for a, b in zip((2, *whole), whole, strict=False)])
    return chain, made, texts


def test_masking_is_not_conditioning_and_its_weights_make_it_so(x64):
    """All texts of up to five tokens: q w = p for each, the exact step gives p / P, and the mask alone does not."""
    chain, made, texts = world()
    fulfil = {text: p for text, p in texts.items() if automata.matches(made, text)}
    total = sum(fulfil.values())
    after = conditional.fulfilled(chain, made, 5)
    assert abs(after[5, 0, 2] - total) < 1e-15
    differs = 0.0
    for text, p in fulfil.items():
        state, last, q, exact, masses = 0, 2, 1.0, 1.0, []
        for i, token in enumerate(text):
            mask = automata.allowed(made, state)
            masses.append(float(conditional.log_mass(jnp.log(chain[last]), mask)))
            q *= plain.softmax(conditional.masked(jnp.log(chain[last]), mask))[token]
            exact *= conditional.exact(chain[last], made, state, after[5 - i - 1])[token]
            state, last = made.next[state, token], token
        weight = float(np.exp(conditional.log_weight(jnp.array(masses))))
        np.testing.assert_allclose(q * weight, p, rtol=1e-12)
        np.testing.assert_allclose(exact, p / total, rtol=1e-12)
        differs = max(differs, abs(q - p / total))
    assert differs > 0.05


def test_accepted_masked_texts_have_the_conditional_law(x64):
    weights = np.array([0.2, 0.7, 1.0])
    uniform = (np.arange(1000) + 0.5) / 1000
    for weight in weights:
        assert conditional.accepted(np.log(weight), uniform).sum() == round(1000 * weight)
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    want = (weights[:, None] * values).sum(0) / weights.sum()
    np.testing.assert_allclose(conditional.estimate(values, np.log(weights)), want, rtol=1e-12)
