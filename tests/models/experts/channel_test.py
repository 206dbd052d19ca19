"""The layer of experts, whole: every router with every kind of expert against loops in float64, and what it tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models.channels import CHANNELS
from models.experts import capacity, channel
from models.experts.options import ROUTERS
from models.mixers import Context
from tests.plain import experts as plain
from tests.plain.drawn import drawn, spec

B, T, D = 2, 8, 12
X = np.random.default_rng(1).normal(size=(B, T, D))
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
BANKS = {
    "gated": {"experts": 6},
    "plain + shared": {"experts": 6, "gated": False, "shared": 2},
    "free": {"experts": 3, "constant": 1, "copy": 1, "zero": 1, "gated": False},
    "two sizes": {"experts": 2, "small": 3, "small_hidden": 5, "zero": 1},
}
OPTIONS = {
    "softmax_before": {"k": 3, "renormalise": True, "scale": 1.5},
    "softmax_after": {"k": 2, "scale": 0.7},
    "sigmoid_bias": {"k": 3, "renormalise": True, "scale": 2.5},
    "group_softmax": {"k": 2, "groups": 3, "kept_groups": 2, "group_rule": "max", "scale": 4.0},
    "group_sigmoid": {"k": 3, "groups": 3, "kept_groups": 2},
    "moge": {"k": 4, "groups": 2},
    "expert_choice": {"k": 2},
    "relu": {},
    "null": {"k": 3, "null": 2},
    "moepp": {"k": 2},
    "graph": {"k": 2, "temperature": 3.0},
    "duo": {"k": 1, "temperature": 0.5},
    "duo_chance": {"k": 1, "temperature": 0.5, "chance": 0.0},
}
pytestmark = pytest.mark.usefixtures("x64")


def made(router, bank, **more):
    """(spec, options) of a layer."""
    options = {"hidden": 10, "router": router, **BANKS[bank], **OPTIONS[router], **more}
    if router == "moepp" and not options.get("zero"):
        options["zero"] = 1
    return spec(channel="moe", moe=options), options


def build(made, seed=0):
    return drawn(lambda rngs: CHANNELS["moe"](made, rngs=rngs), seed)


def context(segment_ids=None, positions=None, **more):
    positions = jnp.arange(T)[None] if positions is None else jnp.asarray(positions)
    return Context(positions, segment_ids, masks.Causal(), **more)


def call(module, x):
    return module(x, context())


def test_every_router_and_bank_is_listed():
    assert set(OPTIONS) == set(ROUTERS)
    module = nnx.eval_shape(lambda: CHANNELS["moe"](spec(channel="moe"), rngs=nnx.Rngs(0)))
    assert module.options.kinds._fields == ("ffn", "small", "constant", "copy", "zero", "null")


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("router", OPTIONS)
def test_a_layer_is_the_loop_over_its_tokens_and_choices(router, bank):
    of, options = made(router, bank)
    run, p = build(of)
    y, told = run(call, X)
    counted = np.zeros(p["router"].shape[1])
    for row, got in zip(X, y, strict=True):
        want, index, *_ = plain.layer(p, row, router, options)
        np.testing.assert_allclose(got, want, **CLOSE)
        for each in index:
            for e in each:
                counted[e] += 1
    np.testing.assert_array_equal(told["load"].total, counted)
    np.testing.assert_array_equal(told["load"].weight, counted.sum())
    assert told["dropped"].total == 0 and told["not_a_number"].total == 0
    first_free = options["experts"] + options.get("small", 0)
    assert told["costly"].total == counted[:first_free].sum() and told["costly"].weight == B * T


@pytest.mark.parametrize("form", ["dense", "einsum"])
@pytest.mark.parametrize("router", ["softmax_after", "relu", "null"])
def test_every_form_of_dispatch_gives_the_same_layer_and_gradients(router, form):
    weights, found = np.random.default_rng(3).normal(size=(B, T, D)), []
    loss = lambda module, x: jnp.sum(module(x, context())[0] * weights)  # noqa: E731
    for dispatch in ("sorted", form):
        run, _ = build(made(router, "two sizes", dispatch=dispatch)[0])
        found.append((run(call, X)[0], run.gradient(loss, X), run(lambda module, x: jax.grad(loss, 1)(module, x), X)))
    for got, want in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(got, want, **CLOSE)


@pytest.mark.parametrize("order", capacity.ORDERS)
def test_a_capacity_drops_within_each_row_and_never_in_decoding(order):
    of, options = made("softmax_after", "gated", capacity=1.0, capacity_order=order)
    run, p = build(of)
    y, told = run(call, X)
    lost, most = 0, int(options["k"] * T / 6)
    arrivals = {
        "fifo": lambda g: [(t, k) for k in range(2) for t in range(T)],
        "token": lambda g: [(t, k) for t in range(T) for k in range(2)],
        "probability": lambda g: sorted(
            ((t, k) for t in range(T) for k in range(2)), key=lambda at: (-g[at[0]][at[1]], at)
        ),
        "batch_prioritised": lambda g: [
            (t, k) for k in range(2) for t in sorted(range(T), key=lambda t: (-max(g[t]), t))
        ],
    }[order]
    for row, got in zip(X, y, strict=True):
        _, index, gate, _ = plain.layer(p, row, "softmax_after", options)
        places = plain.places(np.array(index), arrivals(gate))
        want, *_ = plain.layer(p, row, "softmax_after", options, keep=lambda t, n: places[t, n] < most)  # noqa: B023
        np.testing.assert_allclose(got, want, **CLOSE)
        lost += np.sum(places >= most)
    assert 0 < lost == told["dropped"].total and told["dropped"].weight == B * T * 2
    decoding = run(lambda module, x: module(x, context(slots=jnp.zeros(())))[0], X)
    np.testing.assert_allclose(decoding, [plain.layer(p, row, "softmax_after", options)[0] for row in X], **CLOSE)


def test_places_are_those_of_moepp_where_experts_without_cost_weigh_less():
    """gamma tau K T / (tau N_F + N_Z) and gamma K T / (tau N_F + N_Z): 1.25 x 2 x 8 / (0.75 x 3 + 3) = 3.81."""
    of, _ = made("softmax_after", "free", k=2, eta=0.75, capacity=1.25)
    options = nnx.eval_shape(lambda: CHANNELS["moe"](of, rngs=nnx.Rngs(0))).options
    assert channel.limits(options, 8).tolist() == [2, 2, 2, 3, 3, 3]
    assert channel.limits(options, 1).tolist() == [1] * 6


def test_padding_goes_nowhere_and_counts_for_nothing():
    of, options = made("softmax_after", "gated")
    run, p = build(of)
    ids = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [1] * 8])
    y, told = run(lambda module, x: module(x, context(jnp.asarray(ids))), X)
    assert np.all(y[0, 6:] == 0) and told["entropy"].weight == 14 and told["load"].weight[0] == 28
    z = np.concatenate([X[0, :6], X[1]]) @ p["router"]
    probs, index = np.array([plain.softmax(row) for row in z]), np.array([plain.best(row, 2) for row in z])
    np.testing.assert_allclose(told["balance"].value, plain.load(probs, index), **CLOSE)
    np.testing.assert_allclose(told["z_loss"].value, plain.z_loss(z), **CLOSE)
    np.testing.assert_allclose(told["loss"], 14 * (0.01 * plain.load(probs, index) + 1e-3 * plain.z_loss(z)), **CLOSE)
    np.testing.assert_allclose(told["entropy"].value, -np.mean(np.sum(probs * np.log(probs), 1)), **CLOSE)
    places = run(lambda module, x: module(x, context(positions=np.where(ids == 0, -1, np.arange(T))))[0], X)
    np.testing.assert_allclose(places, y, **CLOSE)


SCOPES = {
    "global": lambda p, i: plain.load(p.reshape(-1, p.shape[-1]), i.reshape(-1, 2)),
    "sequence": lambda p, i: np.mean([plain.load(a, b) for a, b in zip(p, i, strict=True)]),
    "micro": lambda p, i: np.mean([plain.load(p[r].reshape(-1, p.shape[-1]), i[r].reshape(-1, 2))
                                   for r in (slice(0, 2), slice(2, 4))]),
}  # fmt: skip


@pytest.mark.parametrize("by_k", [True, False])
@pytest.mark.parametrize("scope", [*SCOPES, "accumulated", "shuffled"])
def test_balance_in_every_scope(scope, by_k):
    of, _ = made("softmax_before", "gated", k=2, balance_scope=scope, balance_parts=2, normalise_k=by_k)
    run, p = build(of)
    x = np.random.default_rng(2).normal(size=(4, T, D))
    z = x @ p["router"]
    probs = np.apply_along_axis(plain.softmax, -1, z)
    index = np.apply_along_axis(lambda row: plain.best(row, 2), -1, z)
    got = run(call, x)[1]["balance"].value / (1 if by_k else 2)
    flat = probs.reshape(-1, 6), index.reshape(-1, 2)
    if scope == "accumulated":
        f = p["before"] + plain.counts(flat[1], 6)
        want = plain.load(*flat, f=f / f.sum())
    elif scope == "shuffled":
        order = np.random.default_rng(0).permutation(4 * T)
        want = np.mean([plain.load(flat[0][part], flat[1][part]) for part in np.split(order, 2)])
    else:
        want = SCOPES[scope](probs, index)
    np.testing.assert_allclose(got, want, **CLOSE)


def test_experts_without_cost_weigh_eta_and_nulls_share_their_load():
    of, options = made("softmax_before", "free", k=2, renormalise=False, eta=0.25)
    run, p = build(of)
    z = X.reshape(-1, D) @ p["router"]
    probs, index = np.array([plain.softmax(row) for row in z]), np.array([plain.best(row, 2) for row in z])
    f = plain.counts(index, 6) / index.size
    eta = np.array([1, 1, 1, 0.25, 0.25, 0.25])
    np.testing.assert_allclose(run(call, X)[1]["balance"].value, 6 * np.sum(eta * f * probs.mean(0)), **CLOSE)
    of, options = made("null", "gated")
    run, p = build(of)
    z = X.reshape(-1, D) @ p["router"]
    probs, index = np.array([plain.softmax(row) for row in z]), np.array([plain.best(row, 3) for row in z])
    f = plain.counts(index, 8) / index.size
    f[6:] = f[6:].mean()
    np.testing.assert_allclose(run(call, X)[1]["balance"].value, 8 * np.sum(f * probs.mean(0)), **CLOSE)


def test_losses_of_blockffn():
    """Locality inside documents alone; chunks of tokens; the coefficient is what the schedule says at the start."""
    more = {"experts": 6, "gated": False, "locality": 2e-3, "sparsity": 5e-2, "chunk": 4, "balance": 0.0, "z_loss": 0.0}
    of, _ = made("relu", "gated", **more)
    run, p = build(of)
    ids = jnp.asarray([[1] * 3 + [2] * 5, [1] * 8])
    places = np.array([[0, 1, 2, 0, 1, 2, 3, 4], list(range(8))])
    x = X / 20  # so that a sigmoid of 100 z is not 1 in every bit
    _, told = run(lambda module, x: module(x, context(ids, places)), x)
    z = x @ p["router"]
    rows = [z[0, :3], z[0, 3:], z[1]]
    pairs = [len(row) - 1 for row in rows]
    want = sum(plain.locality(row, 100.0) * n for row, n in zip(rows, pairs, strict=True)) / sum(pairs)
    np.testing.assert_allclose(told["locality"].value, want, **CLOSE)
    gates = np.array([plain.relu(row, 1.0, 1e-5)[1] for row in z.reshape(-1, 6)])
    p_te = gates / (gates.sum(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(told["sparsity"].value, plain.chunks(p_te, 4), **CLOSE)
    begin, end, since = p["schedule"][1:4]
    coefficient = begin + (end - begin) * min(1, since / 100)
    loss = 2e-3 * told["locality"].value + coefficient * told["sparsity"].value
    np.testing.assert_allclose(told["loss"], B * T * loss, **CLOSE)
    fresh = nnx.to_pure_dict(nnx.state(CHANNELS["moe"](of, rngs=nnx.Rngs(0)), nnx.Param))["schedule"]
    np.testing.assert_array_equal(fresh, [0, 5e-2, 5e-2, 0, 0, 0])


def test_logits_go_down_the_layers():
    of, options = made("softmax_after", "free", residual=True)
    run, p = build(of)
    previous = np.random.default_rng(4).normal(size=(B, T, 6))

    def with_flow(module, x, previous):
        assert module.carries == {"router": (6,)}
        return module(x, context(flow={"router": previous}))

    y, told = run(with_flow, X, previous)
    z = X @ p["router"] + previous @ p["residual"]
    np.testing.assert_allclose(told["router"], z, **CLOSE)
    for b in range(B):
        np.testing.assert_allclose(y[b], plain.layer(p, X[b], "softmax_after", options, z=z[b])[0], **CLOSE)


def test_modules_are_drawn_by_place_layer_and_step():
    """Every place its own draw, the same in each row and in a row of one token; other draws in other steps and layers;
    a share of 0.5 keeps the router's choice in the other places."""
    of, _ = made("duo_chance", "two sizes", chance=1.0)
    run, p = build(of)
    tap = lambda module, x, **more: module(x, context(taps=("experts",), **more))[1]["experts"][..., 0]  # noqa: E731
    wide = np.random.default_rng(5).normal(size=(2, 600, D))
    at = lambda module, x, step, own, places: (  # noqa: E731
        setattr(module, "draws", nnx.Param(jnp.stack([step, own]))) or tap(module, x, positions=places)
    )
    places = np.arange(600)[None]
    draws = np.array([run(at, wide, float(s), float(own), places) for s, own in ((0, 3), (1, 3), (0, 4))])
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    E, share = 6, lambda a, b: np.mean(a == b)
    for one in draws[:, 0]:
        # Four deviations of a share of 600 draws.
        np.testing.assert_allclose(np.bincount(one, minlength=E) / 600, 1 / E, atol=4 * (5 / 36 / 600) ** 0.5)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert share(draws[a, 0], draws[b, 0]) < 1 / E + 4 * (5 / 36 / 600) ** 0.5
    alone = run(at, wide[:1, 17:18], 0.0, 3.0, np.array([[17]]))
    assert alone[0, 0] == draws[0, 0, 17]
    half, _ = build(made("duo_chance", "two sizes", chance=0.5)[0])
    mixed_, own = half(at, wide, 0.0, 3.0, places), (wide @ p["router"]).argmax(-1)
    kept = mixed_ == own
    assert np.all(kept | (mixed_ == draws[0])) and 0.5 < kept[0].mean() < 0.5 + 0.5 / E + 4 * (0.25 / 600) ** 0.5


