"""What keeps a training step fast on a CPU: matrix products of all tokens at once, little kept for the way back."""

import collections
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from configs import base
from kernels import masks
from models import objectives, projections, rope
from models.channels import through
from models.lm import LM
from models.mixers import MIXERS
from models.partition import Partition
from models.products import against, by_rows, times
from models.spec import Spec

V, B, T, D, F = 19, 3, 20, 24, 40
# Chunks that do not fill the row, so that their remainder is looked at too.
SMALL = {
    "lact": {"chunk_size": 8, "window": 8, "rank": 3, "newton_schulz_steps": 0},
    "ttt_linear": {"mini_batch": 8, "gate": True},
    "ttt_mlp": {"mini_batch": 8},
    "linear_attention": {"chunk_size": 8},
    "gated_delta": {"chunk_size": 8},
}
PARTS = {name: {"mixer": name} for name in MIXERS} | {
    "swiglu": {"channel": "swiglu"},
    "pattention": {"projection": "pattention", "channel": "pattention"},
    "pattention in an MLP": {"projection": "pattention", "pattention": {"tokens": 12, "top_r": 5}},
    "remat": {"remat": "dots"},
    "time and condition": {"time_features": 6, "self_condition": True},
}
OBJECTIVES = ("next_token", "masked_diffusion", "score_entropy", "block_diffusion")


def spec_of(**changes):
    config = base.get_config().model
    config.update({"width": D, "num_layers": 2, "num_heads": 2, **SMALL_OPTIONS, **changes})
    return Spec.from_config(config.to_dict(), vocab_size=V)


SMALL_OPTIONS = {"mlp": {"hidden": F}, **SMALL}


def gradient(spec):
    """(function of parameters and batch, both abstract): the gradient of a loss over the logits of every token."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))))

    def loss(params, batch):
        model = nnx.merge(graphdef, params)
        features = model(
            batch["tokens"], mask=masks.Causal(), time=batch["time"], condition=batch["condition"]
        ).features
        return jnp.sum(jnp.sin(model.logits(features)))

    abstract = {"tokens": ((B, T), jnp.int32), "time": ((B,), jnp.float32), "condition": ((B, T, D), jnp.float32)}
    return jax.grad(loss), params, {name: jax.ShapeDtypeStruct(*kind) for name, kind in abstract.items()}


def products(jaxpr):
    """Every `dot_general` of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner := getattr(inner, "jaxpr", inner), jax.extend.core.Jaxpr):
                    yield from products(inner)


def over_tokens(jaxpr):
    """Products that contract the batch and the sequence of `[B, T, ...]` as two axes."""
    found = []
    for equation in products(jaxpr):
        (left, right), _ = equation.params["dimension_numbers"]
        shapes = [tuple(x.aval.shape[a] for a in axes) for x, axes in zip(equation.invars, (left, right), strict=True)]
        found += [(equation.invars[0].aval.shape, equation.invars[1].aval.shape)] * any(s[:2] == (B, T) for s in shapes)
    return found


def test_the_old_form_is_found():
    """The check below sees what it is there to see: the gradient of a kernel of a three-dimensional product."""
    x, kernel = jnp.ones((B, T, D)), jnp.ones((D, F))
    slow = jax.make_jaxpr(jax.grad(lambda kernel: jnp.sum(jnp.sin(x @ kernel))))(kernel)
    fast = jax.make_jaxpr(jax.grad(lambda kernel: jnp.sum(jnp.sin(by_rows(lambda x: x @ kernel, x)))))(kernel)
    assert len(over_tokens(slow.jaxpr)) == 1 and over_tokens(fast.jaxpr) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_gradient_contracts_batch_and_sequence(part):
    grad, params, batch = gradient(spec_of(**PARTS[part]))
    jaxpr = jax.make_jaxpr(grad)(params, batch).jaxpr
    assert over_tokens(jaxpr) == []
    assert sum(1 for _ in products(jaxpr)) > 10


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_contracts_batch_and_sequence(name):
    options = base.get_config().to_dict().get(name, {})
    goal = objectives.make(name, options, vocab_size=V)
    spec = spec_of()
    graphdef, params = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))))
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "scored": jnp.bool_, "positions": jnp.int32}
    batch = {key: jax.ShapeDtypeStruct((B, T), kind) for key, kind in kinds.items()}

    def loss(params, batch, key):
        batch = goal.corrupt(batch, key)
        return goal.loss(nnx.merge(graphdef, params), batch, key).total

    jaxpr = jax.make_jaxpr(jax.grad(loss))(params, batch, jax.random.key(0)).jaxpr
    assert over_tokens(jaxpr) == []


