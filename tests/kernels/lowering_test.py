"""One function of several: the one of the platform that is lowered for, and no other is looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.lowering import by_platform


@pytest.fixture
def seen():
    """Which functions were traced."""
    return []


@pytest.fixture
def fn(seen):
    def times(name, factor):
        def run(x, more):
            seen.append(name)
            return {"out": x * factor + more["b"], "sum": x.sum()}

        return run

    by = {"cpu": times("cpu", 2.0), "tpu": times("tpu", 3.0), "default": times("other", 5.0)}
    return lambda x: by_platform(x, {"b": jnp.ones(2), "none": None}, **by)


def test_only_what_is_lowered_is_traced(fn, seen):
    traced = jax.jit(fn).trace(jnp.arange(2.0))
    assert seen == ["cpu"]
    assert "2.0" in traced.lower().as_text() and seen == ["cpu"]
    for platform, factor, name in (("tpu", "3.0", "tpu"), ("cuda", "5.0", "other"), ("rocm", "5.0", "other")):
        assert factor in traced.lower(lowering_platforms=(platform,)).as_text() and seen.pop() == name


def test_several_platforms_of_one_program(fn, seen):
    text = jax.jit(fn).trace(jnp.arange(2.0)).lower(lowering_platforms=("cpu", "tpu", "cuda")).as_text()
    assert all(factor in text for factor in ("2.0", "3.0", "5.0")) and set(seen) == {"cpu", "tpu", "other"}


def test_values_at_once_jitted_mapped_and_cut_over_devices(fn):
    x = jnp.arange(16.0).reshape(8, 2)
    want = {"out": np.asarray(x) * 2 + 1, "sum": np.asarray(x).sum(1)}
    mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
    cut = jax.sharding.PartitionSpec("rows")
    local = jax.shard_map(jax.vmap(fn), mesh=mesh, in_specs=cut, out_specs=cut)
    for run in (jax.vmap(fn), jax.jit(jax.vmap(fn)), local, jax.jit(local), lambda x: jax.lax.map(fn, x)):
        jax.tree.map(np.testing.assert_array_equal, run(x), want)
    jax.tree.map(np.testing.assert_array_equal, fn(x[0]), jax.tree.map(lambda leaf: leaf[0], want))
    twice = jax.vmap(jax.vmap(fn), in_axes=1)(x.reshape(2, 4, 2))
    np.testing.assert_array_equal(twice["sum"], want["sum"].reshape(2, 4).T)


def test_a_sentence_refuses_when_it_is_lowered(seen):
    def call(x):
        return by_platform(x, tpu=lambda x: x + 1, default="runs on tpu only; use another.")

    traced = jax.jit(call).trace(jnp.arange(2.0))
    assert "add" in traced.lower(lowering_platforms=("tpu",)).as_text()
    for refused in (
        lambda: traced.lower(),
        lambda: call(jnp.arange(2.0)),
        lambda: jax.jit(jax.vmap(call))(jnp.ones(2)),
    ):
        with pytest.raises(NotImplementedError, match="runs on tpu only"):
            refused()
