"""LoCoCo against lists of keys that are really merged, in float64: whole, packed, stepped, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from experiments import preflight
from experiments.settings.errors import ConfigError
from kernels import masks
from models.mixers import MIXERS, Context
from models.mixers.memory import lococo, merging
from tests.experiments import tiny
from tests.plain import lococo as plain
from tests.plain.drawn import drawn, spec

N, K, H, D = 4, 2, 6, 10
CASES = {
    "slots below a chunk": {"slots": 4, "chunk_size": 5, "taps": 3},
    "slots beyond a chunk": {"slots": 9, "chunk_size": 4, "taps": 5, "local": 2, "heavy": 0.4},
    "nothing is kept": {"slots": 3, "chunk_size": 3, "taps": 1, "heavy": 0.0},
}


def build(options, seed=0):
    made = spec(7, width=D, num_heads=N, num_kv_heads=K, head_dim=H, lococo=options)
    return drawn(lambda rngs: MIXERS["lococo"](made, rngs=rngs), seed)


def sizes(options):
    own = {"slots": options["slots"], "chunk": options["chunk_size"], "local": options.get("local", 0)}
    return {"N": N, "K": K, "H": H, **own}


def drawn_x(rows, T, seed=1):
    return np.random.default_rng(seed).normal(size=(rows, T, D))


@pytest.mark.parametrize("length", [9, 3])
def test_a_cache_is_that_of_lists(x64, length):
    """Of nine tokens the first `length`; four slots, of which two are merged."""
    rng = np.random.default_rng(0)
    k, v, score = rng.normal(size=(9, H)), rng.normal(size=(9, H)), rng.random(9)
    weights = rng.normal(size=(2, 2 * H, 3)), rng.normal(size=2), 0.3
    got = merging.lococo_cache(*map(jnp.asarray, (k, v, score)), weights, slots=4, local=1, length=length)
    want = plain.merged(list(k[:length]), list(v[:length]), list(score), *weights, 4, 1)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine[: len(theirs)], theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_the_plain_one_in_packed_rows(x64, name):
    """Documents of every length beside chunks, in rows that begin them anywhere; padding behind them."""
    options = CASES[name]
    run, p = build(options)
    T, cuts = 26, ((0, 26), (0, 3, 21, 24), (0, 11, 26))
    x, places, ids = drawn_x(3, T), np.zeros((3, T), np.int32), np.zeros((3, T), np.int32)
    for row, ends in enumerate(cuts):
        for number, (a, b) in enumerate(zip(ends, ends[1:], strict=False), 1):
            places[row, a:b], ids[row, a:b] = np.arange(b - a), number
    call = lambda mixer, x, places, ids: mixer(x, Context(places, ids, masks.Causal()))[0]  # noqa: E731
    got = run(call, x, places, ids)
    for row, ends in enumerate(cuts):
        for a, b in zip(ends, ends[1:], strict=False):
            want = plain.mixer(p, x[row, a:b], **sizes(options))
            np.testing.assert_allclose(got[row, a:b], want, rtol=0, atol=1e-11)
    alone = run(lambda mixer, x: mixer(x, Context(jnp.arange(T)[None], None, masks.Causal()))[0], x)
    np.testing.assert_allclose(alone[0], got[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_plain_layer(x64, name):
    """Two rows, read in pieces of unequal lengths with padding behind them, shorter and longer than a chunk."""
    options, T = CASES[name], 26
    run, p = build(options)
    x, pieces = drawn_x(2, T, seed=2), ((11, 4), (1, 1), (1, 0), (1, 1), (12, 20))

    def stepped(mixer, x):
        state, done, out = mixer.init_state(2, T), np.zeros(2, int), [[], []]
        for used in pieces:
            width = max(used)
            at = done[:, None] + np.arange(width)
            some = jnp.take_along_axis(x, jnp.asarray(np.minimum(at, T - 1))[..., None], axis=1)
            there = np.where(np.arange(width) < np.array(used)[:, None], at, -1)
            y, state = mixer(some, Context(jnp.asarray(there), None, masks.Causal()), state)
            for row in range(2):
                out[row].append(y[row, : used[row]])
            done += used
        return [jnp.concatenate(rows) for rows in out], state

    got, state = run(stepped, x)
    for row in range(2):
        want = plain.mixer(p, x[row], **sizes(options))
        np.testing.assert_allclose(got[row], want, rtol=0, atol=1e-11)
    assert state.k.shape == (2, K, options["slots"] + options["chunk_size"], H)


def test_the_plain_function_and_a_gate_of_zero(x64):
    """`whole` of arrays; at g = 0 every slot holds a token of the text as it was."""
    rng = np.random.default_rng(4)
    q, k, v = rng.normal(size=(17, N, H)), rng.normal(size=(17, K, H)), rng.normal(size=(17, K, H))
    weights = rng.normal(size=(2, 2 * H, 3)), rng.normal(size=2), np.float64(0.4)
    rule = {"slots": 5, "chunk": 4, "local": 1}
    run = jax.jit(lambda *x: lococo.whole(*x[:3], x[3:], **rule))
    np.testing.assert_allclose(run(q, k, v, *weights), plain.attended(q, k, v, *weights, **rule), rtol=0, atol=1e-13)
    evicted = merging.lococo_cache(*map(jnp.asarray, (k[:, 0], v[:, 0], rng.random(17))),
                                   (*weights[:2], 0.0), slots=5)  # fmt: skip
    for made, there in zip(evicted, (k[:, 0], v[:, 0]), strict=True):
        assert all(np.any(np.all(np.asarray(row) == there, axis=-1)) for row in made)


def test_gradients_are_slopes_and_stop_where_they_are_told_to(x64):
    """Of the convolution, its bias and g, along a direction; `detach` leaves nothing behind a chunk for the keys."""
    options = {"slots": 4, "chunk_size": 5, "taps": 3}
    x, weigh = drawn_x(1, 14), np.random.default_rng(5).normal(size=(1, 14, D))
    call = lambda mixer, x: mixer(x, Context(jnp.arange(14)[None], None, masks.Causal()))[0]  # noqa: E731
    run, p = build(options)
    gradient = run.gradient(lambda mixer, x: jnp.sum(call(mixer, x) * weigh), jnp.asarray(x))
    names, h = ("kernel", "bias", "gate"), 1e-6
    way = {name: np.random.default_rng(6).normal(size=p[name].shape) for name in names}
    ends = [plain.mixer(p | {n: p[n] + s * h * way[n] for n in names}, x[0], **sizes(options)) for s in (1, -1)]
    slope = ((ends[0] - ends[1]) * weigh[0]).sum() / (2 * h)
    assert sum((gradient[n] * way[n]).sum() for n in names) == pytest.approx(slope, rel=1e-6)
    reach = {}
    for detach in (False, True):
        run, _ = build(options | {"detach": detach})
        last = lambda mixer, x: jax.grad(lambda x: jnp.sum(call(mixer, x)[:, 12] ** 2))(x)  # noqa: E731
        reach[detach] = np.abs(run(last, x)).sum((0, 2)) > 0
    np.testing.assert_array_equal(reach[True], [False] * 10 + [True] * 3 + [False])
    assert reach[False][:10].sum() >= 4 and not reach[False][13]


def test_the_rate_multiplies_what_is_stored(x64):
    """A stored number of a thousandth is the same layer, and a step of its optimizer a thousand times as long."""
    options = CASES["slots below a chunk"]
    (one, p), (many, q) = (build(options | {"rate": rate}) for rate in (1.0, 8.0))
    call = lambda mixer, x: mixer(x, Context(jnp.arange(14)[None], None, masks.Causal()))[0]  # noqa: E731
    x = drawn_x(1, 14)
    want = plain.mixer(q | {n: 8 * q[n] for n in ("kernel", "bias", "gate")}, x[0], **sizes(options))
    np.testing.assert_allclose(many(call, x)[0], want, rtol=0, atol=1e-11)
    assert base.get_config().model.lococo.rate == 1.0


WRONG = [
    ({"taps": 4}, "model.lococo.taps=4 has no middle; use model.lococo.taps=5"),
    ({"slots": 6, "local": 4}, "model.lococo.local=4 is more than the 3 tokens .* use model.lococo.local=3"),
    ({"heavy": 1.0}, "model.lococo.heavy=1.0 leaves no slot .* use model.lococo.heavy=0.5"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_what_does_not_fit_is_a_sentence(tmp_path, options, words):
    changes = {f"model__lococo__{name}": value for name, value in options.items()}
    with pytest.raises(ConfigError, match=words):
        preflight.check(tiny.config(tmp_path, model__mixer="lococo", **changes), num_devices=1)
    with pytest.raises(ConfigError, match="generate.memory='h2o' chooses among the keys of attention"):
        preflight.check(tiny.config(tmp_path, model__mixer="lococo", generate__memory="h2o"), num_devices=1)
