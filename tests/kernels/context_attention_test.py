"""Context attention equals one-device attention: every schedule, mask, grouping of heads and number of devices."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from kernels import masks
from kernels.context_attention import (
    SCHEDULES,
    blocks,
    choose,
    context_attention,
    explain,
    from_layout,
    positions,
    to_layout,
)
from kernels.masks import AnyOrder, Causal, Dense, Full, Positions, Prefix, Segments, Sinks, Tree, Window
from tests.kernels import context_attention_cases as cases

MASKS = ("causal", "full", "window", "packed")
RELATIVE = {"float32": 2e-6, "float64": 1e-12}


def covering() -> list[tuple]:
    """Every schedule under every mask once, three times of four on 2 devices; some on 8."""
    chosen = []
    for (i, schedule), (j, mask) in itertools.product(enumerate(SCHEDULES), enumerate(MASKS)):
        heads = tuple(cases.HEADS)[(i + j) % 3]
        chosen.append((schedule, 4 if (i + j) % 4 == 0 else 2, mask, heads, ("float64", "float32")[(i + j // 2) % 2]))
    eight = [("ring", 8, "full", "mqa", "float64"), ("token_ring", 8, "full", "gqa", "float32")]
    return chosen + eight + [("ulysses", 8, "packed", "mqa", "float64")]


@pytest.mark.parametrize(("schedule", "P", "mask", "heads", "dtype"), covering())
def test_equals_one_device(schedule, P, mask, heads, dtype):
    with jax.enable_x64(dtype == "float64"):
        actual = cases.distributed(schedule, P, mask, heads, dtype)
        cases.assert_close(actual, cases.wanted(mask, cases.LENGTH[P], heads, dtype), RELATIVE[dtype])


def everywhere() -> list[tuple]:
    """Every 17th of all combinations: a prime, so that each value of each of them meets all others in time."""
    return list(itertools.product(SCHEDULES, cases.LENGTH, MASKS, cases.HEADS, RELATIVE))[::17]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("schedule", "P", "mask", "heads", "dtype"), everywhere())
def test_equals_one_device_everywhere(schedule, P, mask, heads, dtype):
    test_equals_one_device(schedule, P, mask, heads, dtype)


@pytest.fixture
def in_tiles(monkeypatch):
    """Blocks go to the platform's kernel, however short they are."""
    monkeypatch.setattr(blocks, "SHORT", dict.fromkeys(blocks.SHORT, 0))
    for function in (blocks.forward, blocks.backward):
        function.clear_cache()
    yield
    for function in (blocks.forward, blocks.backward):
        function.clear_cache()


@pytest.mark.parametrize(("schedule", "mask"), [("ring", "causal"), ("zigzag", "packed"), ("token_ring", "window")])
def test_equals_one_device_with_the_kernel_of_long_blocks(schedule, mask, in_tiles):
    actual = cases.distributed(schedule, 2, mask, "gqa", "float32")
    cases.assert_close(actual, cases.wanted(mask, cases.LENGTH[2], "gqa", "float32"), RELATIVE["float32"])


def other_masks(T: int) -> dict:
    rng = np.random.default_rng(3)
    order = np.stack([rng.permutation(T) for _ in range(2)]).astype(np.int32)
    return {
        "order": AnyOrder(order - 5, strict=True),
        "prefix": Causal() | Prefix(np.array([3, 20], np.int32)),
        "tree": Tree(np.maximum(rng.integers(-1, np.maximum(np.arange(T), 1)), -1).astype(np.int32)),
        "dense": Dense(rng.random((2, 8, T, T)) < 0.3) & Causal(),
        "positions": Positions(order, order - 4, "causal & (window(9) | sinks(2))"),
        "not": ~Window(5) & Segments(np.arange(T) // 20 + 1),
        "nothing": Causal(-T) & Full(),
        "sinks": Causal() & (Window(6, 0) | Sinks(2)),
    }


@pytest.mark.parametrize(
    ("schedule", "name"), list(zip(itertools.cycle(("zigzag", "striped", "token_ring_zigzag")), other_masks(52)))
)
def test_any_other_mask(schedule, name, x64):
    T = 52
    mask, given = other_masks(T)[name], cases.inputs(T, 8, 2, "float64")
    attend = functools.partial(context_attention, mesh=cases.mesh_of(2), schedule=schedule, return_lse=True)
    actual = cases.results(functools.partial(attend, mask=mask), given)
    cases.assert_close(actual, cases.results(functools.partial(cases.one_device, mask=mask), given), 1e-12)


@pytest.mark.parametrize("P", [1, 2, 4, 8])
@pytest.mark.parametrize("schedule", [*SCHEDULES, "usp:1"])
def test_layouts_are_inverse_permutations_of_positions(schedule, P):
    T = 80
    order = positions(T, P, schedule)
    assert sorted(order) == list(range(T))
    x = np.random.default_rng(0).standard_normal((2, T, 3))
    laid = to_layout(jnp.asarray(x), P, schedule)
    np.testing.assert_array_equal(laid, jnp.asarray(x)[:, order])
    np.testing.assert_array_equal(from_layout(laid, P, schedule), jnp.asarray(x))
    np.testing.assert_array_equal(to_layout(jnp.asarray(x.swapaxes(1, 2)), P, schedule, axis=2), laid.swapaxes(1, 2))


def test_zigzag_and_striped_hold_what_they_say():
    assert positions(16, 2, "zigzag").tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    assert positions(8, 4, "striped").tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert positions(8, 4, "ring").tolist() == list(range(8))


@pytest.mark.parametrize("schedule", ["zigzag", "striped"])
def test_arrays_that_lie_as_the_schedule_wants_are_not_moved(schedule):
    T, P = 56, 4
    q, k, v, *_ = cases.inputs(T, 4, 2, "float32")
    ids = np.sort(np.random.default_rng(1).integers(0, 4, (2, T)), 1).astype(np.int32)
    dense = np.random.default_rng(2).random((T, T)) < 0.5
    order = positions(T, P, schedule)

    @functools.partial(jax.jit, static_argnames="layout")
    def attend(q, k, v, ids, dense, layout):
        mask = Causal() & Segments(ids) & Dense(dense)
        mesh = cases.mesh_of(P)
        return context_attention(q, k, v, mask=mask, mesh=mesh, schedule=schedule, layout=layout, return_lse=True)

    out, lse = attend(q, k, v, ids, dense, layout="natural")
    laid = [to_layout(jnp.asarray(x), P, schedule) for x in (q, k, v, ids)]
    laid_out, laid_lse = attend(*laid, dense[order][:, order], layout="schedule")
    np.testing.assert_array_equal(from_layout(laid_out, P, schedule), out)
    np.testing.assert_array_equal(from_layout(laid_lse, P, schedule, axis=2), lse)


@pytest.mark.parametrize("schedule", ["usp", "token_ring_zigzag"])
def test_other_mesh_axes_cut_rows_and_heads(schedule):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "tensor", "context"))
    T = cases.LENGTH[2]
    given = cases.inputs(T, *cases.HEADS["gqa"], "float32")
    schedule = "usp:2" if schedule == "usp" else schedule
    attend = functools.partial(context_attention, mesh=mesh, schedule=schedule, mask=cases.mask_of("packed", T))
    actual = cases.results(functools.partial(attend, return_lse=True), given)
    cases.assert_close(actual, cases.wanted("packed", T, "gqa", "float32"), RELATIVE["float32"])


