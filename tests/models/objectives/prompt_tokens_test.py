"""Prompt tokens: the loss by plain passes over each text and its vectors, and the drafts they make in the engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import base
from kernels import masks
from models import objectives
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import ppd
from models.lm import LM
from models.objectives import prompt_tokens
from models.spec import Spec
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, LIMIT, SETTINGS, V, key_data, prompts
from tests.models.objectives.eagle_test import batch

B, T, D = 2, 9, 32
DYNAMIC = "dynamic:12:0.6,0.2/0.4,0.2/0.3,0.1"


@functools.cache
def made(n=3, target="law", **changes):
    config = base.get_config().model
    sizes = {"width": D, "num_layers": 2, "num_heads": 4, "init": "fan_in", "init_std": 0.5, "unroll": 1}
    config.update(sizes | changes)
    spec = Spec.from_config(config.to_dict(), vocab_size=V)
    goal = objectives.make("prompt_tokens", {"tokens": n, "every": 4, "decay": 0.7, "target": target}, vocab_size=V)
    return goal, nnx.split(LM(spec, rngs=nnx.Rngs(params=0), heads=objectives.heads(goal, spec)))


def test_plain_functions_by_hand():
    np.testing.assert_allclose(prompt_tokens.decayed(jnp.array([[3.0, 2.0, 4.0]]), 0.5), [(3 + 1 + 1) / 3])
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    found = prompt_tokens.divergence(jnp.log(q) + 3.0, jnp.log(p) - 1.0)  # KL(p || q), not KL(q || p)
    np.testing.assert_allclose(found, 0.25 * np.log(0.5) + 0.75 * np.log(1.5), rtol=1e-5)
    assert prompt_tokens.parents(jnp.array([[1, 3]]), 4, 2).tolist() == [[-1, 0, 1, 2, 1, 4, 3, 6]]
    scored = jnp.array([[True, True, False, True, True]])
    place, counts = prompt_tokens.reached(jnp.array([[0, 3]]), 2, scored, jnp.array([[1, 1, 1, 1, 2]]))
    assert place.tolist() == [[[1, 2], [4, 4]]]
    assert counts.tolist() == [[[True, False], [False, False]]]  # not scored; another document, and behind the row


def test_places_are_one_in_every_run_of_tokens():
    goal, _ = made()
    drawn = np.stack([goal.corrupt(batch(), jax.random.key(seed))["places"] for seed in range(200)])
    assert drawn.shape == (200, B, 3) and (drawn // 4 == np.arange(3)).all()  # the last run holds one token
    assert all(set(drawn[..., r].ravel() % 4) == set(range(4)) for r in (0, 1))


@pytest.mark.parametrize("target", ["law", "token"])
def test_the_loss_is_that_of_plain_passes_over_each_text_and_its_vectors(target):
    """Behind token t a text goes on with the vectors; the model reads both causally, as any text."""
    n = 3
    goal, (graphdef, params) = made(n, target)
    one = goal.corrupt(batch(), jax.random.key(3))
    segments, scored, at = (np.asarray(one[name]) for name in ("segment_ids", "scored", "places"))

    def loss(params):
        out = goal.loss(nnx.merge(graphdef, params), one, jax.random.key(0))
        return out.total, out.means

    @jax.jit
    def plain(params):
        """Log-laws `[B, T, V]` of the model, and of the n vectors behind every t, `[B, T, n, V]`."""
        model = nnx.merge(graphdef, params)
        told = {"positions": one["positions"], "segment_ids": one["segment_ids"]}
        own = model.logits(model(one["tokens"], mask=masks.Causal(), **told).features)

        def behind(b, t):
            x = jnp.pad(model.embed(one["tokens"][b][None]), ((0, 0), (0, n), (0, 0)))
            x = jax.lax.dynamic_update_slice(x, model.heads["prompts"]()[None], (0, t + 1, 0))
            place = jnp.arange(T + n)
            ids = jnp.where(place <= t, jnp.pad(one["segment_ids"][b], (0, n)), one["segment_ids"][b, t])
            first = t - one["positions"][b, t]
            made = model(x, mask=masks.Causal(), positions=(place - first)[None], segment_ids=ids[None])
            return jax.lax.dynamic_slice(model.logits(made.features)[0], (t + 1, 0), (n, V))

        every = jax.vmap(lambda b: jax.vmap(lambda t: behind(b, t))(jnp.arange(T)))(jnp.arange(B))
        return jax.nn.log_softmax(own), jax.nn.log_softmax(every)

    (total, means), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    own, every = (np.asarray(x, np.float64) for x in plain(params))
    wanted, each = 0.0, np.zeros(n)
    for b in range(B):
        for t in at[b]:
            for i in range(1, n + 1):
                if t + i < T and scored[b, t + i] and segments[b, t + i] == segments[b, t]:
                    log_p, log_q = own[b, t + i], every[b, t, i - 1]
                    lost = np.exp(log_p) @ (log_p - log_q) if target == "law" else -log_q[one["targets"][b, t + i]]
                    each[i - 1] += 4 * lost
                    wanted += 4 * 0.7 ** (i - 1) * lost / n
    assert (each > 0).all()
    np.testing.assert_allclose(float(total), wanted, rtol=2e-5)  # Float32 sums of width 32.
    np.testing.assert_allclose([float(means[f"guess_{i}"].total) for i in (1, 2, 3)], each, rtol=2e-5)
    nats = sum(-own[b, t, one["targets"][b, t]] for b in range(B) for t in range(T) if scored[b, t])
    np.testing.assert_allclose(float(means["nll"].total), nats, rtol=1e-5)
    table = gradient["heads"]["prompts"]["table"]
    assert bool(jnp.all(jnp.any((table[...] if hasattr(table, "shape") else table) != 0, axis=-1)))


def begun(params, graphdef, parts, dials, rows=(0, 1, 2)):
    rows = np.array(rows)
    models = {"model": nnx.merge(graphdef, params).for_decoding()}
    given = (prompts()[rows], jnp.asarray(LENGTH[rows]), jnp.asarray(LIMIT[rows]), key_data()[rows])
    p = stream.begin(models, parts, *given, dials, capacity=40)
    return models, stream.read(models, stream.read(models, p, parts, 10, fresh=True), parts, 10)


def asked(tree, settings):
    return [DEFAULTS | each | {"drafter": "ppd", "ppd": {"tree": tree}} for each in settings]


@pytest.mark.parametrize("tree", ["2x1x1", DYNAMIC])
def test_drafts_are_the_guesses_of_vectors_behind_the_text_and_change_no_text(tree):
    """Round after round the tree holds the ranks of a plain pass over text and vectors, as deep as the state allows."""
    _, (graphdef, params) = made()
    greedy = asked(tree, [{"temperature": 0.0}] * 3)
    parts = sockets.make(greedy, DEFAULTS, vocab_size=V)
    plain = sockets.make([DEFAULTS | {"temperature": 0.0}], DEFAULTS, vocab_size=V)
    states = ppd.named(tree)

    @functools.partial(jax.jit, static_argnums=1)
    def go(params, parts):
        models, p = begun(params, graphdef, parts, {})
        seen = [p]
        for _ in range(3):
            p = stream.round_(models, p, parts, p.live)
            seen.append(p)
        side = [q.side.get("ppd") for q in seen]
        trees = [parts.drafter[1].propose(models, q, parts)[0] for q in seen] if parts.drafter[0] == "ppd" else None
        told = [(q.text, q.length, q.calls) for q in seen]
        return stream.extend(models, p, parts, 100), trees, side, told

    @jax.jit
    def ranked(params, text, n):
        """The likeliest tokens of the vectors behind the n tokens of one row, `[3, 2]`; the last token is the root."""
        model = nnx.merge(graphdef, params)
        x = jnp.pad(model.embed(text[None]), ((0, 0), (0, 3), (0, 0)))
        x = jax.lax.dynamic_update_slice(x, model.heads["prompts"]()[None], (0, n - 1, 0))  # behind all but the root
        found = model.logits(model(x, mask=masks.Causal()).features)[0]
        return jax.lax.top_k(jax.lax.dynamic_slice(found, (n - 1, 0), (3, V)), 2)[1]

    p, trees, side, told = go(params, parts)
    want = go(params, plain)[0]
    seen = set()
    for at, (tree_, own, (text, length, _)) in enumerate(zip(trees, side, told, strict=True)):
        for row in range(3):
            s = int(own["state"][row])
            seen.add(s)
            assert (s == 0) == (at == 0) or s == 0
            best = np.asarray(ranked(params, text[row], int(length[row])))
            for node in np.flatnonzero(states.node[s]):
                d, r = states.depth[s, node], states.rank[s, node]
                right = text[row, int(length[row]) - 1] if d == 0 else best[d - 1, r]
                assert int(tree_.token[row, node]) == int(right)
            assert tree_.valid[row].tolist() == states.node[s].tolist()
    assert seen >= ({0, 3} if tree != DYNAMIC else {0})
    for row in range(3):
        assert p.text[row, : LIMIT[row]].tolist() == want.text[row, : LIMIT[row]].tolist()


@functools.cache
def texts(rows, tree, drafter="ppd"):
    _, (graphdef, params) = made()
    given = [one | {"drafter": drafter} for one in asked(tree, [SETTINGS[i] for i in rows])]
    parts = sockets.make(given, DEFAULTS, vocab_size=V)

    @jax.jit
    def go(params, dials):
        models, p = begun(params, graphdef, parts, dials, rows)
        return stream.extend(models, p, parts, 100)

    p = go(params, sockets.dials(given, parts))
    return [p.text[i, : p.length[i]].tolist() for i in range(len(rows))], p


@pytest.mark.parametrize("tree", ["1x1x1", DYNAMIC])
def test_greedy_and_drawn_rows_of_one_batch_keep_their_text(tree):
    """The verifier that draws each position's own token: rows of other settings, whatever stands beside them."""
    together, p = texts((0, 1, 2), tree)
    assert together == texts((0, 1, 2), tree, "none")[0]
    assert texts((2,), tree)[0] == together[2:]
    np.testing.assert_array_equal(p.wrote.sum(axis=1), p.calls)  # Each round is one call.
    np.testing.assert_array_equal((p.wrote * (1 + jnp.arange(p.wrote.shape[1]))).sum(axis=1), LIMIT - LENGTH)


