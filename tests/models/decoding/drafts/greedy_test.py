"""Every drafter writes what the model writes alone: attention, grouped heads, recurrences, each row at its own pace."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models import objectives
from models.block import Pass
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import Seen, ahead
from models.lm import LM
from models.spec import Spec
from tests.models.decoding.stream_test import (
    DEFAULTS,
    LENGTH,
    LIMIT,
    SETTINGS,
    V,
    forward,
    key_data,
    model,
    prompts,
    wanted,
)  # fmt: skip

TREE = {"workdir": "w", "size": 6, "levels": 3, "width": 2, "beam": 2}
CASES = {
    "random": ("mixed", {"random": {"length": 2}}),
    "recycling": ("gqa", {"recycling": {"template": "3x2x1"}}),
    "recycling, shared": ("attention", {"recycling": {"template": "sequoia:6:3:0.6,0.2", "shared": True}}),
    "recycling, chain": ("gated_delta", {"recycling": {"template": "1x1"}}),
    "trie": ("gqa", {"trie": {"size": 7, "branch": 3}}),
    "trie, chain": ("mixed", {"trie": {"size": 4, "branch": 3, "chain": True, "shared": False}}),
    "eagle2": ("attention", {"model_tree": TREE | {"builder": "eagle2"}}),
    "dyspec": ("attention", {"model_tree": TREE | {"builder": "dyspec"}}),
    "template": ("attention", {"model_tree": TREE | {"builder": "template", "template": "2x2"}}),
}


class Hosts(dict):
    def __missing__(self, drafter):
        self[drafter] = drafter.host()
        return self[drafter]


@functools.cache
def texts(name, at, changes, draft="attention", settings=SETTINGS):
    """(texts, calls) of a batch whose rows are `at` of the three requests."""
    drafter, options = changes
    asked = [DEFAULTS | one | {"drafter": drafter, drafter: DEFAULTS[drafter] | dict(options)} for one in settings]
    parts = sockets.make([asked[i] for i in at], DEFAULTS, vocab_size=V)
    dials, rows = sockets.dials([asked[i] for i in at], parts), np.array(at)
    (graphdef, params), small, hosts = model(name), model(draft), Hosts()

    @jax.jit
    def go(params, beside, dials):
        models = {"model": nnx.merge(graphdef, params).for_decoding(), "hosts": hosts}
        models["model_tree.workdir"] = nnx.merge(small[0], beside).for_decoding()
        given = (prompts()[rows], jnp.asarray(LENGTH[rows]), jnp.asarray(LIMIT[rows]), key_data()[rows])
        p = stream.begin(models, parts, *given, dials, capacity=40)
        p = stream.read(models, p, parts, 17, fresh=True)
        return stream.extend(models, p, parts, 100)

    p = go(params, small[1], dials)
    return [p.text[i, : p.length[i]].tolist() for i in range(len(at))], p.calls.tolist()


def frozen(changes):
    ((drafter, options),) = changes.items()
    return drafter, tuple(options.items())


@pytest.mark.parametrize("case", CASES)
def test_drafts_change_no_text(case):
    """Rows of other lengths and settings, greedy and drawn, in one batch: the text of the whole forward pass."""
    name, changes = CASES[case]
    found, calls = texts(name, (0, 1, 2), frozen(changes), draft="attention")
    assert found == wanted(name)
    if case in ("eagle2", "dyspec", "template"):  # The model drafts for itself: whole paths stay, for drawn rows, too.
        depth = 3 if case == "template" else 4
        assert calls == (-(-(LIMIT - LENGTH) // depth)).tolist()


@functools.cache
def headed(mixer="attention"):
    """A model of multi_token with three heads of tokens ahead, and what its heads make of a whole text."""
    config = base.get_config().model
    changes = {"width": 32, "num_layers": 2, "num_heads": 4, "mixer": mixer, "init": "fan_in", "init_std": 0.5}
    config.update(changes | {"unroll": 1})
    spec = Spec.from_config(config.to_dict(), vocab_size=V)
    heads = objectives.heads(objectives.make("multi_token", {"tokens": 4}, vocab_size=V), spec)
    return nnx.split(LM(spec, rngs=nnx.Rngs(params=0), heads=heads))


def test_heads_of_tokens_ahead_draft_from_the_token_before_the_last_one():
    """The first drafts are those of the heads on the features of the whole forward pass; the text does not change."""
    asked = DEFAULTS | {"temperature": 0.0, "drafter": "heads", "heads": {"template": "2x1x1"}}
    parts, (graphdef, params) = sockets.make([asked], DEFAULTS, vocab_size=V), headed()
    plain = sockets.make([DEFAULTS | {"temperature": 0.0}], DEFAULTS, vocab_size=V)

    @functools.partial(jax.jit, static_argnums=1)
    def go(params, parts):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data())
        p = stream.begin(models, parts, *given, {}, capacity=40)
        p = stream.read(models, stream.read(models, p, parts, 10, fresh=True), parts, 10)
        rounds = [p, stream.round_(models, p, parts, p.live)]
        trees = [parts.drafter[1].propose(models, q, parts)[0].token for q in rounds]
        return stream.extend(models, p, parts, 100), trees, rounds[1].length, rounds[1].text

    @jax.jit
    def ahead(params, text):
        made = nnx.merge(graphdef, params)
        features = made(text, mask=masks.Causal()).features
        return [jnp.argsort(-made.logits(made.heads[f"ahead_{i}"](features)), axis=-1)[..., :2] for i in (2, 3, 4)]

    p, trees, length, text = go(params, parts)
    want = go(params, plain)[0]
    assert p.length.tolist() == want.length.tolist() == LIMIT.tolist()
    for row in range(3):
        assert p.text[row, : LIMIT[row]].tolist() == want.text[row, : LIMIT[row]].tolist()
    for token, whole, n in ((trees[0], prompts(), LENGTH), (trees[1], text, np.asarray(length))):
        best = ahead(params, whole)
        for row in range(3):
            first, second, third = (np.asarray(each[row, n[row] - 2]) for each in best)
            wanted = [int(whole[row, n[row] - 1]), *first, second[0], second[0], third[0], third[0]]
            assert token[row].tolist() == wanted


def test_heads_keep_the_feature_of_the_last_token_that_stays():
    """By hand: of the path 0, 2, 1 two nodes stand; a row that is not live keeps what it had."""
    features = jnp.arange(2 * 3 * 2, dtype=jnp.float32).reshape(2, 3, 2)
    path, count, old = jnp.asarray([[0, 2, 1]] * 2), jnp.asarray([2, 0]), jnp.full((2, 2), -1.0)
    seen = Seen(None, None, None, path, count, None, None, Pass(features, None, {}))
    found = ahead.Ahead(template="1x1").observe({}, {"feature": old}, seen)["feature"]
    assert found.tolist() == [[4.0, 5.0], [-1.0, -1.0]]


def test_a_model_s_first_layers_draft_for_it():
    found, _ = texts("mixed", (2, 0, 1), frozen({"exit": {"layers": 1, "length": 3}}))
    assert found == [wanted("mixed")[i] for i in (2, 0, 1)]


@functools.cache
def plain_texts():
    """The greedy texts of the three requests, by the whole forward pass."""
    text = np.asarray(prompts()).copy()
    for at in range(LENGTH.min(), LIMIT.max()):
        best = np.asarray(forward("attention")(jnp.asarray(text)))[:, at - 1].argmax(-1)
        text[:, at] = np.where((at >= LENGTH) & (at < LIMIT), best, text[:, at])
    return [text[row, : LIMIT[row]].tolist() for row in range(3)]


def test_layers_that_are_unsure_draft_no_further():
    """Drafts, and which of them are there, against the stream of the whole forward pass behind the first layer."""
    threshold, asked = 0.82, DEFAULTS | {"temperature": 0.0, "drafter": "exit"}
    asked |= {"exit": {"layers": 1, "length": 3, "threshold": threshold}}
    parts, (graphdef, params) = sockets.make([asked], DEFAULTS, vocab_size=V), model("attention")

    @jax.jit
    def go(params):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data())
        p = stream.read(models, stream.begin(models, parts, *given, {}, capacity=40), parts, 17, fresh=True)
        after = stream.round_(models, p, parts, p.live)
        trees = [parts.drafter[1].propose(models, q, parts)[0] for q in (p, after)]
        return trees, [(p.text, p.length), (after.text, after.length)], stream.extend(models, p, parts, 100).text

    @jax.jit
    def first_layer(params, text):
        made = nnx.merge(graphdef, params)
        stream_ = made(text, mask=masks.Causal(), taps=("residual",)).report["residual"][0]
        return jax.nn.softmax(made.logits(made.norm(stream_)), axis=-1)

    trees, before, ends = jax.tree.map(np.asarray, go(params))
    assert [ends[row, : LIMIT[row]].tolist() for row in range(3)] == plain_texts()
    counts = []
    for tree, (text, length) in zip(trees, before, strict=True):
        for row in range(3):
            mine, sure = text[row : row + 1].copy(), True
            for i in range(3):
                law = np.asarray(first_layer(params, jnp.asarray(mine)))[0, length[row] - 1 + i]
                sure = sure and bool(law.max() >= threshold)
                assert bool(tree.valid[row, 1 + i]) == sure
                if not sure:
                    break
                assert tree.token[row, 1 + i] == law.argmax()
                mine[0, length[row] + i] = law.argmax()
            assert tree.valid[row].tolist() == [True] * int(tree.valid[row].sum()) + [False] * int(
                (~tree.valid[row]).sum()
            )
            counts.append(int(tree.valid[row].sum()) - 1)
    assert len(set(counts)) > 1, counts