def test_steps_are_counted_and_a_layer_keeps_its_number():
    of, _ = made("duo_chance", "two sizes")
    run, p = build(of)
    told, module = run(call, X)[1], CHANNELS["moe"](of, rngs=nnx.Rngs(0))
    begun = np.asarray(module.draws[...])
    assert begun[0] == 0 and begun[1] == np.floor(begun[1]) and 0 < begun[1] < 2**20
    np.testing.assert_array_equal(module.advance({"draws": begun}, told)["draws"], begun + [1, 0])
    gradient = run.gradient(lambda module, x: jnp.sum(module(x, context())[0] ** 2), X)
    assert np.all(gradient["draws"] == 0)


def test_a_straight_gate_is_one_with_the_gradient_of_its_probability():
    of, options = made("duo_chance", "two sizes", balance=0.0, z_loss=0.0)
    run, p = build(of)
    weights = np.random.default_rng(3).normal(size=(B, T, D))
    got = run.gradient(lambda module, x: jnp.sum(module(x, context())[0] * weights), X)["router"]
    want = np.zeros_like(p["router"])
    for row, w in zip(X, weights, strict=True):
        for x, v, out in zip(row, w, plain.layer(p, row, "duo_chance", options)[0], strict=True):
            q = plain.softmax(x @ p["router"] / 0.5)
            e = int(np.argmax(q))
            want += np.outer(x, q[e] * ((np.arange(6) == e) - q) / 0.5) * (out @ v)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_the_parts_of_a_budget_add_up_along_the_layers():
    """Four layers of one model: their losses together are (mean P_big - 0.3)^2, padding aside."""
    of, options = made("duo_chance", "two sizes", budget=2.0, big=0.3, balance=0.0, z_loss=0.0)
    run, p = build(of)
    ids, L = np.array([[1] * 6 + [0] * 2, [1] * 8]), of.L

    def down(module, x):
        flow, losses, told = {"big": jnp.zeros(x.shape[:2])}, [], None
        assert module.carries == {"big": ()}
        for layer in range(L):
            _, told = module(x * (1 + layer), context(jnp.asarray(ids), flow=flow))
            flow, losses = {"big": told["big"]}, [*losses, told["loss"]]
        return jnp.stack(losses), told["budget"].weight

    losses, weight = run(down, X)
    q = np.mean([np.apply_along_axis(plain.softmax, -1, X * (1 + i) @ p["router"] / 0.5) for i in range(L)], axis=0)
    big = q[..., : options["experts"]].sum(-1)
    np.testing.assert_allclose(losses.sum(), 2.0 * np.sum(((big - 0.3) ** 2)[ids != 0]), **CLOSE)
    assert weight == 14 and L > 1


