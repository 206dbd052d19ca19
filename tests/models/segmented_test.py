"""Models that cut bytes into segments: causal, packed, stepped, counted, and the value of the whole in plain numpy."""

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
from models.kinds import MODELS
from models.segments import cuts, hnet, magnet, words
from models.segments.segmenters import SEGMENTERS
from tests.models import readers
from tests.plain import layers

D, W, N, H, T, V = 12, 8, 2, 6, 26, 259
ATTENDED = {"words+": 3, "magnet+": 1}  # with attention to the bytes of a segment: queries
NAMES = pytest.mark.parametrize("name", [*SEGMENTERS, *ATTENDED])
NORM = "rmsnorm", 1e-6
THRESHOLD = 4.7  # nats, near the entropies of the parameters that are drawn
TEXTS = [b"ab, cd. efg", b"  \xc3\xa9t\xc3\xa9(1)x"]


def config(name, **changes):
    made = base.get_config()
    made.model.update({"kind": "segmented", "width": D, "num_heads": 2, "num_layers": 2, "init": "fan_in"})
    made.model.update({"dtype": "float64", "param_dtype": "float64", "init_std": 1.0})
    if name in ATTENDED:
        made.model.segmented.update({"pool": "attention", "queries": ATTENDED[name]})
    name = name.removesuffix("+")
    made.model.segmented.update({"segmenter": name, "width": W, "heads": N, "window": 5, "least": 1})
    made.model.segmented.entropy.threshold = THRESHOLD
    made.data.update({"length": T, "batch_size": 2})
    made.update_from_flattened_dict(changes)
    return made.lock()


def program(name, **changes):
    made = config(name, **changes)
    return build(made, vocab_size=V, mesh=sharding.make_mesh(made, jax.devices()[:1]))


def drawn(made, seed=0):
    """Parameters with every number drawn, so that nothing is at a special value."""
    rng = np.random.default_rng(seed)
    move = lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape)  # noqa: E731
    return jax.tree.map(move, made.init()["params"])


def rows(texts=TEXTS, length=T):
    """Each text behind its bos, one behind the other in one row; tokens, places, documents."""
    ids = [np.array([256, *text]) for text in texts]
    fill = length - sum(map(len, ids))
    tokens = np.concatenate([*ids, np.full(fill, 258)])
    place = np.concatenate([*map(np.arange, map(len, ids)), np.zeros(fill, int)])
    documents = np.concatenate([np.full(len(each), k + 1) for k, each in enumerate(ids)] + [np.zeros(fill, int)])
    return {"tokens": tokens[None], "positions": place[None], "segment_ids": documents[None]}


def features(made, params, batch, **told):
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    tokens = batch.pop("tokens")
    return made.merge(params)(tokens, mask=masks.Causal(), **batch, **told)


@functools.cache
def ready(name, **changes):
    """A program, drawn parameters, and features of a row of T bytes, compiled once."""
    made = program(name, **changes)
    return made, drawn(made), jax.jit(lambda params, batch: features(made, params, batch))


# The whole, written out for one document.


def plain_marks(name, h, ids, p):
    """(bytes that are marked, p of each byte or None), by loops."""
    marks, shares = [0], [1.0]
    for t in range(1, len(ids)):
        share = None
        if name == "stride":
            on = t % 4 == 0
        elif name == "words":
            on = bool(words.word_starts(jnp.asarray([ids[t - 1], ids[t]]))[1])
        elif name == "spaces":
            on = t == 1 or bool(patches.space_starts(ids[1:])[t - 1])
        elif name == "entropy":
            H = patches.entropies(layers.rmsnorm(h[t - 1], 1e-6) @ p["head"])
            on = H > THRESHOLD
        elif name == "magnet":
            x = layers.gelu_tanh(h[t] @ p["hidden"] + p["hidden_bias"])
            on = (x @ p["out"] + p["out_bias"])[0] > 0
        elif name == "mrt5":
            on = plain_gate(p, h[t]) > -15
        else:
            q, k = h[t - 1] @ p["query"], h[t] @ p["key"]
            share = (1 - q @ k / np.linalg.norm(q) / np.linalg.norm(k)) / 2
            on = share > 0.5
        if on:
            marks.append(t)
        shares.append(share)
    return marks, shares


