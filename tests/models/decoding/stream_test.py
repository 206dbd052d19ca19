"""Text token by token is the law of the whole forward pass: every mixer, drafter and setting, each row at its pace."""

import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models.decoding import keys as key_scheme
from models.decoding import parts as sockets
from models.decoding import rows, stream
from models.mixers.slots import Slots
from tests import parts as sizes
from tests.models.lm_test import VARIANTS, V, make

DEFAULTS = base.get_config().generate.to_dict() | {"temperature": 1.0}
# Three requests: greedy, at a temperature, and under all rules at once.
SETTINGS = ({"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 9, "top_p": 0.9, "min_p": 0.02})
LENGTH, LIMIT, R = np.array([7, 13, 18]), np.array([30, 31, 26]), 32
MIXED = {"mixer": "attention, gated_delta", **sizes.group("gated_delta")}
MODELS = {name: VARIANTS[name] for name in ("attention", "gqa", "window+sinks", "lact", "gated_delta", "ttt_linear")}
MODELS |= {"mixed": {"num_layers": 2, **MIXED}}


def prompts(seed=0):
    """Texts in which n-grams come again, so that a look-up finds some."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.tile(rng.integers(0, V, (3, 8)), (1, 4)), jnp.int32)


def key_data(seed=0):
    return jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(seed), 3))


@functools.cache
def model(name):
    return nnx.split(make(init_std=0.5, **MODELS[name]))


@functools.cache
def forward(name):
    graphdef, params = model(name)

    @jax.jit
    def logits(text):
        made = nnx.merge(graphdef, params)
        return made.logits(made(text, mask=masks.Causal()).features)

    return logits


@functools.cache
def wanted(name):
    """The texts by the whole forward pass and numpy: no cache, no draft, one row's settings at a time."""
    text, length = np.asarray(prompts()).copy(), LENGTH.copy()
    keys = jax.random.wrap_key_data(key_data())
    while (length < LIMIT).any():
        logits = np.asarray(forward(name)(jnp.asarray(text)), np.float64)
        for row in np.flatnonzero(length < LIMIT):
            one = logits[row, length[row] - 1]
            noise = key_scheme.gumbel(jax.random.fold_in(jax.random.fold_in(keys[row], length[row]), 0), (V,))
            text[row, length[row]] = choose(one, np.asarray(noise, np.float64), **SETTINGS[row])
            length[row] += 1
    return [text[row, : LIMIT[row]].tolist() for row in range(3)]


def choose(logits, noise, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k:
        logits = np.where(logits < np.sort(logits)[-top_k], -np.inf, logits)
    logits = np.where(logits < logits.max() + np.log(min_p), -np.inf, logits) if min_p else logits
    order = np.argsort(-logits)
    law = np.exp(logits[order] - logits.max()) / np.exp(logits - logits.max()).sum()
    logits[order[np.cumsum(law) - law >= top_p]] = -np.inf
    return int((logits + noise).argmax())


def run(name, pieces, changes=(), settings=SETTINGS, draft=None, eos=-1, order=(0, 1, 2)):
    """Texts and calls of a batch whose prompts are read in `pieces`."""
    asked = [DEFAULTS | dict(changes) | one for one in settings]
    parts = sockets.make([asked[i] for i in order], DEFAULTS, vocab_size=V, eos=eos)
    dials = sockets.dials([asked[i] for i in order], parts)
    at = np.array(order)
    graphdef, params = model(name)
    small = model(draft) if draft else None

    @jax.jit
    def go(params, beside, dials):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        if small:
            models["model_draft.workdir"] = nnx.merge(small[0], beside).for_decoding()
        given = (prompts()[at], jnp.asarray(LENGTH[at]), jnp.asarray(LIMIT[at]), key_data()[at])
        p = stream.begin(models, parts, *given, dials, capacity=40)
        for i, size in enumerate(pieces):
            p = stream.read(models, p, parts, size, fresh=i == 0)
        return stream.extend(models, p, parts, 100)

    p = go(params, small[1] if small else None, dials)
    return [p.text[i, : p.length[i]].tolist() for i in range(len(order))], p.calls.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_drafts_from_the_text_change_nothing(name):
    """Rows with other settings in one batch, prompts in ragged pieces, drafts that are often wrong, mixed stacks."""
    texts, calls = run(name, (5, 9, 5), {"drafter": "lookup", "lookup": {"length": 3, "ngram": 2}})
    assert texts == wanted(name)


@pytest.mark.parametrize(("name", "pieces"), [("attention", (17,)), ("mixed", (3, 20))])
def test_rows_alone_and_without_drafts(name, pieces):
    texts, calls = run(name, pieces)
    assert texts == wanted(name) and calls == (LIMIT - LENGTH).tolist()


@pytest.mark.parametrize("draft", ["attention", "gated_delta"])
def test_a_model_that_drafts_for_itself_is_always_right(draft):
    """Four tokens a pass but at the limit, at every temperature: the draft is drawn with the bits of the token."""
    changes = {"drafter": "model_draft", "model_draft": {"workdir": "w", "length": 3}}
    texts, calls = run(draft, (17,), changes, draft=draft)
    assert texts == wanted(draft)
    extra = 0 if draft == "attention" else 1  # A recurrence reads again what was cut at the limit, for all rows.
    for row, count in enumerate(-(-(LIMIT - LENGTH) // 4)):
        assert count <= calls[row] <= count + extra


def test_a_turned_batch_and_another_model_that_drafts_change_nothing():
    changes = {"drafter": "model_draft", "model_draft": {"workdir": "w", "length": 2}}
    texts, _ = run("attention", (17,), changes, draft="gated_delta", order=(2, 0, 1))
    assert texts == [wanted("attention")[i] for i in (2, 0, 1)]


@pytest.mark.parametrize("name", ["gqa", "mixed"])
@pytest.mark.parametrize(
    "changes", [{}, {"drafter": "lookup", "lookup": {"length": 3, "ngram": 2}}], ids=["", "drafts"]
)
def test_a_row_by_itself_writes_what_it_writes_in_company(name, changes):
    """The loop carries one row without the row's dimension."""
    for row in (0, 2):
        assert run(name, (5, 13), changes, order=(row,))[0] == [wanted(name)[row]]


DRAFTING = {
    "none": {},
    "lookup": {"lookup": {"length": 3, "ngram": 2}},
    "model_draft": {"model_draft": {"workdir": "w", "length": 3}},
    "recycling": {"recycling": {"template": "2x1x1", "shared": False}},
    "exit": {"exit": {"layers": 1, "length": 3, "threshold": 0.3}},
}


@pytest.mark.parametrize("drafter", DRAFTING)
def test_the_caches_of_one_row_are_copied_by_no_round(drafter):
    """Those of a model that drafts neither. And rotary tables of all layers are one: both cost a quarter of a step of a
    small model on a CPU."""
    made, small = make(num_layers=3), make(num_layers=2)
    graphs, params = zip(nnx.split(made), nnx.split(small), strict=True)
    asked = DEFAULTS | SETTINGS[0] | {"drafter": drafter} | DRAFTING[drafter]
    parts = sockets.make([asked], DEFAULTS, vocab_size=V)

    def rounds(params):
        merged = (nnx.merge(*both).for_decoding() for both in zip(graphs, params, strict=True))
        models = dict(zip(("model", "model_draft.workdir"), merged, strict=True))
        given = prompts()[:1], jnp.asarray(LENGTH[:1]), jnp.asarray(LIMIT[:1]), key_data()[:1]
        p = stream.begin(models, parts, *given, sockets.dials([DEFAULTS], parts))
        return stream.extend(models, stream.read(models, p, parts, 17, fresh=True), parts, 100).text

    program, spec = jax.jit(rounds).lower(params).compile().as_text(), made.spec
    size = spec.K * (R + parts.drafter[1].nodes - 1) * spec.H

    def held(body):
        shapes = re.findall(r"%(\S+) = f32\[([\d,]+)\]", body)
        return [name for name, shape in shapes if math.prod(map(int, shape.split(","))) == size]

    body = max((part for part in program.split("\n\n") if "ENTRY" not in part), key=lambda part: len(held(part)))
    large = held(body)
    assert len(large) >= 2 * (3 + 2 * (drafter == "model_draft"))  # Keys and values of each layer.
    assert not [name for name in large if re.search("copy|transpose", name)]
    if drafter == "none":
        tables = re.findall(rf"= f32\[1,{spec.H // 2}\]\S* dot\(", body)
        assert len(tables) == 2, "cos and sin, not those of every layer"


def test_the_end_token_ends_a_row_within_its_drafts():
    """A token of the second row as the end: rows stop where it first stands, drafts or not."""
    whole = wanted("attention")
    eos = whole[1][LENGTH[1] + 5]
    cut = []
    for text, n in zip(whole, LENGTH, strict=True):
        new = text[n:]
        cut.append(text[:n] + (new[: new.index(eos) + 1] if eos in new else new))
    changes = {"drafter": "model_draft", "model_draft": {"workdir": "w", "length": 3}}
    assert run("attention", (17,), changes, draft="attention", eos=eos)[0] == cut
    assert cut[1] != whole[1]


def test_turning_a_dial_compiles_nothing_and_what_is_off_is_not_in_the_program():
    graphdef, params = model("attention")
    asked = [DEFAULTS | {"temperature": t, "top_k": 3} for t in (0.5, 1.5, 0.0)]
    parts = sockets.make(asked, DEFAULTS, vocab_size=V)
    assert [name for name, _ in parts.control] == ["allowed", "temperature", "top_k"]

    @jax.jit
    def go(params, dials):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        p = stream.begin(models, parts, prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data(), dials)
        return stream.round_(models, stream.read(models, p, parts, 17), parts, p.live).text

    go(params, sockets.dials(asked, parts))
    again = [one | {"temperature": one["temperature"] + 0.3, "top_k": 7} for one in asked]
    assert sockets.make(again, DEFAULTS, vocab_size=V) == parts
    go(params, sockets.dials(again, parts))
    assert go._cache_size() == 1

    def sorts(parts, asked):
        trace = lambda x: _controlled(parts, x, sockets.dials(asked, parts))  # noqa: E731
        return "sort" in str(jax.make_jaxpr(trace)(jnp.zeros((3, 1, V))))

    assert sorts(parts, asked)
    plain = [one | {"top_k": 0} for one in asked]
    assert not sorts(sockets.make(plain, DEFAULTS, vocab_size=V), plain)
    cold = sockets.make([one | {"temperature": 0.0} for one in asked], DEFAULTS, vocab_size=V)
    assert [name for name, _ in cold.control] == ["allowed"] and type(cold.verifier).__name__ == "Greedy"


def _controlled(parts, logits, dials):
    for _, part in parts.control:
        logits, _ = part.process({}, {}, logits, types.SimpleNamespace(dials=dials), None, None)
    return logits


END = 7


class Counter:
    """The next number has all the mass; the state counts tokens, and positions must follow each other."""

    def init_state(self, batch, length, memory):
        return {"slots": Slots.empty(batch, length), "layers": ({"0": jnp.zeros((batch,), jnp.int32)},)}

    def __call__(self, tokens, *, mask, positions, state, asked, fresh=False, parents=None):
        from models.block import Pass

        assert mask == masks.Causal()
        real, count = positions >= 0, state["layers"][0]["0"]
        right = jnp.where(real, positions == count[:, None] + jnp.arange(tokens.shape[1]), True).all()
        following = jnp.where(right, (tokens + 1) % 9, 0)
        after = {"slots": state["slots"].append(positions), "layers": ({"0": count + real.sum(-1)},)}
        return Pass(jax.nn.one_hot(following, 9), after, {})

    def logits(self, features):
        return 50 * features


def test_rows_count_up_to_their_end_and_stay_there():
    """Prompts 3 4, 0 and 5: after the end, which is 7, a row says nothing else; a row beyond its limit neither."""
    text, length = jnp.asarray([[3, 4, *[8] * 8], [0, *[8] * 9], [5, *[8] * 9]]), jnp.asarray([2, 1, 1])
    parts = sockets.make([DEFAULTS], DEFAULTS, eos=END)

    @jax.jit
    def go(rounds, limit):
        models = {"model": Counter()}
        p = stream.begin(models, parts, text, length, limit, key_data(), sockets.dials([DEFAULTS] * 3, parts))
        return stream.extend(models, stream.read(models, p, parts, 4), parts, rounds)

    say = lambda p: [p.text[i, : p.length[i]].tolist() for i in range(3)]  # noqa: E731
    ended = go(20, jnp.asarray([10, 10, 10]))
    assert say(ended) == [[3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7], [5, 6, 7]] and ended.done.all()
    assert ended.calls.tolist() == [3, 7, 2]
    some = go(2, jnp.asarray([10, 10, 10]))
    assert say(some) == [[3, 4, 5, 6], [0, 1, 2], [5, 6, 7]] and some.done.tolist() == [False, False, True]
    short = go(20, jnp.asarray([3, 2, 1]))
    assert say(short) == [[3, 4, 5], [0, 1], [5]] and short.done.all()


def test_a_loop_ends_when_so_many_rows_have_ended():
    text, length = jnp.asarray([[3, *[8] * 9], [0, *[8] * 9], [5, *[8] * 9]]), jnp.asarray([1, 1, 1])
    parts = sockets.make([DEFAULTS], DEFAULTS, eos=END)
    models = {"model": Counter()}
    p = stream.begin(models, parts, text, length, length + 9, key_data(), sockets.dials([DEFAULTS] * 3, parts))
    for ends, calls in ((1, 2), (2, 4), (3, 7)):
        assert stream.extend(models, p, parts, 20, ends).calls.max() == calls


def test_a_row_that_is_not_live_comes_back_as_it_was():
    graphdef, params = model("mixed")
    for drafter in ({}, {"drafter": "lookup", "lookup": {"length": 2, "ngram": 1}}):
        parts = sockets.make([DEFAULTS | drafter], DEFAULTS, vocab_size=V)

        @jax.jit
        def go(params, parts=parts):
            models = {"model": nnx.merge(graphdef, params).for_decoding()}
            dials = sockets.dials([DEFAULTS] * 3, parts)
            p = stream.begin(models, parts, prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data(), dials)
            p = stream.read(models, p, parts, 17)
            return p, stream.round_(models, p, parts, jnp.asarray([True, False, True]))

        before, after = go(params)
        assert (after.length - before.length).tolist()[1] == 0 and after.length[0] > before.length[0]
        one, same = (rows.take(p.state["layers"], jnp.asarray([1])) for p in (before, after))
        for old, new in zip(*map(jax.tree.leaves, (one, same)), strict=True):
            used = (slice(None), slice(None), slice(0, LENGTH[1] - 1)) if old.ndim == 4 and old.shape[2] > 17 else ...
            np.testing.assert_array_equal(old[used], new[used])
        np.testing.assert_array_equal(before.state["slots"].position[1], after.state["slots"].position[1])
