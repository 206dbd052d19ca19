"""Experts over devices: one device's numbers and gradients on every layout, and the bytes of the compiled program."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.planning import hlo
from experiments.routing import traffic
from models.experts import banks, parallel
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
BIASES = {
    "gate_bias": RNG.normal(size=(E, F)), "up_bias": RNG.normal(size=(E, F)), "down_bias": RNG.normal(size=(E, D))
}  # fmt: skip
INDEX = np.array([RNG.permutation(E)[:K] for _ in range(B * T)]).reshape(B, T, K)
INDEX[RNG.random((B, T, K)) < 0.1] = -1
GATE = RNG.uniform(size=(B, T, K))
FOLDED, FOLDED_GATE = RNG.normal(size=(B, 8, D)), RNG.uniform(size=(B, 8, K))
FOLDED_INDEX = np.concatenate([INDEX, INDEX[:, :2]], axis=1)
LOADS = {"spread": INDEX, "all on the first": np.where(np.arange(K) == 0, 0, -1) + 0 * INDEX}


def partition(mesh):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1, **mesh}
    devices = np.asarray(jax.devices()[: int(np.prod(list(sizes.values())))]).reshape(tuple(sizes.values()))
    return Partition(jax.sharding.Mesh(devices, tuple(sizes)), RULES)


def step(form, over, limit=0.0, share="width"):
    """`(x, gate, weights, index) -> (y, gradients)` of a layer on a mesh."""
    plan = parallel.Plan(form, E, 0, "silu", None, over, limit, 1.702, share)

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


@pytest.mark.parametrize("form", ["dense", "einsum", "alltoall", "gather"])
def test_biases_and_a_clamped_gate_are_those_of_one_device(x64, form):
    """The bias of the map down is added once, where its inputs lie on two devices; unused choices have none."""
    given = X, GATE, WEIGHTS | BIASES, INDEX
    over = partition({"fsdp": 2, "tensor": 2, "expert": 2}) if form in ("alltoall", "gather") else Partition()
    want = jax.device_get(step("sorted", Partition(), 0.7)(*given))
    maps = {name: (w, BIASES[f"{name}_bias"]) for name, w in WEIGHTS.items()}
    join = lambda gate, up: banks.clamped_glu(gate, up, 0.7, 1.702)  # noqa: E731
    every = banks.ffn(X.reshape(-1, D), **maps, join=join)
    plain = banks.mixture(every, INDEX.reshape(-1, K), GATE.reshape(-1, K)).reshape(B, T, D)
    np.testing.assert_allclose(want[0], plain, rtol=1e-12, atol=1e-13)
    for got, each in zip(jax.tree.leaves(step(form, over, 0.7)(*given)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-12, atol=1e-13)


TUTEL = {0: ("weights", "width"), 1: ("alltoall", "tokens"), 2: ("alltoall", "width")}


@pytest.mark.parametrize("r", TUTEL)
def test_tutels_layouts_of_the_same_parameters_give_one_devices_numbers(x64, r):
    """Five tokens a device with two that share them: the last of these has one to itself that is none."""
    form, share = TUTEL[r]
    given = X[:, :5], GATE[:, :5], WEIGHTS | BIASES, INDEX[:, :5]
    want = jax.device_get(step("sorted", Partition())(*given))
    for mesh in ({"expert": 4, "tensor": 2}, {"fsdp": 2, "expert": 2, "tensor": 2}):
        got = step(form, partition(mesh), share=share)(*given)
        for one, each in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, each, rtol=1e-12, atol=1e-13)


def moved(plan, T=T):
    """What the compiled forward pass of a layer on `plan`'s mesh sends, `[Collective]`."""
    over = plan.partition
    wide = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    weights = {name: wide(*w.shape) for name, w in WEIGHTS.items()}
    index = jax.ShapeDtypeStruct((B, T, K), jnp.int32)
    where = lambda axes: jax.NamedSharding(over.mesh, over.spec(axes))  # noqa: E731
    placed = {name: w.update(sharding=where(parallel.WEIGHTS[name])) for name, w in weights.items()}
    rows = where(parallel.TOKENS)
    x, gate, index = (a.update(sharding=rows) for a in (wide(B, T, D), wide(B, T, K), index))
    run = jax.jit(functools.partial(parallel.run, plan), out_shardings=rows)
    text = run.lower(x, index, gate, placed).compile().as_text()
    return hlo.collectives(hlo.computations(text), dict(over.mesh.shape))


