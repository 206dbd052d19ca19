"""MrT5: bytes that are deleted softly where the model is trained, and truly where it is read."""

import jax
import numpy as np

from tests.models import segmented_test
from tests.models.segmented_test import H, N, W
from tests.plain import layers


def test_a_soft_pass_has_the_value_of_plain_numpy(x64):
    """All bytes are tokens, gates are added to their scores, and a byte reads the mean of what it may come to read."""
    _, params, run = segmented_test.soft(-30.0)
    out, p, begin, G, kept = run(params, segmented_test.rows()), jax.tree.map(np.asarray, params), 0, [], 0
    for text in segmented_test.TEXTS:
        ids = np.array([256, *text])
        h = segmented_test.layers_of(p["encoder"], p["embedding"][ids], N, W // N, 5, 1)
        gates = np.array([0.0, *(segmented_test.plain_gate(p["segmenter"], x) for x in h[1:])])
        c = segmented_test.layers_of(p["stack"], h @ p["down"], 2, H, 0, 2, bias=gates)
        z = layers.norm(p["stack_norm"], c, *segmented_test.NORM) @ p["up"]
        for t in range(1, len(ids)):
            z[t] = (1 + gates[t] / 30) * z[t] - gates[t] / 30 * z[t - 1]
        want = layers.norm(
            p["norm"], segmented_test.layers_of(p["decoder"], h + z, N, W // N, 5, 1), *segmented_test.NORM
        )
        np.testing.assert_allclose(out.features[0, begin : begin + len(ids)], want, rtol=1e-9, atol=1e-9)
        begin, kept, G = begin + len(ids), kept + np.sum(gates > -15), [*G, *gates]
    assert float(out.report["segments"].total[0]) == kept
    params["segmenter"]["held"] = np.array([0.3, -0.1])
    np.testing.assert_allclose(run(params, segmented_test.rows()).report["loss"][0], 0.2 * sum(G), rtol=1e-9)
    params["segmenter"]["held"] = np.array([0.1, -0.3])
    assert float(run(params, segmented_test.rows()).report["loss"][0]) == 0


def test_gates_that_are_open_or_shut_make_the_pass_that_trains_the_one_that_is_read(x64):
    """With G of 0 or so low that exp(G) is 0, in a row of two documents; the two differ by the order of sums."""
    k = -1e6
    made, params, run = segmented_test.soft(k)
    params = jax.tree.map(np.copy, params)
    params["segmenter"]["out"] *= 1e6  # sigmoid is 0 or 1.
    read = jax.jit(lambda params, batch: segmented_test.features(made, params, batch))
    trained, hard = run(params, segmented_test.rows()), read(params, segmented_test.rows())
    real = segmented_test.rows()["segment_ids"][0] > 0
    np.testing.assert_allclose(trained.features[0, real], hard.features[0, real], rtol=0, atol=1e-11)
    counts = [float(out.report["segments"].total[0]) for out in (trained, hard)]
    assert counts[0] == counts[1] and 2 < counts[0] < real.sum()
    shut = jax.tree.map(np.copy, params)
    shut["segmenter"]["out"] *= 1e-6
    shut["segmenter"]["bias"] = np.array([1e6])
    whole = run(shut, segmented_test.rows())  # All gates open: nothing is added, and each byte reads its own token.
    assert float(whole.report["segments"].total[0]) == real.sum()


def test_the_gate_is_trained_softly_and_its_controller_follows_the_rate():
    """Two steps of the program: what is held after each is the controller's of the rate that the step reports."""
    narrow = {"model.dtype": "float32", "model.param_dtype": "float32", "model.segmented.mrt5.deleted": 0.9}
    made = segmented_test.program("mrt5", **narrow, **{"model.segmented.mrt5.integral": 0.01})
    batch = {name: np.asarray(x, np.int32).repeat(2, 0) for name, x in segmented_test.rows().items()}
    batch |= {"targets": batch["tokens"], "scored": batch["segment_ids"] > 0}
    state, step, gathered, summed = made.init(), made.train_step(), 0.0, 0.0
    for _ in range(2):
        state, metrics = step(state, batch)
        error = 0.9 - (1 - float(metrics["train/report/segments"]))
        gathered, summed = 0.9 * gathered + 0.1 * 0.5 * error, summed + 0.01 * error
        np.testing.assert_allclose(state["params"]["segmenter"]["held"], [gathered, summed], rtol=1e-5)
    assert gathered > 0 and float(metrics["train/report/loss"]) < 0
    assert float(metrics["train/loss"]) < float(metrics["train/nll"])
