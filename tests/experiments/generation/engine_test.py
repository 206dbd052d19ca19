"""Lanes: a request's text is the same alone, in any lane and company, however its prompt is cut and its row is
moved."""

import types

import jax
import numpy as np
import pytest

import data
from configs import transformer
from experiments.generation.engine import Engine
from experiments.generation.pool import Pool, Shape, staying
from experiments.generation.prefixes import pieces, shared
from experiments.generation.text import Generator
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
    assert sum(used for used, _ in cut) == count and {size for _, size in cut} <= {16, 32}
    assert all(used <= size for used, size in cut) and all(used == size for used, size in cut[:-1])
    assert cut[-1][1] <= max(16, 4 * cut[-1][0] / 3)


def test_shared_beginnings_are_whole_blocks_without_the_last_token():
    a, b, c = np.arange(70), np.concatenate([np.arange(65), [9, 9]]), np.arange(5)
    assert [len(prefix) for prefix in shared([a, b, c])] == [64, 64, 0]
    assert [len(prefix) for prefix in shared([np.arange(64), np.arange(64)])] == [32, 32]


def test_the_pool_gives_many_short_rows_or_few_long_ones():
    pool = Pool(lanes=4, capacity=256, size=512, block=64)
    assert pool.shape(4, 100) == Shape(4, 128) and pool.shape(2, 256) == Shape(2, 256) and pool.shape(3, 129) is None
    kept, shape = staying(pool, {7: 100, 8: 130, 9: 20})
    assert kept == [7, 8] and shape == Shape(2, 256)


@pytest.mark.parametrize("mixer", ["attention, gated_delta", "lact, attention"])
def test_mixed_stacks_and_drafts_on_four_devices(mixer):
    """Lanes cut over devices, prompts in ragged pieces, drafts from the text: as each request alone on one device."""
    made = {}
    for devices in (1, 4):
        config = smoke.shrink(transformer.get_config("tiny"))
        config.model.update({"init": "fan_in", "init_std": 0.5, "mixer": mixer, "num_layers": 2})
        config.mesh.data = devices
        config = smoke.shrink(config)
        program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
        params, tokenizer = program.init()["params"], data.ByteTokenizer()
        made[devices] = types.SimpleNamespace(config=config, program=program, params=params, tokenizer=tokenizer)
    one, four = made[1], made[4]
    asked = {"seed": 5, "max_tokens": 12, "temperature": 1.0}
    options = one.config.generate.to_dict() | {"max_tokens": 12, "temperature": 1.0}
    maker = Generator(one.program, one.tokenizer)
    want = [maker(one.params, [prompt], options, seed=5)[0] for prompt in PROMPTS]
    drafts = {"drafter": "lookup", "lookup": {"length": 2, "ngram": 2}}
    assert Engine(four, lanes=4, capacity=192, chunk=32, rounds=5, **drafts).generate(PROMPTS, **asked) == want
