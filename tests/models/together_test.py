"""Rows of two states in one pass, and prompts side by side in one row: what each gives by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.lm import LM
from models.mixers.together import Rows, cut, joined
from tests.models.values.backbone_test import CASES
from tests.plain.drawn import drawn, spec

V = 11
MIXED = {"mixer": "attention,gated_delta,lact,ttt_linear", "num_layers": 4}
MODELS = {name: CASES[name][0] for name in ("gpt2", "gemma2", "sinks", "dynamic", "longrope")} | {
    "mixed": MIXED,
    "experts": {"channel": "moe", "moe": {"experts": 4, "hidden": 5, "router": "moepp", "zero": 1, "k": 2}},
}
SINKS = {"attention": {"window": 3, "sinks": 2}}
PACKED = {name: MODELS[name] for name in ("gpt2", "gemma2", "sinks", "experts")} | {"window and sinks": SINKS}
pytestmark = pytest.mark.usefixtures("x64")
CLOSE = {"rtol": 0, "atol": 1e-12}


def made(changes):
    return drawn(lambda rngs: LM(spec(vocab_size=V, **changes), rngs=rngs), seed=3)[0]


def ids(*shape):
    return np.random.default_rng(sum(shape)).integers(0, V, shape)


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_two_states_are_what_each_gives_alone(name):
    """Three rows, of which one reads nothing, behind 5 tokens; another reads 3 more of a text, one of them padding."""
    past, new, text, piece = ids(3, 5), ids(3, 1), ids(1, 4), ids(1, 3)
    at, here = np.asarray([[5], [-1], [5]]), np.asarray([[4, 5, -1]])

    def both(model, past, new, text, piece):
        model, causal = model.for_decoding(), {"mask": masks.Causal()}

        def begun(x):
            state = model.init_state(len(x), 12)
            return model(x, **causal, positions=jnp.arange(x.shape[1])[None], state=state, fresh=True).state

        rows = [Rows(new, jnp.asarray(at), begun(past)), Rows(piece, jnp.asarray(here), begun(text))]
        alone = [model(r.tokens, **causal, positions=r.positions, state=r.state) for r in rows]
        return [(p.features, p.state) for p in alone], [(p.features, p.state) for p in model.together(rows, **causal)]

    alone, together = made(MODELS[name])(both, past, new, text, piece)
    for (x, state), (y, other), held in zip(alone, together, (at, here), strict=True):
        np.testing.assert_allclose(y[held >= 0], x[held >= 0], **CLOSE)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, **CLOSE), state, other)


def test_drafts_in_a_tree_are_read_beside_a_piece():
    """Two rows with three drafts each, the third behind the first."""
    past, drafts, text, piece = ids(2, 5), ids(2, 3), ids(1, 4), ids(1, 3)
    parents = np.asarray([[-1, 0, 0]])

    def both(model, past, drafts, text, piece):
        model, causal = model.for_decoding(), {"mask": masks.Causal()}
        begun = lambda x: model(x, **causal, state=model.init_state(len(x), 12), fresh=True).state  # noqa: E731
        at = jnp.asarray([[5, 6, 6]] * 2)
        rows = [Rows(drafts, at, begun(past), parents), Rows(piece, 4 + jnp.arange(3)[None], begun(text))]
        tree = model(drafts, **causal, positions=at, state=rows[0].state, parents=parents)
        chain = model(drafts, **causal, positions=at, state=rows[0].state)
        return tree.features, chain.features, model.together(rows, **causal)[0].features

    tree, chain, together = made(MODELS["gpt2"])(both, past, drafts, text, piece)
    np.testing.assert_allclose(together, tree, **CLOSE)
    assert np.abs(chain - tree).max() > 1e-3


@pytest.mark.parametrize("name", PACKED)
def test_prompts_side_by_side_are_what_each_gives_alone(name):
    """4, 1 and 6 tokens in a row of 13: features and what the layers keep."""
    sizes, row = (4, 1, 6), ids(1, 13)
    at = np.concatenate([*map(np.arange, sizes), [-1, -1]])[None]
    segments = np.concatenate([np.repeat([1, 2, 3], sizes), [0, 0]])[None]

    def both(model, row):
        model, causal = model.for_decoding(), {"mask": masks.Causal(), "fresh": True}
        packed = model(row, **causal, positions=at, segment_ids=segments, state=model.init_state(1, 13))
        alone = [
            model(x, **causal, positions=jnp.arange(x.shape[1])[None], state=model.init_state(1, x.shape[1]))
            for x in jnp.split(row[:, :11], np.cumsum(sizes)[:-1], axis=1)
        ]
        return (packed.features, packed.state), [(p.features, p.state) for p in alone]

    (features, state), alone = made(PACKED[name])(both, row)
    ends = np.cumsum(sizes)
    for (x, own), start, end in zip(alone, ends - sizes, ends, strict=True):
        np.testing.assert_allclose(features[:, start:end], x, **CLOSE)
        kept = jax.tree.map(lambda leaf: leaf[:, :, start:end], state["layers"])  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, **CLOSE), own["layers"], kept)
    assert state["slots"].length == 11


def test_arrays_are_joined_and_cut():
    parts = [type("Part", (), {"positions": np.zeros(shape)}) for shape in ((2, 3), (1, 4))]
    a, b = np.arange(12).reshape(2, 3, 2), 100 + np.arange(8).reshape(1, 4, 2)
    whole = joined([jnp.asarray(a), jnp.asarray(b)])
    assert whole.shape == (1, 10, 2) and whole[0, 5].tolist() == a[1, 2].tolist()
    for x, y in zip((a, b), cut(whole, parts), strict=True):
        np.testing.assert_array_equal(x, y)