def test_bfloat16_is_within_its_roundings():
    T = cases.LENGTH[4]
    q, k, v, *_ = (jnp.asarray(x, jnp.bfloat16) for x in cases.inputs(T, 8, 2, "float32"))
    exact, _ = cases.one_device(*(x.astype(jnp.float32) for x in (q, k, v)), Causal())
    for schedule in ("ring", "token_ring"):
        attend = functools.partial(context_attention, mesh=cases.mesh_of(4), schedule=schedule, mask="causal")
        out = jax.jit(attend)(q, k, v)
        assert out.dtype == jnp.bfloat16
        # A block's result is rounded once (merging averages such errors), the sum of all once more.
        error = jnp.abs(out.astype(jnp.float32) - exact).max()
        assert error <= 2 * float(jnp.finfo(jnp.bfloat16).eps) * float(jnp.abs(v.astype(jnp.float32)).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "rign"}, "schedule='rign' is not known"),
        ({"schedule": "usp:3"}, "use 'usp:1' or 'usp:2' or 'usp:4'"),
        ({"axis": "sequence"}, "use one of 'context'"),
        ({"layout": "zigzag"}, "use 'natural' or 'schedule'"),
        ({"T": 50, "schedule": "ring"}, "use T=52"),
        ({"T": 52, "schedule": "zigzag"}, "use T=56"),
        ({"T": 52, "schedule": "usp"}, "use T=52|multiple"),
        ({"N": 6, "K": 3, "schedule": "ulysses"}, "use 8 heads"),
        ({"N": 6, "K": 4}, "use 4"),
        ({"mask": "causall"}, "did you mean 'causal'"),
        ({"mask": 3}, "mask is a int"),
        ({"schedule": "auto", "layout": "schedule"}, r"use schedule=choose\(...\)"),
    ],
)
def test_refusals_name_what_would_work(change, message):
    given = {"T": 56, "N": 8, "K": 2, "schedule": "ring", "mask": "causal"} | change
    T, N, K = (given.pop(name) for name in ("T", "N", "K"))
    q, k = jnp.zeros((1, T, N, 8)), jnp.zeros((1, T, K, 8))
    if message == "use T=52|multiple":  # 52 = 4 * 13 can be cut for groups of two
        assert context_attention(q, k, k, mesh=cases.mesh_of(4), **given).shape == q.shape
        return
    with pytest.raises(ValueError, match=message):
        context_attention(q, k, k, mesh=cases.mesh_of(4), **given)


def test_auto_takes_what_the_bytes_say():
    def shapes(N, K):
        return (1, 8192, N, 128), (1, 8192, K, 128)

    assert choose(*shapes(32, 32), "full", 8, jnp.bfloat16) == "token_ring"
    assert choose(*shapes(32, 4), "full", 8, jnp.bfloat16) == "ring"
    assert choose(*shapes(32, 32), "causal", 8, jnp.bfloat16) == "token_ring_zigzag"
    assert choose(*shapes(32, 4), "causal", 8, jnp.bfloat16) == "zigzag"
    ids = jax.ShapeDtypeStruct((1, 8192), jnp.int32)
    assert choose(*shapes(32, 4), Causal() & Segments(ids), 8, jnp.bfloat16) == "zigzag"
    assert choose(*shapes(32, 4), Causal() | masks.Prefix(ids), 8, jnp.bfloat16) == "ring"
    assert choose((1, 12, 4, 8), (1, 12, 4, 8), "causal", 4) == "striped"
    why = explain(*shapes(32, 4), "full", 8, jnp.bfloat16)
    assert why.startswith("ring: keys and values move") and "token_ring" in why and "K=4" in why


def test_auto_runs():
    q, k, v, *_ = cases.inputs(cases.LENGTH[2], 8, 1, "float32")
    out = jax.jit(functools.partial(context_attention, mesh=cases.mesh_of(2), schedule="auto", mask="causal"))(q, k, v)
    np.testing.assert_allclose(out, cases.one_device(q, k, v, Causal())[0], atol=4e-6)
