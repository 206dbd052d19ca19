"""Controls in the engine: eight lanes with eight of them in one program, neutral settings, drafts, constraints."""

import dataclasses
import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
from flax import nnx

from experiments.generation import engine as engines
from experiments.generation.between import given
from experiments.generation.text import Generator
from experiments.settings.errors import ConfigError
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.control import constraint, cuts, nodes, processors
from models.decoding.drafts import Seen, Tree
from tests.experiments.generation.generate_test import OPTIONS, generator
from tests.models.decoding.stream_test import DEFAULTS, V, model
from tests.plain import control as plain

pytestmark = pytest.mark.usefixtures("one_device")
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
}
NAMES = "logit_bias,constraint,penalties,no_repeat_ngram,dry,min_length,typical_p,top_n_sigma,mirostat"
ASKED = (
    {},
    {"constraint": {"pattern": "(?:ab|c){2,9}"}},
    {"constraint": {"pattern": "a[b-d]*e"}},
    {"constraint": {"choices": "abc|de|f.g"}},
    {"penalties": {"repetition": 1.5, "presence": 1.0, "frequency": 0.5}},
    {"no_repeat_ngram": {"n": 1}, "logit_bias": {"ids": "3:9, 4:-inf"}},
    {"mirostat": {"tau": 1.0, "rate": 0.3}, "typical_p": {"mass": 0.9}},
    {"dry": {"multiplier": 0.8}, "top_n_sigma": {"n": 1.5}, "min_length": {"tokens": 12}},
)


class Letters:
    """A tokenizer of letters: ids 0 to V - 4 are a, b, ..."""

    vocab_size, bos, eos, pad = V, V - 3, V - 2, V - 1
    pieces = tuple(bytes([97 + i]) for i in range(V - 3)) + (b"",) * 3

    def text(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode()


def settings(**changes):
    """`config.generate` with all these controls at their defaults."""
    small = {"constraint": DEFAULTS["constraint"] | {"states": 64, "classes": 16}}
    return DEFAULTS | small | {"control": NAMES, "max_tokens": 16} | changes


def changed(options, asked):
    return options | {group: options[group] | values for group, values in asked.items()}


@functools.cache
def compiled(drafter, control):
    """(parts, their program) of eight rows; control False: none is named."""
    every = [changed(settings(drafter=drafter), asked) for asked in ASKED]
    if not control:
        every = [settings(drafter=drafter, control="")] * 8
    parts = sockets.make(every, DEFAULTS, vocab_size=V, eos=Letters.eos, banned=(Letters.bos, Letters.pad))
    graphdef, params = model("attention")

    @jax.jit
    def go(params, text, key, dials, given):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        length = jnp.full((8,), 6)
        p = stream.begin(models, parts, text, length, length + 16, key, dials)
        side = p.side | {name: p.side[name] | entries for name, entries in given.items()}
        p = stream.read(models, dataclasses.replace(p, side=side), parts, 5, fresh=True)
        return stream.extend(models, p, parts, 100)

    return parts, go


def run(order, drafter="none", control=True):
    """Answers of the requests `order` of `ASKED` in eight rows, request i with its own prompt and key."""
    parts, go = compiled(drafter, control)
    asked = [changed(settings(drafter=drafter), ASKED[i]) for i in order]
    graphdef, params = model("attention")
    made = nnx.merge(graphdef, params)
    sides = {name: jax.eval_shape(lambda part=part: part.init({"model": made}, 1, 24)) for name, part in parts.control}
    given = {}
    for name, part in parts.control:
        rows = [part.given(options, Letters(), sides[name]) for options in asked]
        if any(rows):
            zeros = {key: np.zeros(x.shape[1:], x.dtype) for key, x in sides[name].items()}
            given[name] = {key: jnp.asarray(np.stack([(zeros | row)[key] for row in rows])) for key in zeros}
    text = jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 24)))[jnp.asarray(order)]
    key = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), 8))[jnp.asarray(order)]
    p = go(params, text, key, sockets.dials(asked, parts), given)
    tokens = [p.text[row, 6 : p.length[row]].tolist() for row in range(8)]
    return {i: tokens[row] for row, i in enumerate(order)}, np.asarray(p.failed)


@functools.cache
def served():
    """The answers of `ASKED`, all in one program of eight rows."""
    tokens, failed = run(tuple(range(8)))
    assert not failed.any()
    return tokens


