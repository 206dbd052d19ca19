"""Controls that read features, whole texts or samples, against numpy and whole passes, one row at a time."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.block import Pass
from models.decoding import parts as sockets
from models.decoding.control import budget, search, semantic, spending, streams, superposed, verified
from models.decoding.drafts import Tree
from models.objectives import remaining
from tests.models.decoding.control.second_test import GREEDY, LIMITS, best, law, model, run, text
from tests.models.decoding.stream_test import LENGTH, V, prompts
from tests.plain import control as plain

pytestmark = pytest.mark.usefixtures("one_device")
ROOT = Tree(jnp.array([[2]]), jnp.array([[-1]]), None, jnp.ones((1, 1), bool))


# Majority vote.


def test_answers_and_votes_by_hand():
    rows = ([9, 1, 5, 6, 7, 0], [9, 5, 6, 5, 6, 7], [9, 5, 6, 7, 3, 3], [9, 4, 4, 4, 4, 4], [5, 6, 7, 0, 0, 0],
            [9, 1, 2, 5, 6, 0])  # fmt: skip
    start, end, tokens = jnp.array([1, 1, 1, 1, 1, 1]), jnp.array([5, 6, 4, 6, 3, 4]), jnp.array(rows)
    begin = search.answer_start(tokens, start, end, jnp.array([5, 6]))
    # In row 1 the last mark counts; that of row 4 begins before the answer, that of row 5 ends behind it.
    assert begin.tolist() == [4, 5, 3, -1, -1, -1]
    assert search.votes(tokens, begin, end).tolist() == [3, 3, 3, 0, 0, 0]
    assert search.votes(tokens, begin, jnp.array([5, 6, 5, 6, 3, 4])).tolist() == [2, 2, 1, 0, 0, 0]
    whole = search.answer_start(tokens, start, end, jnp.array([], int))
    assert whole.tolist() == start.tolist() and search.votes(tokens, whole, end).tolist() == [1] * 6
    assert search.majority(["a", "b", "b"]) == "b"


@pytest.mark.parametrize("n", [3])
def test_the_commonest_answer_of_n_texts_is_written(n):
    """The n texts are those that n other requests would draw; their last tokens behind a mark are counted here."""
    mark = int(prompts()[0, 0])
    given = {"best_of_n": {"mark": jnp.asarray([[-1] * 7 + [mark]] * 3, jnp.int32)}}
    settings = {"control": "best_of_n", "best_of_n": {"n": n, "choose": "majority"}, "temperature": 0.7}
    p = run(settings, given)
    likeliest = run(settings | {"best_of_n": {"n": n}})
    none = {"best_of_n": {"mark": jnp.full((3, 8), -1, jnp.int32)}}
    first = run({"control": "", "temperature": 0.7})
    whole = run(settings, none)  # Whole texts: with unlike ones each has one vote, and the first stands.
    assert text(whole) == text(first) and text(p) != text(likeliest)
    assert p.calls.tolist() == [8 * n] * 3
    for row in range(3):
        answer = text(p)[row][LENGTH[row] :]
        assert mark in answer or text(p)[row] == text(first)[row]


# Superposed decoding.


def test_the_ngram_law_of_a_text_is_that_of_its_tables():
    rng = np.random.default_rng(0)
    reference, V = rng.integers(0, 4, 60), 5
    weights = (0.2, 0.3, 0.4)
    tables = [{} for _ in weights]
    for i, table in enumerate(tables):
        for at in range(i + 1, 50):  # Of 60 tokens the first 50 count.
            counts = table.setdefault(tuple(reference[at - i - 1 : at]), {})
            counts[reference[at]] = counts.get(reference[at], 0) + 1
    for length in (0, 1, 2, 3, 9):
        for _ in range(5):
            draft = rng.integers(0, 5, 9)
            got = superposed.text_law(reference, 50, draft, length, jnp.asarray(weights), V)
            want = superposed.ngram_law(tables, weights, draft[:length].tolist(), V)
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def drafted(row, k, top, alpha, reference, weights, eos):
    """Superposed decoding of one text in numpy; each pass reads the embeddings' mixture in place of the last token."""
    graphdef, params = model("attention")
    made = nnx.merge(graphdef, params)
    table = np.asarray(made.embed(jnp.arange(V)[None])[0])
    tables = [{} for _ in weights]
    for i, counts in enumerate(tables):
        for at in range(i + 1, len(reference)):
            one = counts.setdefault(tuple(reference[at - i - 1 : at]), {})
            one[reference[at]] = one.get(reference[at], 0) + 1
    vectors = [table[t] for t in np.asarray(prompts())[row, : LENGTH[row]]]
    begin = np.asarray(prompts())[row, : LENGTH[row]].tolist()
    drafts = [(0.0, begin, False)]
    while True:
        logits = features()(jnp.asarray(np.stack(vectors + [table[0]] * (40 - len(vectors)))[None]))[
            0, len(vectors) - 1
        ]
        p = plain.softmax(logits)
        kept = np.where(np.isin(np.arange(V), np.argsort(-p, kind="stable")[:top]), p, 0)
        kept /= kept.sum()
        found = []
        for score, tokens, ended in drafts:
            if ended:
                found.append((score, tokens, True))
                continue
            ngram = superposed.ngram_law(tables, weights, tokens, V)
            both = (kept > 0) & (ngram > 0)
            for v in range(V):
                if alpha == 0:
                    log_p = np.log(kept[v]) if kept[v] else -np.inf
                elif both.any():
                    log_p = (1 - alpha) * np.log(kept[v]) + alpha * np.log(ngram[v]) if both[v] else -np.inf
                else:
                    log_p = (1 - alpha) * np.log(kept[v]) - 200 if kept[v] else -np.inf
                now = [*tokens, v]
                found.append((score + log_p, now, v == eos or len(now) >= LIMITS[row]))
        drafts = sorted(found, key=lambda one: -one[0])[:k]
        alive = [one for one in drafts if not one[2]]
        if not alive:
            best = max(drafts, key=lambda one: one[0] / (len(one[1]) - LENGTH[row]))
            return best[1]
        weigh = plain.softmax([one[0] for one in alive])
        vectors.append(sum(w * table[one[1][-1]] for w, one in zip(weigh, alive, strict=True)))