def test_the_compiled_step_makes_no_transposed_copy_of_all_tokens():
    """XLA's form of the same fault: x `[B, T, D]` written again as `[T, B, D]`, for one side of a gradient."""
    grad, params, batch = gradient(spec_of())
    text = jax.jit(grad).lower(params, batch).compile().as_text()
    shapes = collections.Counter(re.findall(r"f32\[([\d,]+)\]\S* (?:transpose|copy)\(", text))
    assert not [shape for shape in shapes if re.fullmatch(f"{T},{B},({D}|{F}|{V})", shape)], shapes


@pytest.mark.parametrize("shape", [(D,), (T, D), (B, T, D), (2, B, T, D)])
def test_by_rows_is_the_product(shape, x64):
    rng = np.random.default_rng(0)
    x, kernel, back = (rng.normal(size=s) for s in (shape, (D, F), (*shape[:-1], F)))
    y, vjp = jax.vjp(lambda x, kernel: by_rows(lambda x: x @ kernel, x), x, kernel)
    dx, d_kernel = vjp(jnp.asarray(back))
    wanted = (x @ kernel, back @ kernel.T, x.reshape(-1, D).T @ back.reshape(-1, F))
    for got, want in zip((y, dx, d_kernel), wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)  # 60 float64 products of numbers of size 1


@pytest.mark.parametrize(
    ("cut", "joined"), [((), True), (("batch",), True), (("sequence",), False), (("stream",), False)]
)
def test_rows_are_joined_where_no_sequence_is_cut(cut, joined):
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    partition = Partition(mesh, tuple((axis, ("x",)) for axis in cut))
    seen = []
    by_rows(lambda x: seen.append(x.shape) or x, jnp.ones((B, T, D)), partition)
    assert seen == [(B * T, D) if joined else (B, T, D)]


@pytest.mark.parametrize("kind", ["dense", "pattention"])
def test_a_channel_keeps_the_input_of_its_activation_alone(kind):
    """Of `down(gelu(up))` the backward pass gets `up`; with Pattention also its own input and one number a token."""
    spec = spec_of(projection=kind, pattention={"tokens": 12})
    graphdef, params = nnx.split(projections.make(spec, F, D, axes=("hidden", "embed"), rngs=nnx.Rngs(0)))
    apply = lambda params, up: through(jax.nn.gelu, nnx.merge(graphdef, params), up)  # noqa: E731
    up = jax.ShapeDtypeStruct((B, T, F), jnp.float32)
    kept = jax.eval_shape(lambda *args: jax.vjp(apply, *args)[1], params, up)
    wide = [leaf.shape for leaf in jax.tree.leaves(kept) if leaf.size >= B * T * F]
    assert len(wide) == {"dense": 1, "pattention": 2}[kind], wide


