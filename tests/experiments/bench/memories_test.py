"""Bench rows of policies: caches that were never read are as if they had been."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import memories

CONTEXT, BUDGET, ROWS, K, H = 600, 512, 2, 2, 4


def made(name, context=CONTEXT, budget=BUDGET):
    policy = memories.policies(context, budget)[name]
    empty = policy.empty(ROWS, context + memories.ROOM, N=2, K=K, H=H, dtype=jnp.float32)
    return empty, memories.filled(empty, context, jax.random.key(0))


def test_all_policies_but_the_window_have_a_row():
    from models.mixers.memory import MEMORIES

    assert {label.split()[0] for label in memories.policies(CONTEXT, BUDGET)} == {*MEMORIES} - {"window"}
    assert [plan.name for plan in memories.planned()] == [f"memory/b/{x}" for x in ("equal", "equal8", 8192, 65536)]


@pytest.mark.parametrize("name", [name for name in memories.POLICIES if not name.startswith(("token_select", "quest"))])
@pytest.mark.parametrize("equal", [False, True])
def test_a_filled_cache_holds_as_many_tokens_as_stay_the_newest_among_them(name, equal):
    context = BUDGET - 1 if equal else CONTEXT
    empty, memory = made(name, context, budget=context if equal else BUDGET)
    assert jax.tree.map(jnp.shape, memory) == jax.tree.map(jnp.shape, empty)  # The state that a step takes.
    position = np.asarray(memory.position).reshape(ROWS, -1, memory.position.shape[-1])
    free = 1 if name != "streaming" else 2
    for row in position:
        for head in row:
            held = sorted(head[head >= 0])
            assert len(set(held)) == len(held) <= len(head) - 1
            assert context - 1 in held and max(held) == context - 1
            most = memory.rule.budget if name in ("snap", "pyramid") else len(head) - free
            assert min(most, context) - 1 <= len(held) <= min(most, context), (len(held), len(head))
    assert (np.asarray(memory.length) == context).all() and np.asarray(memory.k).std() > 0.9


def test_bounds_of_filled_pages_are_those_of_their_keys():
    _, memory = made("quest")
    page, k = memory.rule.page, np.asarray(memory.k)
    for b, p, h in np.ndindex(ROWS, CONTEXT // page, K):
        keys = k[b, h, p * page : (p + 1) * page]
        np.testing.assert_array_equal(np.asarray(memory.low)[b, h, p], keys.min(0))
        np.testing.assert_array_equal(np.asarray(memory.high)[b, h, p], keys.max(0))
    assert (np.asarray(memory.low)[:, :, -1] > np.asarray(memory.high)[:, :, -1]).all()  # An empty page.