@functools.cache
def features():
    from kernels import masks

    graphdef, params = model("attention")

    @jax.jit
    def logits(vectors):
        made = nnx.merge(graphdef, params)
        return made.logits(made(vectors, mask=masks.Causal()).features)

    return lambda x: np.asarray(logits(x), np.float64)


@pytest.mark.parametrize("k, alpha, ends", [(3, 0.0, False), (3, 0.5, False), (3, 0.0, True)])
def test_superposed_texts_are_those_of_a_loop(k, alpha, ends, monkeypatch):
    """With a token of the first row's text as the end, a draft that has ended is no longer read."""
    settings = {"drafts": k, "alpha": alpha, "top": 6, "size": 32}
    eos = text(run(GREEDY | {"control": "superposed", "superposed": settings}))[0][LENGTH[0] + 3] if ends else -1
    monkeypatch.setattr(sockets, "make", functools.partial(sockets.make, eos=eos))
    reference = np.tile(np.asarray(prompts())[0, :8], 3)
    given = {"superposed": {"reference": jnp.asarray(np.repeat(np.pad(reference, (0, 8))[None], 3, 0)),
                            "many": jnp.full((3,), len(reference))}} if alpha else {}  # fmt: skip
    p = run(GREEDY | {"control": "superposed", "superposed": settings}, given)
    for row in range(3):
        assert text(p)[row] == drafted(row, k, 6, alpha, reference.tolist(), (0.2, 0.3, 0.5), eos)
    assert p.calls.tolist() == [8] * 3 if eos < 0 else (np.asarray(p.length) < LIMITS).any()


def test_one_draft_without_ngrams_is_greedy():
    p = run(GREEDY | {"control": "superposed", "superposed": {"drafts": 1, "top": 6}})
    assert text(p) == best(0)


@pytest.mark.parametrize("options, says", [
    ({"drafts": 5, "top": 3}, "below generate.superposed.drafts=5"), ({"weights": "a"}, "e.g. '0.2, 0.3, 0.5'"),
    ({"weights": "0.9, 0.9"}, "of sum 1 at most"),
])  # fmt: skip
def test_wrong_drafts_are_refused(options, says):
    assert says in " ".join(streams.Superposed(**options).problems(None, None))


# Semantic control.


