"""Experts over devices: one device's numbers and gradients on every layout, and the bytes of the compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.planning import hlo
from experiments.routing import traffic
from models.experts import parallel
from models.partition import Partition

B, T, D, F, E, K = 8, 6, 16, 24, 8, 3
RULES = (
    ("batch", ("data", "fsdp", "expert")), ("sequence", ()), ("experts", ("expert",)), ("embed", ("fsdp",)),
    ("hidden", ("tensor",)),
)  # fmt: skip
MESHES = {
    "expert4": {"expert": 4},
    "expert2 x fsdp2 x tensor2": {"fsdp": 2, "tensor": 2, "expert": 2},
    "data2 x expert4": {"data": 2, "expert": 4},
}
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D))
WEIGHTS = {
    "gate": RNG.normal(size=(E, D, F)) / 4, "up": RNG.normal(size=(E, D, F)) / 4, "down": RNG.normal(size=(E, F, D)) / 5
}  # fmt: skip
INDEX = np.array([RNG.permutation(E)[:K] for _ in range(B * T)]).reshape(B, T, K)
INDEX[RNG.random((B, T, K)) < 0.1] = -1
GATE = RNG.uniform(size=(B, T, K))
LOADS = {"spread": INDEX, "all on the first": np.where(np.arange(K) == 0, 0, -1) + 0 * INDEX}


def partition(mesh):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1, **mesh}
    devices = np.asarray(jax.devices()[: int(np.prod(list(sizes.values())))]).reshape(tuple(sizes.values()))
    return Partition(jax.sharding.Mesh(devices, tuple(sizes)), RULES)


def step(form, over, dtype=jnp.float64):
    """`(x, gate, weights, index) -> (y, gradients)` of a layer on a mesh."""
    plan = parallel.Plan(form, E, 0, "silu", None, over)

    def run(x, gate, weights, index):
        y, pull = jax.vjp(lambda x, gate, weights: parallel.run(plan, x, index, gate, weights), x, gate, weights)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return jax.jit(run)


@functools.cache
def alone(load):
    return jax.device_get(step("sorted", Partition())(X, GATE, WEIGHTS, LOADS[load]))


@pytest.mark.parametrize("form", ["alltoall", "gather"])
@pytest.mark.parametrize("mesh", MESHES)
def test_devices_that_hold_parts_of_the_experts_give_one_devices_numbers(x64, mesh, form):
    """Loads that are even, and where all tokens of all devices want one device's expert."""
    run = step(form, partition(MESHES[mesh]))
    for load, index in LOADS.items():
        for got, want in zip(jax.tree.leaves(run(X, GATE, WEIGHTS, index)), jax.tree.leaves(alone(load)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


def test_a_batch_that_does_not_divide_is_computed_by_all(x64):
    """One row on four devices, as in decoding."""
    run = step("alltoall", partition({"expert": 4}))
    want = step("sorted", Partition())(X[:1], GATE[:1], WEIGHTS, INDEX[:1])[0]
    np.testing.assert_allclose(run(X[:1], GATE[:1], WEIGHTS, INDEX[:1])[0], want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["alltoall", "gather"])
def test_the_compiled_program_moves_the_bytes_of_the_formula(form):
    """Vectors, forward; beside them indices (and gates), four bytes each."""
    over, W, t, s = partition({"expert": 4}), 4, B * T // 4, 4
    plan = parallel.Plan(form, E, 0, "silu", None, over)
    wide = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    weights = {name: wide(*w.shape) for name, w in WEIGHTS.items()}
    index = jax.ShapeDtypeStruct(INDEX.shape, jnp.int32)
    where = lambda axes: jax.NamedSharding(over.mesh, over.spec(axes))  # noqa: E731
    placed = {name: w.update(sharding=where(parallel.WEIGHTS[name])) for name, w in weights.items()}
    rows = where(parallel.TOKENS)
    x, gate, index = (a.update(sharding=rows) for a in (wide(B, T, D), wide(B, T, K), index))
    run = jax.jit(functools.partial(parallel.run, plan), out_shardings=rows)
    text = run.lower(x, index, gate, placed).compile().as_text()
    found = hlo.collectives(hlo.computations(text), dict(over.mesh.shape))
    sent = sum(each.sent * each.times for each in found)
    if form == "alltoall":
        names = (W - 1) * parallel.slots(t, K, E // W) * 4
        assert {each.kind for each in found} == {"all-to-all"}
        assert sent == traffic.padded(t, D, s, K, W, E) + names
    else:
        assert {each.kind for each in found} <= {"all-gather", "reduce-scatter"}
        assert sent == traffic.allgather(t, D, s, W) + (W - 1) * t * K * 8