@pytest.mark.parametrize("tree", ["1x1x1", DYNAMIC, "dynamic:24:0.9,0.2/0.8,0.2/0.8,0.1"])
def test_where_every_guess_is_right_the_calls_are_those_of_the_chain_of_states(tree):
    """Features of zeros: every law is flat, and token 0 is the likeliest of text and guesses."""
    _, (graphdef, params) = made()
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if "norm" in jax.tree_util.keystr(path[:1]) else x, params
    )
    given, states = asked(tree, [{"temperature": 0.0}] * 3), ppd.named(tree)
    parts = sockets.make(given, DEFAULTS, vocab_size=V)

    @jax.jit
    def go(params):
        models, p = begun(params, graphdef, parts, {})
        return stream.extend(models, p, parts, 100)

    p = go(params)
    for row in range(3):
        assert set(p.text[row, LENGTH[row] : LIMIT[row]].tolist()) == {0}
        length, state, calls = LENGTH[row], 0, 0
        while length < LIMIT[row]:
            node, wrote = 0, 1
            while length + wrote < LIMIT[row]:
                below = (states.parent[state] == node) & states.node[state] & (states.rank[state] == 0)
                if not below.any():
                    break
                node, wrote = int(np.argmax(below)), wrote + 1
            length, state, calls = length + wrote, states.count[state, node], calls + 1
        assert int(p.calls[row]) == calls < LIMIT[row] - LENGTH[row]