def test_each_row_does_what_its_request_asks():
    text = {i: Letters().text(tokens) for i, tokens in served().items()}
    for row, pattern in ((1, "(?:ab|c){2,9}"), (2, "a[b-d]*e"), (3, r"abc|de|f\.g")):
        assert re.fullmatch(pattern, text[row]) and served()[row][-1] == Letters.eos
    ids = [token for token in served()[5] if token < V - 3]
    assert len(set(ids)) == len(ids) and 4 not in ids
    assert len(served()[7]) >= 12


def test_a_row_does_not_depend_on_its_neighbours():
    other = run((7, 3, 5, 1, 0, 6, 2, 4))[0]
    assert other == served()
    assert run((1, 1, 1, 0, 0, 2, 2, 5))[0][5] == served()[5]


def test_neutral_settings_are_plain_sampling_bit_for_bit():
    plainly = run(tuple(range(8)), control=False)[0]
    assert plainly[0] == served()[0]
    assert any(plainly[i] != served()[i] for i in (4, 6))


def test_drafts_change_no_token():
    """The text's own n-grams as drafts, under all controls: texts and states along the path of drafts."""
    assert run(tuple(range(8)), drafter="lookup")[0] == served()


def test_what_is_off_for_all_rows_is_not_in_the_program():
    options, defaults = settings(temperature=0.7), DEFAULTS
    named = lambda asked: [name for name, _ in sockets.make(asked, defaults).control]  # noqa: E731
    assert named([options]) == ["allowed", "temperature"]
    two = [changed(options, ASKED[1]), changed(options, ASKED[4])]
    assert named(two) == ["allowed", "constraint", "penalties", "temperature"]
    assert sockets.make(two, defaults) == sockets.make(
        [changed(options, {"constraint": {"pattern": "z"}}), changed(options, {"penalties": {"presence": 3.0}})],
        defaults,
    )  # Turning a number, or another pattern, compiles nothing.


@pytest.fixture(scope="module")
def made():
    return generator()


def asked(**changes):
    """`config.generate` for the generator of bytes."""
    return DEFAULTS | OPTIONS | {"control": "constraint,logit_bias", "temperature": 1.0, "max_tokens": 40} | changes


def test_a_stream_is_the_text_and_a_batch_is_its_rows(made):
    maker, params = made
    options = changed(asked(), {"constraint": {"schema": json.dumps(SCHEMA)}})
    write = Generator(maker.program, maker.tokenizer)
    whole = write(params, ["a", "bc"], options, seed=3)
    assert [write(params, [prompt], options, seed=3)[0] for prompt in ("a", "bc")] == whole
    for text in whole:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert write(params, ["a"], options | {"stop": (":",)}, seed=3)[0] == '{"n"'


@pytest.mark.parametrize("group, says", [
    ({"constraint": {"pattern": "a("}}, "has a ( without a )"),
    ({"constraint": {"pattern": "a", "choices": "b"}}, "use one"),
    ({"constraint": {"pattern": "a{60}"}}, "generate.max_tokens=40 is too few"),
    ({"constraint": {"pattern": "a{30}", "states": 20}}, "generate.constraint.states=20 is too few"),
    ({"constraint": {"schema": '{"type": "what"}'}}, "not regular"),
    ({"logit_bias": {"ids": "x:3"}}, "an example: 50:-2.5"),
    ({"logit_bias": {"ids": "999999:3"}}, "ids are 0 to"),
])  # fmt: skip
def test_wrong_requests_are_refused_in_one_sentence(made, group, says):
    """Without a program: what a control makes of a request is made on the host."""
    maker, _ = made
    options = changed(asked(), group)
    parts = sockets.make([options], DEFAULTS, vocab_size=259, eos=257)
    sides = {"constraint": {"class": np.zeros((1, 259), np.int32)}, "logit_bias": {"added": np.zeros((1, 259))}}
    with pytest.raises(ConfigError, match=re.escape(says)):
        given(parts, options, maker.tokenizer, {name: sides.get(name, {}) for name, _ in parts.control})


