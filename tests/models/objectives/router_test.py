"""R2R's classifier: its loss and labels against numpy in float64, what it trains, and the tokens that it sends away."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from models.decoding.control import guides, routing
from models.decoding.drafts import Tree
from models.objectives.router import Router
from tests.plain import layers, tiny

pytestmark = pytest.mark.usefixtures("one_device")
OPTIONS = {"router__top": 3, "router__recall": 2.5, "router__weight": 0.7}


def drawn(hidden, blocks=0):
    """(program, parameters, the teacher's) with every number of the classifier drawn."""
    made = tiny.program(tiny.config("router", **OPTIONS, router__hidden=hidden, router__blocks=blocks))
    teacher = tiny.program(tiny.config("next_token", model__init_std=1.0))
    made = dataclasses.replace(made, companions={"teacher": teacher})
    params, rng = made.init()["params"], np.random.default_rng(2)
    params["heads"]["router"] = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params["heads"]["router"])
    other = jax.tree.map(lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape)), teacher.init()["params"])
    return made, params, other


def norm(x, scale, shift):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift


def by_hand(params, other, batch, hidden):
    """(logits of the classifier, labels) `[B, T]`, token by token."""
    p, q = (jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (params, other))
    logit, label = np.zeros(batch["tokens"].shape), np.zeros(batch["tokens"].shape)
    head = p["heads"]["router"]
    unit = lambda x: x / np.sqrt(np.mean(x**2) + 1e-6)  # noqa: E731
    for b, tokens in enumerate(batch["tokens"]):
        told = {"segments": batch["segment_ids"][b], "positions": batch["positions"][b]}
        h, g = tiny.features(p, tokens, **told), tiny.features(q, tokens, **told)
        for t in range(len(tokens)):
            small, large = (
                layers.log_softmax(layers.logits(x, f[t : t + 1])[:, : tiny.V])[0] for x, f in ((p, h), (q, g))
            )
            v = int(small.argmax())
            u = np.concatenate([unit(h[t]), unit(p["embedding"][v]), np.sort(small)[::-1][:3]])
            if hidden:
                u = u @ head["kernel"] + head["bias"]
            if hidden and "wide" not in head:
                u = u / (1 + np.exp(-u))
            for i in range(len(head.get("wide", ()))):
                inner = norm(u, head["scale"][i], head["move"][i]) @ head["wide"][i] + head["wide_bias"][i]
                inner = inner * (1 + special.erf(inner / np.sqrt(2))) / 2
                u = u + inner @ head["back"][i] + head["back_bias"][i]
            if "wide" in head:
                u = norm(u, head["scale"][-1], head["move"][-1])
            logit[b, t] = u @ head["out"][:, 0] + head["shift"][0]
            label[b, t] = v != large.argmax()
    return logit, label


@pytest.mark.parametrize("hidden, blocks", [(5, 0), (0, 0), (5, 2)])
def test_the_loss_is_its_formula_and_trains_the_classifier_alone(hidden, blocks, x64):
    made, params, other = drawn(hidden, blocks)
    batch = tiny.batch()

    @jax.jit
    def both(params):
        told = {"companions": {"teacher": made.companions["teacher"].merge(other)}}
        run = lambda p: made.objective.loss(made.merge(p), batch, jax.random.key(0), **told)  # noqa: E731
        return run(params), jax.grad(lambda p: run(p).total)(params)

    found, slope = both(params)
    logit, label = by_hand(params, other, batch, hidden)
    P = 1 / (1 + np.exp(-logit))
    each = -2.5 * label * np.log(P) - (1 - label) * np.log(1 - P)
    scored = batch["scored"]
    np.testing.assert_allclose(found.means["nll_router"].total, each[scored].sum(), rtol=1e-9)
    np.testing.assert_allclose(found.means["critical"].total, label[scored].sum())
    assert 0 < label[scored].sum() < scored.sum()
    nll = found.means["nll"].total
    np.testing.assert_allclose(found.total, nll + 0.7 * each[scored].sum(), rtol=1e-6)  # The next token's is float32.
    np.testing.assert_allclose(slope["heads"]["router"]["shift"][0],
                               0.7 * np.sum((P * (1 - label) - 2.5 * label * (1 - P))[scored]), rtol=1e-9)  # fmt: skip

    if blocks or not hidden:  # The same lines.
        return
    # Other parameters have the slope of the next token alone.
    plain = dataclasses.replace(made.objective, weight=0.0)
    told = {"companions": {"teacher": made.companions["teacher"].merge(other)}}
    alone = jax.jit(jax.grad(lambda p: plain.loss(made.merge(p), batch, jax.random.key(0), **told).total))(params)
    # Two programs: float32 of the next token's part, of slopes up to some tens.
    apart = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), slope, alone)
    assert min(jax.tree.leaves(apart.pop("heads"))) > 1e-2 and max(jax.tree.leaves(apart)) < 1e-4


