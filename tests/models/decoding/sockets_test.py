"""What the engine offers parts: features for drafters; for controls edits, soft inputs, the host between rounds.

The parts are defined here; each is one class.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import preflight
from experiments.generation import engine as engines
from experiments.generation.text import Generator
from kernels import masks
from models import edits
from models.decoding import parts as sockets
from models.decoding import stream
from models.decoding.control import CONTROLS, Control, Feed
from models.decoding.drafts import DRAFTERS, Drafter, Tree
from models.decoding.drafts.none import last_token
from tests.experiments.generation.generate_test import OPTIONS, generator
from tests.models.decoding.stream_test import DEFAULTS, LENGTH, LIMIT, V, key_data, model, prompts


def run(changes, name="attention", pieces=(5, 13), rounds=100, limit=LIMIT):
    asked = [DEFAULTS | changes] * 3
    parts = sockets.make(asked, DEFAULTS, vocab_size=V)
    graphdef, params = model(name)

    @jax.jit
    def go(params):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (prompts(), jnp.asarray(LENGTH), jnp.asarray(limit), key_data(), sockets.dials(asked, parts))
        p = stream.begin(models, parts, *given)
        for i, size in enumerate(pieces):
            p = stream.read(models, p, parts, size, fresh=i == 0)
        return stream.extend(models, p, parts, rounds)

    return go(params)


def text(p):
    return [p.text[i, : p.length[i]].tolist() for i in range(3)]


@dataclasses.dataclass(frozen=True)
class Shown(Drafter):
    """Drafts what is right by the head on the newest features, and keeps what it was shown of every token."""

    nodes, taps = 2, ("residual", "mixer")

    def init(self, models, batch, capacity):
        spec = models["model"].spec
        return {"seen": jnp.zeros((batch, capacity, spec.L * 2 + 1, spec.D))}

    def read(self, models, side, tokens, positions, made):
        return {"seen": self.written(side["seen"], positions, made)}

    def written(self, seen, positions, made):
        new = jnp.concatenate([made.features[None], made.report["residual"], made.report["mixer"]]).transpose(
            1, 2, 0, 3
        )
        place = (jnp.arange(len(seen))[:, None], jnp.where(positions < 0, seen.shape[1], positions))
        return seen.at[place].set(new, mode="drop")

    def propose(self, models, p, parts):
        token = jnp.concatenate([last_token(p.text, p.length)] * 2, axis=1)
        return Tree.chain(token, jnp.ones(token.shape, bool)), p.side["shown"]

    def observe(self, models, side, seen):
        kept = jnp.arange(2) < seen.count[:, None]
        return {"seen": self.written(side["seen"], jnp.where(kept, seen.position, -1), seen.made)}


def test_a_drafter_is_shown_the_streams_of_every_token_of_the_text(monkeypatch):
    """The prompt in two pieces and every accepted token: features and both sites of all layers, as in one pass."""
    monkeypatch.setitem(DRAFTERS, "shown", Shown)
    p = run({"drafter": "shown"})
    assert text(p) == text(run({}))
    graphdef, params = model("attention")
    whole = nnx.merge(graphdef, params)(p.text, mask=masks.Causal(), taps=("residual", "mixer"))
    want = jnp.concatenate([whole.features[None], whole.report["residual"], whole.report["mixer"]])
    for row in range(3):
        n = int(p.length[row]) - 1
        got = p.side["shown"]["seen"][row, :n].transpose(1, 0, 2)
        # Sums of 32 numbers in another order, through two layers: as the tests of prefill.
        np.testing.assert_allclose(got, want[:, row, :n], rtol=2e-4, atol=2e-5)


@dataclasses.dataclass(frozen=True)
class Steered(Control):
    """Adds `by` to the stream behind the first layer."""

    by: float

    def enters(self, models, side, p):
        L = models["model"].spec.L
        return {"layers": {"by": jnp.full((L, 1), self.by).at[1:].set(0)}, "edits": {"residual": edits.add("by")}}


def test_edits_are_made_in_prompts_and_rounds_and_go_together(monkeypatch):
    monkeypatch.setitem(CONTROLS, "steered", Steered)
    monkeypatch.setitem(CONTROLS, "again", lambda by: Again(by))
    p = run({"control": "steered", "steered": {"by": 0.5}, "temperature": 0.0})
    graphdef, params = model("attention")

    def follows(text, length, by):
        made = nnx.merge(graphdef, params)
        given = {"layers": {"by": jnp.asarray([[by], [0.0]])}, "edits": {"residual": edits.add("by")}}
        return made.logits(made(text, mask=masks.Causal(), **given).features)

    def check(p, by):
        best = np.argmax(follows(p.text, p.length, by), axis=-1)
        for row in range(3):
            n, end = int(LENGTH[row]), int(p.length[row])
            assert p.text[row, n:end].tolist() == best[row, n - 1 : end - 1].tolist()

    check(p, 0.5)
    assert text(p) != text(run({"temperature": 0.0}))
    both = {"control": "steered,again", "steered": {"by": 0.5}, "again": {"by": 0.25}, "temperature": 0.0}
    check(run(both), 0.75)


@dataclasses.dataclass(frozen=True)
class Again(Control):
    """The same under another name of its values."""

    by: float

    def enters(self, models, side, p):
        L = models["model"].spec.L
        return {"layers": {"more": jnp.full((L, 1), self.by).at[1:].set(0)}, "edits": {"residual": edits.add("more")}}


@dataclasses.dataclass(frozen=True)
class Soft(Control):
    """Rows of which the text is as long as an even number are fed the mean of the two likeliest tokens' vectors."""

    feeds = True

    def soft(self, models, side, seen):
        best = jax.lax.top_k(seen.logits[:, 0], 2)[1]
        return Feed(models["model"].embed(best).mean(1), (seen.p.length + seen.count) % 2 == 0)


