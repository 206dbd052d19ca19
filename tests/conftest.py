"""Every test sees eight simulated CPU devices, a compilation cache, and no accelerator."""

import functools
import gc
import os

from tests import environment

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {environment.QUICK}"
)
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import pytest

jax.config.update("jax_compilation_cache_dir", environment.CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
# A kernel carries the names of its files: without their folders it is the same program in every clone.
jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
# Where an operation was written, without who called: a twentieth of all that a test takes.
jax.config.update("jax_traceback_in_locations_limit", 1)


@pytest.fixture
def x64():
    """Runs the test with 64-bit types on."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x64_in_threads():
    """64-bit types in every thread: the TPU simulator's threads would not see a context of this one."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def one_device():
    """The tests of a module see one device. Runs over all eight take twice the time, and say no more of most things."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("devices", "local_devices"):
            first = functools.partial(lambda real, *of, **by: real(*of, **by)[:1], getattr(jax, name))
            patch.setattr(jax, name, first)
            patch.setattr(jax, f"{name[:-1]}_count", lambda *of, **by: 1)
        yield


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="also the products of which a sample is always run")


def pytest_collection_finish():
    """What was imported stays: the collector need not walk it again and again (a fifth of all tracing)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(config, items):
    """Leaves out what only a run by name asks for: hours in all, for a machine with time."""
    if config.getoption("--exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]