def test_a_recomputed_activation_has_the_gradient_of_the_plain_one(x64):
    """float64, two gates: against the derivative of silu(a) b by hand."""
    spec = spec_of(dtype="float64", param_dtype="float64")
    down = projections.make(spec, F, D, axes=("hidden", "embed"), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    gate, up, back = rng.normal(size=(B, T, F)), rng.normal(size=(B, T, F)), rng.normal(size=(B, T, D))
    y, vjp = jax.vjp(lambda gate, up: through(lambda a, b: jax.nn.silu(a) * b, down, gate, up), gate, up)
    d_gate, d_up = vjp(jnp.asarray(back))
    kernel, sigmoid = np.asarray(down.kernel[...]), 1 / (1 + np.exp(-gate))
    hidden = back @ kernel.T
    np.testing.assert_allclose(y, (gate * sigmoid * up) @ kernel, rtol=0, atol=1e-13)
    np.testing.assert_allclose(d_up, hidden * gate * sigmoid, rtol=0, atol=1e-13)
    np.testing.assert_allclose(d_gate, hidden * up * sigmoid * (1 + gate * (1 - sigmoid)), rtol=0, atol=1e-13)


def test_cos_and_sin_are_computed_once_a_pass():
    """However many layers, heads and passes read them; XLA would evaluate them in each loop that does."""
    grad, params, batch = gradient(spec_of(num_layers=4))
    text = jax.jit(grad).lower(params, batch).compile().as_text()
    assert 1 <= len(re.findall(r"cosine\(|call\([^)]*\).*cosine", text)) <= 2  # `sin` of the loss has a `cosine`, too


def test_rotation_by_hand(x64):
    """Pairs (i, i + R/2) turn by position * theta^(-2i/R); what is beyond R stays."""
    rng = np.random.default_rng(2)
    x, positions = rng.normal(size=(2, 5, 3, 10)), rng.integers(0, 4000, (2, 5))
    got, R = rope.rotate(jnp.asarray(x), jnp.asarray(positions), theta=500.0, fraction=0.8), 8
    angle = positions[:, :, None, None] * 500.0 ** (-np.arange(0, R, 2) / R)
    turned = (x[..., :4] + 1j * x[..., 4:8]) * np.exp(1j * angle)
    wanted = np.concatenate([turned.real, turned.imag, x[..., 8:]], -1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-11)  # angles up to 4000, so 4000 eps of float64 in each
    along = rng.normal(size=(2, 1, 6, 10))  # two heads of it for each of x
    kw = {"theta": 500.0, "fraction": 0.8, "along": jnp.asarray(along)}
    products = rope.rotate(jnp.asarray(x), jnp.asarray(positions), **kw)
    assert products.shape == (2, 5, 6, 6)  # four pairs and two numbers that stay
    np.testing.assert_allclose(products.sum(-1), (wanted.repeat(2, 2) * along).sum(-1), rtol=0, atol=1e-10)
    products = rope.rotate(jnp.asarray(x), jnp.asarray(positions), **(kw | {"fraction": 0.0}))
    np.testing.assert_allclose(products, x.repeat(2, 2) * along, rtol=0, atol=1e-15)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 9])
def test_few_rows_are_products_like_many(rows):
    """Values and gradients beside numpy in float64, whatever the number of rows and how a CPU reads the matrix."""
    rng = np.random.default_rng(rows)
    x, kernel, way = (rng.normal(size=shape) for shape in ((rows, D), (D, F), (rows, F)))
    for product, matrix in ((times, kernel), (against, kernel.T)):
        run = jax.jit(lambda x, w, product=product: jnp.sum(product(x, w) * way.astype(np.float32)))
        made = jax.jit(product)(x.astype(np.float32), matrix.astype(np.float32))
        dx, dw = jax.grad(run, (0, 1))(x.astype(np.float32), matrix.astype(np.float32))
        inner = way.T @ x if product is against else x.T @ way
        for found, exact, terms in ((made, x @ kernel, D), (dx, way @ kernel.T, F), (dw, inner, rows)):
            # A float32 sum of so many products of numbers within 5.
            np.testing.assert_allclose(found, exact, rtol=0, atol=terms * 25 * 2.0**-24 * terms)


def test_two_rows_on_a_cpu_are_two_products():
    """And a vocabulary stands at the left, where it is read as it lies."""
    x, kernel = np.ones((2, D), np.float32), np.ones((D, F), np.float32)
    rows = jax.jit(times).lower(x, kernel).compile().as_text()
    assert not re.search(rf"f32\[2,{F}\]\S* dot\(", rows) and f"f32[1,{F}]" in rows
    columns = jax.jit(against).lower(x, kernel.T).compile().as_text()
    assert re.search(rf"f32\[{F},4\]\S* dot\(", columns)
