"""Depth while a text is decoded: with a cache it is the masked pass without one; each layer's calls are counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kernels import masks
from models import depth as rules
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.control import depth, layers
from models.lm import LM
from models.mixers import Context
from models.objectives import exits as objective
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, V, key_data, prompts
from tests.models.lm_test import make

pytestmark = pytest.mark.usefixtures("one_device")
L = 4
LIMITS = LENGTH + 8
EOS = V - 2


class Head(nnx.Module):
    """Classifiers with drawn numbers."""

    def __init__(self, D):
        rng = np.random.default_rng(0)
        self.kernel = nnx.Param(jnp.asarray(rng.normal(size=(L, D, 3)) * 0.5, jnp.float32))
        self.bias = nnx.Param(jnp.asarray([[0.5, 0.3, -1.0]] * L, jnp.float32))


@functools.cache
def model():
    spec = make(init_std=0.5, num_layers=L).spec
    return nnx.split(LM(spec, rngs=nnx.Rngs(0), heads={"exits": lambda rngs: Head(spec.D)}))


def run(changes, eos=-1):
    """Texts of three rows under a control, greedily."""
    options = {key: DEFAULTS[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    asked = [DEFAULTS | {"temperature": 0.0} | options] * 3
    parts = sockets.make(asked, DEFAULTS, vocab_size=V, every=True, eos=eos)
    graphdef, params = model()

    @jax.jit
    def go(params):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        dials = sockets.dials(asked, parts)
        p = stream.begin(models, parts, prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMITS), key_data(), dials)
        p = stream.read(models, p, parts, 17, fresh=True)
        return stream.extend(models, p, parts, 100)

    return go(params)


def active(row, least, warm_up):
    """[T, L] by the formula, in plain loops: how many layers each token of a row takes, and which."""
    table = np.zeros((int(LIMITS[row]), L), bool)
    for t in range(len(table)):
        share = min(max((t - LENGTH[row]) / max(1, LIMITS[row] - 1 - LENGTH[row]), 0), 1)
        n = int(np.round(L - (L - least) * share))
        table[t] = [i < warm_up or i >= L - (n - warm_up) for i in range(L)]
    return table


def masked(row, least, warm_up):
    """The row's greedy text by passes without a cache in which a token's skipped layers add nothing."""
    graphdef, params = model()
    took = jnp.zeros((L, 1, 32), jnp.float32).at[:, 0, : LIMITS[row]].set(active(row, least, warm_up).T)
    edit = lambda x, values: x * values["took"][..., None]  # noqa: E731

    @jax.jit
    def best(tokens):
        made = nnx.merge(graphdef, params)
        edits = {"mixer": edit, "channel": edit}
        out = made(tokens, mask=masks.Causal(), layers={"took": took}, edits=edits)
        return jnp.argmax(made.logits(out.features), axis=-1)

    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : LENGTH[row]] = prompts()[row, : LENGTH[row]]
    for at in range(LENGTH[row], LIMITS[row]):
        tokens[0, at] = best(jnp.asarray(tokens))[0, at - 1]
    return tokens[0, : LIMITS[row]].tolist()


@pytest.mark.parametrize("least, warm_up", [(1, 1), (2, 1), (3, 2)])
def test_skipping_with_a_cache_is_the_masked_pass_without_one(least, warm_up):
    p = run({"control": "skip", "skip": {"least": least, "warm_up": warm_up}})
    side = p.side["skip"]
    for row in range(3):
        assert p.text[row, : LIMITS[row]].tolist() == masked(row, least, warm_up)
        # The last token that is written is not read.
        table = active(row, least, warm_up)[: LIMITS[row] - 1]
        assert side["took"][row].tolist() == table.sum(0).tolist() and side["read"][row] == len(table)


def test_all_layers_for_the_last_token_is_the_model_and_costs_what_the_formula_says():
    plain, full = run({"control": ""}), run({"control": "skip", "skip": {"least": L}})
    assert plain.text.tolist() == full.text.tolist()
    less = run({"control": "skip", "skip": {"least": 1}})
    assert less.text.tolist() != plain.text.tolist()
    for row in range(3):
        cost = depth.skip_cost(int(LENGTH[row]), int(LIMITS[row]), L, 1)
        last = int(depth.layers_at(LIMITS[row] - 1, LENGTH[row], LIMITS[row], L, 1))
        assert int(less.side["skip"]["took"][row].sum()) == cost.calls - last


def exited(row, threshold, stops):
    """The row's greedy text, and layers taken by each token that is read, by passes over the whole text."""
    graphdef, params = model()
    made = nnx.merge(graphdef, params).for_decoding()
    kernel, bias = (np.asarray(x) for x in (made.heads["exits"].kernel[...], made.heads["exits"].bias[...]))
    blocks = [block for period in made.stack.periods for block in period.blocks.values()]
    context = Context(jnp.arange(32)[None], None, masks.Causal())
    layer = [jax.jit(lambda x, block=block: block(x, context).x) for block in blocks]
    tokens, taken = np.zeros((1, 32), np.int32), []
    tokens[0, : LENGTH[row]] = prompts()[row, : LENGTH[row]]
    for at in range(LENGTH[row], LIMITS[row]):
        x, left, stopped = np.asarray(made.embed(jnp.asarray(tokens))), np.zeros(32, bool), False
        count = np.zeros(32, int)
        for i in range(L):
            out = np.asarray(layer[i](jnp.asarray(x)))
            x = np.where(left[None, :, None], x, out)
            count += ~left
            unit = x[0] / np.sqrt((x[0] ** 2).mean(-1, keepdims=True) + 1e-6)
            score = np.exp(unit @ kernel[i] + bias[i])
            chance = score / score.sum(-1, keepdims=True)
            for t in range(LENGTH[row] - 1, at):
                kind = int(chance[t].argmax())
                if left[t] or chance[t].max() < threshold or (kind == rules.STOP and not stops):
                    continue
                left[t] |= kind != rules.GO_ON
                stopped |= kind == rules.STOP and t == at - 1
        taken = count[:at].tolist()
        if stopped:
            return [*tokens[0, :at].tolist(), EOS], taken
        tokens[0, at] = np.asarray(jnp.argmax(made.logits(made.norm(jnp.asarray(x)))[0, at - 1, :V]))
        if tokens[0, at] == EOS:
            return tokens[0, : at + 1].tolist(), taken
    return tokens[0, : LIMITS[row]].tolist(), taken


