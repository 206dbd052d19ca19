"""Mixtures of experts in a training step: every router on every mesh, microbatches, biases."""

import jax
import numpy as np
import pytest

from configs import base
from experiments import preflight
from experiments.program import build, global_batch
from experiments.program.sharding import make_mesh
from models.experts.options import ROUTERS
from tests.experiments.program import program_test
from tests.experiments.program.sharded_test import TOKENIZER, batch
from tests.models.experts.channel_test import OPTIONS

MESHES = {
    "alltoall": {"expert": 2, "fsdp": 2, "tensor": 2},
    "gather": {"data": 2, "expert": 4},
    "sorted": {"context": 2, "tensor": 2, "data": 2},
}
CAUSAL = [name for name, rule in ROUTERS.items() if rule.causal]


def program(mesh=None, accumulation=1, sharding=None, **options):
    made = base.get_config()
    made.sharding.update(sharding or {})
    made.model.update(
        {"width": 32, "num_layers": 2, "num_heads": 4, "vocab_multiple": 4, "channel": "moe", "unroll": 1}
    )
    made.model.moe.update({"hidden": 16, **options})
    made.data.update({"length": 16, "batch_size": 8})
    made.optimizer.update({"clip": 0.0, "eps": 1e-3, "warmup": 0.0, "schedule": "constant"})
    made.train.accumulation = accumulation
    mesh = mesh or {}
    made.mesh.update({"data": 1, **mesh})
    devices = jax.devices()[: int(np.prod(list(mesh.values())) if mesh else 1)]
    return build(made.lock(), vocab_size=TOKENIZER.vocab_size, mesh=make_mesh(made, devices))


def step(made, state):
    placed = jax.device_put(state, made.shardings)
    return jax.device_get(made.train_step()(placed, global_batch(batch(), made)))


def cases():
    for router in CAUSAL:
        for form in MESHES:
            always = (router, form) in (("softmax_after", "gather"), ("group_sigmoid", "alltoall"))
            yield pytest.param(router, form, marks=() if always else pytest.mark.exhaustive)


@pytest.mark.parametrize(("router", "form"), cases())
def test_every_router_means_the_same_on_every_mesh(router, form):
    options = {"experts": 8, **OPTIONS[router]} | ({"zero": 1, "experts": 8} if router == "moepp" else {})
    if "groups" in options:
        options |= {"groups": 4, "kept_groups": 2} if router != "moge" else {"groups": 4}
    here, there = program(**options), program(MESHES[form], **options, dispatch=form)
    state = jax.device_get(here.init())
    program_test.assert_close(step(here, state), step(there, state), 1e-5)


FOLDED = {
    "TP2 CP2 DP2, EP8": {"experts": ("data", "context", "tensor"), "hidden": ()},
    "TP2 CP2 DP2, ETP2 EP4": {"experts": ("context", "tensor"), "hidden": ("data",)},
    "TP4 DP2, ETP2 EP2 EDP2": {"heads": ("tensor", "expert"), "experts": ("expert",), "hidden": ("data",)},
}


@pytest.mark.parametrize(
    "folded", [pytest.param(name, marks=pytest.mark.exhaustive if "EP8" in name else ()) for name in FOLDED]
)
def test_experts_folded_apart_from_attention_train_as_on_one_device(folded):
    """Loss, gradients (in Adam's moments) and one update; shared experts are cut as `hidden` is."""
    third = "expert" if "TP4" in folded else "context"
    options = {"experts": 8, "shared": 1, "router": "softmax_after"}
    here, there = program(**options), program({"data": 2, "tensor": 2, third: 2}, sharding=FOLDED[folded], **options)
    preflight.check(there.config, num_devices=8)
    state = jax.device_get(here.init())
    program_test.assert_close(step(here, state), step(there, state), 1e-5)


def test_microbatches_see_the_load_of_the_step_so_far_and_the_bias_moves_once():
    """A step of four microbatches beside passes over them by hand, each told of the choices of those before it."""
    options = {"router": "sigmoid_bias", "balance_scope": "accumulated", "bias_rate": 0.125}
    made, rows = program(accumulation=4, **options), batch()
    state = jax.device_get(made.init())
    layers = lambda params: params["stack"]["period"]["0_attention"]["channel"]  # noqa: E731

    @jax.jit
    def told(params, before, rows):
        layers(params)["before"] = before
        return made.objective.loss(made.merge(params), rows, jax.random.key(0)).report

    counts, loss, weight = np.zeros((2, 8), np.float32), 0, 0
    for i in range(4):
        report = told(state["params"], counts, {name: array[i::4] for name, array in rows.items()})
        counts = counts + report["load"].total
        loss, weight = loss + report["balance"].total, weight + report["balance"].weight
    after, metrics = step(made, state)
    shares = np.array([[metrics[f"train/layers/load/{i:02}/{e:02}"] for e in range(8)] for i in range(2)])
    np.testing.assert_allclose(shares, counts / counts.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(metrics["train/report/balance"], np.sum(loss) / np.sum(weight), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["train/report/max_violation"], np.mean(counts.max(1) / counts.mean(1) - 1), rtol=1e-5
    )
    moved = layers(after["params"])["bias"]
    np.testing.assert_array_equal(moved, 0.125 * np.sign(counts.mean(1, keepdims=True) - counts))
    assert np.any(moved > 0) and np.any(moved < 0)
    assert np.all(layers(after["params"])["before"] == 0), "what a step counts, it does not keep"