def test_a_row_without_an_allowed_token_ends_with_a_message_and_no_other_row_does(made):
    """A bias forbids what the constraint needs behind the c."""
    maker, params = made
    had, options = maker.program.config, asked()
    config = types.SimpleNamespace(
        seed=had.seed, data=had.data, generate=types.SimpleNamespace(to_dict=lambda: options)
    )
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    served = engines.Engine(trained, lanes=2, capacity=64)
    bad = served.admit("a", seed=1, constraint={"pattern": "cx"}, logit_bias={"ids": "120:-inf"})
    good = served.admit("a", seed=1, constraint={"pattern": "cx"}, logit_bias={"ids": "9:1"})
    found = {result.id: result for result in served.results()}
    assert found[bad].failed and found[bad].reason == engines.NO_TOKEN and found[bad].text == "c"
    assert found[good].text == "cx" and not found[good].failed
    with pytest.raises(ConfigError, match="too few"):
        served.admit("a", max_tokens=3, constraint={"pattern": "abcd"})


def test_tokens_of_one_kind_are_one_class():
    table = np.array([[1, -1, 1, -1, 2], [-1, -1, -1, 2, 2], [-1, -1, -1, -1, -1]], np.int32)
    kind, small = constraint.merged(table)
    assert kind[1] == 0 and (small[:, 0] == -1).all() and small.shape == (3, 4)
    assert (small[:, kind] == table).all()
    full = np.array([[1, 1], [-1, 1]], np.int32)
    kind, small = constraint.merged(full)
    assert (small[:, kind] == full).all() and (small[:, 0] == -1).all() and (kind > 0).all()


def branching():
    """A tree: root, two children, a child of the second."""
    token = jnp.array([[5, 1, 2, 3]])
    return Tree(token, jnp.array([[-1, 0, 0, 2]]), None, jnp.ones((1, 4), bool))


def test_texts_of_nodes_follow_their_own_path():
    p = types.SimpleNamespace(text=jnp.array([[7, 8, 5, 0, 0, 0]]))
    tokens, length = nodes.texts(p, branching(), jnp.array([[2, 3, 3, 4]]))
    got = [tokens[0, n, : length[0, n]].tolist() for n in range(4)]
    assert got == [[7, 8, 5], [7, 8, 5, 1], [7, 8, 5, 2], [7, 8, 5, 2, 3]]
    made = nodes.along(branching(), jnp.array([10]), lambda held, node: held * 10 + branching().token[:, node])
    assert made.tolist() == [[10, 101, 102, 1023]]


def test_penalties_count_the_answer_and_the_prompt_as_their_makers_do():
    p = types.SimpleNamespace(
        text=jnp.array([[1, 2, 3, 2, 2, 0]]), prompt=jnp.array([3]),
        dials={"penalties.repetition": jnp.array([2.0]), "penalties.presence": jnp.array([10.0]),
               "penalties.frequency": jnp.array([100.0])},
    )  # fmt: skip
    tree = Tree(jnp.array([[2]]), jnp.array([[-1]]), None, jnp.ones((1, 1), bool))
    logits = jnp.array([[[8.0, 8.0, 8.0, -8.0, 8.0]]])
    got, _ = processors.Penalties().process({}, {}, logits, p, tree, jnp.array([[4]]))
    assert got[0, 0].tolist() == [8.0, 4.0, 4.0 - 10 - 200, -16.0, 8.0]


def test_mirostat_follows_the_surprise_of_what_was_drawn():
    """Three rounds by hand, in numpy: the bound, the cut, the move."""
    rng = np.random.default_rng(0)
    tau, rate, V = 1.5, 0.4, 12
    part, side = processors.Mirostat(), {"off": jnp.zeros(1)}
    p = types.SimpleNamespace(dials={"mirostat.tau": jnp.array([tau]), "mirostat.rate": jnp.array([rate])})
    mu = 2 * tau
    for _ in range(3):
        logits, token = rng.normal(size=V) * 2, 0
        tree = Tree(jnp.array([[1]]), jnp.array([[-1]]), None, jnp.ones((1, 1), bool))
        got, made = part.process({}, side, jnp.asarray(logits[None, None], jnp.float32), p, tree, jnp.array([[4]]))
        law = plain.softmax(logits)
        keeps = (-np.log2(law) <= mu) | (law == law.max())
        assert (np.isfinite(got[0, 0]) == keeps).all()
        token = int(np.argmax(law))
        seen = Seen(tree, jnp.array([[4]]), got, jnp.array([[0]]), jnp.array([1]), jnp.array([[token]]), p, None)
        side = part.commit({}, side, made, seen)
        mu = cuts.mirostat_mu(mu, law[token] / law[keeps].sum(), tau, rate)
        np.testing.assert_allclose(side["off"][0], mu - 2 * tau, rtol=1e-5)  # float32, from sums of twelve.
