"""Caches: exact check 14 on small attention networks in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding.canvas import caches, diffusion
from models.decoding.canvas.canvas import begin

# The programs are tiny and many: most of the time would go into optimising them.

pytestmark = pytest.mark.usefixtures("x64")
SIZE, LENGTH, BLOCK, WIDTH, BATCH = 5, 6, 2, 8, 256
INIT = jnp.full((BATCH, LENGTH), SIZE).at[:, :2].set(jnp.array([3, 1]))


def network(depth, causal=False, seed=0):
    """An attention network with a key/value cache; block-causal attention on request. Returns it and an empty cache."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 1.5 / shape[0] ** 0.5)  # noqa: E731
    layers = [[draw(WIDTH, WIDTH) for _ in range(4)] for _ in range(depth)]
    embed, place, head = 2 * draw(SIZE + 1, WIDTH), 0.5 * draw(LENGTH, WIDTH), 0.7 * draw(WIDTH, SIZE)
    embed = embed.at[SIZE].mul(0.2)  # what a masked position predicts should hang on its context
    blocks = jnp.arange(LENGTH) // BLOCK

    def forward(tokens, positions, cache):
        h, new = embed[tokens] + place[positions], []
        seen = blocks[positions][:, None] >= blocks if causal else jnp.ones((len(positions), LENGTH), bool)
        for (wq, wk, wv, wo), (k, v) in zip(layers, cache, strict=True):
            k, v = k.at[:, positions].set(h @ wk), v.at[:, positions].set(h @ wv)
            scores = jnp.where(seen, (h @ wq) @ k.swapaxes(1, 2) / WIDTH**0.5, -jnp.inf)
            h = h + 2 * jnp.tanh(2 * jax.nn.softmax(scores, -1) @ v @ wo)
            new.append((k, v))
        return h @ head, new

    # Poisoned: whatever is read before it is written shows.
    empty = [(jnp.full((BATCH, LENGTH, WIDTH), jnp.nan),) * 2 for _ in range(depth)]
    return forward, empty


@functools.cache
def run(depth, causal, policy, commit=True, refresh=None, method="max_prob", temperature=1.0):
    forward, empty = network(depth, causal)
    steps = None if method in ("threshold", "factor") else 4
    call = jax.jit(
        lambda key: caches.decode(
            forward,
            empty,
            begin(key, INIT.shape, SIZE, init=INIT),
            caches.Settings(
                BLOCK, method, policy, commit, refresh, 2, steps=steps, threshold=0.7, temperature=temperature
            ),
        )
    )
    return jax.tree.map(np.asarray, call(jax.random.key(0)))


@pytest.mark.parametrize("method", ["max_prob", "random"])
def test_no_cache_is_the_plain_sampler(method):
    """The same keys, so the same tokens, as the semi-autoregressive sampler of the diffusion module."""
    forward, empty = network(2)
    denoise = lambda z, t: forward(z, jnp.arange(LENGTH), empty)[0]  # noqa: E731
    tokens, calls = jax.jit(
        lambda key: diffusion.sample(
            denoise,
            key,
            batch=BATCH,
            length=LENGTH,
            vocab_size=SIZE,
            steps=4,
            method=method,
            block=BLOCK,
            prompt_length=2,
            init=INIT,
        )
    )(jax.random.key(0))
    got = run(2, False, "none", method=method)
    assert len(np.unique(got.tokens, axis=0)) > 20  # equal tokens mean something
    np.testing.assert_array_equal(got.tokens, tokens)
    np.testing.assert_array_equal(got.calls, calls)
    assert (got.fed == 4 * LENGTH).all() and (got.tokens[:, :2] == [3, 1]).all()


@pytest.mark.parametrize("policy", ["prefix", "dual", "free"])
def test_refresh_every_step_is_no_cache(policy):
    plain = run(2, False, "none")
    got = run(2, False, policy, commit=False, refresh=1)
    np.testing.assert_array_equal(got.tokens, plain.tokens)
    assert (got.fed == plain.fed).all()


@pytest.mark.parametrize("policy", ["prefix", "dual", "free"])
def test_one_layer_is_exact_without_refresh(policy):
    """Keys and values of a first layer depend on their own token alone; FreeCache needs its commit pass for that."""
    plain, got = run(1, False, "none"), run(1, False, policy)
    np.testing.assert_array_equal(got.tokens, plain.tokens)
    if policy == "free":
        stale = run(1, False, policy, commit=False)
        assert len(np.unique(plain.tokens, axis=0)) > 20
        assert (stale.tokens != plain.tokens).any()
        assert (stale.calls == plain.calls).all() and (got.calls == plain.calls + 1).all()


@pytest.mark.parametrize("policy", ["prefix", "dual", "free"])
def test_block_causal_attention_is_exact_at_any_depth(policy):
    plain, got = run(2, True, "none"), run(2, True, policy)
    np.testing.assert_array_equal(got.tokens, plain.tokens)
    assert (got.fed < plain.fed).all()


@pytest.mark.parametrize("policy", ["prefix", "dual", "free"])
def test_two_bidirectional_layers_must_differ(policy):
    assert (run(2, False, policy).tokens != run(2, False, "none").tokens).any()


def test_fed_tokens_count_the_work():
    """Two blocks of two steps on six positions, two of them prompt."""
    assert (run(2, False, "prefix").fed == (6 + 4) + (6 + 2)).all()
    assert (run(2, False, "dual").fed == (6 + 2) + (6 + 2)).all()
    assert (run(2, False, "free").fed == (6 + 4) + 2 + (2 + 2)).all()
    assert (run(1, False, "free", commit=False).fed == (6 + 4) + (2 + 2)).all()


def test_parallel_rules_leave_finished_rows_alone():
    """Rows reveal one or two tokens per call; none depends on its neighbours, also where the cache goes stale."""
    got = run(2, False, "free", commit=False, method="threshold")
    assert got.calls.min() < got.calls.max() and got.calls.min() >= 2 and got.calls.max() <= 4
    forward, empty = network(2)
    few = [(k[:3], v[:3]) for k, v in empty]
    pick = jnp.array([40, 7, 21])
    alone = jax.jit(
        lambda key: caches.decode(
            forward,
            few,
            begin(key, (3, LENGTH), SIZE, init=INIT[:3], requests=pick),
            caches.Settings(BLOCK, "threshold", "free", commit=False, prompt_length=2, threshold=0.7),
        )
    )(jax.random.key(0))
    np.testing.assert_array_equal(alone.tokens, got.tokens[pick])
    np.testing.assert_array_equal(alone.calls, got.calls[pick])


def test_refusals():
    forward, empty = network(1)
    with pytest.raises(ValueError, match="steps=3"):
        canvas = begin(jax.random.key(0), INIT.shape, SIZE, init=INIT)
        caches.decode(forward, empty, canvas, caches.Settings(2, prompt_length=2, steps=3))
    with pytest.raises(ValueError, match="policy='duel'"):
        caches.windows("duel", 8, 0, 2)
