"""Attention kernels that send by remote copies: simulated, with a race detector, and compiled by the TPU compiler."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kernels import platforms
from kernels.context_attention import context_attention, dispatch, exchange_of, from_layout, to_layout, tpu_remote
from kernels.context_attention.placement import whole
from kernels.masks import Causal, Full, Segments, Window
from tests.kernels.attention_cases import segment_ids
from tests.kernels.context_attention_cases import assert_close, inputs, mesh_of, one_device, results

N, K = 2, 1
REMOTE = "pallas_tpu_remote"


def mask_of(name: str, T: int):
    return {
        "causal": lambda: Causal(),
        "full": lambda: Full(),
        "window": lambda: Window(T // 5, T // 9),  # with a step in the middle at which nobody sees anything
        "packed": lambda: Causal() & Segments(segment_ids(2, T)),
    }[name]()


def simulated(schedule: str, P: int, mask, T: int, mode: str = "on_wait"):
    """attend(q, k, v) -> (out, lse) of arrays in sequence order, the kernels being run by the simulator."""
    exchange = exchange_of(schedule, P)
    simulator = pltpu.InterpretParams(detect_races=True, dma_execution_mode=mode)
    options = dispatch.CallOptions(mesh_of(P), "context", exchange, T, K, 0.25, (), (), True, True, simulator)

    def attend(q, k, v):
        q, k, v = (to_layout(x, P, schedule) for x in (q, k, v))
        out, lse = dispatch.attend(options, q, k, v, whole(mask, T, lambda x, axis: x))
        return from_layout(out, P, schedule), from_layout(lse, P, schedule, 2)

    return attend


@pytest.mark.parametrize(
    "schedule, P, mask, mode",
    [
        ("ring", 4, "causal", "on_wait"),
        ("ring", 4, "window", "eager"),
        ("striped", 2, "packed", "on_wait"),
        ("token_ring", 4, "full", "eager"),
        ("token_ring", 4, "causal", "on_wait"),
        ("token_ring", 4, "packed", "eager"),
        # All of the process's devices: no thread is left over, and on few cores the simulator can stand still.
        pytest.param("token_ring", 8, "window", "on_wait", marks=pytest.mark.exhaustive),
    ],
)
def test_simulated_copies_give_what_one_device_gives_and_do_not_race(schedule, P, mask, mode):
    T = 40 * P
    seen, given = mask_of(mask, T), inputs(T, N, K, np.float32)
    found = jax.jit(simulated(schedule, P, seen, T, mode))(*given[:3])
    assert not platforms.races_found()
    expected = one_device(*given[:3], mask=seen)
    assert_close(dict(zip(("out", "lse"), found, strict=True)), dict(zip(("out", "lse"), expected, strict=True)), 2e-6)


def test_gradients_follow_from_what_the_kernels_kept():
    P, T = 2, 80
    given = inputs(T, N, K, np.float32)
    expected = results(functools.partial(one_device, mask=Causal()), given)
    assert_close(results(simulated("token_ring", P, Causal(), T), given), expected, 2e-6)


def test_a_copy_that_nobody_waits_for_is_caught(monkeypatch):
    """The test of the tests above: with no wait for what comes the simulator sees a race, or reads fresh memory."""
    P, T = 2, 80
    around = tpu_remote.Beside.around

    def hasty(self, kernel, num_in, num_out):
        return around(self._replace(finish=lambda *_: None), kernel, num_in, num_out)

    monkeypatch.setattr(tpu_remote.Beside, "around", hasty)
    q, k, v = inputs(T, N, K, np.float32)[:3]
    try:
        out, _ = jax.jit(simulated("ring", P, Full(), T))(q, k, v)
        caught = platforms.races_found() or not np.isfinite(out).all()
    except Exception:  # Newer jax raises what the detector sees, as what it likes.
        caught = True
    pltpu.reset_tpu_interpret_mode_state()
    assert caught


@pytest.mark.parametrize("schedule, topology, mask", [("ring", "v5e:2x2", "causal"), ("token_ring", "v5e:2x4", "full")])
def test_the_tpu_compiler_takes_the_kernels_and_nothing_else_moves(schedule, topology, mask):
    """One kernel a step that sends, one that does not; TokenRing's last results (two arrays) go home by permutes."""
    mesh = Mesh(np.array(platforms.tpu_devices(topology)), ("context",))
    P = mesh.size
    cut = NamedSharding(mesh, PartitionSpec(None, "context"))
    q, k = (jax.ShapeDtypeStruct((1, 256 * P, n, 128), jnp.bfloat16, sharding=cut) for n in (4, 2))
    attend = functools.partial(
        context_attention, mesh=mesh, schedule=schedule, mask=mask, layout="schedule", implementation=REMOTE
    )
    text = platforms.compile_described(jax.jit(attend).trace(q, k, k)).as_text()
    kernels = re.findall(r'custom_call_target="tpu_custom_call"', text)
    assert len(kernels) == P
    permutes = re.findall(r" collective-permute(?:-start)?\(", text)
    assert len(permutes) == (2 if schedule == "token_ring" else 0)
    assert not re.search(r" (all-gather|all-to-all|all-reduce)", text)


def test_it_is_refused_with_a_reason_where_it_cannot_run():
    x = jnp.zeros((1, 64, 2, 16))
    call = functools.partial(context_attention, mesh=mesh_of(2), mask="causal", implementation=REMOTE)
    with pytest.raises(NotImplementedError, match="runs on tpu only; use implementation=None"):
        jax.jit(functools.partial(call, schedule="ring"))(x, x, x)
    with pytest.raises(NotImplementedError, match="use schedule='ring', 'striped' or 'token_ring'"):
        call(x, x, x, schedule="zigzag")
    with pytest.raises(NotImplementedError, match="bfloat16 or float32, not float16"):
        call(*(x.astype(jnp.float16),) * 3, schedule="ring")
    with pytest.raises(ValueError, match="implementation='dma' is not known"):
        context_attention(x, x, x, mesh=mesh_of(2), mask="causal", schedule="ring", implementation="dma")
