"""Transplants of embeddings against plain forms, and the hypernetwork against loops in numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.tokenizers import romanise
from models import hypernetwork, transplant

RNG = np.random.default_rng(0)
OLD = (b"a", b"b", b"the", b"The", b"ab", b"", b"", b"")
NEW = (b"b", b"the", b"THE", b"aba", b"abab", b"", b"", b"")
E = RNG.normal(size=(len(OLD), 5))


def encode(text):
    """Longest piece first, of ab, a and b."""
    ids = []
    while text:
        piece = next(p for p in (b"ab", b"a", b"b") if text.startswith(p))
        ids.append(OLD.index(piece))
        text = text[len(piece) :]
    return ids


def test_shared_pieces():
    assert transplant.shared(OLD, NEW).tolist() == [1, 2, -1, -1, -1, -1, -1, -1]
    assert transplant.shared(OLD, NEW, ignore_case=True).tolist() == [1, 2, 2, -1, -1, -1, -1, -1]
    assert transplant.shared((b"\xff", b"A"), (b"\xff", b"a")).tolist() == [0, -1]


def test_weights_of_pieces_by_hand():
    rng = np.random.default_rng(1)  # Of its own: a threshold cuts what these numbers are, whatever ran before.
    full, parts = rng.normal(size=6), rng.normal(size=(3, 6))
    lengths, length, tau = (2, 1, 4), 7, 0.3
    c = [full @ p / np.linalg.norm(full) / np.linalg.norm(p) for p in parts]
    soft = lambda xs: [math.exp(x) / sum(map(math.exp, xs)) for x in xs]  # noqa: E731
    wanted = {
        "averaged": soft([(x + n / length) / 2 / tau for x, n in zip(c, lengths, strict=True)]),
        "softmaxed": soft(
            [(x + n / length) / 2 / (tau + 1e-9) for x, n in zip(soft([x / tau for x in c]), lengths, strict=True)]
        ),
        "thresholded": soft(
            [((x if x >= 0.7 * 0.2 else 0) + 1 / 3 + n / length) / tau for x, n in zip(c, lengths, strict=True)]
        ),
    }
    assert min(c) < 0.14 < max(c), "the threshold cuts"
    for variant, want in wanted.items():
        got = transplant.local_weights(full, parts, lengths, length, tau, variant, threshold=0.2)
        np.testing.assert_allclose(got, want, rtol=1e-12)
    longer = transplant.local_weights(full, parts, (9, 1, 1), 7, tau, "thresholded", threshold=2.0)
    np.testing.assert_allclose(longer, soft([(1 / 3 + r) / tau for r in (1, 1 / 7, 1 / 7)]), rtol=1e-12)
    with pytest.raises(ValueError, match="use 'averaged'"):
        transplant.local_weights(full, parts, lengths, length, variant="x")


def test_neighbours_and_their_weights():
    query, table = RNG.normal(size=6), RNG.normal(size=(9, 6))
    c = np.array([query @ r / np.linalg.norm(query) / np.linalg.norm(r) for r in table])
    best = sorted(range(9), key=lambda i: -c[i])[:3]
    ids, weights = transplant.global_weights(query, table, 3, 0.3)
    assert ids.tolist() == best
    np.testing.assert_allclose(weights, np.exp(c[best] / 0.3) / np.exp(c[best] / 0.3).sum(), rtol=1e-12)
    between = (c[best[1]] + c[best[2]]) / 2
    _, cut = transplant.global_weights(query, table, 3, 0.3, threshold=between)
    np.testing.assert_allclose(cut[:2], np.exp(c[best[:2]] / 0.3) / np.exp(c[best[:2]] / 0.3).sum(), rtol=1e-12)
    assert cut[2] == 0
    assert len(transplant.global_weights(query, table, 3, 0.3, threshold=1.5)[0]) == 0
    near, far = np.array([1.0, 2.0]), np.array([5.0, 0.0])
    np.testing.assert_allclose(transplant.hybrid(near, far), 0.3 * far + 0.7 * near)
    assert transplant.hybrid(None, far) is far and transplant.hybrid(near, None) is near


def test_rules_fill_a_new_vocabulary():
    change = transplant.Change(OLD, NEW, encode)
    mean = transplant.transplanted(change, E, "mean")
    np.testing.assert_array_equal(mean[[0, 1, 5, 6, 7]], E[[1, 2, 5, 6, 7]])
    np.testing.assert_allclose(mean[3], E.mean(0))
    change = transplant.Change(OLD, (b"b", b"aba", b"abab", b"", b"", b""), encode)
    copied = transplant.transplanted(change, E, "copy_mean")
    np.testing.assert_allclose(copied[1], (E[4] + E[0]) / 2)
    np.testing.assert_allclose(copied[2], E[4])
    local = transplant.transplanted(change, E, "tokenadapt_local")
    told = transplant.letter_counts([b"aba", b"ab", b"a"])
    weights = transplant.local_weights(told[0], told[1:], (2, 1), 3)
    np.testing.assert_allclose(local[1], weights @ E[[4, 0]], rtol=1e-12)
    far = transplant.transplanted(change, E, "tokenadapt_global")
    ids, weights = transplant.global_weights(told[0], transplant.letter_counts(OLD[:5]))
    np.testing.assert_allclose(far[1], weights @ E[ids], rtol=1e-12)
    both = transplant.transplanted(change, E, "tokenadapt")
    np.testing.assert_allclose(both[1], 0.3 * far[1] + 0.7 * local[1], rtol=1e-12)
    drawn = transplant.transplanted(change, E, "random")
    assert drawn.shape == (6, 5) and not np.isin(drawn[:3], E).any()
    many = transplant.random_like(E, 20_000)
    assert abs(many.mean() - E.mean()) < 5 * E.std() / math.sqrt(100_000)
    assert abs(many.std() / E.std(ddof=1) - 1) < 5 / math.sqrt(200_000)


def test_specials_keep_their_part_and_unknown_pieces_have_the_mean():
    old, new = (b"", b"", b"a", b"b", b""), (b"a", b"\xff", b"", b"", b"")
    encode = lambda text: [old.index(text)] if text in old else []  # noqa: E731
    rows = RNG.normal(size=(5, 3))
    in_order = transplant.transplanted(transplant.Change(old, new, encode), rows, "copy_mean")
    np.testing.assert_array_equal(in_order[[0, 2, 3, 4]], rows[[2, 0, 1, 4]])
    np.testing.assert_allclose(in_order[1], rows.mean(0))
    told = transplant.Change(old, new, encode, specials=[(1, 2), (4, 3)])
    for rule in ("copy_mean", "mean", "tokenadapt_local", "transmi_max"):
        got = transplant.transplanted(told, rows, rule)
        np.testing.assert_array_equal(got[[2, 3]], rows[[1, 4]])
        np.testing.assert_allclose(got[4], rows.mean(0))
    np.testing.assert_array_equal(transplant.transplanted(told, rows, "random")[[2, 3]], rows[[1, 4]])


def test_rules_of_transliterations_and_of_a_hypernetwork():
    old = tuple(each.encode() for each in ("a", "да", "δα", "ми", "da ")) + (b"\xd0", b"")
    new = (b"a", b"da", b"mi", b"aa", b"")
    encode = lambda text: [0] * len(text)  # noqa: E731
    rows, change = RNG.normal(size=(7, 3)), transplant.Change(old, new, encode, transliterate=romanise.romanised)
    for rule, da in (("max", rows[1]), ("min", rows[2]), ("average", (rows[1] + rows[2]) / 2)):
        got = transplant.transplanted(change, rows, f"transmi_{rule}")
        np.testing.assert_allclose(got, [rows[0], da, rows[3], rows[0], rows[6]], rtol=1e-15)
    told = transplant.Change(old, new, encode, predicted=RNG.normal(size=(5, 3)))
    got = transplant.transplanted(told, rows, "zett")
    np.testing.assert_array_equal(got, [rows[0], *told.predicted[1:4], rows[6]])
    with pytest.raises(ValueError, match="needs the predictions"):
        transplant.transplanted(change, rows, "zett")


@pytest.mark.parametrize("rule", transplant.RULES)
def test_the_same_vocabulary_keeps_every_bit(rule):
    assert transplant.transplanted(transplant.Change(OLD, OLD, encode), E, rule) is E
    with pytest.raises(ValueError, match="use one of"):
        transplant.transplanted(transplant.Change(OLD, OLD, encode), E, "none")


def test_transmi():
    pieces, romanised = ("мир", "mir", "мiр", "ми", "λ"), ("mir", "mir", "mir", "mi", "")
    assert transplant.transmi_sources(pieces, romanised) == {"mi": ["ми"]}, "mir is a piece already"
    pieces, romanised = ("да", "δα", "dа"), ("da", "da", "da")
    sources = transplant.transmi_sources(pieces, romanised)
    scores = {"да": -3.0, "δα": -1.0, "dа": -2.0}
    for mode, want, row in (("max", -1.0, 1), ("min", -3.0, 0)):
        assert transplant.transmi_scores(sources, scores, mode) == {"da": want}
        rows = E[:3]
        np.testing.assert_array_equal(transplant.transmi_embedding(rows, [-3.0, -1.0, -2.0], mode), rows[row])
    np.testing.assert_array_equal(transplant.transmi_embedding(rows, (), "max", released=True), rows[0])
    np.testing.assert_array_equal(transplant.transmi_embedding(rows, (), "min", released=True), rows[2])
    assert transplant.transmi_scores(sources, scores, "average")["da"] == -2
    np.testing.assert_allclose(transplant.transmi_embedding(rows, (), "average"), rows.mean(0))
    np.testing.assert_allclose(transplant.transmi_embedding(rows, (), "average", released=True), rows.sum(0))
    order = transplant.transmi_scores({"x": ["a"], "y": ["b"], "z": ["c"]}, {"a": -2, "b": -1, "c": -2})
    assert list(order) == ["y", "x", "z"]


def plain_norm(x, scale, bias, eps):
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps) * scale + bias


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def erf_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def plain_predict(forms, source, pad, p, heads):
    out = []
    for row in forms:
        ids = [i for i in row if i != pad]
        x = np.array([source[i] * p["in_w"] + p["in_b"] for i in ids]) @ p["kernel"] + p["bias"]
        block = lambda v, q: plain_norm(  # noqa: E731
            v + tanh_gelu(tanh_gelu(v @ q["w1"] + q["b1"]) @ q["w2"] + q["b2"]), q["scale"], q["bias"], 1e-6
        )
        x = np.array([block(v, p["first"]) + p["position"][s] for s, v in enumerate(x)])
        for q in p["layers"]:
            H = x.shape[1] // heads
            made = np.zeros_like(x)
            for s, n in itertools.product(range(len(ids)), range(heads)):
                part = slice(n * H, (n + 1) * H)
                ask = (x[s] @ q["wq"] + q["bq"])[part]
                logits = np.array([ask @ (y @ q["wk"] + q["bk"])[part] / math.sqrt(H) for y in x])
                w = np.exp(logits) / np.exp(logits).sum()
                made[s, part] = sum(a * (y @ q["wv"] + q["bv"])[part] for a, y in zip(w, x, strict=True))
            x = np.array(
                [
                    plain_norm(v + m @ q["wo"] + q["bo"], q["scale1"], q["bias1"], 1e-5)
                    for v, m in zip(x, made, strict=True)
                ]
            )
            x = np.array(
                [
                    plain_norm(v + erf_gelu(v @ q["w1"] + q["b1"]) @ q["w2"] + q["b2"], q["scale2"], q["bias2"], 1e-5)
                    for v in x
                ]
            )
        out.append((block(x[0], p["last"]) @ p["out_kernel"] + p["out_bias"]) * p["out_w"] + p["out_b"])
    return np.array(out)


def parameters(D, H, S, layers, rng):
    n = lambda *shape: rng.normal(size=shape) * 0.5  # noqa: E731
    block = lambda: {"w1": n(H, 2 * H), "b1": n(2 * H), "w2": n(2 * H, H), "b2": n(H), "scale": n(H), "bias": n(H)}  # noqa: E731
    layer = lambda: {  # noqa: E731
        **{f"w{c}": n(H, H) for c in "qkvo"}, **{f"b{c}": n(H) for c in "qkvo"},
        "w1": n(H, 2 * H), "b1": n(2 * H), "w2": n(2 * H, H), "b2": n(H),
        "scale1": n(H), "bias1": n(H), "scale2": n(H), "bias2": n(H),
    }  # fmt: skip
    return {
        "in_w": n(D), "in_b": n(D), "kernel": n(D, H), "bias": n(H), "position": n(S, H), "first": block(),
        "last": block(), "layers": [layer() for _ in range(layers)], "out_kernel": n(H, D), "out_bias": n(D),
        "out_w": n(D), "out_b": n(D),
    }  # fmt: skip


def test_the_hypernetwork(x64):
    D, H, S, pad = 5, 6, 4, -1
    p = parameters(D, H, S, 2, np.random.default_rng(7))
    forms = np.array([[0, 2, 1, pad], [3, pad, pad, pad], [1, 1, 4, 0]])
    got = hypernetwork.predict(jnp.asarray(forms), jnp.asarray(E), pad, p, 2)
    np.testing.assert_allclose(got, plain_predict(forms, E, pad, p, 2), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(
        hypernetwork.lexical_loss(got, E, forms, pad), np.linalg.norm(np.asarray(got)[1] - E[3]), rtol=1e-12
    )
    assert hypernetwork.lexical_loss(got[:1], E, forms[:1], pad) == 0


def test_forms_and_rescaling():
    forms = hypernetwork.surface_forms([b"abab", b"a", b"", b"ababab"], encode, -1, 2)
    assert forms.tolist() == [[4, 4], [0, -1], [-1, -1], [4, 4]]
    w, b = hypernetwork.rescaling(E, np.arange(5.0), 0.02)
    np.testing.assert_allclose((w * E + b).mean(0), np.arange(5.0), atol=1e-12)
    np.testing.assert_allclose((w * E + b).std(0), 0.02, rtol=1e-12)


def test_a_new_hypernetwork_reads_and_writes_at_the_scale_of_the_rows(x64):
    rows = np.random.default_rng(3).normal(2.0, 0.1, size=(400, 8)) * np.arange(1, 9)
    held = hypernetwork.scales(rows)
    read = held["in_w"] * rows + held["in_b"]
    np.testing.assert_allclose([read.mean(0), read.std(0)], [[0] * 8, [1] * 8], atol=1e-12)
    p = hypernetwork.initial(jax.random.key(0), 8, 8, 16, 2) | held
    forms = np.full((400, hypernetwork.LONGEST), -1)
    forms[:, 0] = np.arange(400)
    made = hypernetwork.predict(jnp.asarray(forms), jnp.asarray(rows), -1, p, 2)
    unit = (np.asarray(made) - rows.mean(0)) / rows.std(0)
    assert 0.5 < unit.std() < 2 and len(p["layers"]) == 2  # Outputs of unit size: kernels are N(0, 1 / inputs).
    for name, fan_in in (("kernel", 8), ("out_kernel", 16)):
        assert abs(p[name].std() * np.sqrt(fan_in) - 1) < 5 / np.sqrt(2 * p[name].size)
    assert jax.tree.structure(p["layers"][0]) == jax.tree.structure(parameters(8, 16, 7, 1, RNG)["layers"][0])