def test_a_token_that_is_no_number_is_counted_and_goes_to_nobody():
    of, options = made("softmax_after", "gated")
    run, p = build(of)
    x = X.copy()
    x[0, 3, 5] = np.nan
    y, told = run(call, x)
    assert told["not_a_number"].total == 1 and told["load"].weight[0] == 2 * (B * T - 1)
    assert np.all(y[0, 3] == 0) and np.isfinite(told["loss"])
    np.testing.assert_allclose(y[1], plain.layer(p, X[1], "softmax_after", options)[0], **CLOSE)


def test_the_bias_moves_once_against_the_load_and_gets_no_gradient():
    of, _ = made("sigmoid_bias", "gated", bias_rate=0.5)
    run, p = build(of)
    told = run(call, X)[1]
    module = CHANNELS["moe"](of, rngs=nnx.Rngs(0))
    new = module.advance({"bias": p["bias"][None]}, jax.tree.map(lambda x: x[None], told))["bias"][0]
    np.testing.assert_allclose(new, plain.bias_update(p["bias"], told["load"].total, 0.5), **CLOSE)
    assert np.any(new != p["bias"])
    gradient = run.gradient(lambda module, x: jnp.sum(module(x, context())[0] ** 2), X)
    assert np.all(gradient["bias"] == 0) and np.any(gradient["router"] != 0)


