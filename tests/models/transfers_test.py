import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from configs import base
from models import projections, transfers
from models.partition import Partition
from models.spec import Spec

SIDES = ((4, 1, 2), (1, 4, 2))  # Eight devices whose lowest bit lies along another side than the two above it.


def on(ways):
    return Mesh(np.array(jax.devices()[:ways]), ("fsdp",))


@pytest.mark.parametrize(
    ("orders", "dimension", "ways"),
    [(SIDES, 1, 8), (SIDES[:1], 1, 8), (SIDES, 0, 8), (((2, 1), (1, 2)), 0, 4), (((1,),), 1, 2)],
)
def test_it_is_the_gather_and_its_gradient_the_scatter_of_the_sum(orders, dimension, ways, x64):
    """Of whole arrays: the gather is the array itself, its gradient the sum of what all devices hold of it."""
    mesh, rng = on(ways), np.random.default_rng(0)
    x, weights = rng.normal(size=(24, 16)), rng.normal(size=(ways, 24, 16))
    cut = P("fsdp") if dimension == 0 else P(None, "fsdp")

    def local(x, weights):
        whole = transfers.all_gather(x, "fsdp", dimension, orders)
        return whole[None], jnp.sum(whole * weights[0])[None]

    run = jax.shard_map(local, mesh=mesh, in_specs=(cut, P("fsdp")), out_specs=P("fsdp"), check_vma=False)
    gathered, _ = jax.jit(run)(x, weights)
    np.testing.assert_array_equal(gathered, np.broadcast_to(x, (ways, 24, 16)))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x, weights)[1])))(x)
    np.testing.assert_allclose(gradient, weights.sum(0), rtol=0, atol=8 * 8 * 2.0**-53 * np.abs(weights).max())


@pytest.mark.parametrize("shape", [(4, 3, 8), (3, 3, 8), (4, 8)])
def test_a_product_whose_matrix_is_gathered_equals_that_of_one_device(monkeypatch, x64, shape):
    """Both ways a layer's matrices lie, with rows cut over data and fsdp or too few for it: values and gradients."""
    mesh, rng = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp")), np.random.default_rng(0)
    cut = Partition(mesh, (("batch", ("data", "fsdp")), ("embed", ("fsdp",))))
    assert not cut.sends(("embed", "hidden"))  # no TPU
    monkeypatch.setattr(Partition, "sends", lambda self, axes: not self.trivial)
    model = base.get_config().model
    model.update({"width": 8, "dtype": "float64", "param_dtype": "float64"})
    x = rng.normal(size=shape)

    def both(partition):
        spec = Spec.from_config(model.to_dict(), vocab_size=7, partition=partition)
        up, down = (
            projections.Dense(spec, *ends, axes=axes, rngs=nnx.Rngs(0))
            for ends, axes in (((8, 6), ("embed", "hidden")), ((6, 8), ("hidden", "embed")))
        )
        graphdef, params = nnx.split((up, down))

        def loss(params, x):
            up, down = nnx.merge(graphdef, params)
            return jnp.sum(jnp.sin(down(jnp.sin(up(x)))))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    for got, want in zip(*map(jax.tree.leaves, (both(cut), both(Partition()))), strict=True):
        # Sums over devices in another order.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(1, float(np.abs(want).max())))


def test_narrow_gradients_are_added_in_float32():
    """256 + 7 x 1 is 256 where each sum is rounded to bfloat16, and 264 (of 263) where the last one alone is."""
    mesh = on(8)

    def local(x):
        scale = jnp.where(jax.lax.axis_index("fsdp") == 0, 256.0, 1.0).astype(jnp.bfloat16)
        return jnp.sum(transfers.all_gather(x, "fsdp", 0, SIDES) * scale)[None]

    run = jax.shard_map(local, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(run(x))))(jnp.ones(8, jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), 264.0)
