"""LoRA against loops in numpy: its product, what it is merged to, and that it alone moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from experiments.program import freezing
from experiments.settings.errors import ConfigError
from models import lora, projections
from models.spec import Spec
from tests.plain import tiny


def drawn(**options):
    """A map of 5 to 7 with adapters, every parameter drawn, and its parameters."""
    config = base.get_config().model
    config.update({"width": 5, "num_heads": 1, "projection": "lora", "dtype": "float64", "param_dtype": "float64"})
    config.lora.update({"rank": 3, "alpha": 5.0, **options})
    spec = Spec.from_config(config.to_dict(), vocab_size=7)
    made = projections.make(spec, 5, 7, axes=("embed", "heads"), bias=True, name="q", rngs=nnx.Rngs(0))
    rng, found = np.random.default_rng(1), {}
    for path, variable in nnx.to_flat_state(nnx.state(made, nnx.Param)):
        found[path[-1]] = rng.normal(size=variable.shape)
        getattr(made, path[-1])[...] = jnp.asarray(found[path[-1]])
    return made, found


@pytest.mark.parametrize("scaling", lora.SCALINGS)
def test_it_is_a_map_and_a_thin_product_beside_it(scaling, x64):
    made, p = drawn(scaling=scaling)
    x = np.random.default_rng(2).normal(size=(2, 3, 5))
    scale = {"rank": 5.0 / 3, "root": 5.0 / np.sqrt(3.0)}[scaling]
    want = np.empty((2, 3, 7))
    for b in range(2):
        for t in range(3):
            for j in range(7):
                thin = sum(
                    sum(x[b, t, i] * p["lora_in"][i, r] for i in range(5)) * p["lora_out"][r, j] for r in range(3)
                )
                want[b, t, j] = sum(x[b, t, i] * p["kernel"][i, j] for i in range(5)) + p["bias"][j] + scale * thin
    np.testing.assert_allclose(made(jnp.asarray(x)), want, rtol=0, atol=1e-13)
    whole = lora.merged(*(jnp.asarray(p[name]) for name in ("kernel", "lora_in", "lora_out")), scale)
    np.testing.assert_allclose(x @ np.asarray(whole) + p["bias"], want, rtol=0, atol=1e-13)


def test_maps_that_are_not_named_are_dense(x64):
    made, found = drawn(maps=("v", "down"))
    assert set(found) == {"kernel", "bias"} and made.keeps_input_alone
    assert set(drawn(maps=("q",))[1]) == {"kernel", "bias", "lora_in", "lora_out"}


def test_it_starts_as_the_map_alone():
    config = base.get_config().model
    config.update({"width": 64, "num_heads": 1, "projection": "lora"})
    spec = Spec.from_config(config.to_dict(), vocab_size=7)
    made = projections.make(spec, 4096, 8, axes=("embed", "heads"), rngs=nnx.Rngs(0))
    assert not made.lora_out[...].any()
    assert abs(float(jnp.std(made.lora_in[...])) * 64 - 1) < 0.05  # 32,768 draws: their deviation is known to 0.4 %.


def test_only_what_is_not_held_moves_and_has_moments(x64):
    config = tiny.config("next_token")
    config.model.projection = "lora"
    config.model.lora.rank = 2
    config.optimizer.update({"freeze": ("*", "!adapter", "!norm"), "ema": 0.5})
    made = tiny.program(config)
    before = made.init()
    after, metrics = jax.jit(made.step)(before, tiny.batch())
    after = jax.jit(made.step)(after, tiny.batch())[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["params"], after["params"])
    wanted = jax.tree.map(lambda role: role in ("adapter", "norm"), made.roles)
    assert moved == wanted and any(jax.tree.leaves(wanted)) and float(metrics["train/grad_norm"]) > 0
    for name in ("params", "ema"):
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before["params"], after[name])
        assert all(s for s, w in zip(jax.tree.leaves(same), jax.tree.leaves(wanted), strict=True) if not w)
    sizes = [leaf.size for leaf in jax.tree.leaves(freezing.trained(made.fixed, before["params"]))]
    assert sum(leaf.size for leaf in jax.tree.leaves(before["optimizer"]) if leaf.ndim) == 2 * sum(sizes)


def test_what_is_held_in_bfloat16_has_no_wide_copy():
    config = tiny.config("next_token", model__param_dtype="bfloat16", model__dtype="float32")
    config.model.projection = "lora"
    config.optimizer.freeze = ("*", "!adapter")
    made = tiny.program(config)
    before = made.init()
    after = jax.jit(made.step)(jax.jit(made.step)(before, tiny.batch())[0], tiny.batch())[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["params"], after["params"])
    assert not any(m and held for m, held in zip(*map(jax.tree.leaves, (moved, made.fixed)), strict=True))
    own = freezing.trained(made.fixed, before["params"])
    wide = jax.tree.map(lambda a, b: bool((a != b).all()), before["master"], after["master"])
    assert all(jax.tree.leaves(wide)) and jax.tree.leaves(moved).count(True)
    assert jax.tree.structure(after["master"]) == jax.tree.structure(own)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(after["master"])} == {"float32"}


def test_gradients_of_what_trains_are_those_of_the_whole_model(x64):
    config = tiny.config("next_token")
    config.optimizer.freeze = ("embedding", "*/channel/*")
    held, free = tiny.program(config), tiny.program(tiny.config("next_token"))
    state = free.init()
    took = jax.jit(free.step)(state, tiny.batch())[0]["optimizer"]
    alone = jax.jit(held.step)(held.begin(state["params"]), tiny.batch())[0]["optimizer"]
    first = [tree[1][0].mu for tree in (took, alone)]  # (1 - b1) times the gradient, clipped by its own norm.
    norms = [np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(tree))) for tree in first]
    some = freezing.trained(held.fixed, first[0])
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(first[1]), strict=True):
        np.testing.assert_allclose(a / norms[0] * norms[1], np.asarray(b) * _share(some, norms[0]), atol=1e-12)


def _share(tree, norm):
    return np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(tree))) / norm


def test_rules_name_parameters_and_the_last_one_counts():
    roles = {
        "embedding": "embedding",
        "stack": {"a": {"kernel": "kernel", "lora_in": "adapter"}, "b": {"bias": "bias"}},
    }
    held = freezing.held(("*", "!stack/a/*", "adapter"), roles)
    assert held == {"embedding": True, "stack": {"a": {"kernel": False, "lora_in": True}, "b": {"bias": True}}}
    some = freezing.trained(held, roles)
    assert some == {"stack": {"a": {"kernel": "kernel"}}}
    assert freezing.whole(held, some, roles) == roles
    assert freezing.trained(freezing.held((), roles), roles) == roles
    with pytest.raises(ConfigError, match=r"optimizer.freeze has 'head', which names no parameter .*'embedding'"):
        freezing.held(("head",), roles)
    with pytest.raises(ConfigError, match="leaves nothing to train"):
        freezing.held(("*",), roles)