def test_the_next_token_is_weighed_by_the_linearised_verifier():
    """With a sample of no further token the law of a step is in closed form: from whole passes, in numpy."""
    graphdef, params = model("attention")
    made = nnx.merge(graphdef, params)
    table = np.asarray(made.embed(jnp.arange(V)[None])[0], np.float64)
    kernel, bias = np.random.default_rng(0).normal(size=table.shape[1]) * 40, -3.0
    given = {
        "semantic": {"kernel": jnp.asarray(np.repeat(kernel[None], 3, 0), jnp.float32), "bias": jnp.full((3,), bias)}
    }
    settings = {"control": "semantic", "semantic": {"weight": 4.0, "length": 0}}
    p = run(GREEDY | settings, given)
    for row in range(3):
        tokens, total = np.asarray(prompts())[row, : LENGTH[row]].tolist(), np.zeros(table.shape[1])
        for many in range(8):
            log_p = law(0, tokens)[-1]
            mean = np.exp(log_p) @ table
            value = 1 / (1 + np.exp(-(bias + kernel @ (total + mean) / (many + 1))))
            slope = value * (1 - value) * kernel / (many + 1)
            expected = np.clip(value + (table - mean) @ slope, 1e-6, 1)
            tokens.append(int(np.argmax(log_p + 4.0 * np.log(expected))))
            total = total + table[tokens[-1]]
        assert text(p)[row] == tokens
        np.testing.assert_allclose(p.side["semantic"]["sum"][row], total, rtol=1e-5, atol=1e-6)
        assert p.side["semantic"]["many"][row] == 8
    assert p.calls.tolist() == [16] * 3 and text(p) != best(0)


def test_samples_ahead_are_drawn_apart_and_leave_no_trace():
    """A verifier that says the same of all texts changes no token, at any length of the sample; calls are counted."""
    plainly = run({"control": "", "temperature": 0.7})
    p = run({"control": "semantic", "semantic": {"weight": 1.0, "length": 2}, "temperature": 0.7})
    assert text(p) == text(plainly)
    assert (p.calls == 8 * 4 - 3).all()  # Three, two and one token before the limit there is no room for three more.


# Budgets.


@pytest.mark.parametrize("left", [1, 2, 5])
def test_an_exact_budget_is_the_conditional_chain(left):
    """The part on a chain's own logits: the law of every step is that of the chain which ends in time."""
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.ones(4), 4)
    chain[3] = [0, 0, 0, 1]
    within = np.asarray(budget.stops_within(chain, [False, False, False, True], 5))
    part = spending.Budget(form="exact", most=8)
    side = {"within": jnp.asarray(np.pad(within, ((0, 2), (0, 0)))[None], jnp.float32)}
    p = types.SimpleNamespace(
        dials={"budget.tokens": jnp.array([5.0])}, length=jnp.array([3 + 5 - left]), prompt=jnp.array([3])
    )
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(chain[2])[None, None], jnp.float32)
    got, _ = part.process({}, side, logits, p, ROOT, jnp.array([[4]]))
    counts = np.zeros(4)
    for path in itertools.product(range(4), repeat=left):
        steps = np.prod([chain[a, b] for a, b in itertools.pairwise((2, *path))])
        counts[path[0]] += steps * (path[-1] == 3)
    np.testing.assert_allclose(np.exp(got[0, 0]), counts / counts.sum(), rtol=1e-5)
    off = p.__class__(**(vars(p) | {"dials": {"budget.tokens": jnp.array([0.0])}}))
    assert (part.process({}, side, logits, off, ROOT, jnp.array([[4]]))[0] == logits).all()


def test_a_predicted_budget_acts_behind_newlines_and_at_the_first_token():
    rng = np.random.default_rng(0)
    V, D = 6, 4
    head = types.SimpleNamespace(
        kernel=nnx.Param(jnp.asarray(rng.normal(size=(2, V, D)))), bias=nnx.Param(jnp.full((2, V), 3.0))
    )
    models = {"model": types.SimpleNamespace(heads={"remaining": head})}
    x, logits = rng.normal(size=(1, 1, D)), rng.normal(size=(1, 1, V))
    part, side = spending.Budget(), {"newline": jnp.asarray([[False, False, True, False, False, False]])}
    shown = part.shown(models, side, Pass(jnp.asarray(x), None, {}))
    alpha, rate = (np.exp(np.asarray(head.kernel[...])[i] @ x[0, 0] + 3) for i in range(2))
    np.testing.assert_allclose([shown["gamma"][0][0], shown["gamma"][1][0]], [alpha, rate], rtol=1e-5)
    for written, token, acts in ((0, 1, True), (4, 1, False), (4, 2, True), (30, 2, True)):
        p = types.SimpleNamespace(
            dials={"budget.tokens": jnp.array([20.0])}, length=jnp.array([5 + written]), prompt=jnp.array([5])
        )
        tree = ROOT._replace(token=jnp.array([[token]]))
        got, _ = part.process(models, shown, jnp.asarray(logits), p, tree, jnp.array([[4]]))
        want = (
            plain.budget_released(logits[0, 0], alpha, rate, max(20 - written, 1))
            if acts
            else plain.softmax(logits[0, 0])
        )
        np.testing.assert_allclose(plain.softmax(np.asarray(got[0, 0])), want, rtol=1e-4, atol=1e-7)


