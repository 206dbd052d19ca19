"""Sums over updates do not lose what the parameters' type cannot hold: averages, moments, accumulation, small steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.program import optimizers, precision
from experiments.workdir.checkpoints import manifest
from tests.experiments.program import program_test

NARROW = {"model__param_dtype": "bfloat16"}


def leaves(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def test_random_rounding_gives_a_neighbour_and_on_average_the_value():
    """bfloat16 above 1 lies 2^-7 apart; 1 + 2^-7 / 4 becomes 1 in three of four."""
    x = jnp.full(40_000, 1 + 2**-9, jnp.float32).at[:5].set(jnp.array([1.5, -3.0, 0.0, jnp.inf, jnp.nan]))
    (got,) = precision.rounded_at_random((x,), (x.astype(jnp.bfloat16),), jax.random.key(0))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got[:5].astype(jnp.float32), x[:5])
    share = np.mean(np.asarray(got[5:], np.float64) == 1 + 2**-7)
    assert set(np.unique(np.asarray(got[5:], np.float64))) == {1.0, 1 + 2**-7}
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 40_000)
    (below,) = precision.rounded_at_random((-x[5:],), (got,), jax.random.key(1))
    assert set(np.unique(np.asarray(below, np.float64))) == {-1.0, -1 - 2**-7}


@pytest.mark.parametrize("rounding", ["master", "stochastic"])
def test_all_sums_of_narrow_parameters_are_float32(rounding):
    made = program_test.program(**NARROW, optimizer__rounding=rounding, optimizer__ema=0.9)
    types = {path: text.split("[")[0] for path, text in manifest(made.abstract).items()}
    sums = {path: kind for path, kind in types.items() if not path.startswith("['params']")}
    assert {kind for path, kind in types.items() if path.startswith("['params']")} == {"bfloat16"}
    assert "bfloat16" not in sums.values() and any("mu" in path for path in sums)
    assert ("['master']['embedding']" in sums) == (rounding == "master")
    moments = jax.tree.leaves(made.shardings["ema"]) + jax.tree.leaves(made.shardings.get("master", {}))
    assert len(moments) == len(jax.tree.leaves(made.shardings["params"])) * (2 if rounding == "master" else 1)


def test_wide_parameters_have_no_second_copy():
    for rounding in precision.ROUNDINGS:
        made = program_test.program(optimizer__rounding=rounding)
        assert set(made.abstract) == {"step", "rng", "params", "optimizer"}


SMALL = {"optimizer__learning_rate": 1e-5, "optimizer__weight_decay": 0.0, "optimizer__schedule": "constant"}


def steps(count, **changes):
    """The state after updates on one batch that is the same each time; each moves a parameter by about the rate."""
    made = program_test.program(**{**NARROW, **SMALL, **changes})
    state, step = made.init(), made.train_step()
    start = leaves(state["params"])
    batch = program_test.global_batch(next(program_test.batches(1)), made)
    for _ in range(count):
        state, _ = step(state, batch)
    return made, start, jax.device_get(state)


def test_steps_too_small_for_the_parameters_type_add_up():
    """Adam with a constant gradient moves every entry by the rate: 20 steps of 1e-5 from scales of 1, 2^-7 apart."""
    _, start, state = steps(20)
    pairs = zip(paths(state["params"]), start, leaves(state["master"]), strict=True)
    scales = [(was, now) for path, was, now in pairs if "norm" in path]
    assert scales
    for was, now in scales:
        moved = np.abs(now - was)
        assert (was == 1).all() and np.median(moved) > 10e-5 and moved.max() < 25e-5
    for stored, master in zip(jax.tree.leaves(state["params"]), jax.tree.leaves(state["master"]), strict=True):
        np.testing.assert_array_equal(stored, np.asarray(jnp.asarray(master).astype(stored.dtype)))
    _, start, nearest = steps(20, optimizer__rounding="nearest")
    stuck = [np.array_equal(was, now) for was, now in zip(start, leaves(nearest["params"]), strict=True)]
    assert sum(stuck) >= len(scales), "as runs were before: scales of 1 never move"


def paths(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_steps_rounded_at_random_move_the_mean_of_many_entries():
    """Of n entries at 1 that should move by m, each jumps 2^-7 with chance m / 2^-7: the mean moves by m."""
    n, m = 100_000, 20e-5
    x = jnp.ones(n, jnp.bfloat16)
    for i in range(20):
        (x,) = precision.rounded_at_random((x.astype(jnp.float32) - m / 20,), (x,), jax.random.key(i))
    moved = 1 - np.mean(np.asarray(x, np.float64))
    # Just below 1 neighbours lie 2^-8 apart; a walk of chances m / 2^-8 in all has variance below m 2^-8.
    assert abs(moved - m) < 5 * np.sqrt(m * 2**-8 / n)


def test_the_same_update_rounds_alike_and_the_next_one_anew():
    made, _, first = steps(2, optimizer__rounding="stochastic", optimizer__learning_rate=1e-3)
    _, _, again = steps(2, optimizer__rounding="stochastic", optimizer__learning_rate=1e-3)
    for a, b in zip(leaves(first["params"]), leaves(again["params"]), strict=True):
        np.testing.assert_array_equal(a, b)
    wide = jax.tree.map(lambda p: jnp.full(p.shape, 1 + 2**-9, jnp.float32), first["params"])
    keys = [jax.random.key(i) for i in (0, 1)]
    a, b = (leaves(made._stored(wide, first["params"], key)) for key in keys)
    assert any((x != y).any() for x, y in zip(a, b, strict=True))


def test_accumulated_gradients_of_narrow_parameters_are_those_of_the_whole_batch():
    """Eight microbatches, Adam's first moment is 0.1 of the gradient: float32 rounding, not bfloat16's 4e-3."""
    whole, _ = program_test.run(program_test.program(**NARROW), 1)
    parts, _ = program_test.run(program_test.program(**NARROW, train__accumulation=8), 1)
    for a, b in zip(leaves(whole["optimizer"]), leaves(parts["optimizer"]), strict=True):
        # Sums of 512 terms, of the size of the largest entry: 512 roundings of 2^-24 at worst, few in truth.
        assert np.abs(a - b).max() <= 512 * 2**-24 * np.abs(a).max()


def test_the_gradient_of_an_embedding_counts_every_use_of_a_row():
    """Computed in bfloat16, 4096 uses of one row are 4096, where sums in bfloat16 stop at 256."""
    for changes in ({}, NARROW):
        made = program_test.program(model__dtype="bfloat16", **changes)
        params = precision.widened(made.init()["params"])
        tokens = jnp.full((1, 4096), 3, jnp.int32)

        def total(params, tokens=tokens, made=made):
            x = made.merge(params).embed(tokens)
            assert x.dtype == jnp.bfloat16
            return x.astype(jnp.float32).sum()

        grad = np.asarray(jax.jit(jax.grad(total))(params)["embedding"])
        np.testing.assert_array_equal(grad[3], 4096.0)
        assert not grad[4].any()


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_the_average_of_a_run_is_that_of_its_parameters_by_hand(param_dtype):
    """d = 0.9 and 4 updates: weights 0.1 (0.729, 0.81, 0.9, 1) / (1 - 0.9^4), the initial parameters have none."""
    made = program_test.program(model__param_dtype=param_dtype, optimizer__ema=0.9, optimizer__learning_rate=1e-2)
    state, step, seen = made.init(), made.train_step(), []
    for batch in program_test.batches(4):
        state, _ = step(state, program_test.global_batch(batch, made))
        seen.append(leaves(state.get("master", state["params"])))
        if len(seen) == 1:
            for average, only in zip(leaves(state["ema"]), seen[0], strict=True):
                np.testing.assert_allclose(average, only, rtol=2**-22, atol=2**-22)
    weights = 0.1 * 0.9 ** np.arange(3, -1, -1.0) / (1 - 0.9**4)
    assert np.isclose(weights.sum(), 1.0) and state["averaged"] == 4
    for average, *each in zip(leaves(state["ema"]), *seen, strict=True):
        want = sum(w * p for w, p in zip(weights, each, strict=True))
        np.testing.assert_allclose(average, want, rtol=0, atol=8 * 2**-24 * np.abs(want).max())
    used = made.evaluation_params(state)
    assert manifest(used) == manifest(made.abstract["params"])
    for stored, average in zip(leaves(used), leaves(state["ema"]), strict=True):
        np.testing.assert_allclose(stored, average, rtol=2**-8 if param_dtype == "bfloat16" else 0)


def test_an_average_longer_than_the_run_is_near_the_mean_of_the_run():
    options = program_test.config(optimizer__ema=0.999).optimizer
    average, count = {"w": jnp.float32(100.0)}, jnp.int32(0)
    for t in range(1, 201):
        average, more = optimizers.average(options, average, count, {"w": jnp.float32(t)})
        count = more["averaged"]
    weights = 0.999 ** np.arange(199, -1, -1.0)
    want = np.sum(weights * np.arange(1, 201)) / weights.sum()  # 103.8
    np.testing.assert_allclose(average["w"], want, rtol=200 * 2**-24)


def test_an_average_without_a_count_is_that_of_runs_made_before():
    options = program_test.config(optimizer__ema=0.75).optimizer
    average, more = optimizers.average(options, {"w": jnp.float32(8.0)}, None, {"w": jnp.float32(4.0)})
    assert more == {} and average["w"] == 7.0
    made = program_test.program(optimizer__ema=0.75, optimizer__ema_debias=False)
    assert set(made.abstract) == {"step", "rng", "params", "optimizer", "ema"}
    before = made.init()["params"]
    state, _ = program_test.run(made, 1)
    for old, new, average in zip(leaves(before), leaves(state["params"]), leaves(state["ema"]), strict=True):
        np.testing.assert_allclose(
            average, 0.75 * old + 0.25 * new, rtol=0, atol=4 * 2**-24 * max(1, np.abs(old).max())
        )


def test_every_optimizer_keeps_its_sums_wide_and_learns_in_narrow_parameters():
    for name in optimizers.OPTIMIZERS:
        made = program_test.program(**NARROW, optimizer__name=name, optimizer__learning_rate=1e-2)
        assert "bfloat16" not in str(manifest(made.abstract["optimizer"])), name
        assert manifest(jax.eval_shape(made.evaluation_params, made.abstract)) == manifest(made.abstract["params"])