@pytest.mark.parametrize("name", ["attention", "mixed"])
def test_soft_inputs_are_read_in_place_of_tokens(monkeypatch, name):
    """Against the whole pass over vectors; with drafts, too, where a recurrence reads again."""
    monkeypatch.setitem(CONTROLS, "soft", Soft)
    p = run({"control": "soft", "temperature": 0.0}, name)
    graphdef, params = model(name)

    @jax.jit
    def whole(vectors):
        made = nnx.merge(graphdef, params)
        return made.logits(made(vectors, mask=masks.Causal()).features)

    vectors = np.array(nnx.merge(graphdef, params).embed(p.text))
    table = np.asarray(nnx.merge(graphdef, params).embed(jnp.arange(V)[None]))[0]
    got = np.asarray(p.text).copy()
    got[:, int(LENGTH.min()) :] = np.where(
        np.arange(got.shape[1])[int(LENGTH.min()) :] < LENGTH[:, None], got[:, 7:], 0
    )
    for at in range(int(LENGTH.min()), int(LIMIT.max())):
        logits = np.asarray(whole(jnp.asarray(vectors)))
        for row in range(3):
            if LENGTH[row] <= at < LIMIT[row]:
                order = np.argsort(-logits[row, at - 1])
                got[row, at] = order[0]
                vectors[row, at] = table[order[:2]].mean(0) if (at + 1) % 2 == 0 else table[order[0]]
    assert text(p) == [got[i, : LIMIT[i]].tolist() for i in range(3)]
    assert text(p) != text(run({"temperature": 0.0}, name))


@dataclasses.dataclass(frozen=True)
class Grammar(Control):
    """Only ids that the host allows: those of the text of `grammar.rule`, in turn; "fail" fails at the third token."""

    own = ("rule",)

    rule: str = ""

    def init(self, models, batch, capacity):
        return {"ids": jnp.ones((batch, models["model"].head_weights().shape[0]), bool)}

    def process(self, models, side, logits, p, tree, position):
        return jnp.where(side["ids"][:, None], logits, -jnp.inf), None

    def hosts(self, options):
        return options["grammar"]["rule"] != ""

    def between(self, row, side):
        if row.options["grammar"]["rule"] == "nothing":
            return {"ids": np.zeros_like(side["ids"])}
        rule, new = row.options["grammar"]["rule"], row.tokens[row.prompt :]
        if rule == "fail" and len(new) == 3:
            raise ValueError("no token is allowed")
        only = row.tokenizer.encode(rule[len(new) % len(rule)])
        return {"ids": np.isin(np.arange(side["ids"].shape[-1]), only)}


@pytest.fixture
def grammar(monkeypatch):
    """(OPTIONS with the control, an engine of two lanes, a generator)."""
    monkeypatch.setitem(CONTROLS, "grammar", Grammar)
    known = preflight.base()
    more = known | {"generate": known["generate"] | {"grammar": {"rule": ""}}}  # the group of its knobs
    monkeypatch.setattr(preflight, "base", lambda: more)
    maker, params = generator()
    options = OPTIONS | {"control": "grammar", "grammar": {"rule": ""}}
    had = maker.program.config
    config = types.SimpleNamespace(
        seed=had.seed, data=had.data, generate=types.SimpleNamespace(to_dict=lambda: options)
    )
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    engine = engines.Engine(trained, lanes=2, capacity=192)
    return (
        options,
        engine,
        lambda prompt, options: Generator(maker.program, maker.tokenizer)(params, [prompt], options, seed=5),
    )


def test_the_host_looks_at_rows_between_rounds_and_at_no_others(grammar):
    options, engine, alone = grammar
    asked = {"seed": 5, "max_tokens": 24}
    ruled = engine.admit("a", grammar={"rule": "xyz"}, number=0, **asked)
    free = engine.admit("def main(", **asked)
    fails = engine.admit("a", grammar={"rule": "fail"}, **asked)
    nothing = engine.admit("a", grammar={"rule": "nothing"}, **asked)
    found = {result.id: result for result in engine.results()}
    assert found[nothing].failed and found[nothing].reason == "the model's numbers are not finite"
    assert found[ruled].text == "xyz" * 8 and found[ruled].calls == 24
    assert [found[free].text] == alone("def main(", options)
    assert found[fails].failed and found[fails].text == "fai"
    assert found[fails].reason == "generate.control='grammar': ValueError: no token is allowed"
    assert alone("a", options | {"grammar": {"rule": "xyz"}}) == ["xyz" * 8]
    with pytest.raises(RuntimeError, match="no token is allowed"):
        alone("a", options | {"grammar": {"rule": "fail"}})
