"""The tiles of chunked attention follow the mask: large where it hides little, small where most of it is hidden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from kernels.attention import attention, schedule, tiling

S = 2048
SEGMENTS = masks.Segments(jnp.repeat(jnp.arange(1, 9), S // 8)[None])


def block(mask, length=S, backward=False):
    cut = tiling.plan((1, length, 4, 64), (1, length, 4, 64), mask, backward=backward)
    assert cut.block_q == cut.block_k
    return cut.block_k


@pytest.mark.parametrize(
    ("mask", "side"),
    [
        ("full", 512),
        ("causal", 512),
        ("causal & window(511)", 128),
        ("causal & window(127)", 128),
        ("window(127)", 128),
    ],
)
def test_the_side_of_a_tile_follows_the_mask(mask, side):
    assert block(masks.parse(mask)) == side
    assert block(masks.parse(mask), backward=True) == 128
    assert block(masks.parse(mask), length=512) == 128  # a quarter of the sequence is the most


def test_what_the_data_hides_is_not_counted():
    """Of documents nothing is known when a program is traced; of a window beside them all is."""
    assert block(SEGMENTS) == block(SEGMENTS & masks.Causal()) == 512
    near = masks.Causal() & masks.Window(127, 127)
    assert block(near & SEGMENTS) == block(SEGMENTS & near) == 128
    assert block(near | SEGMENTS) == 512


def test_a_window_of_a_quarter_costs_less_than_half_of_what_causal_does():
    """Scores computed: 512 of 2,048 tokens are 44 % of the causal ones; tiles of 512 had computed 70 %."""
    computed = {}
    for name in ("causal", "causal & window(511)"):
        mask, side = masks.parse(name), block(masks.parse(name))
        table = schedule.classes(mask, S, S, side, side)
        computed[name] = int(np.sum(table != schedule.EMPTY)) * side**2
        assert tiling.tiles_computed((1, S, 4, 64), (1, S, 4, 64), mask) * side**2 == 4 * computed[name]
    assert computed["causal & window(511)"] / computed["causal"] == pytest.approx(70 * 128**2 / (10 * 512**2))


def test_the_chosen_tiles_give_the_same_attention(x64):
    """Against softmax by hand in float64, where the forward pass takes tiles of 128 and would have taken 256."""
    length, near, mask = 1024, 130, masks.parse("causal & window(130)")
    assert block(mask, length) == 128 and block(masks.Full(), length) == 256
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, length, 1, 4)) for _ in range(3))
    at = np.arange(length)
    seen = (at[:, None] >= at) & (at[:, None] - at <= near)
    score = np.where(seen, q[0, :, 0] @ k[0, :, 0].T / 2, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    wanted = weight / weight.sum(-1, keepdims=True) @ v[0, :, 0]
    got = jax.jit(lambda *args: attention(*args, mask=mask, implementation="chunked"))(q, k, v)
    np.testing.assert_allclose(got[0, :, 0], wanted, rtol=0, atol=1e-13)  # sums of 131 weighted numbers of size 1
