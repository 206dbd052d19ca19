"""Controls with a second run, trials, soft inputs and vectors, against whole passes and numpy, one row at a time."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import data
from kernels import masks
from models.decoding import keys as key_scheme
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.control import states, steering, thinking, trials
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, V, key_data, model, prompts
from tests.plain import control as plain

LIMITS = LENGTH + 8


@functools.cache
def second():
    """Another model of the same shape: its parameters are those of the first, turned."""
    graphdef, params = model("attention")
    return graphdef, jax.tree.map(lambda x: jnp.roll(x, 1, axis=-1), params)


def run(changes, given=None, rounds=100):
    """Texts of three rows under a control; given: entries of its side, `[B, ...]`, by control."""
    options = {key: DEFAULTS[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    asked = [DEFAULTS | options] * 3
    parts = sockets.make(asked, DEFAULTS, vocab_size=V, every=True)
    (graphdef, params), (_, other) = model("attention"), second()

    @jax.jit
    def go(params, other):
        one, two = (nnx.merge(graphdef, p).for_decoding() for p in (params, other))
        models = {"model": one, **{f"{name}.workdir": two for name in ("r2r", "nudging", "gedi")}}
        dials = sockets.dials(asked, parts)
        p = stream.begin(models, parts, prompts(), jnp.asarray(LENGTH), jnp.asarray(LIMITS), key_data(), dials)
        side = p.side | {name: p.side[name] | entries for name, entries in (given or {}).items()}
        p = stream.read(models, dataclasses.replace(p, side=side), parts, 17, fresh=True)
        return stream.extend(models, p, parts, rounds)

    return go(params, other)


def text(p):
    return [p.text[i, : p.length[i]].tolist() for i in range(3)]


@functools.cache
def whole(which):
    graphdef, params = model("attention") if which == 0 else second()

    @jax.jit
    def logits(x):
        made = nnx.merge(graphdef, params)
        return made.logits(made(x, mask=masks.Causal()).features)

    return logits


def law(which, tokens):
    """Log-probabilities `[n, V]` behind each token of one text, by a whole pass."""
    padded = np.zeros((1, 40), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = np.asarray(whole(which)(jnp.asarray(padded)), np.float64)[0, : len(tokens)]
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def written(choose):
    """Texts by `choose(row, tokens) -> token`."""
    out = []
    for row in range(3):
        tokens = np.asarray(prompts())[row, : LENGTH[row]].tolist()
        while len(tokens) < LIMITS[row]:
            tokens.append(int(choose(row, tokens)))
        out.append(tokens)
    return out


def entropy(log_p):
    return -(np.exp(log_p) * log_p).sum()


def best(which):
    return written(lambda row, tokens: np.argmax(law(which, tokens)[-1]))


GREEDY = {"temperature": 0.0}


@functools.cache
def between():
    """Entropies, and largest probabilities, that lie between those of the first model's greedy texts."""
    each = np.concatenate([law(0, tokens)[LENGTH[row] - 1 : -1] for row, tokens in enumerate(best(0))])

    def gaps(values):
        values = np.sort(values)
        wide = np.diff(values) > 1e-2
        return ((values[1:] + values[:-1]) / 2)[wide]

    return gaps([entropy(one) for one in each]), gaps(np.exp(each.max(-1)))


