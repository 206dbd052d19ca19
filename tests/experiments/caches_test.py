"""Caches and guides on an `LM`: nothing kept is the plain sampler, and what is kept exactly changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import denoise
from kernels import masks
from models.decoding import caches, features, guided, network
from tests.models.objectives.diffusion_test import V, make

pytestmark = pytest.mark.usefixtures("x64")
LENGTH, ROWS = 12, 3
SEGMENTS = (jnp.arange(LENGTH) < jnp.array([[12], [11], [9]])).astype(int)
CANVAS = jnp.where(
    (jnp.arange(LENGTH) < jnp.array([[2], [5], [1]])) | (SEGMENTS == 0) | (jnp.arange(LENGTH) == 8),
    jax.random.randint(jax.random.key(0), (ROWS, LENGTH), 0, V), V,
)  # fmt: skip
COUNT = 9


@functools.cache
def models(layers=2):
    """A model to fill in and one to judge: graphs and parameters."""
    return [nnx.split(make(layers=layers, seed=seed)) for seed in (0, 5)]


def filled(mask=masks.Full(), layers=2, guide=False, **kw):  # noqa: B008
    (graph, params), (judge, weights) = models(layers)
    settings = {"policy": "none", "method": "margin", "steps": COUNT, "temperature": 0.0, "by": 4, **kw}

    @jax.jit
    def run(params, weights):
        more = {"guide": nnx.merge(judge, weights)} if guide else {}
        return denoise.fill_cached(
            nnx.merge(graph, params), mask, jax.random.key(0), CANVAS, SEGMENTS, jnp.arange(ROWS), mask_id=V,
            count=COUNT, **settings, **more,
        )  # fmt: skip

    return jax.tree.map(np.asarray, run(params, weights))


@functools.cache
def plain(mask=masks.Full(), layers=2, **kw):  # noqa: B008
    """Without any cache, by the sampler of `denoise.fill`."""
    graph, params = models(layers)[0]

    def run(params):
        model = nnx.merge(graph, params)
        logits = lambda z, t: model.logits(model(z, mask=mask, segment_ids=SEGMENTS)[0])[..., :V]  # noqa: E731
        settings = {"method": "margin", "steps": COUNT, "temperature": 0.0, "by": 4, **kw}
        return denoise.fill(logits, jax.random.key(0), CANVAS, jnp.arange(ROWS), mask_id=V, count=COUNT, **settings)

    return jax.tree.map(np.asarray, jax.jit(run)(params))


def test_no_cache_and_refresh_every_call_are_the_plain_sampler():
    tokens, calls = plain()
    for kw in ({}, {"policy": "dual", "refresh": 1}, {"policy": "free", "refresh": 1, "commit": False}):
        got, work = filled(**kw)
        np.testing.assert_array_equal(got, tokens)
        np.testing.assert_array_equal(work.calls, calls + (kw.get("policy") == "free"))  # Which reads the canvas first.
        np.testing.assert_array_equal(work.fed, work.calls * LENGTH)


def test_block_causal_models_and_single_layers_lose_nothing():
    for kw in ({"mask": masks.BlockCausal(4)}, {"layers": 1}):
        tokens, _ = plain(**kw)
        for policy in ("prefix", "dual", "free"):
            got, work = filled(policy=policy, **kw)
            np.testing.assert_array_equal(got, tokens)
            assert (work.fed < work.calls * LENGTH).all()


def test_adaptive_features_renewed_everywhere_are_no_cache():
    tokens, calls = plain(by=0)
    every = {"prompt_every": 1, "answer_every": 1, "share": 0.3}
    adaptive = lambda **plan: filled(policy="adaptive", by=0, prompt=1, plan=tuple(plan.items()))  # noqa: E731
    for plan in (every, {**every, "answer_every": 5, "share": 1.0}):
        got, work = adaptive(**plan)
        np.testing.assert_array_equal(got, tokens)
        np.testing.assert_array_equal(work.calls, calls)
        np.testing.assert_array_equal(work.fed, calls * LENGTH)
    got, work = adaptive(prompt_every=4, answer_every=3, share=0.2)  # Of one prompt token and eleven: three of eleven.
    assert (got != tokens).any()
    each = [(12 if j % 4 == 0 and j % 3 == 0 else 11 if j % 3 == 0 else 3 + (j % 4 == 0)) for j in range(COUNT)]
    np.testing.assert_array_equal(work.fed, [sum(each[:n]) for n in calls])


def test_features_are_those_of_the_columns_that_were_renewed():
    """One renewal by hand: the column that changed most is the one computed anew, from what the layer is given now."""
    graph, params = models(1)[0]
    model, places = nnx.merge(graph, params), jnp.arange(LENGTH)[None]
    plan = features.Plan(4, prompt_every=100, answer_every=100, share=0.1)
    run, empty = features.of_model(model, masks.Full(), places, plan, V)
    before = jax.random.randint(jax.random.key(3), (1, LENGTH), 0, V)
    after = before.at[0, 7].set((before[0, 7] + 1) % V)
    first, kept = run(before, None, empty)
    want = model.logits(model(before, mask=masks.Full())[0])[..., :V]
    np.testing.assert_allclose(first, want, rtol=1e-12, atol=1e-12)
    second, kept = run(after, None, kept)
    new = model.logits(model(after, mask=masks.Full())[0])[..., :V]
    same = (np.arange(LENGTH) != 7)[None, :, None]
    np.testing.assert_allclose(np.where(same, first, new), second, rtol=1e-12, atol=1e-12)
    assert kept.calls == 2 and kept.fed == LENGTH + 1


def test_a_guide_with_a_cache_judges_as_one_that_reads_everything():
    """At one block that is `guided.decode`; in blocks, with text behind a gap, as a guide that keeps tokens only."""
    (graph, params), (judge, weights) = models()
    model, judge = nnx.merge(graph, params), nnx.merge(judge, weights)
    places = jnp.where(SEGMENTS != 0, jnp.arange(LENGTH), -1)

    def logits(z, t):
        return model.logits(model(z, mask=masks.Full(), segment_ids=SEGMENTS)[0])[..., :V]

    def says(tokens):
        out = judge.logits(judge(tokens, mask=masks.Causal(), segment_ids=SEGMENTS)[0])[..., :V]
        return jnp.pad(out, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def keeps_tokens(tokens, positions, cache):
        cache = cache.at[:, positions].set(tokens)
        return jnp.roll(says(cache), -1, 1)[:, positions], cache

    tokens, calls = guided.decode(logits, says, batch=ROWS, length=LENGTH, vocab_size=V, rule="ratio", init=CANVAS)
    got, work = filled(guide=True, method="guided", rule="ratio", by=0)
    np.testing.assert_array_equal(got, tokens)
    np.testing.assert_array_equal(work.calls, calls)
    np.testing.assert_array_equal(work.guided, calls * LENGTH)
    got, work = filled(guide=True, method="guided", rule="ratio", policy="dual")
    run = network.cached(model, masks.Full(), places, V)
    reads = caches.Guide(keeps_tokens, jnp.zeros((ROWS, LENGTH), int), "ratio")
    kw = {"init": CANVAS, "block": 4, "mask_id": V, "policy": "dual", "method": "guided", "prefill": True}
    want = caches.decode(run, network.empty(model, ROWS, LENGTH), jax.random.key(0), guide=reads, **kw)
    np.testing.assert_array_equal(got, want.tokens)
    np.testing.assert_array_equal(work.guided, want.guided)
    assert (np.asarray(want.calls) > 3).any()  # Drafts were refused.
    left, _ = filled(guide=True, method="guided", rule="never")
    np.testing.assert_array_equal(left, plain(method="left_to_right")[0])
    with pytest.raises(ValueError, match="go together"):
        filled(method="guided")