def test_lengths_that_are_left_by_a_loop():
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3]])
    scored = np.array([[1, 0, 1, 1, 1, 0], [1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
    length, known = remaining.lengths(jnp.asarray(scored), jnp.asarray(segments))
    for b, t in np.ndindex(segments.shape):
        own = [u for u in range(t + 1, 6) if segments[b, u] == segments[b, t]]
        ends = segments[b, t] > 0 and segments[b, 5] != segments[b, t]
        assert known[b, t] == ends
        if ends:
            assert length[b, t] == scored[b, own].sum()
    assert not remaining.lengths(jnp.asarray(scored), None)[1].any()


def test_the_loss_of_lengths_trains_its_head_alone_and_is_the_density():
    graphdef, params = nnx.split(with_lengths())
    rng = np.random.default_rng(2)
    segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 2, 2]])
    places = jnp.asarray([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5, 0, 1]])
    batch = {"tokens": jnp.asarray(rng.integers(0, V, (2, 8))), "targets": jnp.asarray(rng.integers(0, V, (2, 8))),
             "scored": segments > 0, "segment_ids": segments, "positions": places}  # fmt: skip

    def loss(params, weight):
        made = remaining.Remaining(weight).loss(nnx.merge(graphdef, params), batch, None)
        return made.total, made.means

    grad = jax.jit(jax.grad(loss, has_aux=True))
    (with_it, means), (without, _) = grad(params, 1.0), grad(params, 0.0)
    same = jax.tree.map(np.array_equal, nnx.to_pure_dict(with_it), nnx.to_pure_dict(without))
    own = same.pop("heads")["remaining"]
    assert all(jax.tree.leaves(same)) and not any(own.values())
    made = nnx.merge(graphdef, params)
    out = np.asarray(remaining.forward(made, batch).features, np.float64)
    kernel, bias = (np.asarray(x) for x in (made.heads["remaining"].kernel[...], made.heads["remaining"].bias[...]))
    total = 0.0
    for b, t in np.ndindex(2, 8):
        left = {(0, 0): 3, (0, 1): 2, (0, 2): 1, (0, 4): 2, (0, 5): 1} | {(1, i): 5 - i for i in range(5)}
        if (b, t) in left:
            v = int(batch["targets"][b, t])
            alpha, rate = (np.exp(kernel[i, v] @ out[b, t] + bias[i, v]) for i in range(2))
            total += float(budget.negative_log_likelihood(alpha, rate, left[b, t]))
    np.testing.assert_allclose(means["nll_length"].value, total / np.asarray(segments > 0).sum(), rtol=1e-5)


def with_lengths():
    from models.lm import LM

    graphdef, params = model("attention")
    spec = nnx.merge(graphdef, params).spec
    made = LM(spec, rngs=nnx.Rngs(0), heads=remaining.Remaining().heads(spec))
    rng = np.random.default_rng(0)
    for leaf in (made.heads["remaining"].kernel, made.heads["remaining"].bias):
        leaf[...] = jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32)
    return made


@pytest.mark.parametrize(
    "shape, tokens, says", [((3, 9), 5, "no chances of 4"), ((3, 4), 5, "has 3 rows"), ((9, 4), 5, "holds no more")]
)
def test_tables_that_do_not_fit_are_refused(tmp_path, shape, tokens, says):
    np.save(tmp_path / "u.npy", np.ones(shape))
    sizes = {"within": jax.ShapeDtypeStruct((1, 8, 4), jnp.float32)}
    asked = {"budget": {"tokens": tokens, "path": str(tmp_path / "u.npy")}}
    with pytest.raises(ValueError, match=says):
        spending.Budget(form="exact", most=8).given(asked, None, sizes)
    with pytest.raises(ValueError, match="no file of numpy.save"):
        spending.Budget(form="exact").given({"budget": {"tokens": 1, "path": str(tmp_path / "x")}}, None, sizes)


def test_a_verifier_of_another_width_is_refused(tmp_path):
    sizes = {"kernel": jax.ShapeDtypeStruct((1, 4), jnp.float32)}
    np.savez(tmp_path / "v.npz", kernel=np.ones(3), bias=0.0)
    for path, says in ((tmp_path / "v.npz", "a finite kernel"), (tmp_path / "x", "no .npz file")):
        with pytest.raises(ValueError, match=says):
            verified.Semantic().given({"semantic": {"weight": 1.0, "path": str(path)}}, None, sizes)
    assert semantic.exact(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.2, 0.6])).shape == (2,)