def test_a_router_reads_float32_whatever_the_type_of_its_tokens():
    """bfloat16 in: the choice is that of the rounded numbers in float32, not of products in bfloat16."""
    made = spec(channel="moe", dtype="bfloat16", param_dtype="float32", moe={"experts": 6, "hidden": 10})
    module = CHANNELS["moe"](made, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 64, D)), jnp.bfloat16)
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, Context(jnp.arange(64)[None], None, masks.Causal())))
    y, told = run(state, x)
    z = np.asarray(x, np.float64)[0] @ np.asarray(module.router[...], np.float64)
    counted = plain.counts(np.array([plain.best(row, 2) for row in z]), 6)
    np.testing.assert_array_equal(told["load"].total, counted)
    assert y.dtype == jnp.bfloat16


def test_the_flops_of_a_layer():
    of, _ = made("softmax_after", "plain + shared")
    module = nnx.eval_shape(lambda: CHANNELS["moe"](of, rngs=nnx.Rngs(0)))
    assert module.flops() == 2 * (2 * 2 * D * 10 + 2 * D * 20 + D * 6)
    of, _ = made("null", "gated")  # k n / (n + m) true experts
    module = nnx.eval_shape(lambda: CHANNELS["moe"](of, rngs=nnx.Rngs(0)))
    assert module.flops() == pytest.approx(2 * (3 * 6 / 8 * 3 * D * 10 + D * 8))
    of, _ = made("softmax_after", "free", k=2, eta=0.75)  # tau N_F / (tau N_F + N_Z)
    module = nnx.eval_shape(lambda: CHANNELS["moe"](of, rngs=nnx.Rngs(0)))
    share = 0.75 * 3 / (0.75 * 3 + 3)
    assert module.flops() == pytest.approx(2 * (2 * share * 2 * D * 10 + 2 * D + D * 6))
