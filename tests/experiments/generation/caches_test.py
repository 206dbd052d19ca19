"""Caches and guides on an `LM`: nothing kept is the plain sampler, and what is kept exactly changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.generation import canvas as denoise
from kernels import masks
from models.decoding.canvas import caches, diffusion, features, guided, network
from tests.models.objectives.diffusion_test import V, make

pytestmark = pytest.mark.usefixtures("x64")
LENGTH, ROWS, BLOCK = 8, 3, 4
SEGMENTS = (jnp.arange(LENGTH) < jnp.array([[8], [8], [7]])).astype(int)
INDEX = jnp.arange(LENGTH)
CANVAS = jnp.where(
    (INDEX < jnp.array([[1], [5], [1]])) | (SEGMENTS == 0) | (INDEX == jnp.array([[2], [8], [2]])),
    jax.random.randint(jax.random.key(0), (ROWS, LENGTH), 0, V), V,
)  # fmt: skip
COUNT = 6
REQUEST = denoise.Request(CANVAS, SEGMENTS, jax.random.key(0), jnp.arange(ROWS))


@functools.cache
def models(layers=2):
    """A model to fill in and one to judge: graphs and parameters."""
    return [nnx.split(make(layers=layers, seed=seed)) for seed in (0, 5)]


def filled(mask=masks.Full(), layers=2, guide=False, **kw):  # noqa: B008
    (graph, params), (judge, weights) = models(layers)
    chosen = {"method": "margin", "policy": "none", **kw}
    own = {key: chosen.pop(key) for key in ("method", "policy", "commit", "refresh") if key in chosen}
    settings = denoise.Settings(caches.Settings(0, temperature=0.0, **own), COUNT, COUNT, **{"by": BLOCK, **chosen})

    @jax.jit
    def run(params, weights):
        reader = denoise.Reader(nnx.merge(graph, params), mask, V)
        return denoise.fill_cached(reader, REQUEST, settings, guide=nnx.merge(judge, weights) if guide else None)

    return jax.tree.map(np.asarray, run(params, weights))


@functools.cache
def plain(mask=masks.Full(), layers=2, **kw):  # noqa: B008
    """Without any cache, by the sampler of `denoise.fill`."""
    graph, params = models(layers)[0]

    def run(params):
        model = nnx.merge(graph, params)
        logits = lambda z, t: model.logits(model(z, mask=mask, segment_ids=SEGMENTS)[0])[..., :V]  # noqa: E731
        sampler = diffusion.Confident("margin", None, temperature=0.0)
        settings = denoise.Settings(sampler, COUNT, COUNT, **{"by": BLOCK, **kw})
        return denoise.fill(logits, REQUEST, settings, mask_id=V)

    return jax.tree.map(np.asarray, jax.jit(run)(params))


def test_no_cache_and_refresh_every_call_are_the_plain_sampler():
    tokens, calls = plain()
    for kw in ({}, {"policy": "free", "refresh": 1, "commit": False}):
        got, work = filled(**kw)
        np.testing.assert_array_equal(got, tokens)
        np.testing.assert_array_equal(work.calls, calls + (kw.get("policy") == "free"))  # Which reads the canvas first.
        np.testing.assert_array_equal(work.fed, work.calls * LENGTH)


def test_blocks_of_the_answer_are_those_of_the_plain_sampler():
    """Rows 0 and 2 begin at column 1: blocks of four from there, in every policy that keeps nothing."""
    tokens, calls = plain(by_from="prompt")
    for kw in ({}, {"policy": "dual", "refresh": 1}):
        got, work = filled(by_from="prompt", start=1, **kw)
        np.testing.assert_array_equal(got[::2], tokens[::2])
        np.testing.assert_array_equal(work.calls[::2], calls[::2])
    assert (filled()[0][::2] != tokens[::2]).any(), "the row's own blocks are others"


def test_block_causal_models_lose_nothing():
    tokens, _ = plain(masks.BlockCausal(BLOCK))
    got, work = filled(masks.BlockCausal(BLOCK), policy="free")
    np.testing.assert_array_equal(got, tokens)
    assert (work.fed < work.calls * LENGTH).all()


def test_adaptive_features_renewed_everywhere_are_no_cache():
    tokens, calls = plain(by=0)
    adaptive = lambda *plan: filled(policy="adaptive", by=0, sides=(5, 7), plan=plan)  # noqa: E731
    got, work = adaptive(("prompt_every", 1), ("answer_every", 1), ("share", 0.3))
    np.testing.assert_array_equal(got, tokens)
    np.testing.assert_array_equal(work.calls, calls)
    np.testing.assert_array_equal(work.fed, calls * LENGTH)
    got, work = adaptive(("prompt_every", 4), ("answer_every", 3), ("share", 0.2))
    assert (got != tokens).any()
    # Prompts of 1, 5 and 1 tokens, answers of 7, 3 and 6, of which a fifth are 2, 1 and 2; the padding is neither.
    each = [[8, 2, 2, 7, 1 + 2, 2], [8, 1, 1, 3, 5 + 1, 1], [8, 2, 2, 6, 1 + 2, 2]]
    np.testing.assert_array_equal(work.fed, [sum(row[:n]) for row, n in zip(each, calls, strict=True)])


def test_prompt_and_answer_are_each_rows_own():
    """First masks at 1, 5 and 1; given tokens behind them (columns 2, 2) belong to the answer, padding to neither."""
    places = jnp.where(SEGMENTS != 0, INDEX, -1)
    prompt, answer = features.sides(places, CANVAS == V)
    assert features.columns_of(prompt, 5).tolist() == [[0, 8, 8, 8, 8], [0, 1, 2, 3, 4], [0, 8, 8, 8, 8]]
    assert features.columns_of(answer, 7).tolist() == [
        [1, 2, 3, 4, 5, 6, 7], [5, 6, 7, 8, 8, 8, 8], [1, 2, 3, 4, 5, 6, 8],
    ]  # fmt: skip
    assert features.Renewal(5, 7, share=0.3).chosen() == [0, 1, 1, 1, 2, 2, 2, 3]


def test_features_are_those_of_the_columns_that_were_renewed():
    """One renewal by hand: the column that changed is the one computed anew, from what the layer is given now."""
    graph, params = models(1)[0]
    plan = features.Renewal(2, LENGTH - 2, prompt_every=100, answer_every=100, share=0.1)

    @jax.jit
    def twice(params, before, after):
        places = jnp.arange(LENGTH)[None]
        run, empty = features.of_model(nnx.merge(graph, params), masks.Full(), places, places >= 2, plan, V)
        first, kept = run(before, None, empty)
        return first, *run(after, None, kept)

    @jax.jit
    def whole(params, tokens):
        model = nnx.merge(graph, params)
        return model.logits(model(tokens, mask=masks.Full())[0])[..., :V]

    before = jax.random.randint(jax.random.key(3), (1, LENGTH), 0, V)
    after = before.at[0, 5].set((before[0, 5] + 1) % V)
    first, second, kept = twice(params, before, after)
    np.testing.assert_allclose(first, whole(params, before), rtol=1e-12, atol=1e-12)
    same = (np.arange(LENGTH) != 5)[None, :, None]
    np.testing.assert_allclose(second, np.where(same, first, whole(params, after)), rtol=1e-12, atol=1e-12)
    assert kept.calls == 2 and kept.fed == LENGTH + 1


def test_a_guide_with_a_cache_judges_as_one_that_reads_everything():
    """At one block that is `guided.decode`; in blocks, with text behind a gap, as a guide that keeps tokens only."""
    (graph, params), (judge, weights) = models()
    places = jnp.where(SEGMENTS != 0, jnp.arange(LENGTH), -1)

    @jax.jit
    def by_reading(params, weights):
        model, reader = nnx.merge(graph, params), nnx.merge(judge, weights)

        def logits(z, t):
            return model.logits(model(z, mask=masks.Full(), segment_ids=SEGMENTS)[0])[..., :V]

        def says(tokens):
            return reader.logits(reader(tokens, mask=masks.Causal(), segment_ids=SEGMENTS)[0])[..., :V]

        def keeps_tokens(tokens, positions, cache):
            cache = cache.at[:, positions].set(tokens)
            return says(cache)[:, positions], cache

        before = lambda tokens: jnp.pad(says(tokens), ((0, 0), (1, 0), (0, 0)))[:, :-1]  # noqa: E731
        kw = {"batch": ROWS, "length": LENGTH, "vocab_size": V, "rule": "ratio", "init": CANVAS}
        whole = guided.decode(logits, before, **kw)
        run, reads = network.cached(nnx.merge(graph, params), masks.Full(), places, V), jnp.zeros((ROWS, LENGTH), int)
        empty = network.empty(nnx.merge(graph, params), ROWS, LENGTH)
        settings = caches.Settings(BLOCK, "guided", "dual", prefill=True)
        guide = caches.Guide(keeps_tokens, reads, "ratio")
        return whole, caches.decode(run, empty, REQUEST.canvas(V), settings, guide)

    (tokens, calls), want = by_reading(params, weights)
    got, work = filled(guide=True, method="guided", rule="ratio", by=0)
    np.testing.assert_array_equal(got, tokens)
    np.testing.assert_array_equal(work.calls, calls)
    np.testing.assert_array_equal(work.guided, calls * LENGTH)
    got, work = filled(guide=True, method="guided", rule="ratio", policy="dual")
    np.testing.assert_array_equal(got, want.tokens)
    np.testing.assert_array_equal(work.guided, want.guided)
    assert (np.asarray(want.calls) > 2).any()  # Drafts were refused.
    with pytest.raises(ValueError, match="go together"):
        filled(method="guided")
