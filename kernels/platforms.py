"""Where a kernel runs: compiling and lowering for chips that are not here, and the simulator's race verdict.

A kernel is chosen by the platform that the program is LOWERED for (`kernels.lowering.by_platform`), never by the
default device of the process, so these helpers see exactly the kernels that a real machine would run.
"""

import contextlib
import functools
import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax

# libtpu probes for a real chip and its hosts, and allows one process; none applies when it is only a compiler.
COMPILER_ONLY = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
}  # fmt: skip
TPU_TOPOLOGIES = {"v5e": "v5e:1x1", "v5p": "v5p:1x1x1", "v6e": "v6e:1x1", "tpu7x": "tpu7x:1x1x1"}


@functools.cache
def tpu_device(generation: str) -> Any:
    """One described (not present) TPU chip of `generation`: v5e, v5p, v6e or tpu7x. Needs the libtpu package."""
    if generation not in TPU_TOPOLOGIES:
        raise ValueError(f"generation={generation!r} is not a TPU generation; use one of {sorted(TPU_TOPOLOGIES)}.")
    return tpu_devices(TPU_TOPOLOGIES[generation], chips_per_host_bounds=[1, 1, 1])[0]


def tpu_devices(topology: str, **options: Any) -> list[Any]:
    """The described (not present) devices of a TPU such as "v5e:4x4", in the order of the topology.

    Raises whatever jax and the libtpu package raise when there is no such shape, or no libtpu.
    """
    for key, value in COMPILER_ONLY.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    if topology.startswith("v4:"):  # Its two cores are one device, as jax runs it.
        options = {"chip_config_name": "megacore", **options}
    return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)


def compile_for_tpu(fn: Callable, *shapes: Any, generation: str = "v5e") -> Any:
    """Compiles `fn` with the real TPU compiler for one chip of `generation`, with no TPU present.

    `shapes` are pytrees of `jax.ShapeDtypeStruct`. Returns the compiled program (`as_text()`, `memory_analysis()`).
    Raises whatever the compiler raises, e.g. RESOURCE_EXHAUSTED when the program does not fit the chip.
    """
    return compile_described(trace_for_tpu(fn, *shapes, generation=generation))


def trace_for_tpu(fn: Callable, *shapes: Any, generation: str = "v5e") -> Any:
    """What `compile_for_tpu` compiles: `fn` traced for one described chip, as `jax.jit(fn).trace` gives it."""
    sharding = jax.sharding.SingleDeviceSharding(tpu_device(generation))
    placed = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)
    return jax.jit(fn).trace(*placed)


def compile_described(traced: Any) -> Any:
    """Compiles what `jax.jit(...).trace(...)` made for devices of `tpu_devices`."""
    lowered = traced.lower(lowering_platforms=("tpu",))
    with warnings.catch_warnings():  # A program compiled for a machine that is not here cannot be read from the cache.
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        return lowered.compile()


def lower_for_cuda(fn: Callable, *shapes: Any) -> str:
    """Lowers `fn` for CUDA with no GPU present and returns the StableHLO text (kernels appear as custom calls)."""
    with _described_gpu():
        return jax.jit(fn).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


@contextlib.contextmanager
def _described_gpu():
    """Newer jax wants to know which GPU it lowers for; an H100 is described where the API for it exists."""
    abstract_device = getattr(jax.sharding, "AbstractDevice", None)
    if jax.__version_info__ < (0, 11) or abstract_device is None:
        yield
        return
    described = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132}
    if "platform" in inspect.signature(abstract_device).parameters:  # from jax 0.12 on
        described["platform"] = "gpu"
    device = abstract_device(**described)
    auto = (jax.sharding.AxisType.Auto,)  # Of explicit axes each array would carry a sharding, which kernels lose.
    mesh = jax.sharding.AbstractMesh((1,), ("described",), axis_types=auto, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def races_found() -> bool:
    """Whether the last TPU-simulator run with `detect_races=True` saw a race (newer jax raises by itself)."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    verdict = interpret_pallas_call.races
    return bool(verdict is not None and verdict.races_found)
