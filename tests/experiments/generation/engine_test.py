"""Lanes: a request's text is the same alone, in any lane and company, however its prompt is cut and its row is
moved."""

import functools
import types

import jax
import numpy as np
import pytest

import data
from configs import transformer
from experiments.generation.engine import Engine, StepPlan
from experiments.generation.pool import Pool, Shape, staying
from experiments.generation.prefixes import pieces, shared
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError
from tests.experiments.generation.generate_test import OPTIONS, generator

PROMPTS = ["a", "def main(", "", "x" * 37, "hello world " * 9, "hello world " * 9 + "and"]


def trained():
    maker, params = generator()
    config = maker.program.config
    return types.SimpleNamespace(config=config, program=maker.program, params=params, tokenizer=maker.tokenizer)


@functools.cache
def alone():
    maker, params = generator()
    return [maker(params, [prompt], OPTIONS, seed=5)[0] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "sizes",
    [{"lanes": 8}, {"lanes": 3, "pool": 256, "rounds": 7, "chunk": 16}],
    ids=["wide", "small-pool"],
)
def test_a_request_gives_the_same_text_in_any_lane(sizes):
    """More requests than lanes, rows that grow beyond their share of the pool and leave, a beginning that is shared."""
    engine = Engine(trained(), capacity=192, **sizes)
    asked = {"seed": 5, "max_tokens": 24, "temperature": OPTIONS["temperature"]}
    assert engine.generate(PROMPTS, **asked) == alone()
    if sizes["lanes"] < len(PROMPTS):
        assert engine.prefixes.copied == 96 and not engine.prefixes.states
    assert engine.generate(PROMPTS[::-1], **asked) == alone()[::-1]


def test_a_request_is_freed_and_a_failure_is_its_own():
    engine = Engine(trained(), lanes=2, capacity=192)
    first, second, third = engine.admit_all(PROMPTS[:3], seed=5, max_tokens=24, temperature=OPTIONS["temperature"])
    engine.free(third)

    def broken(tokens, *, last):
        raise ValueError("no text")

    engine.waiting[0].reader.push = broken
    found = {result.id: result for result in engine.results()}
    assert found[third].reason == "freed" and not found[third].failed
    assert found[first].failed and "no text" in found[first].reason
    assert found[second].text == alone()[1] and found[second].reason == "limit" and found[second].calls == 24


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="pool=64 holds no row of capacity=192; use e.g. pool=192"):
        Engine(trained(), capacity=192, pool=64)
    engine = Engine(trained(), capacity=192)
    with pytest.raises(ConfigError, match="a prompt of 301 tokens with .* does not fit capacity=192"):
        engine.generate(["x" * 300], max_tokens=10)
    with pytest.raises(ConfigError, match="generate.topk is not a key"):
        engine.generate(["x"], topk=3)
    with pytest.raises(ConfigError, match="generate.memory='nothing' is unknown"):
        Engine(trained(), memory="nothing")


@pytest.mark.parametrize("count", range(1, 70))
def test_pieces_are_the_prompt_in_few_sizes(count):
    cut = list(pieces(count, 32))
    assert sum(used for used, _ in cut) == count and {size for _, size in cut} <= {8, 16, 32}
    assert all(used <= size for used, size in cut) and all(used == size for used, size in cut[:-1])
    assert cut[-1][1] <= max(8, 4 * cut[-1][0] / 3)


def test_shared_beginnings_are_whole_blocks_without_the_last_token():
    a, b, c = np.arange(70), np.concatenate([np.arange(65), [9, 9]]), np.arange(5)
    assert [len(prefix) for prefix in shared([a, b, c])] == [64, 64, 0]
    assert [len(prefix) for prefix in shared([np.arange(64), np.arange(64)])] == [32, 32]


def test_the_pool_gives_many_short_rows_or_few_long_ones():
    pool = Pool(lanes=4, capacity=256, size=512, block=64)
    assert pool.shape(4, 100) == Shape(4, 128) and pool.shape(2, 256) == Shape(2, 256) and pool.shape(3, 129) is None
    kept, shape = staying(pool, {7: 100, 8: 130, 9: 20})
    assert kept == [7, 8] and shape == Shape(2, 256)
    cut = Pool(lanes=8, capacity=256, size=1024, block=64, least=4)
    assert cut.smallest == 1024 and cut.shape(3, 200) == Shape(4, 256) and cut.shape(5, 200) is None
    assert Pool(lanes=12, capacity=64, size=512, least=4).shape(8, 64) == Shape(8, 64)


@functools.cache
def mixed(devices):
    """A stack of three mixers over so many devices."""
    config = smoke.shrink(transformer.get_config("tiny"))
    mixer = "attention, lact, gated_delta"
    config.model.update({"init": "fan_in", "init_std": 0.5, "mixer": mixer, "num_layers": 3})
    config.mesh.data = devices
    config = smoke.shrink(config)
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    params, tokenizer = program.init()["params"], data.ByteTokenizer()
    return types.SimpleNamespace(config=config, program=program, params=params, tokenizer=tokenizer)


def trace(count=64):
    """Prompts of 0 to 40 bytes, some with a common beginning, and what is asked for each."""
    rng = np.random.default_rng(0)
    words = lambda n: "".join(map(chr, rng.integers(97, 105, n)))  # noqa: E731
    begun = words(31)  # With the start of the document one whole block of `prefixes`: what follows it differs.
    prompts = [
        begun + words(int(rng.integers(3, 7))) if i % 8 == 0 else words(int(rng.integers(0, 30))) for i in range(count)
    ]
    asked = [
        {"max_tokens": int(rng.integers(1, 13)), "temperature": float(rng.choice([0.0, 0.7, 1.2]))} for _ in prompts
    ]
    return prompts, asked


