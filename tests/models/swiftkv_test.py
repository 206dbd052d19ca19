"""SwiftKV: values against plain loops, what a prompt costs, how it starts from a trained model, what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models import kinds, rewiring, swiftkv
from models.mixers.memory import Memory, Policy
from models.objectives.swiftkv import SwiftKV
from tests.experiments.program.step_values_test import drawn as drawn_params
from tests.experiments.program.step_values_test import numpy
from tests.models.values.distillation_test import assert_slope, descended, told
from tests.plain import layers, rewired, tiny
from tests.plain.drawn import drawn, spec

V, N, K, H, T = 11, 4, 2, 4, 9
SIZES = {"width": 16, "num_heads": N, "num_kv_heads": K, "head_dim": H}


def made(first, share, L=5, **changes):
    return spec(V, **SIZES, num_layers=L, kind="swiftkv", swiftkv={"layer": first, "share": share}, **changes)


def build(first, share, L=5, **changes):
    return drawn(lambda rngs: kinds.make(made(first, share, L, **changes), rngs=rngs))


def ids(rows=1, length=T):
    return np.random.default_rng(3).integers(0, V, (rows, length)).astype(np.int32)


@pytest.mark.parametrize(
    ("first", "share", "changes"),
    [(2, 1, {}), (1, 2, {"attention": {"qk_norm": True}}), (3, 2, {"unroll": 8, "attention": {"qkv_bias": True}}),
     (5, 1, {})],
)  # fmt: skip
def test_values_are_those_of_plain_loops(x64, first, share, changes):
    """Features and the stream after each layer, with grouped heads."""
    run, p = build(first, share, **changes)
    x = ids()
    call = lambda model, x: model(x, mask=masks.Causal(), taps=("residual",))  # noqa: E731
    got = run(call, x)
    want, streams = rewired.model(p, x[0], N=N, K=K, H=H)
    np.testing.assert_allclose(got.features[0], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.report["residual"][:, 0], streams, rtol=0, atol=1e-11)


@pytest.mark.parametrize("share", [1, 2])
def test_prompts_and_steps_are_the_whole(x64, share):
    """A prompt and steps, drafts in a tree, and edits of one layer: the features of one pass over the text."""
    run, _ = build(1, share)
    x = ids(2)
    edit = {"layers": {"v": jnp.arange(5.0)}, "edits": {"mixer": lambda y, own: y * own["v"]}}

    def stepped(model, x):
        model = model.for_decoding()
        state, out = model.init_state(2, T), []
        assert len(state["layers"]) == 1 + 4 // share
        for at in ((0, 1, 2, 3), (4,), (5, 6), (7,), (8,)):
            told = {"positions": jnp.asarray([at]), "state": state, "fresh": at[0] == 0, **edit}
            made = model(x[:, jnp.asarray(at)], mask=masks.Causal(), **told)
            state, out = made.state, [*out, made.features]
        return jnp.concatenate(out, axis=1)

    whole = run(lambda model, x: model(x, mask=masks.Causal(), **edit).features, x)
    np.testing.assert_allclose(run(stepped, x), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [1, 2])
def test_a_prompt_whose_features_nobody_reads_passes_the_first_layers_alone(share):
    """FLOPs of the compiled program are those of the first layers and of keys and values, by the plain formula."""
    L, first, length, F = 4, 2, 64, 4 * 128
    sizes = {"width": 128, "num_heads": 4, "num_kv_heads": 2, "dtype": "float32", "param_dtype": "float32"}
    kind = {"kind": "swiftkv", "swiftkv": {"layer": first, "share": share}}
    # One matrix more makes the channel one of three, as the formula has it.
    flops = []
    for changes in ({"kind": "lm"}, kind):
        own = spec(V, num_layers=L, channel="swiglu", swiglu={"hidden": F}, unroll=4, **(sizes | changes))
        model = nnx.eval_shape(lambda own=own: kinds.make(own, rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(model)

        def read(params, x, graphdef=graphdef):
            model = nnx.merge(graphdef, params).for_decoding()
            state = model.init_state(1, length)
            at = jnp.arange(length)[None]
            return model(x, mask=masks.Causal(), positions=at, state=state, fresh=True).state

        shape = jax.ShapeDtypeStruct((1, length), jnp.int32)
        flops.append(jax.jit(read).lower(params, shape).compile().cost_analysis()["flops"] / length)
    D = 128
    kv, rest = 2 * 2 * D * 64, 2 * (2 * D * D + 3 * D * F)
    scores = 4 * D * length  # all pairs: the kernel of a CPU hides those that a mask forbids.
    # The last layer of the whole model is not read either, beyond its keys and values.
    whole = (L - 1) * (kv + rest + scores) + kv
    mine = (first - 1) * (kv + rest + scores) + (rest + kv + scores) + (L - first) // share * kv
    assert flops[0] == pytest.approx(whole, rel=0.06) and flops[1] == pytest.approx(mine, rel=0.06)
    formula = swiftkv.prefill_fraction(L, first, width=D, heads=4, head_width=32, hidden=F, kv=2, group=share)
    assert formula == pytest.approx((first * (kv + rest) + (L - first) // share * kv) / (L * (kv + rest)), rel=1e-12)


def test_caches_are_one_a_group_and_any_policy_keeps_them(x64):
    run, _ = build(1, 2)
    options = (("budget", 4.0), ("recent", 2.0))

    def state(model, x):
        model = model.for_decoding()
        state = model.init_state(1, T, Policy("h2o", options))
        for at in range(T):
            told = {"positions": jnp.full((1, 1), at), "state": state}
            state = model(x[:, at : at + 1], mask=masks.Causal(), **told).state
        return state["layers"]

    memories = jax.tree.leaves(run(state, ids()), is_leaf=lambda x: isinstance(x, Memory))
    assert len(memories) == 3
    for memory in memories:
        for held in memory.position.reshape(-1, memory.position.shape[-1]):
            kept = held[held >= 0].tolist()
            assert len(kept) == 4 and len({*kept}) == 4, "each token once"


def plain_start(p, first, share, L):
    """The parameters of the rewired model by loops over layers."""
    block = p["stack"]["period"]["0_attention"]
    take = lambda tree, rows: jax.tree.map(lambda x: np.stack([x[i] for i in rows]), tree)  # noqa: E731
    groups = [list(range(i, i + share)) for i in range(first, L, share)]
    mean = lambda x: np.stack([sum(x[i] for i in group) / share for group in groups])  # noqa: E731
    late = {"keys": jax.tree.map(mean, {name: block["mixer"][name] for name in ("k", "v", "k_norm")})}
    for i in range(share):
        own = take(block, [group[i] for group in groups])
        own["mixer"] = {name: own["mixer"][name] for name in ("q", "out", "q_norm")}
        late[f"{i}_attention"] = own
    norm = jax.tree.map(lambda x: x[first], block["mixer_norm"])
    return p | {"stack": {"period": take(p["stack"]["period"], range(first)), "late": late, "norm": norm}}


@pytest.mark.parametrize(("first", "share"), [(3, 1), (1, 2), (1, 4)])
def test_a_trained_model_is_rewired(x64, first, share):
    """q, o and channels as they were, k and v the mean of each group, one norm; the names are those of the new kind."""
    changes = {"num_layers": 5, "attention": {"qk_norm": True}}
    old = spec(V, **SIZES, **changes)
    _, p = drawn(lambda rngs: kinds.make(old, rngs=rngs))
    new = made(first, share, attention={"qk_norm": True})
    got, want = rewiring.rewired(p, old, new), plain_start(p, first, share, 5)
    born = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: kinds.make(new, rngs=nnx.Rngs(0))), nnx.Param))
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, born)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-15), got, want)
    whole = rewiring.rewired(p, old, made(5, 1, attention={"qk_norm": True}))
    jax.tree.map(np.testing.assert_array_equal, whole, p)


def test_what_a_model_cannot_start_from_is_a_sentence():
    old = spec(V, **SIZES, num_layers=4)
    wider = spec(V, **(SIZES | {"width": 32}), num_layers=4)
    tokens = {"projection": "pattention", "pattention": {"tokens": 4}}
    parts = spec(V, **SIZES, num_layers=4, **tokens)
    for before, after, words in (
        (old, old, "model.kind='lm' from 'lm'"),
        (wider, made(2, 1, 4), "model.width=16 was 32; rewiring changes model.kind alone, use model.width=32"),
        (parts, made(2, 2, 4, **tokens), "model.swiftkv.share=2 takes the mean .* use model.swiftkv.share=1"),
    ):
        with pytest.raises(ValueError, match=words):
            rewiring.rewired({}, before, after)
    assert not list(rewiring.problems(parts, made(2, 1, 4, **tokens)))
    for first, share, words in (
        (5, 1, "model.swiftkv.layer=5 is not a layer of model.num_layers=4; use model.swiftkv.layer=2"),
        (1, 2, "model.swiftkv.share=2 does not divide the 3 layers behind layer 1; use model.swiftkv.share=1"),
    ):
        with pytest.raises(ValueError, match=words):
            kinds.make(made(first, share, 4), rngs=nnx.Rngs(0))


W, S, C, Z = 0.7, 1.7, 0.6, 0.01


def distilled(p, q, b, released):
    """Sums over a batch of the loss, of nll, of the divergence and of the distance of the scored tokens."""
    sums, all_distance = np.zeros(3), 0.0
    for row in range(len(b["tokens"])):
        own = {"N": tiny.N, "K": tiny.N, "H": tiny.H, **told(b, row)}
        (f, h), (g, taught) = (rewired.model(x, b["tokens"][row], **own) for x in (p, q))
        z, u = layers.logits(p, f), layers.logits(q, g)
        distance = ((h[-2] - taught[-2]) ** 2).mean(-1)
        all_distance += distance[b["segment_ids"][row] > 0].sum()
        for t in np.flatnonzero(b["scored"][row]):
            log_z = np.log(np.exp(z[t]).sum())
            nll = log_z - z[t, b["targets"][row, t]]
            soft, hard = np.exp(u[t, : tiny.V] / S), np.exp(z[t, : tiny.V] / S)
            soft, hard = soft / soft.sum(), hard / hard.sum()
            kl = (soft * np.log(soft / hard)).sum()
            sums += [(1 - W) * nll + W * S * S * kl + Z * log_z**2, kl, distance[t]]
    scored, everywhere = b["scored"].sum(), (b["segment_ids"] > 0).sum()
    if released:
        return (sums[0] + C * all_distance) / everywhere, sums[1] / scored, sums[2] / scored
    return (sums[0] + C * sums[2]) / scored, sums[1] / scored, sums[2] / scored


@pytest.mark.parametrize("released", [False, True])
def test_a_step_of_its_distillation(x64, released):
    """Loss, divergence, distance and gradient of a batch in two pieces, written out in numpy."""
    options = {"weight": W, "temperature": S, "hidden": C, "released": released}
    model = {"kind": "swiftkv", "num_layers": 3, "swiftkv": {"layer": 1, "share": 2}}
    student = tiny.program(tiny.config("swiftkv", swiftkv=options, model=model, loss__z_loss=Z, train__accumulation=2))
    teacher = tiny.program(tiny.config(model__num_layers=3))
    student = dataclasses.replace(student, companions={"teacher": teacher})
    batch, params, taught = tiny.batch(), drawn_params(student), drawn_params(teacher)
    metrics, gradient = descended(student, params, batch, {"teacher": taught})
    p, q = numpy(params), numpy(taught)
    names = ("train/loss", "train/kl", "train/hidden")
    np.testing.assert_allclose([float(metrics[name]) for name in names], distilled(p, q, batch, released), rtol=1e-6)
    assert_slope(lambda p: distilled(p, q, batch, released)[0], p, gradient)


def test_the_objective_is_the_plain_function_where_all_is_one(x64):
    """Means over all tokens of one row, as `swiftkv.distillation` takes them."""
    options = {"temperature": S, "hidden": C, "released": True}
    model = {"kind": "swiftkv", "num_layers": 2, "swiftkv": {"layer": 1, "share": 1}}
    student = tiny.program(tiny.config("swiftkv", swiftkv=options, model=model))
    teacher = tiny.program(tiny.config())
    batch, params, taught = tiny.batch(), drawn_params(student), drawn_params(teacher)
    batch["segment_ids"][0, -1] = batch["segment_ids"][0, -2]  # No padding.
    p, q = numpy(params), numpy(taught)
    both = [
        [rewired.model(x, batch["tokens"][r], N=tiny.N, K=tiny.N, H=tiny.H, **told(batch, r)) for r in range(4)]
        for x in (p, q)
    ]
    z, u = (np.stack([layers.logits(x, f) for f, _ in rows]) for x, rows in zip((p, q), both, strict=True))
    h, t = (np.stack([s[-2] for _, s in rows]) for rows in both)
    want = swiftkv.distillation(z, u, batch["scored"] * 1.0, h, t, temperature=S, weight=C)
    metrics, _ = descended(dataclasses.replace(student, companions={"teacher": teacher}), params, batch,
                           {"teacher": taught})  # fmt: skip
    assert float(metrics["train/loss"]) == pytest.approx(float(want), rel=1e-6)
    assert SwiftKV(mask_id=V).weight == 1.0 and math.isclose(SwiftKV(mask_id=V).temperature, 2.0)