def plain_gate(p, h, k=-30.0):
    """G of one byte."""
    return k / (1 + np.exp((layers.rmsnorm(h, 1e-6) * p["scale"] @ p["out"] + p["bias"])[0]))


def plain_pool(p, h):
    """Attention of each query to the bytes `h [n, W]`, the results side by side; their mean of a model without."""
    if p is None:
        return h.mean(axis=0)
    x, found = np.array([layers.norm(p["norm"], each, *NORM) for each in h]), []
    for query in p["query"]:
        for n in range(N):
            cut = slice(n * W // N, (n + 1) * W // N)
            weights = layers.softmax((x @ p["key"])[:, cut] @ query[cut] / np.sqrt(W // N))
            found.append(weights @ (x @ p["value"])[:, cut])
    return np.concatenate(found)


def plain(name, p, ids):
    """Features [T, W] and the marks of one document."""
    x = np.asarray(p["embedding"])[ids]
    h = layers_of(p["encoder"], x, N, W // N, 5, 1)
    marks, shares = plain_marks(name, h, ids, p.get("segmenter", {}))
    pooled = []
    for s, t in enumerate(marks):
        begin = marks[s - 1] if s else 0
        if name in ("hnet", "mrt5"):
            pooled.append(h[t])
        elif SEGMENTERS[name].delayed:
            pooled.append(plain_pool(p.get("pool"), h[begin:t]) if s else p["none"])
        else:
            pooled.append(plain_pool(p.get("pool"), h[(begin + 1 if s else 0) : t + 1]))
    at = marks if name == "mrt5" else range(len(marks))
    c = layers_of(p["stack"], np.array(pooled) @ p["down"], 2, H, 0, 2, at)
    c = layers.norm(p["stack_norm"], c, *NORM) @ p["up"]
    if name == "hnet":
        for s, t in enumerate(marks):
            share = min(max(shares[t], 1e-4), 1 - 1e-4)
            c[s] = share * c[s] + (1 - share) * (c[s - 1] if s else 0)
    newest = np.cumsum(np.isin(np.arange(len(ids)), marks)) - 1
    x = layers_of(p["decoder"], h + c[newest], N, W // N, 5, 1)
    return layers.norm(p["norm"], x, *NORM), marks


def layers_of(p, x, heads, width, window, depth, at=None, **more):
    see = lambda i, j: j <= i and (not window or i - j < window)  # noqa: E731
    for layer in range(depth):
        q = jax.tree.map(lambda a, layer=layer: np.asarray(a)[layer], p["period"]["0_attention"])
        told = {"N": heads, "K": heads, "H": width, "see": see, "positions": np.array(at or range(len(x))), **more}
        x = x + layers.attention(q["mixer"], layers.norm(q["mixer_norm"], x, *NORM), **told)
        x = x + layers.mlp(q["channel"], layers.norm(q["channel_norm"], x, *NORM), "gelu")
    return x


@NAMES
def test_packed_documents_have_the_value_of_each_in_plain_numpy(name, x64):
    _, params, run = ready(name)
    out = run(params, rows())
    plainly = jax.tree.map(np.asarray, params)
    begin, count = 0, 0
    for text in TEXTS:
        ids = np.array([256, *text])
        want, marks = plain(name.removesuffix("+"), plainly, ids)
        assert 1 < len(marks) < len(ids)
        np.testing.assert_allclose(out.features[0, begin : begin + len(ids)], want, rtol=1e-9, atol=1e-9)
        begin, count = begin + len(ids), count + len(marks)
    said = out.report["segments"]
    assert float(said.total[0]) == count and float(said.weight[0]) == begin
    assert float(out.report["unread"].total[0]) == 0


LIMITED = {"model.segmented.least": 3, "model.segmented.documents": 3}


@NAMES
def test_packed_documents_are_each_alone_where_segments_are_limited(name, x64):
    _, params, run = ready(name, **LIMITED)
    packed, begin = run(params, rows()), 0
    for text in TEXTS:
        alone = run(params, rows([text]))
        n = len(text) + 1
        np.testing.assert_allclose(packed[0][0, begin : begin + n], alone[0][0, :n], rtol=0, atol=1e-12)
        begin += n
    assert float(packed.report["unread"].total[0]) == 0
    assert float(packed.report["segments"].total[0]) <= begin / 3 + 2


@pytest.mark.parametrize("name", [*SEGMENTERS, *ATTENDED, "mrt5, trained"])
def test_no_byte_sees_a_later_one(name, x64):
    _, params, run = soft(-30.0) if name == "mrt5, trained" else ready(name)
    batch = rows([b"ab, cd. efg hij kl"])
    readers.no_token_sees_a_later_one(run, params, batch)


@functools.cache
def soft(k):
    """As `ready`, of the pass that trains MrT5."""
    made = program("mrt5", **{"model.segmented.mrt5.k": k})
    return made, drawn(made), jax.jit(lambda params, batch: features(made, params, batch, soft=True))


@NAMES
def test_prefill_and_steps_equal_the_whole(name, x64):
    """Rows of two texts, read in pieces of unequal lengths and byte by byte, padded to one width."""
    made, params, _ = ready(name, **LIMITED)
    texts = [b"ab, cd. efg hij kl.", b"x(1) \xc3\xa9t\xc3\xa9,  yes, no"]
    x = np.stack([rows([text])["tokens"][0] for text in texts])
    want = np.asarray(jax.jit(lambda p: made.merge(p)(jnp.asarray(x), mask=masks.Causal()).features)(params))

    @jax.jit
    def read(params, piece, positions, state):
        return made.merge(params).for_decoding()(piece, mask=masks.Causal(), positions=positions, state=state)

    state = jax.jit(lambda p: made.merge(p).for_decoding().init_state(2, T))(params)
    readers.pieces_are_the_whole(read, params, state, x, want)


@NAMES
def test_flops_agree_with_the_compiler(name):
    """Forward, and forward with backward, within 3%; what the masks hide of the reference attention is added."""
    n, sizes = 64, {"model.width": 512, "model.segmented.width": 256, "model.segmented.window": 0}
    changes = {"data.length": n, "model.dtype": "float32", "model.param_dtype": "float32", "model.num_heads": 8,
               "model.num_layers": 1, "model.attention.implementation": "reference", **LIMITED, **sizes}  # fmt: skip
    made = program(name, **changes)

    def loss(params):
        model = made.merge(params)
        told = {"mask": masks.Causal(), "soft": model.softens}
        return jnp.sum(model.logits(model(jnp.zeros((1, n), jnp.int32), **told).features) ** 2)

    S = n if name == "mrt5" else 22 + 3
    hidden = 2 * 4 * 256 * (n - (n + 1) / 2) + S / n * 4 * 512 * (S - (S + 1) / 2)
    forward = counting.flops_per_token(made)["total"] / 3
    shapes = made.abstract["params"]
    for function, times in ((loss, 1), (jax.grad(loss), 3)):
        counted = jax.jit(function).lower(shapes).cost_analysis()["flops"] / n
        assert 1.0 <= counted / (times * (forward + hidden)) < 1.03


def test_segments_are_limited_as_one_by_one():
    rng = np.random.default_rng(0)
    for least in (1, 2, 5):
        proposed, live = rng.random((4, 40)) < 0.6, np.arange(40) < 35
        first = np.zeros((4, 40), bool)
        first[1:, 0] = first[:, 17] = True
        place = np.stack([np.arange(40) + (9 if row == 0 else 0) for row in range(4)])
        place[:, 17:] = np.arange(23)
        before = np.array([2, 0, 0, 0])
        args = [jnp.asarray(x) for x in (proposed, first, np.broadcast_to(live, (4, 40)), place)]
        got = np.asarray(cuts.limited(*args, least, jnp.asarray(before)))
        marks = np.asarray(cuts.marked(jnp.asarray(got), *args[1:3], jnp.asarray(before)))
        for row in range(4):
            n = before[row]
            for t in range(35):
                grown = 1 if first[row, t] else min(n + proposed[row, t], 1 + place[row, t] // least)
                assert got[row, t] == grown and marks[row, t] == (first[row, t] or grown > n)
                n = grown
        assert not marks[:, 35:].any()


def test_pools_and_averages_are_those_of_one_document(x64):
    """Values and gradients of the published pools, which know one document a row."""
    rng = np.random.default_rng(1)
    soft, hidden = jnp.asarray(rng.random((2, 9))), jnp.asarray(rng.normal(size=(2, 9, 3)))
    weigh, S = jnp.asarray(rng.normal(size=(2, 6, 3))), 6

    def ours(soft, hidden):
        marks = cuts.straight_marks(soft > 0.5, soft, jnp.ones_like(soft, bool))
        member = cuts.members(cuts.segment_of(marks, False), S)
        zero = jnp.zeros((2,))
        return jnp.sum(weigh * cuts.mean(hidden, member, jnp.zeros((2, 3)), zero, jnp.zeros(3)))

    def published(soft, hidden):
        return jnp.sum(weigh * magnet.pool(magnet.straight_through(soft), hidden, jnp.zeros(3), S)[:, 1:])

    got, want = (jax.value_and_grad(f, argnums=(0, 1))(soft, hidden) for f in (ours, published))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8), got, want)
    assert np.abs(got[1][0]).max() > 1e-3
    p = jnp.asarray(rng.random((2, 9)))
    first = jnp.zeros((2, 9), bool).at[:, 0].set(True)
    np.testing.assert_allclose(cuts.smoothed(hidden, p, first, 7 + hidden[:, 0]), hnet.smooth(hidden, p), rtol=1e-12)
    twice = jnp.zeros((2, 9), bool).at[:, 4].set(True)
    got = cuts.smoothed(hidden, p, twice, hidden[:, 8])
    z = np.asarray(hidden[:, 8])
    for m in range(9):
        z = np.asarray(p)[:, m, None] * np.asarray(hidden)[:, m] + (m != 4) * (1 - np.asarray(p)[:, m, None]) * z
        np.testing.assert_allclose(got[:, m], z, rtol=1e-12)


def test_the_losses_of_learned_cuts_are_those_of_their_formulas(x64):
    from scipy.stats import binom

    _, params, run = ready("magnet", **{"model.segmented.magnet.weight": 2.0})
    out = run(params, rows())
    count = float(out.report["segments"].total[0]) - 2  # A document's first byte is no trial.
    trials = sum(map(len, TEXTS))
    np.testing.assert_allclose(out.report["loss"][0], -2 * binom.logpmf(count, trials, 0.2), rtol=1e-9)
    _, params, run = ready("hnet", **{"model.segmented.hnet.weight": 0.5})
    out = run(params, rows())
    shares = []
    for text in TEXTS:
        ids = np.array([256, *text])
        p = jax.tree.map(np.asarray, params)
        h = layers_of(p["encoder"], p["embedding"][ids], N, W // N, 5, 1)
        shares += plain_marks("hnet", h, ids, p["segmenter"])[1]
    p, N_ = np.array(shares), 4.0
    F, G = (p > 0.5).mean(), p.mean()
    want = 0.5 * len(p) * N_ / (N_ - 1) * ((N_ - 1) * F * G + (1 - F) * (1 - G))
    np.testing.assert_allclose(out.report["loss"][0], want, rtol=1e-9)


@pytest.mark.parametrize("rule", ["global", "monotonic"])
def test_patches_are_those_of_the_rule_and_the_head_learns_the_next_byte(rule, x64):
    bar = THRESHOLD if rule == "global" else 0.0
    rules = {"model.segmented.entropy.rule": rule, "model.segmented.entropy.threshold": bar}
    _, params, run = ready("entropy", **rules, **{"model.segmented.entropy.weight": 0.5})
    out, p, nats, count = run(params, rows()), jax.tree.map(np.asarray, params), 0.0, 0
    for text in TEXTS:
        ids = np.array([256, *text])
        h = layers_of(p["encoder"], p["embedding"][ids], N, W // N, 5, 1)
        logits = layers.rmsnorm(h, 1e-6) @ p["segmenter"]["head"]
        nats -= sum(layers.log_softmax(logits[t])[ids[t + 1]] for t in range(len(text)))
        H = np.concatenate([[0.0], patches.entropies(logits)[:-1]])
        count += patches.entropy_starts(H[None], bar, rule=rule).sum()
    np.testing.assert_allclose(out.report["loss"][0], 0.5 * nats, rtol=1e-9)
    assert float(out.report["segments"].total[0]) == count > 4


@pytest.mark.parametrize("name", ["magnet", "hnet", "entropy", "mrt5"])
def test_what_decides_the_cuts_learns(name):
    made = program(name, **{"model.dtype": "float32", "model.param_dtype": "float32"})
    batch = {name: np.asarray(x, np.int32) for name, x in rows().items()}
    batch |= {"targets": batch["tokens"], "scored": batch["segment_ids"] > 0}

    def loss(params):
        out = made.objective.loss(made.merge(params), batch, jax.random.key(0))
        return reports.with_losses(out.total, out.report)

    found = jax.jit(jax.grad(loss))(made.init()["params"])["segmenter"]
    for path, gradient in jax.tree_util.tree_leaves_with_path(found):
        assert np.abs(gradient).max() > 1e-6, path


def test_bytes_beyond_the_room_of_a_row_read_nothing_and_are_told():
    many = [b""] * 15 + [b"abc def"]
    made = program("words", **{"model.segmented.least": 4, "model.segmented.documents": 0,
                               "model.dtype": "float32", "model.param_dtype": "float32"})  # fmt: skip
    out = jax.jit(lambda params: features(made, params, rows(many)))(made.init()["params"])
    assert np.isfinite(np.asarray(out.features)).all() and float(out.report["unread"].total[0]) > 0


def test_kinds_are_found_by_name():
    assert set(MODELS) == {"lm", "segmented", "hamburger", "swiftkv"}
    with pytest.raises(ValueError, match="one after another"):
        made = program("words")
        made.merge(made.init()["params"])(jnp.zeros((1, 4), jnp.int32), mask=masks.Window(3))


REFUSED = {
    "model.segmented.pool": ("attention", "model.segmented.pool='mean'"),
    "data.tokenizer": ("bpe", "data.tokenizer='bytes'"),
    "model.segmented.heads": (3, "model.segmented.width=6"),
    "objective": ("masked_diffusion", "objective='next_token'"),
    "generate.drafter": ("recycling", "generate.drafter='lookup'"),
    "generate.memory": ("h2o", "generate.memory='full'"),
    "model.channel": ("moe", "model.channel='swiglu'"),
    "model.logit_scale": (0.0, "model.logit_scale=1.0"),
    "model.mixer": ("lact", "model.mixer='attention'"),
    "model.attention.softcap": (5.0, "model.attention.softcap=0.0"),
    "mesh.context": (2, "mesh.context=1"),
    "mesh.tensor": (4, "model.segmented.heads=4"),
    "model.positions": (64, "model.positions=0"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_does_not_go_with_it_is_refused_with_a_value_that_works(key, x64):
    value, works = REFUSED[key]
    with pytest.raises(ConfigError, match=works.replace(".", r"\.")):
        name = "words" if key == "data.tokenizer" else "mrt5"
        preflight.check(config(name, **{key: value}), num_devices=value if key.startswith("mesh.") else 1)