def drawn(engine, plan=None):
    """(text, reason) of every request of the trace, by any plan."""
    ids = [engine.admit(p, number=i, seed=5, **asked) for i, (p, asked) in enumerate(zip(*trace(), strict=True))]
    if plan:
        for request, prefix in zip(engine.waiting, shared([r.ids for r in engine.waiting]), strict=True):
            request.prefix = prefix
            engine.prefixes.expect(prefix)
    found, steps = {}, 0
    while len(found) < len(ids):
        engine.step(plan and plan(engine))
        found |= {result.id: (result.text, result.reason) for result in engine.ended()}
        steps += 1
        assert steps < 2000
    return [found[i] for i in ids]


def ragged(rng, counted):
    """Plans that admit when they like, read one to nine tokens at once, decode for some rows, and throw rows out."""

    def plan(engine):
        running, reading = list(engine.running), list(engine.reading)
        preempt = [i for i in running if rng.random() < 0.3]
        stay = [i for i in running if i not in preempt]
        free = engine.pool.lanes - len(stay) - len(reading)
        waiting = [request.id for request in engine.waiting]
        admit = [i for i in waiting[:free] if rng.random() < 0.7] if free > 0 else []
        reads = [i for i in reading if engine.reading[i].one is None or not engine.reading[i].ready]
        new = [request.id for request in engine.waiting if request.id in admit and request.one is None]
        chunks = {i: int(rng.integers(1, 10)) for i in (*reads, *new)}
        decodes = None if rng.random() < 0.3 else tuple(i for i in stay if rng.random() < 0.5)
        counted["preempted"] += len(preempt)
        counted["held"] += 0 if decodes is None else len(stay) - len(decodes)
        return StepPlan(tuple(preempt), tuple(admit), chunks, decodes, rounds=int(rng.integers(1, 6)))

    return plan


def test_a_trace_of_64_requests_on_four_devices_is_each_request_alone():
    """Three mixers, lanes cut over devices, ragged pieces and plans, rows thrown out, drafts: as in one lane on one."""
    want = drawn(Engine(mixed(1), lanes=1, capacity=64))
    drafts = {"drafter": "lookup", "lookup": {"length": 2, "ngram": 2}}
    counted = {"preempted": 0, "held": 0}
    four = Engine(mixed(4), lanes=8, capacity=64, chunk=16, **drafts)
    assert drawn(four, ragged(np.random.default_rng(1), counted)) == want
    assert four.prefixes.copied > 0 and min(counted.values()) > 20 and len({text for text, _ in want}) > 50


def test_rows_that_are_not_named_wait_and_rows_that_leave_come_back():
    engine = Engine(trained(), lanes=3, capacity=192)
    asked = {"seed": 5, "max_tokens": 24, "temperature": OPTIONS["temperature"]}
    first, second, third = (engine.admit(p, **asked) for p in PROMPTS[:3])
    engine.step(StepPlan(admit=(first, second), chunks={first: 99, second: 99}, decodes=(), rounds=3))
    assert [len(r.tokens) for r in engine.running.values()] == [0, 0]
    engine.step(StepPlan(decodes=(second,), rounds=3))
    assert [len(engine.running[i].tokens) for i in (first, second)] == [0, 3]
    engine.step(StepPlan(preempt=(second,), rounds=5))
    assert list(engine.running) == [first] and [r.id for r in engine.waiting] == [second, third]
    assert len(engine.running[first].tokens) == 5 and len(engine.waiting[0].tokens) == 3
    engine.step(StepPlan(admit=(second,), rounds=1))
    assert [len(engine.running[i].tokens) for i in (first, second)] == [6, 4]
    maker, params = generator()
    found = {result.id: result.text for result in engine.results()}
    alone_ = [maker(params, [p], OPTIONS, seed=5)[0] for p in PROMPTS[:2]]
    assert [found[first], found[second]] == alone_


def test_rows_that_stay_are_moved_together_when_those_before_them_have_ended():
    """The first lane is left, and what stays needs more slots than it has."""
    engine, maker = Engine(trained(), lanes=3, capacity=192, rounds=4), generator()
    many = [4, 70, 66]
    asked = {"seed": 5, "temperature": OPTIONS["temperature"]}
    ids = [engine.admit(p, max_tokens=n, **asked) for p, n in zip(PROMPTS, many, strict=False)]
    found, rows = {}, {}
    while len(found) < 3:
        engine.step()
        found |= {result.id: result.text for result in engine.ended()}
        for i, request in engine.running.items():
            rows[i] = (*rows.get(i, ()), (request.row, engine.pool.slots(request.length)))
    assert rows[ids[1]][0] == (1, 64) and rows[ids[1]][-1] == (0, 128)
    for i, prompt, n in zip(ids, PROMPTS, many, strict=False):
        assert found[i] == maker[0](maker[1], [prompt], OPTIONS | {"max_tokens": n}, seed=5)[0]


def test_the_second_call_of_shapes_seen_before_compiles_nothing(caplog):
    """Other prompts, lengths, temperatures and seeds, of the same sizes of pieces and lanes."""
    engine = Engine(trained(), lanes=4, capacity=128)
    engine.generate(["x" * n for n in (1, 20, 33, 50, 90)], max_tokens=20, temperature=0.9)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        engine.generate(["y" * n for n in (2, 18, 34, 48, 91)], max_tokens=19, temperature=0.7, seed=3)
    assert not [r.getMessage() for r in caplog.records if "ompil" in r.getMessage()]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        engine.generate(["y"], max_tokens=3, top_k=5)
    assert [r for r in caplog.records if "ompil" in r.getMessage()], "a rule that was off is a new program"
