"""Decoding of every causal router: a prompt in one pass and then token by token, as the whole row at once; nothing is
dropped, and no row sees its neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import masks
from models.experts.options import ROUTERS
from models.lm import LM
from tests.models.experts.channel_test import OPTIONS
from tests.plain.drawn import drawn, spec

V, B, T, FIRST = 11, 3, 9, 4
TOKENS = np.random.default_rng(5).integers(0, V, (B, T))
CAUSAL = [name for name, rule in ROUTERS.items() if rule.causal]
MORE = {"moepp": {"zero": 1, "residual": True}, "duo_chance": {"chance": 0.5, "small": 2, "zero": 1}}
pytestmark = pytest.mark.usefixtures("x64")


def model(router, **more):
    options = {"experts": 6, "hidden": 8, "router": router, **OPTIONS[router], **MORE.get(router, {}), **more}
    return drawn(lambda rngs: LM(spec(V, channel="moe", moe=options, num_kv_heads=1), rngs=rngs), 2)[0]


def whole(lm, tokens):
    return lm(tokens, mask=masks.Causal()).features


def stepped(lm, tokens):
    """The second row's prompt is one token shorter than the others."""
    made = lm.for_decoding()
    places = jnp.broadcast_to(jnp.arange(FIRST), (B, FIRST))
    there = places < jnp.array([FIRST, FIRST - 1, FIRST])[:, None]
    out = made(
        tokens[:, :FIRST], mask=masks.Causal(), positions=jnp.where(there, places, -1), state=made.init_state(B, T)
    )

    def step(carry, _):
        state, at = carry
        token = jnp.take_along_axis(tokens, jnp.minimum(at, T - 1), axis=1)
        now = made(token, mask=masks.Causal(), positions=jnp.where(at < T, at, -1), state=state)
        return (now.state, at + 1), now.features[:, 0]

    begin = jnp.array([FIRST, FIRST - 1, FIRST])[:, None]
    _, after = jax.lax.scan(step, (out.state, begin), length=T - FIRST + 1)
    return out.features, jnp.moveaxis(after, 0, 1)


@pytest.mark.parametrize("router", CAUSAL)
def test_a_prompt_and_steps_are_the_whole_row(router):
    """And a later token changes nothing before it."""
    other = TOKENS.copy()
    other[:, 6] = (other[:, 6] + 1) % V
    every = lambda lm, tokens, both: (whole(lm, both), *stepped(lm, tokens))  # noqa: E731
    both, first, after = model(router)(every, TOKENS, np.concatenate([TOKENS, other]))
    want, changed = both[:B], both[B:]
    np.testing.assert_array_equal(want[:, :6], changed[:, :6])
    assert np.abs(want[:, 6:] - changed[:, 6:]).max() > 1e-3
    for row, begin in enumerate((FIRST, FIRST - 1, FIRST)):
        np.testing.assert_allclose(first[row, :begin], want[row, :begin], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(after[row, : T - begin], want[row, begin:], rtol=1e-10, atol=1e-12)


def test_a_capacity_holds_in_training_alone():
    """Decoding with a capacity is the whole row without one, which differs from the row with it."""
    lost = model("softmax_after", capacity=1.0)(whole, TOKENS)
    kept = model("softmax_after")(whole, TOKENS)
    first, after = model("softmax_after", capacity=1.0)(stepped, TOKENS)
    np.testing.assert_allclose(first[0], kept[0, :FIRST], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(after[0, : T - FIRST], kept[0, FIRST:], rtol=1e-10, atol=1e-12)
    assert np.abs(lost - kept).max() > 1e-3
    turned = model("softmax_after", capacity=1.0)(stepped, np.roll(TOKENS, 1, axis=0))
    np.testing.assert_allclose(turned[1][0, : T - FIRST], after[2, : T - FIRST], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("router", sorted(set(ROUTERS) - set(CAUSAL)))
def test_routers_that_look_ahead_do(router):
    """The control of the test before: later tokens change earlier ones where the router reads them."""
    other = TOKENS.copy()
    other[:, 6:] = (other[:, 6:] + 3) % V
    first, second = model(router)(lambda lm, *rows: [whole(lm, tokens) for tokens in rows], TOKENS, other)
    assert np.abs(first[:, :6] - second[:, :6]).max() > 1e-6