@pytest.mark.parametrize("r", TUTEL)
def test_tutels_layouts_move_the_bytes_of_the_formula(r):
    """Vectors and weights; beside them the numbers of experts, four bytes each, go with the vectors."""
    form, share = TUTEL[r]
    W, S, t = 4, 2, B * T // 4
    plan = parallel.Plan(form, E, 0, "silu", None, partition({"expert": W, "tensor": S}), share=share)
    found = moved(plan)
    tokens, weights = traffic.layout(r, t, K, E, (W, S), D, 4, 3 * D * F * E // (W * S))
    names = 0 if r == 0 else (W - 1) * parallel.slots(t // S if r == 1 else t, K, E // W) * 4
    assert sum(each.sent * each.times for each in found) == tokens + weights + names
    kinds = {0: {"all-gather"}, 1: {"all-gather", "all-to-all"}, 2: {"all-reduce", "all-to-all"}}
    assert {each.kind for each in found} == kinds[r]


ATTENTION, EXPERTS = ("batch", "sequence", "heads"), ("hidden", "experts", None)  # DP, CP, TP; ETP, EP, EDP.
KINDS = tuple(itertools.product(ATTENTION, EXPERTS))
LATIN = [tuple((a, EXPERTS[(i + j) % 3]) for i, a in enumerate(ATTENTION)) for j in range(3)]  # Each of the nine once.
ENDS = [((attention, expert),) * 3 for attention, expert in (("heads", "experts"), ("batch", "hidden"))]


def folding(kinds):
    """Three axes of two devices, each with what it cuts in attention and in experts."""
    sizes = {"data": 2, "context": 2, "tensor": 2}
    rules = {axis: [] for axis in (*ATTENTION, "hidden", "experts", "embed")}
    for name, (attention, expert) in zip(sizes, kinds, strict=True):
        rules[attention].append(name)
        if expert:
            rules[expert].append(name)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(2, 2, 2), tuple(sizes))
    return Partition(mesh, tuple((axis, tuple(names)) for axis, names in rules.items()))


def foldings():
    """Always each pair of kinds once and two ends; the orders of axes are one folding."""
    every = sorted(set(itertools.combinations_with_replacement(KINDS, 3)), key=str)
    for kinds in (*LATIN, *ENDS, *every):
        marks = () if kinds in (*LATIN, *ENDS) else pytest.mark.exhaustive
        yield pytest.param(kinds, id=" ".join(f"{a}-{e}" for a, e in kinds), marks=marks)


@pytest.mark.parametrize("kinds", foldings())
def test_experts_are_folded_apart_from_attention(x64, kinds):
    """TP x CP x DP and ETP x EP x EDP over the same eight devices: one device's numbers, and the formula's bytes."""
    given = FOLDED, FOLDED_GATE, WEIGHTS | BIASES, FOLDED_INDEX
    want = jax.device_get(step("sorted", Partition(), 0.7)(*given))
    over = folding(kinds)
    for got, each in zip(jax.tree.leaves(step("alltoall", over, 0.7)(*given)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-12, atol=1e-13)
    ways = lambda axis, same: math.prod(2 for a, e in kinds if e == axis and (a == "heads") == same)  # noqa: E731
    ep, etp = ((ways(axis, False), ways(axis, True)) for axis in ("experts", "hidden"))
    found = moved(parallel.Plan("alltoall", E, 0, "silu", None, over), FOLDED.shape[1])
    t = FOLDED.shape[0] * FOLDED.shape[1] // math.prod(2 for a, _ in kinds if a != "heads")
    n, EP = t // ep[1], math.prod(ep)
    names = (EP - 1) * etp[0] * parallel.slots(n, K, E // EP) * 4 + (etp[0] - 1) * n * K * 8
    assert sum(each.sent * each.times for each in found) == traffic.folded(t, K, E, ep, etp, D, 4) + names


@pytest.mark.parametrize("form", ["gather", "weights"])
def test_other_forms_are_folded_too(x64, form):
    given = FOLDED, FOLDED_GATE, WEIGHTS, FOLDED_INDEX
    want = jax.device_get(step("sorted", Partition())(*given))
    kinds = (("batch", "hidden"), ("sequence", "experts"), ("heads", "experts"))
    for got, each in zip(jax.tree.leaves(step(form, folding(kinds))(*given)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-12, atol=1e-13)


def test_a_batch_that_does_not_divide_is_computed_by_all(x64):
    """One row on four devices, as in decoding, and on eight whose axes cut rows, widths, experts and heads."""
    given = X[:1], GATE[:1], WEIGHTS | BIASES, INDEX[:1]
    want = step("sorted", Partition())(*given)[0]
    kinds = (("batch", "hidden"), ("batch", "experts"), ("heads", "experts"))
    for run in (step("alltoall", partition({"expert": 4})), step("alltoall", folding(kinds))):
        np.testing.assert_allclose(run(*given)[0], want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["alltoall", "gather"])
def test_the_compiled_program_moves_the_bytes_of_the_formula(form):
    """Vectors, forward; beside them indices (and gates), four bytes each."""
    W, t, s = 4, B * T // 4, 4
    found = moved(parallel.Plan(form, E, 0, "silu", None, partition({"expert": W})))
    sent = sum(each.sent * each.times for each in found)
    if form == "alltoall":
        names = (W - 1) * parallel.slots(t, K, E // W) * 4
        assert {each.kind for each in found} == {"all-to-all"}
        assert sent == traffic.padded(t, D, s, K, W, E) + names
    else:
        assert {each.kind for each in found} <= {"all-gather", "reduce-scatter"}
        assert sent == traffic.allgather(t, D, s, W) + (W - 1) * t * K * 8
