"""Left-to-right generation, whole, of a model that says the number after the one it reads."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels import masks
from models.decoding import autoregressive
from models.decoding.autoregressive import Sampler

V, EOS = 9, 7


class Counter:
    """The next number has all the mass; the state counts tokens, and positions must follow each other."""

    def for_decoding(self):
        return self

    def init_state(self, batch, length):
        return jnp.zeros((batch,), jnp.int32)

    def __call__(self, tokens, *, mask, positions, state, fresh=False):
        assert mask == masks.Causal()
        real = positions >= 0
        expected = state[:, None] + jnp.arange(tokens.shape[1])
        right = jnp.where(real, positions == expected, True).all()
        following = jnp.where(right, (tokens + 1) % V, 0)
        return jax.nn.one_hot(following, V), state + real.sum(-1), {}

    def logits(self, features):
        return 50 * features


def test_rows_count_up_to_their_end_and_stay_there():
    """Prompts 3 4, 0 and 5: after the end, which is 7, a row says nothing else; places beyond `until` are not drawn."""
    prompt, lengths = jnp.asarray([[3, 4, 8], [0, 8, 8], [5, 8, 8]]), jnp.asarray([2, 1, 1])
    keys, sampler = jax.random.split(jax.random.key(0), 3), Sampler(temperature=1.0, eos=EOS)

    @jax.jit
    def run(until):
        model = Counter()
        begun = autoregressive.prefill(model, prompt, lengths, keys, sampler, max_new=8, slots=16)
        return begun, autoregressive.extend(model, begun, keys, sampler, until)

    begun, ended = run(8)
    np.testing.assert_array_equal(begun.tokens[:, 0], [5, 1, 6])
    assert begun.count == 1 and begun.position.tolist() == [2, 1, 1] and not begun.done.any()
    want = [[5, 6, 7, 7, 7, 7, 7, 7], [1, 2, 3, 4, 5, 6, 7, 7], [6, 7, 7, 7, 7, 7, 7, 7]]
    np.testing.assert_array_equal(ended.tokens, want)
    assert ended.done.all() and ended.count == 7  # Nobody is left to draw for.
    _, some = run(3)
    np.testing.assert_array_equal(some.tokens[:, :3], np.array(want)[:, :3])
    assert some.count == 3 and some.done.tolist() == [True, False, True]


def test_a_row_that_begins_with_its_end_says_nothing():
    sampler, keys = Sampler(temperature=0.0, eos=EOS), jax.random.split(jax.random.key(0), 1)
    begun = autoregressive.prefill(
        Counter(), jnp.asarray([[6]]), jnp.asarray([1]), keys, sampler, max_new=2, slots=3
    )  # fmt: skip
    assert begun.done.all() and begun.tokens.tolist() == [[EOS, EOS]]
