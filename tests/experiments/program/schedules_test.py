"""The learning rate of every update of every schedule, by hand; and the average that schedule-free makes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import preflight
from experiments.program import optimizers
from tests.experiments import tiny
from tests.experiments.program import program_test

# Peak 1, final 0.2. Rates of updates 1, 2, ...; warm-up in updates, decay_share 0.5.
COS = [1.0, 0.2 + 0.8 * (2 + 2**0.5) / 4, 0.6, 0.2 + 0.8 * (2 - 2**0.5) / 4, 0.2]  # quarters of half a turn
TABLE = {
    # (schedule, updates, warm-up): rates
    ("cosine", 7, 3): [1 / 3, 2 / 3, *COS],
    ("cosine", 5, 1): COS,
    ("cosine", 5, 0): COS,
    ("linear", 7, 3): [1 / 3, 2 / 3, 1.0, 0.8, 0.6, 0.4, 0.2],
    ("linear", 5, 0): [1.0, 0.8, 0.6, 0.4, 0.2],
    ("wsd", 10, 2): [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2],  # half of 8 decay
    ("wsd", 5, 0): [1.0, 1.0, 1.0, 0.6, 0.2],  # half of the 4 after the first
    ("constant", 6, 4): [0.25, 0.5, 0.75, 1.0, 1.0, 1.0],
    ("constant", 3, 0): [1.0, 1.0, 1.0],
    **{(name, 1, 0): [1.0] for name in optimizers.SCHEDULES},
    **{(name, 1, 1): [1.0] for name in optimizers.SCHEDULES},
    ("cosine", 2, 0): [1.0, 0.2],
    ("linear", 2, 1): [1.0, 0.2],
    ("wsd", 2, 1): [1.0, 0.2],
}
BEFORE = {  # as runs were made: one update late, 0 at first, `final` never
    ("cosine", 6, 2): [0.0, 0.5, *COS[:4]],
    ("cosine", 4, 0): COS[:4],
    ("linear", 7, 3): [0.0, 1 / 3, 2 / 3, 1.0, 0.8, 0.6, 0.4],
    ("wsd", 6, 2): [0.0, 0.5, 1.0, 1.0, 1.0, 0.6],
    ("wsd", 4, 0): [1.0, 1.0, 1.0, 0.6],
    ("constant", 4, 2): [0.0, 0.5, 1.0, 1.0],
    ("cosine", 1, 0): [1.0],
    ("cosine", 1, 1): [0.0],
}


def options(**changes):
    made = program_test.config().optimizer.copy_and_resolve_references().unlock()
    made.update({"learning_rate": 1.0, "final": 0.2, "decay_share": 0.5, **changes})
    return made


def rates(steps, **changes):
    rate = optimizers.schedule(options(**changes), steps)
    return [float(rate(jnp.int32(index))) for index in range(steps)]


@pytest.mark.parametrize(("name", "steps", "warmup"), TABLE)
def test_every_rate_of_every_schedule(name, steps, warmup):
    got = rates(steps, schedule=name, warmup=float(warmup))
    np.testing.assert_allclose(got, TABLE[name, steps, warmup], rtol=4 * 2**-24, atol=2**-24)


@pytest.mark.parametrize(("name", "steps", "warmup"), BEFORE)
def test_rates_of_runs_made_before(name, steps, warmup):
    got = rates(steps, schedule=name, warmup=float(warmup), counting="steps")
    np.testing.assert_allclose(got, BEFORE[name, steps, warmup], rtol=4 * 2**-24, atol=2**-24)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_both_ends_are_reached_whatever_the_warm_up(name):
    for steps, warmup in ((1000, 0.05), (1000, 0.0), (37, 5.0), (3, 1.0)):
        got = rates(steps, schedule=name, warmup=warmup)
        count = max(1, round(warmup * steps) if warmup < 1 else int(warmup))
        assert abs(got[0] - 1 / count) < 4 * 2**-24 and got[count - 1] == 1.0 == max(got) and min(got) > 0
        assert abs(got[-1] - (1.0 if name == "constant" else 0.2)) < 4 * 2**-24


def test_the_step_takes_the_rate_that_it_reports():
    """With plain sign steps (lion, no decay) every entry moves by exactly the rate, at the first update too."""
    made = program_test.program(
        optimizer__name="lion", optimizer__weight_decay=0.0, optimizer__warmup=2.0, optimizer__schedule="linear",
        optimizer__learning_rate=0.125, optimizer__final=0.5, train__steps=3,
    )  # fmt: skip
    state, step = made.init(), made.train_step()
    batch = program_test.global_batch(next(program_test.batches(1)), made)
    for rate in (0.0625, 0.125, 0.0625):
        before = np.asarray(state["params"]["embedding"])
        state, metrics = step(state, batch)
        moved = np.abs(np.asarray(state["params"]["embedding"]) - before)
        assert metrics["train/learning_rate"] == rate
        assert np.isclose(np.median(moved), rate, rtol=1e-5) and moved.max() < rate * 1.00001


def schedule_free(grads, rates, *, b1, b2, eps, decay, start):
    """Defazio et al. 2024, algorithm 1 with Adam's second moment, in float64: the points y and the averages x."""
    x = z = y = start
    v, total, largest, seen = 0.0, 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
        v = b2 * v + (1 - b2) * g * g
        z = z - rate * (g / (np.sqrt(v / (1 - b2**t)) + eps) + decay * y)
        largest = max(largest, rate)
        total += largest**2
        share = largest**2 / total if total else 0.0
        x = (1 - share) * x + share * z
        y = b1 * x + (1 - b1) * z
        seen.append((y, x))
    return seen


