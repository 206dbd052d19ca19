"""FLOPs of a layer of experts, from the lowered program of its sorted form and the trips that its loops make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from kernels.grouped_matmul import tiled
from models.channels import CHANNELS
from models.mixers import Context
from tests.plain.drawn import spec

T, D, F, E, K = 4096, 128, 256, 8, 2


def counted(dispatch):
    """(FLOPs of the lowered program with every loop once, the layer)."""
    made = spec(channel="moe", width=D, dtype="float32", param_dtype="float32",
                moe={"experts": E, "k": K, "hidden": F, "dispatch": dispatch})  # fmt: skip
    layer = CHANNELS["moe"](made, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    context = Context(jnp.arange(T)[None], None, masks.Causal())
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, context)[0])
    return run.lower(state, jax.ShapeDtypeStruct((1, T, D), jnp.float32)).cost_analysis()["flops"], layer


def test_the_sorted_form_computes_the_chosen_experts_and_padding():
    once, layer = counted("sorted")
    x = np.random.default_rng(0).normal(size=(T, D)).astype(np.float32)
    z = x @ np.asarray(layer.router[...])
    sizes = np.bincount(np.argsort(-z, axis=1)[:, :K].ravel(), minlength=E)
    rows = tiled.tile_rows(T * K, E)
    tile = 2 * rows * D * F
    trips = int(np.sum(-(-sizes // rows)))
    ran = once + 3 * (trips - 1) * tile
    told = T * layer.flops()
    assert told == T * 2 * (K * 3 * D * F + D * E)
    # A group's last tile is as long as the others: half a tile each in the mean. Beside the products: activations.
    padding = 3 * (trips * rows - sizes.sum()) * 2 * D * F
    assert 0 < padding < 0.1 * told
    assert ran - padding == pytest.approx(told, rel=0.03)
    assert ran < 0.35 * counted("dense")[0]
