"""What moves is what the formulas say, counted in compiled programs; and every rank has the same work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kernels.context_attention import context_attention, score_entries, sent
from kernels.masks import Causal, Full, Window
from tests.kernels import context_attention_cases as cases

# Schedule and whether causal: those whose traffic hangs on the mask are counted under both.
COUNTED = [
    ("all_gather", True), ("ring", True), ("zigzag", True), ("striped", False), ("ulysses", False), ("usp", True),
    ("token_ring", False), ("token_ring", True), ("token_ring_neighbour", False), ("token_ring_zigzag", True),
    ("token_ring_zigzag", False),
]  # fmt: skip


def compiled(schedule: str, P: int, causal: bool, N: int, K: int, backward: bool) -> tuple:
    """The text of the program of a forward or a backward pass, and the shapes of q and k."""
    mesh, T = cases.mesh_of(P), 4 * P
    cut = NamedSharding(mesh, PartitionSpec(None, "context"))
    q, k = (jax.ShapeDtypeStruct((1, T, n, 8), jnp.float32, sharding=cut) for n in (N, K))
    mask = Causal() if causal else Full()
    attend = functools.partial(context_attention, mesh=mesh, schedule=schedule, mask=mask, layout="schedule")

    if not backward:
        run = jax.jit(attend).lower(q, k, k)
    else:  # alone: in one program the compiler may find what the forward pass has sent, and not send it again
        _, gradient = jax.eval_shape(lambda *x: jax.vjp(attend, *x), q, k, k)
        run = jax.jit(lambda gradient, d_out: gradient(d_out)).lower(gradient, q)
    return run.compile().as_text(), q.shape, k.shape


def check(schedule: str, P: int, causal: bool, N: int, K: int) -> None:
    for backward in (False, True):
        text, *shapes = compiled(schedule, P, causal, N, K, backward)
        counted = cases.traffic(text, P)
        counted["forth"] = counted.get("forth", 0) + counted.pop("along", 0)
        formula = sent(schedule, P, *shapes, causal=causal, backward=backward)
        for name in ("forth", "back", "across"):
            actual = counted.pop(name, 0) + np.zeros(P, np.int64)
            np.testing.assert_array_equal(actual, getattr(formula, name), f"{name}, backward={backward}")
        assert not counted


@pytest.mark.parametrize("P", [2, 4])
@pytest.mark.parametrize(("schedule", "causal"), COUNTED)
def test_bytes_are_those_of_the_formulas(schedule, causal, P):
    check(schedule, P, causal, N=4, K=2)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("N", "K"), [(8, 8), (8, 4), (8, 1)])
@pytest.mark.parametrize(("schedule", "causal"), COUNTED)
def test_bytes_are_those_of_the_formulas_on_8(schedule, causal, N, K):
    check(schedule, 8, causal, N, K)


@pytest.mark.parametrize(("schedule", "causal"), [("ring", True), ("token_ring", False), ("ulysses", False)])
def test_bytes_on_8(schedule, causal):
    check(schedule, 8, causal, N=8, K=2)


def test_formulas_are_the_published_ones():
    """Spelled out once with plain numbers: C = 1024, N = 32, K = 8, H = 128, bfloat16, 4 ranks."""
    shapes, C = ((1, 4096, 32, 128), (1, 4096, 8, 128)), 1024
    of = functools.partial(sent, P=4, q_shape=shapes[0], k_shape=shapes[1], dtype=jnp.bfloat16)
    unit, kv = C * 32 * 128 * 2, C * 8 * 128 * 2
    assert set(of("ring").forth) == {3 * 2 * kv}
    assert set(of("zigzag", backward=True).forth) == {3 * 2 * kv + 4 * 2 * 2 * kv}
    assert set(of("ulysses").across) == {(2 * unit + 2 * kv) * 3 // 4}
    assert set(of("token_ring", causal=False).back) == {3 * (unit + 4 * C * 32)}
    assert set(of("token_ring", causal=False, backward=True).forth) == {3 * (2 * unit + 8 * C * 32)}
    zigzag = of("token_ring_zigzag")
    assert list(zigzag.forth / unit) == [1.5, 3.0, 2.5, 2.0]  # (P-1)/2, then (P-r) + (r-1)/2
    assert list(zigzag.back / (unit + 4 * C * 32)) == [3.0, 2.5, 2.0, 1.5]  # (P-1-r) + r/2
    assert zigzag.forth.mean() == 3 / 4 * 3 * unit


@pytest.mark.parametrize("P", [2, 4, 8])
def test_work_is_balanced(P):
    T = 16 * P
    for schedule in ("zigzag", "token_ring_zigzag"):
        entries = score_entries(schedule, P, T, Causal())
        block = (T // (2 * P)) ** 2
        assert np.ptp(entries, axis=1).max() <= block and np.ptp(entries.sum(0)) <= block
        # Nothing is left out: every block on or below the diagonal, once.
        assert entries.sum() == (2 * P) * (2 * P + 1) // 2 * block
    longest = {name: score_entries(name, P, T, Causal()).max(1).sum() for name in ("ring", "zigzag")}
    assert longest["ring"] >= 1.5 * longest["zigzag"]
    assert np.ptp(score_entries("striped", P, T, Causal()).sum(0)) == 0


def test_steps_that_see_nothing_are_left_out():
    """A causal window no longer than a rank's piece needs one neighbour's keys and no more."""
    entries = score_entries("ring", 8, 128, Causal() & Window(15, 0))
    assert entries.shape == (2, 8)
    mesh, T = cases.mesh_of(8), 128
    q = jax.ShapeDtypeStruct((1, T, 2, 8), jnp.float32)
    attend = functools.partial(context_attention, mesh=mesh, schedule="ring", mask="causal & window(15, 0)")
    text = jax.jit(attend).lower(q, q, q).compile().as_text()
    assert set(cases.traffic(text, 8)["forth"]) == {2 * 16 * 2 * 8 * 4}
