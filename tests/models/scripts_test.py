"""MAGNET's predictors of several scripts, and attention to the bytes of a segment in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.segments import cuts, magnet
from tests.models import segmented_test
from tests.models.segmented_test import N, T, W
from tests.plain import layers

PRIORS = ("0.2", "0.05", "0.1", "0.3")
LETTERS = "ab éαβ, —ж«д 1ก".encode()


@pytest.mark.parametrize("seed", range(4))  # The largest score is read first, or later.
def test_a_softmax_over_bytes_in_parts_is_that_over_all(x64, seed):
    """Bytes of two tokens and a rest, read in two passes; scores so far apart that a sum without its peak overflows."""
    rng = np.random.default_rng(seed)
    scores, values = 900 * rng.normal(size=(1, 12, 2)), rng.normal(size=(1, 12, 2, 3))
    ends, held = np.array([0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0], bool), None
    for begin, end in ((0, 3), (3, 12)):
        s, v, marks = jnp.asarray(scores[:, begin:end]), jnp.asarray(values[:, begin:end]), jnp.asarray(ends[begin:end])
        segment = cuts.segment_of(marks[None], False)
        start = cuts.Softmax(jnp.full((1, 2), cuts.LOW), jnp.zeros((1, 2)), jnp.zeros((1, 2, 3)))
        held = start._asdict() if held is None else held
        made = cuts.attended(s, v, cuts.members(segment, 4), segment, held)
        last_mark = jnp.sum(marks)
        held = cuts.going_on(s, v, segment == last_mark, last_mark[None] == 0, held)._asdict()
    parts = [(made.weight[0, i], made.total[0, i]) for i in range(2)] + [(held["weight"][0], held["total"][0])]
    for (weight, total), some in zip(parts, (slice(0, 5), slice(5, 8), slice(8, 12)), strict=True):
        for q in range(2):
            want = layers.softmax(scores[0, some, q]) @ values[0, some, q]
            np.testing.assert_allclose(total[q] / weight[q], want, rtol=1e-9, atol=1e-12)
    assert not np.any(made.weight[0, 3:])  # Token 2 is not marked yet, 3 has no byte.


def test_scripts_are_those_of_the_newest_letter():
    want = {"a": 0, "b": 0, "é": 0, "α": 1, "β": 1, "ж": 2, "д": 2, "ก": 3}
    now, plain_scripts = 0, []
    for letter in LETTERS.decode():
        now = want.get(letter, now)
        plain_scripts += [now] * len(letter.encode())
    ids = np.array([[256, *LETTERS, 256, 32, *LETTERS]])
    first = ids == 256
    got = magnet.scripts(jnp.asarray(ids), jnp.asarray(first), jnp.zeros((1,), jnp.int32))
    assert got.tolist() == [[0, *plain_scripts, 0, 0, *plain_scripts]]
    later = magnet.scripts(jnp.asarray([[32, 0x80, 65]]), jnp.zeros((1, 3), bool), jnp.array([2]))
    assert later.tolist() == [[2, 2, 0]]


def test_each_script_has_its_own_predictor_and_prior(x64):
    """Marks, features by steps, and the loss, of a text of four scripts."""
    from scipy.stats import binom

    made, params, run = segmented_test.ready("magnet", **{"model.segmented.magnet.priors": PRIORS})
    batch, p = segmented_test.rows([LETTERS], T), jax.tree.map(np.asarray, params)
    ids = batch["tokens"][0, : len(LETTERS) + 1]
    h = segmented_test.layers_of(p["encoder"], p["embedding"][ids], N, W // N, 5, 1)
    first = jnp.arange(len(ids))[None] == 0
    script = np.asarray(magnet.scripts(jnp.asarray(ids)[None], first, jnp.zeros((1,), jnp.int32)))[0]
    q = p["segmenter"]
    logits = layers.gelu_tanh(h @ q["hidden"] + q["hidden_bias"]) @ q["out"] + q["out_bias"]
    on = logits[np.arange(len(ids)), script] > 0
    on[0] = True
    out = run(params, batch)
    assert float(out.report["segments"].total[0]) == on.sum()
    want = 0
    for r, prior in enumerate(map(float, PRIORS)):
        mine = (script == r) & (np.arange(len(ids)) > 0)
        want -= binom.logpmf(on[mine].sum(), mine.sum(), prior)
    np.testing.assert_allclose(out.report["loss"][0], want, rtol=1e-9)
    assert len({bool(x) for x in on}) == 2 and q["out"].shape == (W, 4)

    @jax.jit
    def read(params, piece, at, state):
        return made.merge(params).for_decoding()(piece, mask=masks.Causal(), positions=at, state=state)

    state = made.merge(params).for_decoding().init_state(1, T)
    for t in range(len(ids)):
        step = read(params, jnp.asarray(ids[None, t : t + 1]), jnp.full((1, 1), t), state)
        state = step.state
        np.testing.assert_allclose(step.features[0, 0], out.features[0, t], rtol=0, atol=1e-12)
