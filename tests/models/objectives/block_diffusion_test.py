"""Block diffusion: exact checks 8 and 9, against enumeration in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import block_diffusion as bd
from models.objectives import masked_diffusion as md
from tests.models import tiny_laws

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("case", ["A", "B", "C", "D"])
def test_oracle_is_exact_for_every_block_size(case):
    """Check 8 with true conditionals."""
    law = tiny_laws.joint(case)
    denoise, x = tiny_laws.denoiser(tiny_laws.oracle_table(law)), np.argwhere(law > 0)
    for block in range(1, law.ndim + 1):
        got = bd.nelbo_exact(denoise, x, block, law.shape[0])
        np.testing.assert_allclose(got, -np.log(law[law > 0]), atol=1e-10)


@pytest.mark.parametrize("size,length", [(3, 4), (2, 5)])
def test_block_one_is_autoregressive_and_block_l_is_masked_diffusion(size, length):
    """Check 8 with random logits, per sequence."""
    table = tiny_laws.tab_table(size, length, seed=7)
    denoise, x = tiny_laws.denoiser(table), tiny_laws.states(size, length)
    left_to_right = -np.log(tiny_laws.order_law(table, range(length))).ravel()
    np.testing.assert_allclose(bd.nelbo_exact(denoise, x, 1, size), left_to_right, atol=1e-10)
    np.testing.assert_allclose(bd.nelbo_exact(denoise, x, length, size), md.nelbo_exact(denoise, x, size), atol=1e-10)
    # Block 2 by hand: the mean over both orders within each pair, conditioned on the clean prefix.
    p, expected = tiny_laws.probabilities(table), []
    for row in x:
        total = 0.0
        for start in range(0, length, 2):
            pair = [i for i in (start, start + 1) if i < length]
            for order in [pair, pair[::-1]] if len(pair) == 2 else [pair]:
                z = np.where(np.arange(length) < start, row, size)
                for position in order:
                    total -= np.log(tiny_laws.at(p, z)[position, row[position]]) / (2 if len(pair) == 2 else 1)
                    z[position] = row[position]
        expected.append(total)
    np.testing.assert_allclose(bd.nelbo_exact(denoise, x, 2, size), expected, atol=1e-10)


@pytest.mark.parametrize("length,block", [(8, 1), (8, 2), (8, 8), (12, 3)])
def test_training_mask_counts_and_rules(length, block):
    """Check 9, the mask."""
    mask = np.asarray(bd.training_mask(length, block))
    assert mask.dtype == bool and mask.shape == (2 * length, 2 * length)
    assert mask.sum() == length**2 + length * block
    for q in range(2 * length):
        for k in range(2 * length):
            b_q, b_k = q % length // block, k % length // block
            if q < length:
                expected = b_q == b_k if k < length else b_k < b_q
            else:
                expected = k >= length and b_k <= b_q
            assert mask[q, k] == expected


def tiny_network(seed, size, width=8, depth=2):
    """A small attention network in plain numpy that obeys any mask: (tokens, positions, mask) -> logits."""
    rng = np.random.default_rng(seed)
    weights = [[rng.normal(size=(width, width)) / width**0.5 for _ in range(4)] for _ in range(depth)]
    embed, place = (rng.normal(size=(n, width)) for n in (size + 1, 32))
    head = rng.normal(size=(width, size))

    def network(tokens, positions, mask):
        h = embed[np.asarray(tokens)] + place[np.asarray(positions)]
        for wq, wk, wv, wo in weights:
            scores = np.where(mask, (h @ wq) @ (h @ wk).swapaxes(-1, -2) / width**0.5, -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            h = h + np.tanh(scores / scores.sum(-1, keepdims=True) @ (h @ wv) @ wo)
        return h @ head

    return network


@pytest.mark.parametrize("length,block", [(8, 1), (8, 2), (8, 4), (8, 8), (7, 3)])
def test_vectorised_loss_equals_the_loop_over_blocks(length, block):
    """Check 9, the loss: the loop feeds [clean prefix, noised block] alone, under block-causal attention."""
    network, x = tiny_network(0, 5), np.random.default_rng(1).integers(0, 5, (3, length))
    noised = jax.jit(lambda key: bd.corrupt(key, x, block, mask_id=5))(jax.random.key(2))
    logits = bd.training_logits(network, noised.z, x, block)
    loss = md.corrupted_loss(logits, x, noised, 5)
    np.testing.assert_allclose(loss, md.token_loss(logits, x, noised.z, noised.t, "linear", 5), rtol=1e-6)
    for start in range(0, length, block):
        stop = min(start + block, length)
        tokens = np.concatenate([x[:, :start], np.asarray(noised.z)[:, start:stop]], 1)
        place = np.arange(stop)
        causal = place[:, None] // block >= place[None] // block
        part = network(tokens, place, causal)[:, start:]
        log_p = part - np.log(np.exp(part).sum(-1, keepdims=True))
        by_hand = -np.take_along_axis(log_p, x[:, start:stop, None], -1)[..., 0]
        by_hand = np.where(tokens[:, start:] == 5, by_hand / np.asarray(noised.t)[:, start:stop], 0)
        np.testing.assert_allclose(loss[:, start:stop], by_hand, rtol=1e-6)  # times are float32


def test_noisy_half_never_sees_its_own_or_later_clean_tokens():
    network, x = tiny_network(3, 5), jnp.asarray(np.random.default_rng(1).integers(0, 5, (1, 8)))
    z = jnp.full_like(x, 5)
    base = bd.training_logits(network, z, x, 2)
    for changed in range(8):
        other = bd.training_logits(network, z, x.at[0, changed].set((x[0, changed] + 1) % 5), 2)
        same = np.all(np.asarray(base == other), -1)[0]
        # Exact equality: a forbidden key has weight zero, whatever its value.
        assert same[: changed // 2 * 2 + 2].all() and not same[changed // 2 * 2 + 2 :].any()


@pytest.mark.parametrize("how", ["bernoulli", "fixed_count"])
def test_corrupt_has_the_blocks_own_rates(how):
    x = jnp.zeros((4000, 7), int)
    frozen = jnp.zeros_like(x, bool).at[:, 0].set(True)
    noised = jax.jit(lambda k: bd.corrupt(k, x, 3, mask_id=1, how=how, frozen=frozen))(jax.random.key(0))
    t, masked = np.asarray(noised.t), np.asarray(noised.z) == 1
    assert (t[:, 0] == t[:, 2]).all() and (t[:, 3] == t[:, 5]).all() and (t[:, 2] != t[:, 3]).any()
    assert not masked[:, 0].any() and ((np.asarray(noised.weight) > 0) == masked).all()
    for start, stop, free in ((0, 3, 2), (3, 6, 3), (6, 7, 1)):
        weight = np.asarray(noised.weight)[:, start:stop].sum(1)
        assert abs(weight.mean() - free) <= 5 * weight.std() / 4000**0.5 + 1e-6
        if how == "fixed_count":
            assert masked[:, start:stop].sum(1).min() == 1
            np.testing.assert_allclose(weight, free, rtol=1e-6)


def test_clipped_rates_and_full_masking():
    x = jnp.zeros((64, 8), int)
    t = np.asarray(bd.corrupt(jax.random.key(0), x, 4, mask_id=1, limits=(0.45, 0.95)).t)
    assert 0.45 < t.min() < 0.47 and 0.93 < t.max() <= 0.95
    everything = bd.corrupt(jax.random.key(0), x, 1, mask_id=1, limits=(1.0, 1.0))
    assert (np.asarray(everything.z) == 1).all() and (np.asarray(everything.weight) == 1).all()
    ones = bd.corrupt(jax.random.key(0), x, 4, mask_id=1, limits=(0.45, 0.95), weighting="ones")
    assert set(np.unique(ones.weight)) == {0.0, 1.0}


def test_estimator_agrees_with_the_enumeration():
    table = tiny_laws.tab_table(2, 4, seed=2)
    denoise, x = tiny_laws.denoiser(table), tiny_laws.states(2, 4)[::5]
    for block in (1, 2, 4):
        mean, error = bd.nelbo(denoise, x, block, jax.random.key(1), 4000, 2)
        exact = bd.nelbo_exact(denoise, x, block, 2)
        assert (np.abs(mean - exact) <= 4.5 * error + 1e-5).all()
        assert block > 1 or float(error.max()) < 1e-6


def test_refusals():
    with pytest.raises(ValueError, match="block=9"):
        bd.training_mask(8, 9)
    with pytest.raises(ValueError, match="'full' is unknown"):
        bd.corrupt(jax.random.key(0), jnp.zeros((1, 4), int), 2, mask_id=1, how="full")
    assert math.isclose(float(bd.training_mask(6, 4).sum()), 4 * 4 + 2 * 2 + 2 * 4 + 4 * 4 + 2 * 6)
