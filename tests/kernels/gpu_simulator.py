"""jax's simulator of a GPU: its memories, copies, barriers and threads on a CPU, with a verdict on races."""

import threading
from typing import Any

import jax
import pytest
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams


@pytest.fixture
def simulator(monkeypatch):
    """What a kernel takes as `interpret`; fresh memory holds NaN. Fails the test where two accesses race."""
    if jax.__version_info__ < (0, 11):  # it compiles a kernel again for each thread of each program
        monkeypatch.setattr(thread_map, "_run_jaxpr", _compiled_once())
    yield InterpretGPUParams(detect_races=True)
    races = gpu_callbacks.get_races().races_found
    gpu_callbacks.reset_gpu_interpret_mode_state()
    assert not races


def _compiled_once() -> Any:
    lock, programs = threading.Lock(), {}

    def run(jaxpr: Any, consts: Any, *args: Any) -> None:
        with lock:
            if jaxpr not in programs:
                program = jax.jit(lambda consts, *args: thread_map.jax_core.eval_jaxpr(jaxpr, consts, *args) and None)
                programs[jaxpr] = program.trace(consts, *args).lower().compile()
        programs[jaxpr](consts, *args)

    return run
