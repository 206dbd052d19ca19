"""HAMburger: its value in plain numpy, causal, packed, stepped, counted; groups of one are the plain model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from data.tokenizers import patches
from experiments import preflight
from experiments.program import build, counting, sharding
from experiments.settings.errors import ConfigError
from kernels import masks
from models import reports
from models.segments import hamburger
from tests.models import readers, segmented_test
from tests.models.segmented_test import NORM, TEXTS, T, V, drawn, features, rows
from tests.plain import layers

D, N, L, F, MOST = 12, 2, 3, 2, 4
CONFIDENCE = 0.25  # Groups of one, two and four tokens, by the parameters that are drawn.
KINDS = pytest.mark.parametrize("kind", ["confidence", "fixed"])
LIMITED = {"model.hamburger.least": 2, "model.hamburger.documents": 3}


def config(kind="confidence", **changes):
    made = base.get_config()
    made.model.update({"kind": "hamburger", "width": D, "num_heads": N, "num_layers": L, "init": "fan_in"})
    made.model.update({"dtype": "float64", "param_dtype": "float64", "init_std": 1.0})
    made.model.hamburger.update({"groups": kind, "most": MOST, "layers": 2, "features": F, "least": 1})
    made.model.hamburger.confidence = CONFIDENCE
    made.data.update({"length": T, "batch_size": 2})
    made.update_from_flattened_dict(changes)
    return made.lock()


def program(kind="confidence", **changes):
    made = config(kind, **changes)
    return build(made, vocab_size=V, mesh=sharding.make_mesh(made, jax.devices()[:1]))


@functools.cache
def ready(kind="confidence", **changes):
    """A program, drawn parameters, and features of a row of T tokens, compiled once."""
    made = program(kind, **changes)
    return made, drawn(made), jax.jit(lambda params, batch: features(made, params, batch))


# The whole, written out for one document.


def plain_ends(p, ids, kind):
    """Whether each token ends its group, by the lengths of groups that the plain strategy gives."""
    H = [np.inf, *plain_entropies(p, ids)]  # of each token given the one before it, and of one behind the text
    if kind == "fixed":
        H = [np.inf, np.inf, *[0.0] * (len(ids) - 1)]
    bar = hamburger.largest_entropy(CONFIDENCE, V)
    ends = np.zeros(len(ids) + 1, bool)
    ends[np.cumsum([1, *patches.token_groups(H[1:], "sliding", MOST, bar)]) - 1] = True
    if len(ids) not in np.cumsum([1, *patches.token_groups(H[1:], "sliding", MOST, bar)])[:-1]:
        ends[len(ids) - 1] = False  # The token behind the text would join the last group.
    return ends[:-1]


def plain_entropies(p, ids):
    return patches.entropies(np.stack([layers.rmsnorm(p["embedding"][i], 1e-6) @ p["teacher"]["head"] for i in ids]))


def plain_merge(p, group):
    if len(group) == 1:
        return group[0]
    line = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    mean, H, joined = group.mean(axis=0), D // N, []
    q = line("query", mean)
    placed = [np.concatenate([x, p["position"][s]]) for s, x in enumerate(group)]
    for n in range(N):
        part = slice(n * H, (n + 1) * H)
        weights = layers.softmax(np.array([q[part] @ line("key", x)[part] for x in placed]) / np.sqrt(H))
        joined.append(sum(w * line("value", x)[part] for w, x in zip(weights, placed, strict=True)))
    return mean + line("out", np.concatenate(joined))


def one_layer(p, layer):
    return {"period": {"0_attention": jax.tree.map(lambda x: x[layer : layer + 1], p["period"]["0_attention"])}}


def plain(p, ids, ends):
    """Features [T, D] of one document whose groups are known."""
    embedded, found = p["embedding"][ids], np.zeros((len(ids), D))
    at = np.flatnonzero(ends)
    begins = np.concatenate([[0], at[:-1] + 1])
    x = np.array([plain_merge(p["merger"], embedded[a : b + 1]) for a, b in zip(begins, at, strict=True)])
    streams = []
    for layer in range(L):
        x = segmented_test.layers_of(one_layer(p["stack"], layer), x, N, D // N, 0, 1, list(at))
        streams.append(x)
    top = layers.norm(p["norm"], x, *NORM)
    for k, end in enumerate(at):
        found[end] = top[k]
        following = at[k + 1] if k + 1 < len(at) else len(ids)
        group = embedded[end + 1 : following]  # but the last of them, which ends it
        if len(group):
            row = np.concatenate([[streams[1][k], top[k]], group])  # Layers 2 and 3 of 3 are evenly spaced.
            out = segmented_test.layers_of(p["micro"], row, N, D // N, 0, 2)
            found[end + 1 : following] = layers.norm(p["norm"], out[F:], *NORM)
    return found


def plain_stops(p, x):
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    line = lambda name, x: x @ p[name]["kernel"] + p[name]["bias"]  # noqa: E731
    return line("out", silu(line("second", silu(line("first", x)))))[:, 0]


@KINDS
def test_packed_documents_have_the_value_of_each_in_plain_numpy(kind, x64):
    """Features, both losses, and how many stops the head has right."""
    _, params, run = ready(kind)
    out, p = run(params, rows()), jax.tree.map(np.asarray, params)
    begin, count, nats, taught, right, pairs = 0, 0, 0.0, 0.0, 0, 0
    for text in TEXTS:
        ids = np.array([256, *text])
        ends = plain_ends(p, ids, kind) if kind == "confidence" else np.arange(len(ids)) % MOST == 0
        assert (
            1 < ends.sum() < len(ids) and ends[0] and (kind == "fixed" or {2, 4} <= set(np.diff(np.flatnonzero(ends))))
        )
        want = plain(p, ids, ends)
        np.testing.assert_allclose(out.features[0, begin : begin + len(ids)], want, rtol=1e-9, atol=1e-9)
        z = plain_stops(p["stop"], want)[:-1]
        nats -= np.where(ends[1:], -np.log1p(np.exp(-z)), -np.log1p(np.exp(z))).sum()
        right, pairs = right + ((z > 0) == ends[1:]).sum(), pairs + len(z)
        begin, count = begin + len(ids), count + ends.sum()
        if kind == "confidence":
            logits = np.stack([layers.rmsnorm(p["embedding"][i], 1e-6) @ p["teacher"]["head"] for i in ids])
            taught -= sum(layers.log_softmax(logits[t])[ids[t + 1]] for t in range(len(text)))
    np.testing.assert_allclose(out.report["loss"][0], 0.5 * nats + taught, rtol=1e-9)
    assert float(out.report["segments"].total[0]) == count and float(out.report["segments"].weight[0]) == begin
    assert float(out.report["stops"].total[0]) == right and float(out.report["stops"].weight[0]) == pairs
    assert float(out.report["unread"].total[0]) == 0


def test_packed_documents_are_each_alone_where_groups_are_limited(x64):
    _, params, run = ready(**LIMITED)
    packed, begin = run(params, rows()), 0
    for text in TEXTS:
        alone, n = run(params, rows([text])), len(text) + 1
        np.testing.assert_allclose(packed[0][0, begin : begin + n], alone[0][0, :n], rtol=0, atol=1e-12)
        begin += n
    assert float(packed.report["unread"].total[0]) == 0
    assert float(packed.report["segments"].total[0]) <= begin / 2 + 2


@KINDS
def test_no_token_sees_a_later_one(kind, x64):
    _, params, run = ready(kind)
    batch = rows([b"ab, cd. efg hij kl"])
    readers.no_token_sees_a_later_one(run, params, batch)


def reader(**changes):
    """(program, parameters, pass behind a state, empty state of two rows)."""
    made = program(**LIMITED, **changes)

    @jax.jit
    def read(params, piece, positions, state):
        return made.merge(params).for_decoding()(piece, mask=masks.Causal(), positions=positions, state=state)

    params = drawn(made)
    return made, params, read, jax.jit(lambda p: made.merge(p).for_decoding().init_state(2, T))(params)


def test_prefill_and_steps_equal_the_whole(x64):
    """Rows of two texts, read in pieces of unequal lengths and token by token, padded to one width."""
    made, params, read, state = reader()
    texts = [b"ab, cd. efg hij kl.", b"x(1) \xc3\xa9t\xc3\xa9,  yes, no"]
    x = np.stack([rows([text])["tokens"][0] for text in texts])
    want = np.asarray(jax.jit(lambda p: made.merge(p)(jnp.asarray(x), mask=masks.Causal()).features)(params))
    readers.pieces_are_the_whole(read, params, state, x, want)


def test_the_stop_head_ends_groups_where_text_is_written_token_by_token(x64):
    made, params, read, state = reader(**{"model.hamburger.stop": "head", "model.hamburger.stop_confidence": 0.5})
    p, ids = jax.tree.map(np.asarray, params), np.array([256, *b"ab, cd. efg hij kl."])
    found, ends, size, stop = [], [], 0, False
    for t, token in enumerate(ids):
        piece = jnp.full((2, 1), token)
        out = read(params, piece, jnp.full((2, 1), t), state)
        state, size = out.state, size + 1
        may = sum(ends) < 1 + t // 2
        ends.append(t == 0 or (size == MOST or stop) and may)
        size = 0 if ends[-1] else size
        found.append(np.asarray(out.features[0, 0]))
        stop = 1 - 1 / (1 + np.exp(-plain_stops(p["stop"], found[-1][None])[0])) < 0.5
        assert int(state["layers"]["group"].number[0]) == sum(ends)
    lengths = np.diff(np.flatnonzero(ends))
    assert len(set(lengths)) > 1 and list(ends) != list(plain_ends(p, ids, "confidence"))
    np.testing.assert_allclose(found, plain(p, ids, np.array(ends)), rtol=1e-9, atol=1e-9)


def test_one_token_a_step_is_the_plain_model(x64):
    """The same parameters, features and state by state; and a run begins with the same values."""
    one = program(**{"model.hamburger.most": 1})
    lm = program(**{"model.kind": "lm"})
    params, x = drawn(one), rows()
    assert jax.tree.structure(params) == jax.tree.structure(lm.init()["params"])
    jax.tree.map(np.testing.assert_array_equal, one.init()["params"], lm.init()["params"])
    real = x["segment_ids"][0] > 0
    got, want = (jax.jit(lambda p, m=m: features(m, p, x).features)(params) for m in (one, lm))
    np.testing.assert_array_equal(got[0][real], want[0][real])
    assert counting.flops_per_token(one)["total"] == counting.flops_per_token(lm)["total"]
    whole = program().init()["params"]
    jax.tree.map(np.testing.assert_array_equal, {k: whole[k] for k in params}, one.init()["params"])


@KINDS
def test_flops_agree_with_the_compiler(kind):
    """Forward, and forward with backward, within 3%; what the masks hide of the reference attention is added."""
    n, wide = 64, 256
    changes = {"data.length": n, "model.dtype": "float32", "model.param_dtype": "float32", "model.num_heads": 8,
               "model.width": wide, "model.attention.implementation": "reference", **LIMITED}  # fmt: skip
    made = program(kind, **changes)

    def loss(params):
        model = made.merge(params)
        out = model(jnp.zeros((1, n), jnp.int32), mask=masks.Causal())
        return reports.with_losses(jnp.sum(model.logits(out.features) ** 2), out.report)

    S, m = (n // 2 if kind == "confidence" else n // MOST) + 3, F + MOST - 1
    hidden = S / n * 4 * wide * (L * (S - (S + 1) / 2) + 2 * m * (m - (m + 1) / 2))
    forward = counting.flops_per_token(made)["total"] / 3
    shapes = made.abstract["params"]
    for function, times in ((loss, 1), (jax.grad(loss), 3)):
        counted = jax.jit(function).lower(shapes).cost_analysis()["flops"] / n
        # The teacher moves no embedding: one product of its three is not made.
        spared = 2 * wide * V if kind == "confidence" and times == 3 else 0
        assert 1.0 <= counted / (times * (forward + hidden) - spared) < 1.03


def test_everything_learns():
    made = program(**{"model.dtype": "float32", "model.param_dtype": "float32"})
    batch = {name: np.asarray(x, np.int32) for name, x in rows().items()}
    batch |= {"targets": np.roll(batch["tokens"], -1), "scored": batch["segment_ids"] > 0}

    def loss(params):
        out = made.objective.loss(made.merge(params), batch, jax.random.key(0))
        return reports.with_losses(out.total, out.report)

    params = jax.tree.map(lambda x: np.asarray(x, np.float32), drawn(made))
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        if [key.key for key in path] != ["merger", "key", "bias"]:  # Which is the same for all of a group.
            assert np.abs(gradient).max() > 1e-6, path
    moved = jax.grad(lambda x: jnp.sum(made.merge(params).teacher(x) ** 2))(jnp.ones((1, 2, D)))
    assert np.abs(moved).max() == 0  # What the teacher learns moves no embedding.


def test_tokens_beyond_the_room_of_a_row_read_nothing_and_are_told():
    many = [b""] * 15 + [b"abc def"]
    made = program("fixed", **{"model.hamburger.documents": 0, "model.dtype": "float32"})
    out = jax.jit(lambda params: features(made, params, rows(many)))(made.init()["params"])
    assert np.isfinite(np.asarray(out.features)).all() and float(out.report["unread"].total[0]) > 0
    with pytest.raises(ValueError, match="one after another"):
        made.merge(made.init()["params"])(jnp.zeros((1, 4), jnp.int32), mask=masks.Window(3))


def test_groups_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    for most, least in ((4, 1), (3, 2), (1, 1)):
        wants, live = rng.random((3, 30)) < 0.4, np.broadcast_to(np.arange(30) < 26, (3, 30))
        first = np.zeros((3, 30), bool)
        first[1:, 0] = first[:, 13] = True
        place = np.stack([np.arange(30) + (8 if row == 0 else 0) for row in range(3)])
        place[:, 13:] = np.arange(17)
        before = hamburger.Groups(jnp.zeros(3, bool), jnp.array([most - 1, 0, 0]), jnp.array([2, 0, 0]))
        args = [jnp.asarray(x) for x in (wants, first, live, place)]
        got = jax.tree.map(np.asarray, hamburger.groups(*args, most, least, before))
        for row in range(3):
            size, number = most - 1 if row == 0 else 0, 2 if row == 0 else 0
            for t in range(26):
                size, number = (1, 0) if first[row, t] else (size + 1, number)
                ends = first[row, t] or (wants[row, t] or size == most) and number < 1 + place[row, t] // least
                number += ends
                assert (got.ends[row, t], got.size[row, t], got.number[row, t]) == (ends, size, number)
                size = 0 if ends else size
        assert not got.ends[:, 26:].any() and got.size[:, :26].max() <= most


REFUSED = {
    "model.hamburger.least": (5, "model.hamburger.least=4"),
    "objective": ("masked_diffusion", "objective='next_token'"),
    "generate.drafter": ("recycling", "generate.drafter='lookup'"),
    "generate.memory": ("h2o", "generate.memory='full'"),
    "model.channel": ("moe", "model.channel='swiglu'"),
    "mesh.context": (2, "mesh.context=1"),
    "model.positions": (64, "model.positions=0"),
    "model.width": (13, "model.width=12"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_does_not_go_with_it_is_refused_with_a_value_that_works(key, x64):
    value, works = REFUSED[key]
    with pytest.raises(ConfigError, match=works.replace(".", r"\.")):
        preflight.check(config(**{key: value}), num_devices=value if key.startswith("mesh.") else 1)