def middle():
    """The middle ones."""
    return tuple(values[len(values) // 2] for values in between())


def test_r2r_at_its_ends_is_each_of_the_two_models_and_between_them_a_mixture():
    get = lambda threshold: run(GREEDY | {"control": "r2r", "r2r": {"threshold": threshold}})  # noqa: E731
    small, large = best(0), best(1)
    assert text(get(1000.0)) == small and text(get(0.0)) == large

    def mixed(bar):
        calls = np.zeros(3, int)

        def choose(row, tokens):
            here = law(0, tokens)[-1]
            calls[row] += (unsure := entropy(here) >= bar)
            return np.argmax(law(1, tokens)[-1] if unsure else here)

        return written(choose), calls

    bar = next(bar for bar in between()[0] if mixed(bar)[0] not in (small, large))
    (wanted, calls), p = mixed(bar), get(bar)
    assert text(p) == wanted
    assert p.side["r2r"]["large"].tolist() == calls.tolist() and 0 < calls.sum() < 24


def test_nudges_are_words():
    begins = np.arange(V) % 3 == 0
    given = {"nudging": {"begins": jnp.asarray(np.repeat(begins[None], 3, 0))}}
    get = lambda bar: run(GREEDY | {"control": "nudging", "nudging": {"threshold": bar}}, given)  # noqa: E731
    assert text(get(0.0)) == best(0) and text(get(1.01)) == best(1)
    inside, bar, many = [False] * 3, middle()[1], [0] * 3

    def choose(row, tokens):
        here, helper = law(0, tokens)[-1], law(1, tokens)[-1]
        needs = np.exp(here.max()) < bar
        inside[row] = bool(needs or (inside[row] and not begins[np.argmax(helper)]))
        many[row] += inside[row]
        return np.argmax(helper if inside[row] else here)

    p = get(bar)
    assert text(p) == written(choose)
    assert p.side["nudging"]["nudged"].tolist() == many and 0 < sum(many) < 24


@pytest.mark.parametrize("form", ["exact", "released"])
def test_gedi_guides_by_a_run_that_reads_the_names_of_the_classes(form):
    codes, weight = [[3, 1], [5]], 2.0 if form == "exact" else 30.0
    code = np.zeros((3, 2, 16), np.int32)
    code[:, 0, :2], code[:, 1, :1] = codes[0], codes[1]
    given = {"gedi": {"code": jnp.asarray(code), "many": jnp.array([[2, 1]] * 3), "first": jnp.ones(3, jnp.int32)}}
    group = {"weight": weight, "form": form, "filter_p": 0.5, "target_p": 0.6}
    p = run(GREEDY | {"control": "gedi", "gedi": group}, given)
    off = run(GREEDY | {"control": "gedi", "gedi": group | {"weight": 0.0}}, given)

    def choose(row, tokens):
        here, history, each = law(0, tokens)[-1], [], []
        for code in codes:
            log_p = law(1, [tokens[0], *code, *tokens[1:]])
            history.append(sum(log_p[len(code) + i, token] for i, token in enumerate(tokens[1:])))
            each.append(log_p[-1])
        if form == "exact":
            joint = np.array(history)[:, None] + np.array(each)
            return np.argmax(here + weight * (joint[0] - np.logaddexp(*joint)))
        scores, _ = plain.gedi_released(here, history, each, len(tokens) - 1, weight=weight, filter_p=0.5, target_p=0.6)
        return np.argmax(scores)

    assert text(p) == written(choose)
    assert text(off) == best(0) and text(p) != text(off)
    for row, tokens in enumerate(text(p)):  # Of all but the token drawn last; the names of the classes do not count.
        for i, code in enumerate(codes):
            log_p = law(1, [tokens[0], *code, *tokens[1:]])[len(code) :]
            said = sum(log_p[at, token] for at, token in enumerate(tokens[1:-1]))
            np.testing.assert_allclose(p.side["gedi"]["history"][row, i], said, rtol=1e-5)


def test_adadec_writes_the_candidate_with_the_best_continuation():
    bar = middle()[0]
    group = {"threshold": bar, "candidates": 3, "length": 3}
    get = lambda **changes: run(GREEDY | {"control": "adadec", "adadec": group | changes})  # noqa: E731
    assert text(get(threshold=1000.0)) == best(0) == text(get(length=0))
    looked = []

    def choose(row, tokens):
        here = law(0, tokens)[-1]
        order = np.argsort(-here)
        if entropy(here) < bar:
            return order[0]
        scores = []
        for token in order[:3]:
            longer, log_p = [*tokens, int(token)], [here[token]]
            for _ in range(3):
                if len(longer) < LIMITS[row]:
                    then = law(0, longer)[-1]
                    log_p.append(then.max())
                    longer.append(int(np.argmax(then)))
            scores.append(plain.adadec(0.0, log_p[:1], [log_p[1:]], [len(log_p) - 1], 1.0)[0])
        looked.append(np.argmax(scores))
        return order[np.argmax(scores)]

    p = get()
    assert text(p) == written(choose)
    assert 0 < np.count_nonzero(looked) and (p.calls > 8).any()


def drawn(key, row, tokens, log_p):
    noise = key_scheme.gumbel(jax.random.fold_in(jax.random.fold_in(key, len(tokens)), 0), (V,))
    return int(np.argmax(log_p + np.asarray(noise, np.float64)))


def test_cntp_keeps_the_least_perplexing_trial():
    stops = np.arange(V) % 4 == 0
    given = {"cntp": {"stops": jnp.asarray(np.repeat(stops[None], 3, 0))}}
    bar = middle()[0]
    group = {"most": 4, "low": bar / 2, "high": bar, "places": 4, "length": 3}
    get = lambda **changes: run({"temperature": 1.0, "control": "cntp", "cntp": group | changes}, given)  # noqa: E731
    keys = jax.random.wrap_key_data(key_data())
    plainly = written(lambda row, tokens: drawn(keys[row], row, tokens, law(0, tokens)[-1]))
    assert text(get(most=1)) == plainly
    want, tried = [], 0
    for row in range(3):
        tokens = np.asarray(prompts())[row, : LENGTH[row]].tolist()
        while len(tokens) < LIMITS[row]:
            H = entropy(law(0, tokens)[-1])
            many = int(1 + 3 * min(max((H - bar / 2) / (bar / 2), 0), 1))
            trials = []
            for i in range(many):
                key, longer, log_p = keys[row] if i == 0 else jax.random.fold_in(keys[row], i), list(tokens), []
                while len(log_p) < (3 if many > 1 else 1) and len(longer) < LIMITS[row]:
                    here = law(0, longer)[-1]
                    longer.append(drawn(key, row, longer, here))
                    log_p.append(here[longer[-1]])
                    if stops[longer[-1]]:
                        break
                trials.append((np.exp(-np.mean(log_p)), longer))
            tried += many > 1
            tokens = min(trials, key=lambda trial: trial[0])[1]
        want.append(tokens)
    assert text(get()) == want and want != plainly and tried > 2


def test_trials_end_at_characters_or_at_symbols_of_a_task():
    part, sizes = trials.Cntp(), {"stops": np.zeros((1, 259))}
    asked = lambda stops, tokenizer: np.flatnonzero(  # noqa: E731
        part.given({"cntp": {"stops": stops}}, tokenizer, sizes)["stops"]
    ).tolist()
    assert asked(".\n1", data.ByteTokenizer()) == [10, 46, 49]
    assert asked("12 3", data.SymbolTokenizer(15)) == [3, 12]


def test_beam_search_finds_what_the_search_over_texts_finds():
    get = lambda beams: run(GREEDY | {"control": "beam", "beam": {"beams": beams, "alpha": 1.0}})  # noqa: E731
    assert text(get(1)) == best(0)
    want = []
    for row in range(3):
        start = np.asarray(prompts())[row, : LENGTH[row]].tolist()
        steps = LIMITS[row] - LENGTH[row]
        kept = plain.beam_search(lambda new, start=start: law(0, [*start, *new])[-1], 3, steps, eos=-1)
        want.append([*start, *kept[0][0]])
    assert text(get(3)) == want and want != best(0)


def test_the_best_of_n_texts_is_the_likeliest():
    get = lambda n: run({"temperature": 1.0, "control": "best_of_n", "best_of_n": {"n": n}})  # noqa: E731
    keys = jax.random.wrap_key_data(key_data())
    each = []
    for i in range(3):
        own = [key if i == 0 else jax.random.fold_in(key, i) for key in keys]
        each.append(written(lambda row, tokens, own=own: drawn(own[row], row, tokens, law(0, tokens)[-1])))
    assert text(get(1)) == each[0]
    want = []
    for row in range(3):
        score = []
        for texts in each:
            log_p = law(0, texts[row])
            score.append(sum(log_p[i - 1, texts[row][i]] for i in range(LENGTH[row], LIMITS[row])))
        want.append(each[int(np.argmax(score))][row])
    assert text(get(3)) == want != each[0]


def test_swi_reasoning_reads_expected_embeddings_while_it_thinks():
    """The loop of the released code over vectors, per row: its modes, its blends, and the tokens that come of them."""
    marks, window, steps = np.array([1, 7]), 1, 8
    given = {"swi": {"marks": jnp.asarray(np.repeat(marks[None], 3, 0), jnp.int32)}}
    group = {"steps": steps, "window": window, "alpha": 0.6, "beta": 0.7}
    p = run(GREEDY | {"control": "swi", "swi": group}, given)
    graphdef, params = model("attention")
    table = np.asarray(nnx.merge(graphdef, params).embed(jnp.arange(V)[None]), np.float64)[0]
    out, turned = [], set()
    for row in range(3):
        tokens = np.asarray(prompts())[row, : LENGTH[row]].tolist()
        vectors, H, ends = table[tokens], [], []
        for step in range(LIMITS[row] - LENGTH[row]):
            padded = np.zeros((1, 40, table.shape[1]), np.float32)
            padded[0, : len(vectors)] = vectors
            p_next = plain.softmax(np.asarray(whole(0)(jnp.asarray(padded)), np.float64)[0, len(vectors) - 1])
            tokens.append(int(np.argmax(p_next)))
            H.append(-(p_next * np.log(np.maximum(p_next, 1e-12))).sum())
            ends.append(tokens[-1] == marks[1])
            mode, soft, change, _ = plain.swi(H, ends, [False] * len(H), window)[-1]
            expected = p_next @ table
            a, b = (share + (1 - share) * step / steps for share in (0.6, 0.7))
            read = expected if soft else table[tokens[-1]]
            if change == "soft":
                read = a * expected + (1 - a) * table[marks[0]]
            elif change == "explicit":
                read = b * expected + (1 - b) * table[marks[1]]
            turned.add(change)
            vectors = np.concatenate([vectors, read[None]])
        out.append(tokens)
    assert text(p) == out and {"soft", "explicit"} <= turned
    assert text(p) != best(0) == text(run(GREEDY | {"control": "swi", "swi": group | {"steps": 0}}, given))


def test_a_change_of_thinking_reads_the_blend_of_its_step():
    """Step 5 of 8; a row that turns to words, one that turns to soft inputs, one that stays: by hand in float64."""
    table, marks = np.random.default_rng(3).normal(size=(V, 4)).astype(np.float32), np.array([[1, 7]] * 3)
    peaked, flat = np.eye(V)[2] * 0.9 + 0.1 / V, np.full(V, 1 / V)
    law = jnp.asarray(np.stack([peaked, flat, peaked]), jnp.float32)
    side = thinking.Thinking(
        soft=jnp.array([True, False, False]), stayed=jnp.full(3, 9), reference=jnp.array([9.0, 0.0, 0.0]),
        locked=jnp.array([False, False, True]), switches=jnp.zeros(3, jnp.int32),
    )._asdict()  # fmt: skip
    side |= {"at": jnp.full(3, 5), "marks": jnp.asarray(marks), "vector": jnp.zeros((3, 4)), "on": jnp.zeros(3, bool)}
    side["turned"] = jnp.zeros(3, jnp.int32)
    seen = types.SimpleNamespace(count=jnp.ones(3, jnp.int32), token=jnp.array([[3]] * 3))
    models = {"model": types.SimpleNamespace(embed=lambda ids: jnp.asarray(table)[ids])}
    made = (law, jnp.full(3, 8), jnp.ones(3))
    after = states.Swi(alpha=0.6, beta=0.7).commit(models, side, made, seen)
    words, soft = 0.7 + 0.3 * 5 / 8, 0.6 + 0.4 * 5 / 8
    want = [
        words * peaked @ table + (1 - words) * table[7],
        soft * flat @ table + (1 - soft) * table[1],
        peaked @ table,
    ]
    np.testing.assert_allclose(after["vector"], want, rtol=1e-5, atol=1e-6)
    assert after["on"].tolist() == [True, True, False] and after["turned"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("form", ["added", "released"])
def test_in_context_vectors_are_pushed_into_every_layer(form):
    graphdef, params = model("attention")
    spec = nnx.merge(graphdef, params).spec
    u = np.random.default_rng(0).normal(size=(spec.L, spec.D)).astype(np.float32)
    given = {"vectors": {"u": jnp.asarray(np.repeat(u[None], 3, 0))}}
    p = run(GREEDY | {"control": "vectors", "vectors": {"strength": 0.5, "form": form}}, given)
    push = steering.added if form == "added" else steering.released
    edit = lambda x, layers: push(x, layers["u"], 0.5)  # noqa: E731

    def pushed(tokens):
        made = nnx.merge(graphdef, params)
        x = made(tokens, mask=masks.Causal(), layers={"u": jnp.asarray(u)}, edits={"residual": edit}).features
        return np.argmax(made.logits(x), axis=-1)

    follows = pushed(p.text)
    for row in range(3):
        assert (
            p.text[row, LENGTH[row] : LIMITS[row]].tolist() == follows[row, LENGTH[row] - 1 : LIMITS[row] - 1].tolist()
        )
    off = run(GREEDY | {"control": "vectors", "vectors": {"strength": 0.0, "form": form}}, given)
    assert text(off) == best(0) != text(p)
