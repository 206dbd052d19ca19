"""A policy is one file: this one evicts by layer and head, looks at weights and shares a budget when prompts end.

Tested with it is all that the engine asks of a policy: what it is told, that rows do not meet, that a prompt is read in
one pass, and that it keeps and gives what `replay` says.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import knobs
from experiments import preflight
from experiments.generation.engine import Engine
from experiments.generation.text import Generator
from experiments.settings.errors import ConfigError
from kernels import masks
from models.decoding import parts as sockets
from models.decoding import stream
from models.mixers.attend import recall
from models.mixers.context import Asked, Context
from models.mixers.memory import MEMORIES, Memory, Policy, Sizes, View, scores, settled
from models.mixers.memory.replay import replay
from models.mixers.slots import Slots
from models.partition import Partition
from tests.experiments.generation.generate_test import OPTIONS, generator
from tests.models.decoding import stream_test

RECENT = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mine(Memory):
    """H2O, of which layer i keeps i tokens fewer once the prompt is read."""

    looks, settles, pieces, alone = True, True, False, True

    k: jax.Array  # [B, K, C, H]
    v: jax.Array
    position: jax.Array  # [B, K, C], -1 = empty
    score: jax.Array  # [B, K, C]
    cap: jax.Array  # [B] tokens that stay
    settled: jax.Array  # [B] how often a prompt ended

    @classmethod
    def empty(cls, sizes, budget):
        B, K, C = sizes.batch, sizes.K, budget
        of = lambda value, *more: jnp.full((B, *more), value)  # noqa: E731
        keys = jnp.zeros((B, K, C, sizes.H), sizes.dtype)
        return cls(keys, keys, of(-1, K, C), of(0.0, K, C).astype(sizes.dtype), of(C), of(0))

    def read(self, q, k, v, context):
        B, T, K, _ = k.shape
        join = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=2)  # noqa: E731
        there = jnp.broadcast_to(context.positions[:, None], (B, K, T))
        k, v = join(self.k, k.swapaxes(1, 2)), join(self.v, v.swapaxes(1, 2))
        position = join(self.position, there)
        held = dataclasses.replace(self, k=k, v=v, position=position, score=join(self.score, jnp.zeros((B, K, T))))
        start = jnp.full((B,), self.k.shape[2])
        return held, View(k.swapaxes(1, 2), v.swapaxes(1, 2), position, start)

    def looked(self, looks, context):
        C = self.k.shape[2] - context.positions.shape[1]
        score = self.score + looks.weights.sum((2, 3)).astype(self.score.dtype)
        newest = jnp.max(context.positions, axis=1)[:, None, None]
        rule = lambda s, p, n, c: scores.keep(s, p, n, budget=c, recent=RECENT)  # noqa: E731
        kept = jax.vmap(jax.vmap(rule, (0, 0, None, None)))(score, self.position, newest[:, 0], self.cap)
        order = jnp.argsort(~kept, axis=-1, stable=True)[..., :C]
        pick = lambda x: jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 3)), axis=2)  # noqa: E731
        position = jnp.where(pick(kept), pick(self.position), -1)
        return dataclasses.replace(self, k=pick(self.k), v=pick(self.v), position=position, score=pick(score))

    @classmethod
    def settle(cls, layers, ended):
        return tuple(
            dataclasses.replace(one, cap=jnp.where(ended, one.cap - i, one.cap), settled=one.settled + ended)
            for i, one in enumerate(layers)
        )


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setitem(MEMORIES, "mine", Mine)
    known = preflight.base()
    more = known | {"generate": known["generate"] | {"mine": {"budget": 8}}}  # the group of its knobs
    monkeypatch.setattr(preflight, "base", lambda: more)
    monkeypatch.setitem(knobs.KNOBS, "generate.mine.budget", knobs.KNOBS["generate.window.size"])


def changed(budget):
    return {"memory": "mine", "mine": {"budget": budget}}


def test_it_keeps_and_gives_what_replay_says():
    """Rows of two lengths in one batch, two query heads a key head, float64: the prompt in one pass, then steps."""
    B, T, N, K, H, C = 2, 14, 4, 2, 6, 5
    lengths = np.array([9, 6])
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(rng.normal(size=(B, T, heads, H))) for heads in (N, K, K))
        memory = Mine.empty(Sizes(B, T, N, K, H, jnp.float64, T), budget=C)
        slots = Slots.empty(B, T)

        @jax.jit
        def step(memory, slots, q, k, v, at):
            asked = Asked(jnp.asarray(lengths), jnp.zeros((B, 2), jnp.uint32))
            context = Context(at, None, masks.Causal(), slots.append(at), slots.length, asked=asked)
            same = lambda x, positions, within=0: x  # noqa: E731
            return *recall(Partition(), q, k, v, context, masks.Causal(), memory, rotate=same), context.slots

        made = [[] for _ in range(B)]
        at = jnp.where(jnp.arange(10)[None] < lengths[:, None], jnp.arange(10)[None], -1)
        out, memory, slots = step(memory, slots, q[:, :10], k[:, :10], v[:, :10], at)
        kept = [[memory.position[row]] for row in range(B)]
        for row in range(B):
            made[row].append(out[row, lengths[row] - 1])
        for i in range(T - lengths.max()):
            now = lengths + i
            token = lambda x, now=now: x[np.arange(B), now][:, None]  # noqa: E731
            out, memory, slots = step(memory, slots, token(q), token(k), token(v), jnp.asarray(now[:, None]))
            for row in range(B):
                made[row].append(out[row, 0])
                kept[row].append(memory.position[row])
    for row in range(B):
        n, count = int(lengths[row]), len(made[row])
        want = replay("h2o", *(np.asarray(x[row]) for x in (q, k, v)), prompt=n, budget=C, recent=RECENT)
        np.testing.assert_allclose(np.stack(made[row]), want.outputs[:count], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(np.sort(np.stack(kept[row]), axis=-1), want.kept[:count])


def run(budget, pieces, limit=stream_test.LIMIT):
    """Progress of the three rows of stream_test after their end."""
    asked = [stream_test.DEFAULTS | changed(budget) | one for one in stream_test.SETTINGS]
    parts = sockets.make(asked, stream_test.DEFAULTS, vocab_size=stream_test.V)
    graphdef, params = stream_test.model("gqa")

    @jax.jit
    def go(params):
        models = {"model": nnx.merge(graphdef, params).for_decoding()}
        given = (stream_test.prompts(), jnp.asarray(stream_test.LENGTH), jnp.asarray(limit), stream_test.key_data())
        p = stream.begin(models, parts, *given, sockets.dials(asked, parts))
        for size in pieces:
            p = stream.read(models, p, parts, size)
        return stream.extend(models, p, parts, 100)

    return go(params)


def test_a_budget_of_the_whole_text_is_the_full_cache_and_a_small_one_is_its_layers():
    whole = run(40, (17,))
    assert [whole.text[i, : whole.length[i]].tolist() for i in range(3)] == stream_test.wanted("gqa")
    small = run(6, (17,))
    layers = [layer["0_attention"] for layer in small.state["layers"]]
    assert [layer.cap.tolist() for layer in layers] == [[6] * 3, [5] * 3]
    assert [(layer.position >= 0).sum(-1).tolist() for layer in layers] == [[[6, 6]] * 3, [[5, 5]] * 3]


def test_each_row_settles_once_when_its_prompt_ends():
    """Prompts of 7, 13 and 18 tokens, of which 6, 12 and 17 are read, in pieces of 5, 8 and 4."""
    layers = run(40, (5, 8, 4), limit=stream_test.LENGTH).state["layers"]
    assert layers[0]["0_attention"].settled.tolist() == [0, 0, 0], "rows that are done read nothing"
    layers = run(40, (5, 8, 4), limit=stream_test.LENGTH + 1).state["layers"]
    assert layers[0]["0_attention"].settled.tolist() == [1, 1, 1]
    layers = run(40, (5,), limit=stream_test.LENGTH + 1).state["layers"]
    assert layers[0]["0_attention"].settled.tolist() == [0, 0, 0]


def test_lanes_read_its_prompts_in_one_pass():
    """A long prompt beside short ones, pieces of 16 asked for, a beginning that two share: the text of each alone."""
    maker, params = generator()
    prompts = ["a", "x" * 37, "hello world " * 9, "hello world " * 9 + "and"]
    options, plain = OPTIONS | changed(8), OPTIONS | {"mine": {"budget": 8}}
    alone = Generator(maker.program, maker.tokenizer)
    want = [alone(params, [prompt], options, seed=5)[0] for prompt in prompts]
    assert want != [maker(params, [prompt], plain, seed=5)[0] for prompt in prompts]
    had = maker.program.config
    config = types.SimpleNamespace(
        seed=had.seed, data=had.data, generate=types.SimpleNamespace(to_dict=lambda: options)
    )
    trained = types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)
    engine = Engine(trained, lanes=2, capacity=192, chunk=16, rounds=5)
    asked = {"seed": 5, "max_tokens": OPTIONS["max_tokens"], "temperature": OPTIONS["temperature"]}
    assert engine.generate(prompts, **asked) == want and engine.prefixes.copied == 0
    with pytest.raises(ConfigError, match="generate.mine.budget=9 holds for all requests of an engine"):
        engine.generate(["a"], mine={"budget": 9})
    with pytest.raises(ConfigError, match="generate.drafter='lookup' reads several tokens in one pass"):
        alone(params, ["a"], options | {"drafter": "lookup"})


def test_what_settles_is_found_in_any_state():
    memory = Mine.empty(Sizes(1, 4, 1, 1, 2, jnp.float32, 4), budget=3)
    state = ({"0": {"inner": memory}, "1": jnp.zeros(1)}, {"0": {"inner": memory}, "1": jnp.zeros(1)})
    after = settled(Policy("mine"), state, jnp.asarray([True]))
    assert [layer["0"]["inner"].cap.tolist() for layer in after] == [[3], [2]]
    assert settled(Policy("full"), state, jnp.asarray([True])) is state
