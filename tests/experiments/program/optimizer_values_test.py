"""Every optimizer over 50 steps, and every learning rate of a run, against their algorithms in numpy float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from experiments.program import optimizers
from tests.plain import optimizers as plain

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 50
SHAPES = {"embedding": (5, 4), "wide": (2, 3, 5), "tall": (2, 6, 4), "norm": (3,), "bias": (4,)}
LARGE = {"large": (2, 128, 130)}  # which Adafactor keeps by rows and columns
SHAPES_AND_TAU = SHAPES | {"tau": ()}


def roles_of(shapes):
    named = {"norm": "norm", "bias": "bias", "embedding": "embedding", "tau": "frozen"}
    return {name: named.get(name, "kernel") for name in shapes}


ROLES = roles_of(SHAPES_AND_TAU)
OPTIONS = {"learning_rate": 0.05, "warmup": 8.0, "final": 0.1, "weight_decay": 0.3, "clip": 3.0, "eps": 1e-3}


def options(**changes):
    made = base.get_config().optimizer
    made.update(OPTIONS | changes)
    return made


def draws(shapes=SHAPES_AND_TAU):
    """Parameters, and a gradient of each step that depends on them: noise beside a pull to other values."""
    rng = np.random.default_rng(0)
    params = {name: np.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    goals = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    noise = {name: rng.normal(size=(STEPS, *shape)) for name, shape in shapes.items()}

    def grads(params, t, noise=noise):
        pull = {name: 0.7 * (p - goals[name]) + 0.5 * noise[name][t] for name, p in params.items()}
        return pull | {"tau": 0 * params["tau"]}  # What is frozen has no gradient.

    return params, grads, noise


def rates(made, updates=STEPS):
    """Of every update."""
    told = {k: made[k] for k in ("final", "schedule", "decay_share")}
    told |= {"peak": made.learning_rate, "warmup": made.warmup, "updates": updates}
    return [plain.rate(u, **told) for u in range(1, updates + 1)]


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("roles", [("kernel", "embedding"), ("embedding", "norm", "frozen")], ids=lambda r: "+".join(r))
def test_fifty_steps(name, roles):
    made = options(name=name, decay_roles=roles, schedule="constant" if name == "schedule_free" else "cosine")
    shapes = SHAPES_AND_TAU | (LARGE if name == "adafactor" else {})
    (params, grads, noise), every = draws(shapes), roles_of(shapes)
    by_size = {"wide": 0.25, "tall": 0.5} if name in optimizers.BY_SIZE else {}
    by_size = dict.fromkeys(every, 1.0) | by_size
    rule = optimizers.make(made, STEPS, every, by_size)

    @jax.jit
    def run(params, noise):
        def step(carry, t):
            params, state = carry
            updates, state = rule.update(grads(params, t, noise), state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        (last, state), _ = jax.lax.scan(step, (params, rule.init(params)), jnp.arange(STEPS))
        return last, optimizers.evaluation_params(made, state, last)

    got, evaluated = run(*jax.tree.map(jnp.asarray, (params, noise)))
    table = rates(made)
    numbers = {"clip": made.clip, "decay": made.weight_decay, "b1": made.b1, "b2": made.b2, "eps": made.eps}
    by_hand = plain.RULES[name](table, every, decayed=roles, by_size=by_size, weights=table, **numbers)
    want, clipped, path = params, 0, dict.fromkeys(every, 0.0)
    for t in range(STEPS):
        found = grads(want, t)
        clipped += math.sqrt(sum((g**2).sum() for g in found.values())) > made.clip
        before, want = want, by_hand.step(want, found)
        path = {key: path[key] + np.abs(want[key] - before[key]).max() for key in path}
    assert clipped == STEPS  # or the clip would not be seen
    for key, value in want.items():
        moved = np.abs(value - params[key]).max()
        assert (moved > 0.05) == (key != "tau"), key
        # The rate is rounded to float32, and so each step to a share of 1e-7; all else is float64.
        close = {"rtol": 0, "atol": np.finfo(np.float32).eps * path[key], "err_msg": key}
        np.testing.assert_allclose(got[key], value, **close)
        average = by_hand.x[key] if name == "schedule_free" else value
        if key != "tau":  # which Program keeps as it is
            np.testing.assert_allclose(evaluated[key], average, **close)


def test_the_clip_sees_all_gradients_together_and_can_be_off():
    """Adam's first moment after one step is 0.1 of the gradient that it was given."""
    params, grads, _ = draws()
    params = jax.tree.map(jnp.asarray, params)
    found = jax.tree.map(jnp.asarray, grads(params, 0))
    size = math.sqrt(sum(float((g**2).sum()) for g in found.values()))
    for clip, share in ((0.0, 1.0), (0.5, 0.5 / size), (2 * size, 1.0)):
        rule = optimizers.make(options(name="adamw", clip=clip), STEPS, ROLES)
        _, state = jax.jit(rule.update)(found, rule.init(params), params)
        first = next(x for x in jax.tree.leaves(state) if x.shape == (5, 4))
        np.testing.assert_allclose(first, 0.1 * found["embedding"] * share, rtol=1e-12)


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 7.0])
def test_the_rate_of_every_update(schedule, warmup):
    """Forty updates, and as runs of before counted them: one late, and a first one without a rate or a warm-up."""
    told = {"final": 0.1, "schedule": schedule, "decay_share": 0.25, "peak": 0.05, "updates": 40}
    whole = {0.0: 0, 0.1: 4, 7.0: 7}[warmup]
    rate = optimizers.schedule(options(schedule=schedule, warmup=warmup, decay_share=0.25), 40)
    want = [plain.rate(u, warmup=max(1, whole), **told) for u in range(1, 41)]
    np.testing.assert_allclose([float(rate(i)) for i in range(40)], want, rtol=1e-6, atol=1e-9)
    assert max(want) == 0.05 and want[-1] == pytest.approx(0.05 if schedule == "constant" else 0.005)
    late = optimizers.schedule(options(schedule=schedule, warmup=warmup, decay_share=0.25, counting="steps"), 40)
    want = [plain.rate(u, warmup=whole, **told) for u in range(40)]
    np.testing.assert_allclose([float(late(i)) for i in range(40)], want, rtol=1e-6, atol=1e-9)
