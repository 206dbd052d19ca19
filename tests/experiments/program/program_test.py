"""The training step means the same thing however it is cut: into microbatches, over devices, by any optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import transformer
from experiments.program import build, compiling, counting, global_batch, optimizers
from experiments.program.sharding import make_mesh, mesh_shape, spec
from experiments.settings import smoke

V, B, T = 64, 32, 16


def config(**changes):
    made = smoke.shrink(transformer.get_config("tiny"))
    made.data.batch_size, made.data.length = B, T
    made.train.steps, made.optimizer.warmup, made.optimizer.schedule = 10, 0.0, "constant"
    for key, value in changes.items():
        *groups, name = key.split("__")
        at = made
        for group in groups:
            at = at[group]
        at[name] = value
    return made.lock()


def program(devices=1, **changes):
    made = config(**changes)
    return build(made, vocab_size=V, mesh=make_mesh(made, jax.devices()[:devices]))


def batches(count):
    """Packed rows with very unequal numbers of valid targets."""
    for i in range(count):
        rng = np.random.default_rng(i)
        tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
        cut = rng.integers(1, T, (B, 1))
        at = np.arange(T)[None]
        yield {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "scored": (rng.random((B, T)) < rng.random((B, 1)) ** 3) & (at != cut - 1),
            "positions": np.where(at < cut, at, at - cut).astype(np.int32),
            "segment_ids": np.where(at < cut, 1, 2).astype(np.int32),
        }


def run(program, steps):
    state, step, metrics = program.init(), program.train_step(), []
    for batch in batches(steps):
        state, m = step(state, global_batch(batch, program))
        metrics.append(jax.device_get(m))
    return jax.device_get(state), metrics


def assert_close(a, b, tolerance):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.abs(x - y).max() <= tolerance * max(1.0, np.abs(x).max()), jax.tree_util.keystr(path)


def test_accumulation_of_four_equals_one_batch_with_unequal_masks():
    """Adam hides scale, so gradients are compared: sgd-like state after one step is in the first moment."""
    whole, w = run(program(), 1)
    parts, p = run(program(train__accumulation=4), 1)
    assert_close(whole["optimizer"], parts["optimizer"], 1e-6)
    for name in w[0]:
        np.testing.assert_allclose(w[0][name], p[0][name], rtol=1e-6)


def test_sharded_equals_one_device_after_ten_steps():
    """One step of every model on every mesh is in sharded_test.py."""
    # Epsilon keeps Adam's division away from gradients that are zero but for rounding.
    one, alone = run(program(1, optimizer__eps=1e-3), 10)
    made = program(4, optimizer__eps=1e-3, mesh__data=2, mesh__fsdp=2)
    state, metrics = run(made, 10)
    assert_close(one, state, 1e-5)
    for a, b in zip(alone, metrics, strict=True):
        np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-5)
    kernel = made.shardings["params"]["stack"]["period"]["0_attention"]["channel"]["up"]["kernel"]
    assert not kernel.is_fully_replicated
    moment = jax.tree.leaves(made.shardings["optimizer"], is_leaf=lambda s: hasattr(s, "spec"))
    assert any(s.spec == kernel.spec for s in moment), "moments lie as their parameters do"


def test_parameters_are_created_sharded():
    made = program(8, mesh__data=1, mesh__fsdp=8)
    state = made.init()
    kernel = state["params"]["stack"]["period"]["0_attention"]["channel"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size
    one = program(1).init()
    assert_close(jax.device_get(one), jax.device_get(state), 0)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_every_optimizer_learns_and_decays_only_what_it_should(name):
    made = program(optimizer__name=name, optimizer__learning_rate=1e-2, optimizer__weight_decay=0.0)
    state, step = made.init(), made.train_step()
    batch = global_batch(next(batches(1)), made)
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    assert losses[-1] < losses[0] - 0.3, losses
    jax.block_until_ready(made.evaluation_params(state))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_weight_decay_touches_kernels_and_not_norms(name):
    """With zero gradients only decay moves a parameter."""
    made = program(optimizer__name=name, optimizer__learning_rate=0.1, optimizer__weight_decay=0.5)
    params = made.init()["params"]
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = made.optimizer.update(zero, made.optimizer.init(params), params)
    moved = jax.tree.map(lambda u: bool(jnp.any(u != 0)), updates)
    for moves, role in zip(jax.tree.leaves(moved), jax.tree.leaves(made.roles), strict=True):
        assert moves == (role in ("kernel", "embedding")), role


def test_a_mesh_that_does_not_fit_names_one_that_does():
    mesh = {"data": 3, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1}
    with pytest.raises(ValueError, match="data=3 needs 3 devices and 8 are here; use e.g. mesh.data=-1"):
        mesh_shape(mesh, 8)
    assert mesh_shape({**mesh, "data": -1, "fsdp": 4}, 8)["data"] == 2
    with pytest.raises(ValueError, match="only one axis"):
        mesh_shape({**mesh, "data": -1, "fsdp": -1}, 8)


def test_one_mesh_axis_never_cuts_two_dimensions():
    made = config(mesh__data=1, mesh__fsdp=8)
    mesh = make_mesh(made)
    rules = {"embed": ("fsdp",), "hidden": ("fsdp",)}
    with pytest.raises(ValueError, match="sharding.hidden: mesh axis 'fsdp' already cuts 'embed'"):
        spec(("embed", "hidden"), (64, 64), rules, mesh)
    with pytest.raises(ValueError, match="sharding.embed: 12 does not divide over 8"):
        spec(("embed",), (12,), rules, mesh)


def test_counts_equal_the_formulas():
    made = program()
    D, L, F, N, H = 32, 2, 64, 2, 16
    per_layer = 4 * D * N * H + 2 * D * F
    assert made.config.model.mlp.hidden in (0, F)
    F = made.config.model.mlp.hidden or 4 * D
    per_layer = 4 * D * N * H + 2 * D * F
    assert counting.parameters(made) == {
        "total": V * D + L * (per_layer + 2 * D) + D,
        "embedding": V * D,
        "non_embedding": L * (per_layer + 2 * D) + D,
    }
    flops = counting.flops_per_token(made)
    assert flops["matmul"] == 6 * (L * per_layer + V * D)
    # Causal: a token sees (T + 1) / 2 keys on average, 4 N H FLOPs each, forward and twice that backward.
    np.testing.assert_allclose(flops["context"], 3 * L * 4 * N * H * (T + 1) / 2)
    assert counting.memory(made)["state"] == 4 * (3 * counting.parameters(made)["total"]) + 4 + 8 + 4 + 4


def test_programs_on_a_cpu_are_compiled_quickly_unless_the_user_says_how(monkeypatch):
    made = program()
    assert made.jit(jnp.sin)(1.0) == jnp.sin(1.0) and compiling.options(made.mesh) == {}  # The suite's own flag.
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    assert compiling.options(made.mesh) == {"xla_backend_optimization_level": 2}
    assert compiling.options(made.mesh).items() <= compiling.step_options(made.mesh).items()
    monkeypatch.setattr(jax, "jit", lambda fn, **options: options)
    assert made.jit(jnp.sin, static_argnums=0) == {
        "compiler_options": compiling.options(made.mesh),
        "static_argnums": 0,
    }


def test_a_step_on_a_cpu_is_ordered_for_memory():
    """The compiler's own order computes early what is needed late: it needs more room for the same step."""
    made = program(model__num_layers=4, model__unroll=4)
    batch = global_batch(next(batches(1)), made)
    found = [
        jax.jit(made.step, compiler_options=options).lower(made.abstract, batch).compile().memory_analysis()
        for options in (compiling.step_options(made.mesh), {})
    ]
    assert found[0].temp_size_in_bytes < 0.95 * found[1].temp_size_in_bytes
