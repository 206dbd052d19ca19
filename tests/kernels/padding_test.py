"""Padding at a row's end is no token: outputs and state are those of the row without it, in kernels with a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import ttt
from kernels.lact import init_state, lact

C, T, N, H = 3, 8, 2, 4
LENGTHS = (8, 5, 0)  # all; two documents of 2 and 3, so a full chunk at the end; nothing
B = len(LENGTHS)


def draw(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Lact:
    weights = property(lambda self: tuple(draw(1, N, H, H, seed=10 + i) for i in range(3)))

    def start(self, batch):
        wide = jnp.float64
        return init_state(self.weights, batch, chunk_size=C, dtype=wide, rate_dtype=wide, momentum=True)

    def __call__(self, tokens, **kw):
        q, k, v, rate, gate = tokens
        rate = jnp.stack([rate, rate / 2, rate / 3], axis=-1) ** 2
        return lact(q, k, v, rate, self.weights, momentum=jax.nn.sigmoid(gate), chunk_size=C, **kw)


class Linear:
    @property
    def params(self):
        layers = ((draw(1, N, H, H, seed=10), draw(1, N, H, seed=11)),)
        return ttt.TTTParams(layers, draw(N, H, seed=12), draw(N, H, seed=13), draw(C, seed=14) / 9)

    def start(self, batch):
        return ttt.init_state(self.params, batch, mini_batch=C, dtype=jnp.float64, eta_dtype=jnp.float64)

    def __call__(self, tokens, **kw):
        q, k, v, rate, _ = tokens
        return ttt.ttt_linear(q, k, v, rate**2 / 10, self.params, mini_batch=C, **kw)


@pytest.mark.parametrize("op", [Lact(), Linear()], ids=["lact", "ttt_linear"])
def test_padding_is_no_token(x64, op):
    """Two calls of four places and one of a single place, in which the last two rows wait, against each row alone."""
    tokens = [draw(B, T, N, H, seed=i) for i in range(3)] + [draw(B, T, N, seed=3), draw(B, T, N, seed=4)]
    ids = jnp.asarray([[1] * 8, [1, 1, 2, 2, 2, 9, 9, 9], [9] * 8])  # padding has an id of its own
    call = jax.jit(lambda tokens, state, ids, lengths=None: op(tokens, state=state, segment_ids=ids, lengths=lengths))
    state, outs = op.start(B), []
    for begin, end, counts in ((0, 4, (4, 4, 0)), (4, 8, (4, 1, 0)), (0, 1, (1, 0, 0))):
        piece = [t[:, begin:end] for t in tokens]
        out, state = call(piece, state, ids[:, begin:end], jnp.asarray(counts))
        outs.append(out)
    out = jnp.concatenate(outs, axis=1)
    for row, length in enumerate(LENGTHS):
        held = op.start(1)
        if length:
            alone = [t[row : row + 1, :length] for t in tokens]
            want, held = call(alone, held, ids[row : row + 1, :length])
            np.testing.assert_allclose(out[row, :length], want[0], rtol=0, atol=1e-12)
        if row == 0:
            want, held = call([t[:1, :1] for t in tokens], held, ids[:1, :1])
            np.testing.assert_allclose(out[0, T:], want[0], rtol=0, atol=1e-12)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(held), strict=True):
            np.testing.assert_allclose(a[row], b[0], rtol=0, atol=1e-12)