def test_the_control_reads_the_classifier_of_the_token_that_the_model_would_write(x64):
    made, params, _ = drawn(5)
    batch = tiny.batch()
    logit, _ = by_hand(params, params, batch, 5)
    model = made.merge(params)
    features = jnp.asarray(np.stack([
        tiny.features(jax.tree.map(np.asarray, params), batch["tokens"][b], segments=batch["segment_ids"][b],
                      positions=batch["positions"][b])[-2:-1] for b in range(4)
    ]))  # fmt: skip
    part = guides.R2R(measure="router")
    shown = part.shown({"model": model}, {"state": 0}, types.SimpleNamespace(features=features))
    # A model's logits are float32: k of them, each by a part in 2^24 of a few, times weights of a few.
    np.testing.assert_allclose(shown["critical"], 1 / (1 + np.exp(-logit[:, -2])), rtol=0, atol=2e-6)
    assert "critical" not in guides.R2R().shown({"model": model}, {}, None)
    # Where it is at the threshold or above, the other run writes.
    seen = {}
    part_second = types.SimpleNamespace(
        hear_if=lambda model, state, length, asked, V, p: (
            seen.update(asked=asked) or types.SimpleNamespace(state=state, logits=jnp.full((4, V), 7.0))
        ),
        said=lambda models, name: None,
    )
    before, guides.second = guides.second, part_second
    try:
        bar = float(np.sort(shown["critical"])[2])
        p = types.SimpleNamespace(dials={"r2r.threshold": jnp.full(4, bar)}, length=None)
        side = shown | {"large": jnp.zeros(4, jnp.int32)}
        logits, kept = part.process(
            {}, side, jnp.zeros((4, 1, tiny.V)), p, Tree(None, None, None, None), jnp.zeros((4, 1))
        )
    finally:
        guides.second = before
    want = np.asarray(shown["critical"]) >= bar
    assert (
        want.sum() == 2 and np.array_equal(seen["asked"], want) and kept["large"].tolist() == want.astype(int).tolist()
    )
    assert np.array_equal(logits[:, 0, 0] == 7, want)


def test_a_run_without_a_classifier_is_refused():
    config = tiny.config("next_token")
    (says,) = guides.R2R(measure="router").problems(config, None)
    assert "objective='next_token' does not train" in says and "generate.r2r.measure='entropy'" in says
    assert not [*guides.R2R(measure="router").problems(tiny.config("router"), None)]
    assert not [*guides.R2R().problems(config, None)]


def test_blocks_need_a_width():
    facts = types.SimpleNamespace(data={"tokenizer": "bpe"})
    (says,) = Router.problems({"top": 3, "hidden": 0, "blocks": 2}, facts)
    assert "router.blocks=2" in says and "router.hidden=64" in says
    assert not [*Router.problems({"top": 3, "hidden": 4, "blocks": 2}, facts)]


def test_the_loss_of_all_is_the_mean_of_each(x64):
    logit, label = np.array([0.5, -2.0, 3.0]), np.array([1.0, 0.0, 1.0])
    P = 1 / (1 + np.exp(-logit))
    want = [-3 * np.log(P[0]), -np.log(1 - P[1]), -3 * np.log(P[2])]
    np.testing.assert_allclose(routing.router_nats(logit, label, 3.0), want, rtol=1e-12)
    np.testing.assert_allclose(routing.router_loss(logit, label, 3.0), np.mean(want), rtol=1e-12)
