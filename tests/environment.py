"""What the processes of tests run under: compilers in a hurry, one cache of compiled programs, no accelerator."""

import importlib.metadata
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# It outlives the clone, so that the second `make test` on a machine compiles next to nothing.
CACHE = os.environ.get("TESSERA_TEST_CACHE", os.path.expanduser("~/.cache/tessera/tests"))
# Programs run a few times here: what a compiler spends on making them fast is never earned back. LLVM without its
# optimisations, XLA without the fusions that it takes through MLIR: a training step compiles in an eighth of the time.
# On a busy machine eight simulated devices may wait for each other longer than the 40 seconds after which XLA aborts.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_collective_call_terminate_timeout_seconds=600"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # Later ones know no other way and refuse the flag.
    # Neither in parts that are compiled beside each other: that is more work, and both cores have a test of their own.
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# For a program that is worth it: `jax.jit(..., compiler_options=environment.FAST)` where millions are drawn.
FAST = {"xla_backend_optimization_level": 2}
_DEVICES = "--xla_force_host_platform_device_count="


def child() -> dict[str, str]:
    """The environment of a process that a test starts: one CPU device, the compilers of its parent, the same cache."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(_DEVICES)]
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": CACHE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "1",
    }
