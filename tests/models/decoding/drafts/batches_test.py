"""Drafts in batches of one and of eight, and beside the memory of a window: the same text; and calls are counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from models.decoding import parts as sockets
from models.decoding import stream
from tests.models.decoding.drafts.greedy_test import CASES, frozen, texts
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, LIMIT, SETTINGS, V, key_data, model, prompts, wanted
from tests.models.decoding.tables import Table

EIGHT = (2, 0, 1, 1, 2, 0, 0, 1)


@pytest.mark.parametrize("case", ["recycling, shared", "dyspec"])
def test_eight_rows_at_once_write_what_three_do(case):
    name, changes = CASES[case]
    assert texts(name, EIGHT, frozen(changes))[0] == [wanted(name)[i] for i in EIGHT]


@pytest.mark.parametrize(("case", "row"), [("recycling, shared", 2), ("template", 1)])
def test_a_row_by_itself_does_so_too(case, row):
    name, changes = CASES[case]
    assert texts(name, (row,), frozen(changes))[0] == [wanted(name)[row]]


@functools.cache
def behind_a_window(drafter, options, name):
    """Texts and calls with attention that keeps the last five tokens."""
    window = {"memory": "window", "window": {"size": 5}}
    asked = [DEFAULTS | one | window | {"drafter": drafter, drafter: dict(options)} for one in SETTINGS]
    parts = sockets.make(asked, DEFAULTS, vocab_size=V)
    graphdef, params = model(name)
    hosts = {parts.drafter[1]: parts.drafter[1].host()}

    @jax.jit
    def go(params, dials):
        models = {"model": nnx.merge(graphdef, params).for_decoding(), "hosts": hosts}
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data())
        p = stream.begin(models, parts, *given, dials, capacity=40)
        return stream.extend(models, stream.read(models, p, parts, 17, fresh=True), parts, 100)

    p = go(params, sockets.dials(asked, parts))
    return [p.text[i, : p.length[i]].tolist() for i in range(3)], p.calls


@pytest.mark.parametrize(
    ("drafter", "options"),
    [
        ("lookup", (("length", 3), ("ngram", 2))),
        ("recycling", (("template", "1x1x1"), ("shared", False))),
        ("exit", (("layers", 1), ("length", 2), ("threshold", 0.5))),
    ],
)
def test_chains_beside_a_window_change_no_text(drafter, options):
    """Its slots are written over in turn: what was rejected is read again from the state before, which is counted."""
    name = "mixed" if drafter == "exit" else "gqa"
    found, calls = behind_a_window(drafter, options, name)
    plain, alone = behind_a_window("none", (), name)
    assert found == plain and alone.tolist() == (LIMIT - LENGTH).tolist()
    assert name != "gqa" or plain != wanted(name)  # The window hides something.


class Counted(Table):
    """A table that tells the host the positions of every pass that runs."""

    def __init__(self, logits):
        super().__init__(logits)
        self.passes = []

    def __call__(self, tokens, *, positions, **kw):
        jax.debug.callback(lambda at: self.passes.append(np.asarray(at)), positions, ordered=True)
        return super().__call__(tokens, positions=positions, **kw)


@pytest.mark.parametrize("drafter", ["none", "random", "recycling"])
def test_calls_and_tokens_are_those_of_the_passes_that_ran(drafter):
    """Of one row and of two that end apart: calls of each, and of every pass the tokens that were read."""
    small = 6
    logits, end = jnp.asarray(np.random.default_rng(2).normal(size=(small, small)) * 2), np.array([18, 11])
    own = {"none": {}, "random": {"length": 3}, "recycling": {"template": "2x1", "shared": False}}[drafter]
    defaults = base.get_config().generate.to_dict()
    asked = defaults | {"temperature": 0.0, "drafter": drafter, drafter: own}
    parts, table = sockets.make([asked], defaults), Counted(logits)

    @jax.jit
    def go():
        models, ones = {"model": table}, jnp.ones((2,), jnp.int32)
        p = stream.begin(models, parts, jnp.ones((2, 18), jnp.int32), ones, end * ones, key_data()[:2], {})
        return stream.extend(models, p, parts, 100)

    p = jax.block_until_ready(go())
    jax.effects_barrier()
    ran = np.stack(table.passes)  # [passes, 2, N]
    assert len(ran) == int(p.calls.max())
    for row in range(2):
        mine = ran[:, row][ran[:, row].max(axis=1) >= 0]
        assert len(mine) == int(p.calls[row]) == int(p.wrote[row].sum())
        starts = mine[:, 0]
        assert starts[0] == 0 and np.diff([*starts, end[row] - 1]).max() <= parts.drafter[1].depth
        for start, read in zip(starts, mine, strict=True):
            room = end[row] - 1 - start - 1  # drafts beyond the limit are not read
            depths = {"none": [0], "random": [0, 1, 2, 3], "recycling": [0, 1, 1, 2, 2]}[drafter]
            assert sorted(read[read >= 0] - start) == [d for d in depths if d <= room]
