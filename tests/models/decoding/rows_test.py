"""Rows of decoding states: the batch is in front of every leaf, so they are moved without knowledge of the mixer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models.decoding import rows
from models.mixers import MIXERS
from models.mixers.memory import MEMORIES, Policy
from tests import parts
from tests.models.lm_test import VARIANTS, V, make

B, T, S = 3, 6, 16
# Options of a policy for these tests, where its smallest sizes are not given by its knobs.
POLICIES = {name: tuple(sorted(parts.options("generate", name).items())) for name in MEMORIES}


def policy(name):
    return Policy(name, POLICIES[name])


def shapes(made, batch, memory):
    state = nnx.eval_shape(lambda m: m.for_decoding().init_state(batch, S, memory), made)
    return jax.tree.map(jnp.shape, state, is_leaf=lambda x: hasattr(x, "shape"))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_leaf_of_a_decoding_state_has_the_batch_in_front(name):
    for memory in map(policy, MEMORIES if "attention" in VARIANTS[name].get("mixer", "attention") else ["full"]):
        made = nnx.eval_shape(lambda: make(**VARIANTS[name]))
        is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
        leaves = [jax.tree.leaves(shapes(made, n, memory), is_leaf=is_shape) for n in (1, 5)]
        assert leaves[0] and len(leaves[0]) == len(leaves[1])
        for one, five in zip(*leaves, strict=True):
            assert one[0] == 1 and five == (5, *one[1:]), (memory, one, five)


@pytest.mark.parametrize("name", [*MIXERS, *(f"memory={name}" for name in MEMORIES if name != "full")])
def test_rows_are_inserted_repeated_and_taken(name):
    """Rows that were moved go on as they would have where they were."""
    memory = policy(name.removeprefix("memory=")) if "=" in name else None
    graphdef, params = nnx.split(make(**VARIANTS[name if memory is None else "attention"]))
    text = jnp.asarray(np.random.default_rng(0).integers(0, V, (B + 1, T + 1)), jnp.int32)
    length = jnp.asarray([6, 4, 5, 3])
    at = jnp.where(jnp.arange(T)[None] < length[:, None], jnp.arange(T)[None], -1)

    own = {"stay": [0, 1, 2, 3], "insert": [0, 3, 2], "repeat": [0, 0, 1, 1, 2, 2], "take": [2, 0], "choose": [0, 3, 2]}
    own = {key: np.array(order) for key, order in own.items()}

    @jax.jit
    def go(params):
        model = nnx.merge(graphdef, params).for_decoding()
        step = lambda text, at, state: model(text, mask=masks.Causal(), positions=at, state=state)  # noqa: E731
        whole = step(text[:, :T], at, model.init_state(B + 1, S, memory)).state
        state, one = rows.take(whole, jnp.arange(B)), rows.take(whole, jnp.asarray([B]))
        moved = {
            "stay": whole,
            "insert": rows.insert(state, jnp.int32(1), one),
            "repeat": rows.repeat(state, 2),
            "take": rows.take(whole, own["take"]),
            "choose": rows.choose(jnp.asarray([True, False, True]), state, rows.repeat(one, B)),
        }
        # One step of all that was moved, and of what stayed: the batch is in front, so they are one batch.
        beside = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *moved.values())
        of = np.concatenate([own[key] for key in moved])
        return step(text[of, T:], length[of][:, None], beside).features

    found = dict(zip(own, np.split(go(params), np.cumsum([len(order) for order in own.values()])[:-1]), strict=True))
    whole = found["stay"]
    for key, order in own.items():
        # Float32 of numbers around 1; rows of a batch may be summed in another order.
        np.testing.assert_allclose(found[key], whole[order], rtol=0, atol=2e-5, err_msg=key)
    assert float(jnp.abs(whole[1] - whole[3]).max()) > 1e-2
