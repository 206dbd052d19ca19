"""Guided diffusion: exact check 13, the match rules by hand, and the law of the sampled rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import guided
from tests.models import tiny_laws

SIZE, LENGTH = 3, 4


def prefix_guide(table, dtype=jnp.float32):
    """An autoregressive guide with the table's conditionals: row l reads the state with positions < l visible."""
    denoise = tiny_laws.denoiser(table, dtype)

    def guide(tokens):
        visible = jnp.tril(jnp.ones((LENGTH, LENGTH), bool), -1)
        z = jnp.where(visible, tokens[:, None], SIZE)  # [B, T, T]
        return jnp.diagonal(denoise(z, None), axis1=1, axis2=2).swapaxes(1, 2)

    return guide


def run(table, guide, rule, batch=2, key=None, **options):
    denoise = tiny_laws.denoiser(table, jnp.float32)
    call = lambda key: guided.decode(  # noqa: E731
        denoise, guide, key, batch=batch, length=LENGTH, vocab_size=SIZE, rule=rule, **options
    )
    tokens, calls = jax.jit(call)(jax.random.key(0) if key is None else key)
    return np.asarray(tokens), np.asarray(calls)


def greedy(table):
    """Left-to-right argmax decoding by hand."""
    z = np.full(LENGTH, SIZE)
    for l in range(LENGTH):
        z[l] = tiny_laws.at(table, z)[l].argmax()
    return z


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_limits(seed):
    """Check 13: always, never, and match with a guide of the same conditionals."""
    table = tiny_laws.tab_table(SIZE, LENGTH, seed=seed)
    other = prefix_guide(tiny_laws.tab_table(SIZE, LENGTH, seed=seed + 50))
    tokens, calls = run(table, other, "always")
    assert (tokens == tiny_laws.at(table, [SIZE] * LENGTH).argmax(-1)).all() and (calls == 1).all()
    tokens, calls = run(table, other, "never")
    assert (tokens == greedy(table)).all() and (calls == LENGTH).all()
    tokens, calls = run(table, prefix_guide(table), "match")
    assert (tokens == greedy(table)).all() and (calls <= LENGTH).all()


def by_hand(table, guide_table, ok):
    """The loop in plain Python: `ok(p, draft)` judges a draft by the guide's probabilities."""
    z, calls, p = np.full(LENGTH, SIZE), 0, tiny_laws.probabilities(guide_table)
    while (z == SIZE).any():
        calls += 1
        filled = np.where(z == SIZE, tiny_laws.at(table, z).argmax(-1), z)
        new, first = z.copy(), True
        for l in range(LENGTH):
            if z[l] != SIZE:
                continue
            row = tiny_laws.at(p, np.where(np.arange(LENGTH) < l, filled, SIZE))[l]
            if not ok(row, filled[l]) and not first:
                break
            good = ok(row, filled[l])
            new[l], first = filled[l], False
            if not good:
                break
        z = new
    return z, calls


def test_rules_by_hand():
    rules = {
        "match": ({}, lambda p, v: p.argmax() == v),
        "top_k": ({"top_k": 2}, lambda p, v: (p > p[v]).sum() < 2),
        "threshold": ({"threshold": 0.4}, lambda p, v: p[v] > 0.4),
        "ratio": ({"top_k": 2, "ratio": 0.5}, lambda p, v: (p > p[v]).sum() < 2 and p[v] >= 0.5 * p.max()),
    }
    for (rule, (options, ok)), seed in itertools.product(rules.items(), (3, 4)):
        table, guide_table = (tiny_laws.tab_table(SIZE, LENGTH, seed=s) for s in (seed, seed + 9))
        tokens, calls = run(table, prefix_guide(guide_table), rule, **options)
        expected, count = by_hand(table, guide_table, ok)
        assert (tokens == expected).all() and (calls == count).all()


def test_sampled_rule_accepts_with_the_guides_probability():
    """One round decides two tokens: both drafts stand with the product of their chances, and one call is then
    enough."""
    table, guide_table, batch = tiny_laws.tab_table(SIZE, LENGTH, seed=1), tiny_laws.tab_table(SIZE, LENGTH, 2), 40_000
    init = jnp.array([0, 1, SIZE, SIZE])
    _, calls = run(table, prefix_guide(guide_table), "sample", batch=batch, init=init)
    drafts = tiny_laws.at(table, [0, 1, SIZE, SIZE]).argmax(-1)
    p = tiny_laws.probabilities(guide_table)
    one = tiny_laws.at(p, [0, 1, SIZE, SIZE])[2, drafts[2]] * tiny_laws.at(p, [0, 1, drafts[2], SIZE])[3, drafts[3]]
    assert 0.01 < one < 0.99
    assert abs((calls == 1).mean() - one) < 4.5 * (one * (1 - one) / batch) ** 0.5
    assert calls.max() == 2


def test_infilling_and_refusals():
    table = tiny_laws.tab_table(SIZE, LENGTH, seed=5)
    tokens, calls = run(table, prefix_guide(table), "match", init=jnp.array([SIZE, 2, SIZE, 0]))
    assert (tokens[:, [1, 3]] == [2, 0]).all() and (tokens < SIZE).all() and (calls <= 2).all()
    with pytest.raises(ValueError, match="rule='best'"):
        run(table, None, "best")
    with pytest.raises(ValueError, match="key=None"):
        guided.decode(None, None, batch=1, length=1, vocab_size=2, rule="sample")
