"""Rows that devices share, inside the kernels that learn or accumulate along them: one device's numbers, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from kernels.context_attention import from_layout, to_layout
from kernels.lact import lact
from kernels.linear_attention import gated_delta_rule, linear_attention

B, T, N, H = 2, 24, 2, 4
CUT = PartitionSpec(None, "context")


def draw(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def documents():
    """A row of several documents, some shorter than a chunk, one ending with a chunk; and a row of one."""
    return jnp.asarray([[1] * 9 + [2] * 3 + [3] * 11 + [0], [1] * T])


def compare(op, P, schedule, tokens, ids, params, atol):
    """Output and all gradients of `op(tokens, ids, params, axis)` on P devices, and on one."""
    mesh = Mesh(np.asarray(jax.devices()[:P]), ("context",))
    probe = draw(B, T, N, H, seed=99)

    def shared(tokens, params):
        given = jax.tree.map(lambda x: to_layout(x, P, schedule), (tokens, ids))
        run = jax.shard_map(
            lambda tokens, ids, params: op(tokens, ids, params, "context"),
            mesh=mesh, in_specs=(CUT, CUT, PartitionSpec()), out_specs=CUT, check_vma=False,
        )  # fmt: skip
        return from_layout(run(*given, params), P, schedule)

    def both(f):
        def loss(*args):
            out = f(*args)
            return jnp.sum(jnp.sin(out) * probe), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(tokens, params)

    with jax.set_mesh(mesh):
        (_, out), grads = both(shared)
    (_, want), want_grads = both(lambda tokens, params: op(tokens, ids, params, None))
    for a, b in zip(*map(jax.tree.leaves, ((out, grads), (want, want_grads))), strict=True):
        assert float(jnp.abs(b).max()) > 0
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol * max(1, float(jnp.abs(b).max())))


@pytest.mark.parametrize(
    ("P", "order", "normalize", "steps", "packed"),
    [
        (2, "apply_then_update", "post", 5, True),
        (4, "apply_then_update", "pre", 0, True),
        (2, "update_then_apply", "none", 5, False),
    ],
)
def test_lact(x64, P, order, normalize, steps, packed):
    """Chunks of four tokens in stripes; Newton-Schulz may raise rounding 493 times."""
    tokens = [draw(B, T, N, H, seed=i) for i in range(3)]
    tokens += [jax.nn.softplus(draw(B, T, N, 3, seed=3)), jax.nn.sigmoid(draw(B, T, N, seed=4))]
    weights = tuple(draw(1, N, H, H, seed=5 + i) for i in range(3))

    def op(tokens, ids, weights, axis):
        rule = {"newton_schulz_steps": steps, "normalize": normalize, "order": order}
        return lact(*tokens[:4], weights, momentum=tokens[4], chunk_size=4, segment_ids=ids, axis=axis, **rule)[0]

    compare(op, P, "striped", tokens, documents() if packed else None, weights, 1e-12 * (500 if steps else 1))


@pytest.mark.parametrize(("P", "delta", "packed"), [(2, True, True), (4, False, True)])
def test_linear_memories(x64, P, delta, packed):
    tokens = [draw(B, T, N, H, seed=i) / 2 for i in range(3)]
    rates = [jax.nn.sigmoid(draw(B, T, N, seed=3)), jax.nn.log_sigmoid(draw(B, T, N, seed=4)) / 4]

    def op(tokens, ids, rates, axis):
        some = {"decay": tokens[-1], "chunk_size": 5, "segment_ids": ids, "axis": axis}
        if delta:
            return gated_delta_rule(*tokens[:4], **some)[0]
        return linear_attention(*tokens[:3], **some)[0]

    compare(op, P, "ring", tokens + (rates if delta else rates[1:]), documents() if packed else None, (), 1e-12)


def test_a_chunk_that_cannot_be_shared_says_what_can():
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("context",))
    tokens, rate = jnp.zeros((1, 4, 1, 2)), jnp.zeros((1, 4, 1, 3))
    run = jax.shard_map(
        lambda q, rate: lact(q, q, q, rate, (jnp.zeros((1, 1, 2, 2)),) * 3, chunk_size=3, axis="context")[0],
        mesh=mesh, in_specs=(CUT, CUT), out_specs=CUT, check_vma=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="chunk_size=3 does not divide over 2 devices of 'context'; use 4"):
        jax.eval_shape(run, tokens, rate)