@pytest.mark.parametrize("counting", optimizers.COUNTINGS)
def test_schedule_free_weighs_an_update_by_the_rate_it_was_made_with(counting, x64):
    """A warm-up over 4 of 8 updates, so that neighbouring rates differ. What optax does by itself is told apart."""
    made = options(
        name="schedule_free", schedule="constant", warmup=4.0, learning_rate=0.05, b1=0.9, b2=0.95, eps=1e-8,
        weight_decay=0.1, clip=0.0, counting=counting,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(8, 5))
    rule = optimizers.make(made, 8, {"w": "kernel"})
    params = {"w": jnp.asarray(start)}
    state, got = rule.init(params), []

    @jax.jit
    def step(params, state, g):
        updates, state = rule.update({"w": g}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, state, optimizers.evaluation_params(made, state, params)

    for g in grads:
        params, state, average = step(params, state, jnp.asarray(g))
        got.append((params["w"], average["w"]))
    of = {"updates": [0.25, 0.5, 0.75, 1, 1, 1, 1, 1], "steps": [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]}
    each = 0.05 * np.asarray(of[counting], np.float64)
    want = schedule_free(grads, each, b1=0.9, b2=0.95, eps=1e-8, decay=0.1, start=start)
    # Rates are float32 numbers, 6e-8 off; updates are of size 1.
    same = [np.allclose(g, w, rtol=0, atol=1e-7) for pair, wanted in zip(got, want, strict=True)
            for g, w in zip(pair, wanted, strict=True)]  # fmt: skip
    assert all(same) == (counting == "updates"), same


def test_the_preflight_refuses_a_warm_up_that_leaves_nothing(tmp_path):
    def said(**overrides):
        with pytest.raises(preflight.ConfigError) as error:
            preflight.check(tiny.config(tmp_path, **overrides), num_devices=1)
        return str(error.value)

    text = said(train__steps=10, optimizer__warmup=10.0)
    assert text == "optimizer.warmup=10 leaves nothing of train.steps=10 after it; use e.g. optimizer.warmup=5."
    assert "optimizer.warmup=0.99 is 10 updates, which leaves nothing" in said(train__steps=10, optimizer__warmup=0.99)
    assert "use e.g. optimizer.warmup=1." in said(train__steps=2, optimizer__warmup=2000.0)
    for steps, warmup in ((1, 1.0), (10, 9.0), (10, 0.94)):
        preflight.check(tiny.config(tmp_path, train__steps=steps, optimizer__warmup=warmup), num_devices=1)
    before = {"optimizer__counting": "steps", "train__steps": 10}  # What such a run was made with still goes on.
    preflight.check(tiny.config(tmp_path, optimizer__warmup=20.0, **before), num_devices=1)
    free = {"optimizer__name": "schedule_free", "optimizer__schedule": "constant"}
    assert "use optimizer.b1=0.9" in said(**free, optimizer__b1=0.0)
    assert "use optimizer.rounding='master'" in said(**free, optimizer__rounding="stochastic")
    assert "did you mean 'updates'" in said(optimizer__counting="update")
