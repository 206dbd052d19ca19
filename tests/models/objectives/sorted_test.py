"""Sorted fine-tuning: the loss by plain sub-models of the same parameters, what learns, and how a step chooses."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.drafts import adaptive
from models.objectives import sorted as sub_models
from models.objectives.sorted import Sorted
from tests.plain import layers, tiny

pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def case(layers_=3, **options):
    """(objective, program, parameters, batch) of a tiny model of three layers in float64."""
    made = tiny.program(
        tiny.config("sorted", model__num_layers=layers_, **{f"sorted__{k}": v for k, v in options.items()})
    )
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape) + (x.ndim == 1), jnp.float64)  # noqa: E731
    return made.objective, made, jax.tree.map(draw, made.abstract["params"]), tiny.batch()


def nats(p, batch, m):
    """Nats of the targets under the first m layers, by loops in numpy."""
    cut = dict(p, stack={"period": jax.tree.map(lambda x: x[:m], p["stack"]["period"])})
    total = 0.0
    for row in range(len(batch["tokens"])):
        one = {name: batch[name][row] for name in batch}
        features = tiny.features(cut, one["tokens"], segments=one["segment_ids"], positions=one["positions"])
        log_p = layers.log_softmax(layers.logits(p, features))
        total -= sum(log_p[t, one["targets"][t]] for t in range(tiny.T) if one["scored"][t])
    return total


def test_shares_and_weighted_by_hand():
    assert sub_models.shares((), 4) == (0.25,) * 4 and sub_models.shares((1, 3), 2) == (0.25, 0.75)
    losses = np.array([[1.0, 2.0], [5.0, 4.0]])
    np.testing.assert_allclose(sub_models.weighted(losses, (0.25, 0.75)), [4.0, 3.5])
    np.testing.assert_allclose(sub_models.weighted(losses, (0.5, 0.5)), adaptive.sorted_loss(losses))


def test_the_loss_is_that_of_plain_sub_models():
    """Exits behind layers 1 and 2 of 3, weights 1, 2, 5; each layer and the shared norm learn from them."""
    goal, made, params, batch = case(exits="1,2", weights="1,2,5")

    def loss(params):
        out = goal.loss(made.merge(params), batch, jax.random.key(0))
        return out.total, out.means

    (total, means), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    p = jax.tree.map(np.asarray, params)
    each = [nats(p, batch, m) for m in (1, 2, 3)]
    # Sums over the batch are float32; eps is 1.2e-7.
    np.testing.assert_allclose([float(means[k].total) for k in ("nll_1", "nll_2", "nll")], each, rtol=1e-6)
    np.testing.assert_allclose(float(total), (each[0] + 2 * each[1] + 5 * each[2]) / 8, rtol=1e-6)
    assert goal.predictions == 3 and all(bool(jnp.any(x != 0)) for x in jax.tree.leaves(gradient["stack"]))

    early = dataclasses.replace(goal, weights="1,1e-12,1e-12")
    grown = jax.jit(jax.grad(lambda p: early.loss(made.merge(p), batch, None).total))(params)
    sizes = [max(float(jnp.max(jnp.abs(x[m]))) for x in jax.tree.leaves(grown["stack"])) for m in range(3)]
    assert sizes[0] > 1e-3 and max(sizes[1:]) < 1e-9  # Layers behind an exit have no part in it.


def test_a_random_choice_is_one_sub_model_a_step_with_the_chances_of_the_weights():
    goal, made, params, batch = case(exits="1,2", weights="1,2,5", choice="random")
    drawn = [goal.corrupt(batch, jax.random.key(seed))["chosen"] for seed in range(400)]
    assert all(len(set(each.tolist())) == 1 for each in drawn) and goal.predictions == 1
    counts = np.bincount([int(each[0]) for each in drawn], minlength=3)
    # Each count is binomial of 400 draws: 5 deviations are at most 50.
    np.testing.assert_array_less(np.abs(counts - 400 * np.array([1, 2, 5]) / 8), 50)
    p = jax.tree.map(np.asarray, params)
    run = jax.jit(lambda chosen: goal.loss(made.merge(params), batch | {"chosen": chosen}, None).total)
    for m in range(3):
        np.testing.assert_allclose(float(run(jnp.full(4, m))), nats(p, batch, m + 1), rtol=1e-6)


REFUSED = {
    "behind the last": ({"exits": "3"}, r"sorted.exits='3' must rise over layers 1..2 .*; use e.g. sorted.exits='1'"),
    "in no order": ({"exits": "2,1"}, "must rise over layers"),
    "no layer": ({"exits": "a"}, "must rise over layers"),
    "weights": ({"exits": "1", "weights": "1"}, "must be 2 numbers above 0, .* use e.g. sorted.weights='1,1'"),
    "a weight of 0": ({"exits": "1", "weights": "0,1"}, "must be 2 numbers above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_exits_that_cannot_be_are_refused(name):
    changes, says = REFUSED[name]
    facts = types.SimpleNamespace(model={"num_layers": 3, "mixer": "attention", "kind": "lm"})
    (said,) = Sorted.problems({"exits": "1", "weights": "", "choice": "all"} | changes, facts)
    assert re.search(says, said)
    assert not [*Sorted.problems({"exits": "1,2", "weights": "1,1,2", "choice": "all"}, facts)]
