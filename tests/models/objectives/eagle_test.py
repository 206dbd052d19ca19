"""EAGLE's head: its loss by loops over what model and head give, what has a gradient, and the drafts that it writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import base
from kernels import masks
from models import objectives
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.drafts import trees
from models.lm import LM
from models.mixers.context import Context
from models.objectives import eagle
from models.spec import Spec
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, LIMIT, V, key_data, prompts

B, T = 2, 9


@functools.cache
def made(**changes):
    config = base.get_config().model
    sizes = {"width": 32, "num_layers": 2, "num_heads": 4, "init": "fan_in", "init_std": 0.5, "unroll": 1}
    config.update(sizes | changes)
    spec = Spec.from_config(config.to_dict(), vocab_size=V)
    goal = objectives.make("eagle", {"feature_weight": 2.0, "token_weight": 0.3}, vocab_size=V)
    return goal, nnx.split(LM(spec, rngs=nnx.Rngs(params=0), heads=objectives.heads(goal, spec)))


def batch():
    """Two documents in the first row; not every token is scored."""
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 4 + [2] * 5, [1] * 9])
    places = np.array([[*range(4), *range(5)], [*range(9)]])
    scored = np.array([[1, 1, 1, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]], bool)
    tokens = rng.integers(0, V, (B, T + 1))
    given = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "scored": scored}
    return {k: jnp.asarray(v) for k, v in (given | {"positions": places, "segment_ids": segments}).items()}


def test_plain_functions_by_hand():
    np.testing.assert_allclose(eagle.smooth_l1(jnp.array([0.0, -0.5, 1.0, -3.0])), [0, 0.125, 0.5, 2.5])
    g, f = jnp.array([[1.0, 4.0]]), jnp.array([[0.5, 1.0]])
    np.testing.assert_allclose(eagle.feature_loss(g, f), [(0.125 + 2.5) / 2])
    law = np.array([0.25, 0.75])
    found = eagle.token_loss(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.asarray(law)))
    np.testing.assert_allclose(found, np.log(2), rtol=1e-6)
    x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
    assert eagle.before(x)[0, :, 0].tolist() == [0, 1, 2, 3]
    assert eagle.before(x, jnp.array([[1, 1, 2, 2]]))[0, :, 0].tolist() == [0, 1, 0, 3]


def test_the_loss_is_that_of_loops_and_the_model_has_no_gradient():
    goal, (graphdef, params) = made()
    one = batch()
    segments = np.asarray(one["segment_ids"])

    def loss(params):
        out = goal.loss(nnx.merge(graphdef, params), one, jax.random.key(0))
        return out.total, out.means

    @jax.jit
    def parts(params):
        model = nnx.merge(graphdef, params)
        given = {"positions": one["positions"], "segment_ids": one["segment_ids"]}
        f = model(one["tokens"], mask=masks.Causal(), **given).features
        before = jnp.stack([
            jnp.stack([
                f[b, t - 1] if t and segments[b, t] == segments[b, t - 1] else jnp.zeros(32)
                for t in range(T)
            ]) for b in range(B)
        ])  # fmt: skip
        context = Context(one["positions"], one["segment_ids"], masks.Causal())
        g, _ = model.heads["eagle"](model.embed(one["tokens"]), before, context)
        return f, g, model.logits(f), model.logits(g)

    (total, means), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    f, g, wanted, got = (np.asarray(x, np.float64) for x in parts(params))
    feature = token = 0.0
    for b in range(B):
        for t in range(T):
            if one["scored"][b, t]:
                far = np.abs(g[b, t] - f[b, t])
                feature += np.mean([0.5 * x * x if x < 1 else x - 0.5 for x in far])
                p, q = (np.exp(z[b, t] - z[b, t].max()) for z in (wanted, got))
                token -= (p / p.sum()) @ np.log(q / q.sum())
    # Sums of 14 tokens of float32 numbers of width 32.
    np.testing.assert_allclose(float(total), 2.0 * feature + 0.3 * token, rtol=1e-5)
    np.testing.assert_allclose(float(means["feature"].total), feature, rtol=1e-5)
    np.testing.assert_allclose(float(means["token"].total), token, rtol=1e-5)
    flat = jax.tree_util.tree_leaves_with_path(gradient)
    moved = {jax.tree_util.keystr(path): bool(jnp.any(x != 0)) for path, x in flat}
    assert all(there == ("heads" in name) for name, there in moved.items()), moved


def test_drafts_are_the_head_s_on_the_model_s_features_and_then_on_its_own():
    """Two rounds: the first draft from the whole forward pass, the second with g in the place of f; the same text."""
    _, (graphdef, params) = made()
    asked = DEFAULTS | {"temperature": 0.0, "drafter": "eagle", "eagle": DEFAULTS["eagle"] | {"length": 2}}
    parts = sockets.make([asked], DEFAULTS, vocab_size=V)

    @jax.jit
    def go(params):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data())
        p = stream.begin(models, parts, *given, {}, capacity=40)
        p = stream.read(models, stream.read(models, p, parts, 10, fresh=True), parts, 10)
        after = stream.round_(models, p, parts, p.live)
        trees = [parts.drafter[1].propose(models, q, parts)[0].token for q in (p, after)]
        return stream.extend(models, p, parts, 100), trees, after.length, after.text

    @jax.jit
    def drafted(params, text, n):
        """Two drafts behind the n tokens of one row, without a cache."""
        model = nnx.merge(graphdef, params)
        tokens = text[None]
        f = model(tokens, mask=masks.Causal()).features
        for i in range(2):
            context = Context(jnp.arange(tokens.shape[1])[None], None, masks.Causal())
            g, _ = model.heads["eagle"](model.embed(tokens), eagle.before(f), context)
            at = n - 1 + i
            tokens = tokens.at[0, at + 1].set(jnp.argmax(model.logits(g)[0, at]).astype(tokens.dtype))
            f = f.at[0, at].set(g[0, at])
        return jax.lax.dynamic_slice(tokens, (0, n - 1), (1, 3))[0]

    p, trees, length, text = go(params)
    check_greedy(p.text)
    for row in range(3):
        assert trees[0][row].tolist() == drafted(params, prompts()[row], int(LENGTH[row])).tolist()
        assert trees[1][row].tolist() == drafted(params, text[row], int(length[row])).tolist()


@functools.cache
def likeliest():
    _, (graphdef, _) = made()

    @jax.jit
    def best(params, text):
        model = nnx.merge(graphdef, params)
        return jnp.argmax(model.logits(model(text, mask=masks.Causal()).features), axis=-1)

    return best


def check_greedy(text):
    """Every token behind the prompts is the likeliest one of a whole pass over the text."""
    text = np.asarray(text)[:, : LIMIT.max()]
    after = np.asarray(likeliest()(made()[1][1], jnp.asarray(text)))
    for row in range(3):
        assert text[row, LENGTH[row] : LIMIT[row]].tolist() == after[row, LENGTH[row] - 1 : LIMIT[row] - 1].tolist()


@functools.cache
def head_logits(levels):
    """(params, text `[T]`, n) -> logits `[levels, V]` behind n tokens, n + 1, ...: no cache; from the last of the n on
    the head reads its own features."""
    _, (graphdef, _) = made()

    @jax.jit
    def go(params, text, n):
        model, tokens = nnx.merge(graphdef, params), text[None]
        f = model(tokens, mask=masks.Causal()).features
        for i in range(levels):
            context = Context(jnp.arange(tokens.shape[1])[None], None, masks.Causal())
            g, _ = model.heads["eagle"](model.embed(tokens), eagle.before(f), context)
            f = f.at[0, n - 1 + i].set(g[0, n - 1 + i])
        return jax.lax.dynamic_slice_in_dim(model.logits(f)[0], n - 1, levels)

    return go


def of_head(params, text, n):
    """path -> law of the head behind it, by whole passes."""

    def law(path):
        tokens = np.asarray(text).copy()
        tokens[n : n + len(path)] = path
        logits = np.asarray(head_logits(3)(params, jnp.asarray(tokens), n), np.float64)[len(path)]
        return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()

    return law


TREE = {"length": 1, "size": 7, "levels": 3, "width": 3, "beam": 3, "independent_draws": False, "template": ""}
EVERY = {"verifier": "typical", "typical": {"epsilon": 0.0, "delta": 0.0}}  # The first child of each node stays.


def rows_of(builder, **changes):
    """(models(params), parts, begun(models)) of three rows whose prompts are read."""
    _, (graphdef, params) = made()
    asked = DEFAULTS | {"drafter": "eagle", "eagle": TREE | {"builder": builder}} | changes
    parts = sockets.make([asked], DEFAULTS, vocab_size=V)
    models = lambda params: {"model": nnx.merge(graphdef, params).for_decoding()}  # noqa: E731

    def begun(models):
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMIT), key_data(), sockets.dials([asked] * 3, parts))
        return stream.read(models, stream.begin(models, parts, *given, capacity=40), parts, 17, fresh=True)

    return params, models, parts, begun


def test_a_tree_of_the_head_is_eagle_2_s_on_the_host():
    """Two rounds of three rows: tokens and parents, from laws of whole passes; drafts of the first round stay."""
    params, models_of, parts, begun = rows_of("eagle2", **EVERY)

    @jax.jit
    def go(params):
        models = models_of(params)
        p = begun(models)
        after = stream.round_(models, p, parts, p.live)
        return [(parts.drafter[1].propose(models, q, parts)[0], q.text, q.length) for q in (p, after)]

    found = jax.tree.map(np.asarray, go(params))
    assert (found[1][2] - LENGTH).min() > 2
    for tree, text, length in found:
        for row in range(3):
            wanted = trees.eagle2(of_head(params, text[row], int(length[row])), depth=2, top_k=3, nodes=7)
            assert tree.parent[row].tolist() == wanted.parent.tolist()
            assert tree.token[row, 1:].tolist() == wanted.token[1:].tolist()
            assert tree.valid[row].all() and tree.q is None


def test_each_node_of_a_drawn_tree_of_the_head_says_its_law():
    """DySpec's: behind its own path, without the siblings that were drawn before it."""
    params, models_of, parts, begun = rows_of("dyspec", verifier="recursive")

    @jax.jit
    def go(params):
        models = models_of(params)
        return parts.drafter[1].propose(models, begun(models), parts)[0]

    tree = jax.tree.map(np.asarray, go(params))
    for row in range(3):
        law, path = of_head(params, prompts()[row], int(LENGTH[row])), {0: ()}
        for i in range(1, tree.token.shape[1]):
            above = int(tree.parent[row, i])
            wanted = law(path[above])
            for j in range(1, i):
                if tree.parent[row, j] == above:
                    wanted[tree.token[row, j]] = 0
            np.testing.assert_allclose(tree.q[row, i], wanted / wanted.sum(), rtol=1e-3, atol=1e-6)
            path[i] = (*path[above], int(tree.token[row, i]))
        assert max(map(len, path.values())) > 1


def test_greedy_texts_with_trees_of_the_head_are_the_model_s():
    params, models_of, parts, begun = rows_of("eagle2", temperature=0.0)

    @jax.jit
    def go(params):
        models = models_of(params)
        return stream.extend(models, begun(models), parts, 100).text

    check_greedy(go(params))
