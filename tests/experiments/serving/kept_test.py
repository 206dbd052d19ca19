"""What each layer kept of a text: as the row itself held it when the text ended."""

import functools

import jax
import numpy as np
import pytest

from experiments.serving import worker as rooms
from models.mixers.memory import Memory
from models.mixers.memory.kept import Kept
from tests.experiments.serving.planned_test import ended, served, start
from tests.experiments.serving.planned_test import worker as whole

SIZE = 24


@functools.cache
def worker(memory):
    """One of a run whose memory forgets."""
    made = served()
    made.config.unlock()
    made.config.generate.memory = memory
    made.config.generate.window.size = SIZE
    made.config.generate.h2o.update({"budget": float(SIZE), "recent": 8.0})
    return rooms.Worker(made, 2)


@pytest.mark.parametrize("text", ["", "def main(", "x" * 37 + "hello world"])
def test_a_window_keeps_its_last_tokens(text):
    made = worker("window")
    _, ends = ended(made, start("a", text, kept=True))
    kept = ends["a"]["kept"]
    n, T = kept["prompt"], len(kept["tokens"])
    assert (n, T - n) == tuple(ends["a"]["counts"][:2]) and "".join(kept["tokens"][1:n]) == text
    # The last query is the last token but one; it sees itself.
    want = [100 * (T - 1 - SIZE <= t < T - 1) for t in range(T)]
    assert kept["layers"] == [want] * made.engine.decoder.program.config.model.num_layers


def test_heavy_hitters_are_those_that_the_row_held():
    """The memory of the row itself, behind its last pass: what the last query saw but what that pass put out."""
    made, engine = worker("h2o"), worker("h2o").engine
    made.hear(start("a", "hello world " * 5, kept=True))
    request, event = engine.waiting[0], None
    while event is None:
        row = request.row
        event = next((event for event in made.turn()["told"] if "end" in event), None)
    layers = [memory for memory in _memories(engine) if isinstance(memory, Kept)]
    shares = np.asarray(made.watch(request))
    assert len(layers) == len(shares) == len(event["kept"]["layers"]) and row >= -1
    np.testing.assert_array_equal(np.rint(100 * shares), event["kept"]["layers"])
    for memory, share in zip(layers, shares, strict=True):
        heads = [set(place[place >= 0].tolist()) for place in np.asarray(memory.position)[request.row]]
        held = np.mean([[t in head for t in range(len(share))] for head in heads], axis=0)
        assert (share >= held).all() and round(float((share - held).sum()), 4) <= 1
        assert SIZE - 1 <= share.sum() <= SIZE + 1 and not share[-1]


def test_where_nothing_is_forgotten_there_is_nothing_to_show():
    with pytest.raises(AssertionError, match="return_kept: every layer keeps the whole text here"):
        ended(whole(), start("a", "b", kept=True))


def _memories(engine):
    return jax.tree.leaves(engine._lanes.state["layers"], is_leaf=lambda leaf: isinstance(leaf, Memory))
