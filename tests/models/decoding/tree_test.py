"""A tree of drafts beside a cache: each draft has the logits of its own text, and what stays is as if read alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models.decoding.commit import commit
from models.mixers import slots
from models.mixers.memory import Policy
from tests.models.lm_test import V, make

#        0
#     1     2        Node 0 is the last token of the text.
#    3 4    5
#           6
PARENT = np.array([-1, 0, 0, 1, 1, 2, 5])
LENGTH = np.array([9, 5, 7])  # tokens of each text, node 0 included
PATH = np.array([[0, 2, 5, 6], [0, 1, 4, 0], [0, 0, 0, 0]])
COUNT = np.array([4, 3, 0])  # the last row is not live
MEMORIES = {
    "attention": ({}, Policy()),
    "gqa": ({"num_kv_heads": 2}, Policy()),
    "a window of the layer": ({"attention": {"window": 4, "sinks": 1}}, Policy()),
    "memory of a window": ({"num_layers": 2}, Policy("window", (("size", 6),))),
}


def ids(*shape):
    return np.random.default_rng(sum(shape)).integers(0, V, shape).astype(np.int32)


TEXT, DRAFTS, NEXT = ids(3, 16), ids(3, 7), ids(3, 2)
DRAFTS[:, 0] = TEXT[np.arange(3), LENGTH - 1]


def path_to(node):
    return [] if node < 0 else [*path_to(PARENT[node]), node]


@functools.cache
def run(name):
    """(logits of the tree `[B, N, V]`, of two tokens behind what was accepted `[B, 2, V]`, logits of a whole text)."""
    changes, memory = MEMORIES[name]
    with jax.enable_x64(True):
        graphdef, params = nnx.split(make(init_std=0.5, dtype="float64", param_dtype="float64", **changes))

        @jax.jit
        def decoded(params):
            model = nnx.merge(graphdef, params).for_decoding()
            at = jnp.arange(TEXT.shape[1])[None]
            read = jnp.where(at < LENGTH[:, None] - 1, at, -1)
            state = model.init_state(3, 32, memory)
            state = model(jnp.asarray(TEXT), mask=masks.Causal(), positions=read, state=state, fresh=True).state
            place = LENGTH[:, None] - 1 + slots.depths(jnp.asarray(PARENT))[None]
            place = jnp.where(COUNT[:, None] > 0, place, -1)
            given = {"mask": masks.Causal(), "positions": place, "state": state, "parents": jnp.asarray(PARENT)[None]}
            made = model(jnp.asarray(DRAFTS), **given)
            kept = {"path": jnp.asarray(PATH), "count": jnp.asarray(COUNT)}
            again = lambda tokens, at, state: model(tokens, mask=masks.Causal(), positions=at, state=state)  # noqa: E731
            after, _ = commit(again, state, made.state, tokens=jnp.asarray(DRAFTS), position=place, **kept)
            held = after["slots"].length
            more = model(jnp.asarray(NEXT), mask=masks.Causal(), positions=held[:, None] + jnp.arange(2), state=after)
            return model.logits(made.features), model.logits(more.features), held

        @jax.jit
        def whole(params, text):
            model, mask = nnx.merge(graphdef, params), masks.Causal()
            if memory.name == "window":
                mask = masks.Causal() & masks.Window(dict(memory.options)["size"] - 1, 0)
            return model.logits(model(text, mask=mask).features)

        tree, more, held = map(np.asarray, decoded(params))
        wide = lambda text: np.pad(np.asarray(text, np.int32), (0, 24 - len(text)))[None]  # noqa: E731
        return tree, more, held, lambda text: np.asarray(whole(params, wide(text)))[0, : len(text)]


@pytest.mark.parametrize("name", MEMORIES)
def test_each_draft_has_the_logits_of_its_own_text(name):
    tree, _, _, whole = run(name)
    with jax.enable_x64(True):
        for row in np.flatnonzero(COUNT):
            for node in range(len(PARENT)):
                text = [*TEXT[row, : LENGTH[row] - 1], *DRAFTS[row, path_to(node)]]
                np.testing.assert_allclose(tree[row, node], whole(text)[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MEMORIES)
def test_what_follows_the_accepted_drafts_reads_them_and_no_other(name):
    _, more, held, whole = run(name)
    assert held.tolist() == (LENGTH - 1 + COUNT).tolist()
    with jax.enable_x64(True):
        for row in range(3):
            text = [*TEXT[row, : LENGTH[row] - 1], *DRAFTS[row, PATH[row, : COUNT[row]]], *NEXT[row]]
            np.testing.assert_allclose(more[row], whole(text)[-2:], rtol=1e-12, atol=1e-12)


def test_the_past_is_seen_by_all_and_of_the_drafts_only_a_path():
    parents, start, S = np.array([[-1, -1, 0, 1, 2]]), np.array([3, 0]), 9  # Two drafts stand behind the past itself.
    wanted = np.ones((2, 5, S), bool)
    for row, first in enumerate(start):
        for node in range(5):
            path, at = set(), node
            while at >= 0:
                path.add(at)
                at = parents[0, at]
            for draft in range(5):
                wanted[row, node, first + draft] = draft in path
    paths = slots.ancestors(jnp.asarray(parents))
    np.testing.assert_array_equal(slots.own_path(paths, jnp.asarray(start), S), wanted)
