"""Logits processors by hand-computed cases; draws by their law."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import base
from configs.knobs import KNOBS
from models.decoding import keys as key_scheme
from models.decoding import parts as sockets
from models.decoding import sampling
from models.decoding.drafts import Tree
from tests import environment

LAW = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def logits(law=LAW, shift=3.0):
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(law) + shift, jnp.float32)


def kept(x) -> list[int]:
    return np.flatnonzero(np.isfinite(np.asarray(x))).tolist()


@pytest.mark.parametrize(("k", "left"), [(0, 5), (1, 1), (3, 3), (4, 4), (5, 5), (9, 5)])
def test_top_k(k, left):
    order = np.array([3, 0, 4, 1, 2])
    found = sampling.top_k(logits()[order], k)
    assert sorted(order[kept(found)]) == list(range(left))


@pytest.mark.parametrize("name", sampling.RULES)
def test_a_rule_is_off_at_its_default_and_leaves_a_token_at_any_value(name):
    """Of every row by itself, in any type of array, with some tokens ruled out before; greedy text stays greedy."""
    knob = KNOBS[f"generate.{name}"]
    rows = jnp.stack([logits(), logits()[::-1], logits(LAW * [1, 0, 1, 0, 1]), logits(np.full(5, 0.2))])
    np.testing.assert_array_equal(sampling.RULES[name](rows, knob.default), rows)
    top = knob.most if knob.most is not None else 1e9
    values = [knob.least, (knob.least + min(top, 1)) / 2, min(top, 3), top]
    for value in map(type(knob.default), values):
        found = sampling.RULES[name](rows, value)
        assert found.shape == rows.shape and found.dtype == rows.dtype
        assert np.all(np.isneginf(found[np.isneginf(rows)]))
        best = np.take_along_axis(np.asarray(found), np.argmax(rows, -1)[:, None], -1)[:, 0]
        assert np.all(np.isfinite(best)) and np.all(best == np.max(found, -1)), value
        for row in range(len(rows)):
            np.testing.assert_array_equal(found[row], sampling.RULES[name](rows[row], value))
    by_row = jnp.asarray(values, jnp.float32)
    for found in (sampling.RULES[name](rows, by_row), jax.vmap(sampling.RULES[name])(rows, by_row)):
        for row, value in enumerate(map(type(knob.default), np.asarray(by_row))):
            np.testing.assert_array_equal(found[row], sampling.RULES[name](rows[row], value))


def test_every_row_has_its_own_temperature_and_at_zero_one_token_is_left():
    rows = jnp.stack([logits(), logits(), logits()[::-1]])
    found = np.asarray(sampling.tempered(rows, jnp.asarray([2.0, 0.0, 0.5])))
    np.testing.assert_allclose(found[0], rows[0] / 2, rtol=1e-7)
    np.testing.assert_allclose(found[2], rows[2] * 2, rtol=1e-7)
    assert kept(found[1]) == [0]
    ties = sampling.tempered(jnp.asarray([1.0, 3.0, 3.0]), 0.0)
    assert kept(ties) == [1]  # The first, as argmax takes it.


# By rule: a value and how many of LAW, 0.4 to 0.05, are left.
LEFT = {
    "top_k": (2, 2),
    "top_p": (0.8, 3),
    "min_p": (0.2, 4),
}


@pytest.mark.parametrize("name", LEFT)
def test_a_rule_keeps_so_many_of_the_likeliest(name):
    value, left = LEFT[name]
    found = sampling.process(logits(), temperature=1.0, rules={name: value})
    assert kept(found) == list(range(left))
    np.testing.assert_array_equal(found[:left], logits()[:left])


def test_top_k_keeps_ties_of_the_last():
    assert kept(sampling.top_k(jnp.asarray([1.0, 2.0, 1.0, 0.0]), 2)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("p", "left"),
    [(1.0, 5), (0.99, 5), (0.949, 4), (0.851, 4), (0.849, 3), (0.701, 3), (0.699, 2), (0.39, 1), (1e-6, 1), (0.0, 1)],
)
def test_top_p(p, left):
    """Cumulative 0.4, 0.7, 0.85, 0.95, 1: the smallest set that reaches p."""
    order = np.array([4, 2, 0, 3, 1])
    found = sampling.top_p(jnp.stack([logits()[order], logits()]), p)
    assert sorted(order[kept(found[0])]) == list(range(left)) == kept(found[1])


@pytest.mark.parametrize(
    ("p", "left"), [(0.0, 5), (0.12, 5), (0.13, 4), (0.26, 3), (0.38, 2), (0.74, 2), (0.76, 1), (1.0, 1)]
)
def test_min_p(p, left):
    """Ratios to the likeliest: 1, 0.75, 0.375, 0.25, 0.125."""
    assert kept(sampling.min_p(logits(), p)) == list(range(left))


def test_processors_change_no_score_that_they_keep():
    for found in (sampling.top_k(logits(), 3), sampling.top_p(logits(), 0.8), sampling.min_p(logits(), 0.3)):
        np.testing.assert_array_equal(found[:3], logits()[:3])


def test_the_order_is_temperature_then_k_then_min_p_then_p():
    """T = 0.5 squares the law: 0.16, 0.09, 0.0225, 0.01, 0.0025. k=4 leaves 0.2825; p=0.9 of that needs three."""
    found = sampling.process(logits(), temperature=0.5, rules={"top_p": 0.9, "top_k": 4})
    assert kept(found) == [0, 1, 2]
    law = np.asarray(jax.nn.softmax(found), np.float64)
    np.testing.assert_allclose(law[:3], np.array([0.16, 0.09, 0.0225]) / 0.2725, rtol=1e-6)
    # 0.25 of 0.2825 reaches 0.88, and 0.25 of 0.285 would not; 0.85 of the 0.95 that min-p leaves, and 0.85 would not.
    assert kept(sampling.process(logits(), temperature=0.5, rules={"top_p": 0.88, "top_k": 4})) == [0, 1]
    assert kept(sampling.process(logits(), temperature=1.0, rules={"top_p": 0.88, "min_p": 0.15})) == [0, 1, 2]
    assert kept(sampling.process(logits(), temperature=2.0, rules={"min_p": 0.4})) == [
        0,
        1,
        2,
        3,
    ]  # sqrt(0.25) = 0.5 stays
    assert kept(sampling.process(logits(), temperature=1.0, rules={"min_p": 0.4})) == [0, 1]


def test_bfloat16_logits_are_processed_in_float32():
    assert sampling.process(logits().astype(jnp.bfloat16), temperature=1.0).dtype == jnp.float32


def fits(law: np.ndarray, tokens: np.ndarray) -> float:
    """p of a chi-square test of draws against a law; what the law forbids must not have been drawn."""
    counts = np.bincount(tokens, minlength=len(law))
    assert counts[law == 0].sum() == 0
    return stats.chisquare(counts[law > 0], law[law > 0] / law.sum() * len(tokens)).pvalue


DEFAULTS = base.get_config().generate.to_dict()


def draw(keys, rows, *, temperature=1.0, rules=(), vocab_size=0, banned=()):
    """Tokens as a round of decoding draws them: rows `[B, V]` -> `[B]`."""
    asked = DEFAULTS | {"temperature": temperature, **dict(rules)}
    parts = sockets.make([asked], DEFAULTS, vocab_size=vocab_size, banned=banned)
    dials = {name: jnp.broadcast_to(value, len(rows)) for name, value in sockets.dials([asked], parts).items()}
    at, logits = jnp.zeros((len(rows), 1), jnp.int32), rows[:, None]
    tree = Tree.chain(at, at == 0)
    for _, part in parts.control:
        logits, _ = part.process({}, {}, logits, types.SimpleNamespace(dials=dials), tree, at)
    return parts.verifier(keys, logits, tree, at[:, 0], 1).next


N = 20_000
KEYS = jax.random.split(jax.random.key(1), N)


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({}, LAW),
        ({"temperature": 0.5}, LAW**2),
        ({"temperature": 2.0}, LAW**0.5),
        ({"rules": (("top_k", 2),)}, LAW * [1, 1, 0, 0, 0]),
        ({"rules": (("top_p", 0.8),)}, LAW * [1, 1, 1, 0, 0]),
        ({"rules": (("min_p", 0.2),)}, LAW * [1, 1, 1, 1, 0]),
        ({"vocab_size": 4, "banned": (1,)}, LAW * [1, 0, 1, 1, 0]),
        (
            {"vocab_size": 4, "banned": (0,), "rules": (("top_p", 0.6),)},
            LAW * [0, 1, 1, 0, 0],
        ),  # shares of what may be drawn
    ],
)
def test_draws_follow_the_law(options, law):
    """20,000 draws at a level of 1 in 10,000: a share that is off by 4 points of a hundred is seen."""
    tokens = np.asarray(jax.jit(functools.partial(draw, **options))(KEYS, jnp.tile(logits(), (N, 1))))
    assert tokens.dtype == np.int32 and fits(law, tokens) > 1e-4
    wrong = law + 0.04 * law.sum() * (np.arange(5) == np.flatnonzero(law)[-1])
    assert fits(wrong, tokens) < 1e-4  # The test can fail.


def test_greedy_takes_the_likeliest_that_may_be_drawn():
    rows = jnp.stack([logits(), logits()[::-1]])
    assert draw(KEYS[:2], rows, temperature=0.0).tolist() == [0, 4]
    assert draw(KEYS[:2], rows, temperature=0.0, vocab_size=4, banned=(0,)).tolist() == [1, 3]


def test_a_row_draws_by_its_own_key():
    rows = jnp.tile(logits(), (64, 1))
    whole = key_scheme.sample(KEYS[:64], rows)
    np.testing.assert_array_equal(whole[10:20], key_scheme.sample(KEYS[10:20], rows[10:20]))
    assert len(np.unique(whole)) > 2


def test_rare_tokens_are_drawn_as_often_as_they_should_be():
    """Sixty-four tokens of 2^-20 each beside one of the rest: 2^20 draws expect 64 of them (six standard errors)."""
    law = jnp.full(65, -20 * jnp.log(2.0)).at[0].set(jnp.log1p(-64 * 2.0**-20))
    keys = jax.random.split(jax.random.key(5), 2**14)

    @functools.partial(jax.jit, compiler_options=environment.FAST)
    def count(keys):
        def chunk(total, i):
            drawn = key_scheme.sample(jax.vmap(lambda k: jax.random.fold_in(k, i))(keys), jnp.tile(law, (2**14, 1)))
            return total + jnp.sum(drawn > 0), None

        return jax.lax.scan(chunk, 0, jnp.arange(64))[0]

    assert abs(int(count(keys)) - 64) < 6 * np.sqrt(64)