@pytest.mark.parametrize("threshold, stops", [(0.0, False), (0.6, True), (1.1, True)])
def test_exits_are_the_pass_in_which_who_left_stays_as_it_is(threshold, stops):
    p = run({"control": "early_exit", "early_exit": {"threshold": threshold, "stops": stops}}, eos=EOS)
    counts = []
    for row in range(3):
        want, taken = exited(row, threshold, stops)
        assert p.text[row, : p.length[row]].tolist() == want
        assert int(p.side["early_exit"]["took"][row].sum()) == sum(taken)
        assert p.side["early_exit"]["read"][row] == len(taken)
        counts += taken[LENGTH[row] - 1 :]
    assert (set(counts) == {L}) == (threshold > 1) and (len(set(counts)) > 1 or threshold > 1)
    if threshold > 1:
        assert p.text.tolist() == run({"control": ""}, eos=EOS).text.tolist()


def test_decisions_by_hand():
    x = jnp.asarray([[[3.0, 4.0]]])
    kernel, bias = jnp.asarray([[1.0, 0, 0], [0, 1, 0]]), jnp.asarray([0.0, 0, 0.5])
    unit = np.array([3, 4]) / np.sqrt(12.5)
    score = np.exp([unit[0], unit[1], 0.5])
    for threshold, want in ((0.0, rules.EXIT), (score[1] / score.sum() - 1e-3, rules.EXIT), (0.99, rules.GO_ON)):
        assert rules.decided(x, kernel, bias, jnp.asarray([threshold])).tolist() == [[want]]


def test_the_objective_is_its_formula():
    """Against numpy on a drawn model: labels, the loss of classes, and that it trains the classifiers alone."""
    made, rng = nnx.merge(*model()), np.random.default_rng(1)
    scale = made.norm.scale
    scale[...] = jnp.asarray(rng.uniform(0.5, 2, scale[...].shape), scale[...].dtype)  # Twice is not once.
    graphdef, params = nnx.split(made)
    batch = {
        "tokens": jnp.asarray(rng.integers(0, V, (2, 9))), "targets": jnp.asarray(rng.integers(0, V, (2, 9))),
        "scored": jnp.asarray(rng.random((2, 9)) < 0.7),
    }  # fmt: skip

    def loss(params, weight, layers_weight):
        made = objective.Exits(weight, layers_weight).loss(nnx.merge(graphdef, params), batch, None)
        return made.total, made.means

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=(1, 2))
    with_it, metrics = grad(params, 1.0, 0.5)
    without, _ = grad(params, 0.0, 0.5)
    made = nnx.merge(graphdef, params)
    out = made(batch["tokens"], mask=masks.Causal(), taps=("residual",))
    states = np.asarray(out.report["residual"], np.float64)
    laws = [np.asarray(jax.nn.log_softmax(made.logits(made.norm(jnp.asarray(h, jnp.float32))))) for h in states]
    kernel, bias = np.asarray(made.heads["exits"].kernel[...]), np.asarray(made.heads["exits"].bias[...])
    scored, targets = np.asarray(batch["scored"]), np.asarray(batch["targets"])
    classes = layers_nll = nll = 0.0
    for b, t in np.argwhere(scored):
        right = [int(law[b, t].argmax()) == targets[b, t] for law in laws]
        for i in range(L):
            label = 1 if right[i] else 0 if any(right[i:]) else 2
            unit = states[i, b, t] / np.sqrt((states[i, b, t] ** 2).mean() + 1e-6)
            score = unit @ kernel[i] + bias[i]
            classes -= (score[label] - np.log(np.exp(score).sum())) / L
            layers_nll -= laws[i][b, t, targets[b, t]] / L
        nll -= laws[-1][b, t, targets[b, t]]
    for name, want in (("nll", nll), ("nll_layers", layers_nll), ("nll_class", classes)):
        np.testing.assert_allclose(metrics[name].value, want / scored.sum(), rtol=2e-5)
    heads = lambda tree: tree["heads"]["exits"]["kernel"]  # noqa: E731
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), nnx.to_pure_dict(with_it), nnx.to_pure_dict(without))
    assert not heads(same) and not same["heads"]["exits"].pop("bias") and not same["heads"]["exits"].pop("kernel")
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("least, says", [(5, "layers are asked of 4"), (1, "the first")])
def test_depths_that_cannot_be_are_refused(least, says):
    sizes = {"took": jax.ShapeDtypeStruct((1, L), jnp.int32)}
    with pytest.raises(ValueError, match=says):
        layers.Skip(warm_up=2).given({"skip": {"least": least}}, None, sizes)
