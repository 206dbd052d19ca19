"""A draft that writes on while the target reads: the text is the target's, and steps are those of the clocks."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs import base, transformer
from experiments.generation import overlapped, requests
from experiments.generation.overlapped import Ahead, Here, Row, pending_most, write
from experiments.generation.serving import clock
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.training import train
from experiments.workdir import trained as runs
from kernels import masks
from models.decoding import keys
from tests.experiments import tiny

OPTIONS = base.get_config().generate.to_dict()
PROMPT, TOKENS, LENGTH = "def main(main(", 24, 3
TARGET = ("attention", 0.0)


@functools.cache
def model(mixer="attention", noise=0.0):
    """A target; with noise, a draft that agrees with it most of the time."""
    config = smoke.shrink(transformer.get_config("tiny"))
    config.model.update({"init": "fan_in", "init_std": 0.5, "mixer": mixer})
    config = smoke.shrink(config)
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:1]))
    params = program.init()["params"]
    bits = iter(jax.random.split(jax.random.key(7), 1000))
    moved = jax.tree.map(lambda x: x + noise * jax.random.normal(next(bits), x.shape, x.dtype), params)
    return types.SimpleNamespace(config=config, program=program, params=moved, tokenizer=data.ByteTokenizer())


def overlapping(schedule, mixer="attention", noise=0.03, temperature=0.0, prompt=PROMPT):
    """What both ends write in this process."""
    settings = {"temperature": temperature, "max_tokens": TOKENS}
    target = Row(model(mixer), settings, 5, handed=pending_most(schedule, LENGTH))
    ahead = Ahead(Row(model(mixer, noise), settings, 5, ends=False), prompt, TOKENS, LENGTH)
    return write(target, Here(ahead), prompt, TOKENS, schedule)


@functools.cache
def alone(mixer="attention", noise=0.0, temperature=0.0, prompt=PROMPT, tokens=TOKENS):
    """The text of one model by itself."""
    one = model(mixer, noise)
    options = OPTIONS | {"temperature": temperature, "max_tokens": tokens}
    return Generator(one.program, one.tokenizer)(one.params, [prompt], options, seed=5)[0]


@pytest.mark.parametrize(
    "schedule, mixer, temperature",
    [("pearl", "attention", 0.0), ("llmcad", "attention", 1.0), ("pearl", "linear_attention", 0.0)],
)
def test_the_text_is_the_target_s(schedule, mixer, temperature):
    """A state that can drop drafts, and one that reads accepted tokens again."""
    found = overlapping(schedule, mixer, temperature=temperature)
    assert found.text == alone(mixer, temperature=temperature)
    assert any(step.rejected for step in found.steps) and any(step.post for step in found.steps)


def following(ids, temperature):
    """`[len(ids)]` what the draft writes behind each token of a text: its whole forward pass, the request's bits."""
    one, tokens = model(noise=0.03), jnp.asarray(ids)[None]
    network = one.program.merge(one.params)
    logits = np.array(network.logits(network(tokens, mask=masks.Causal()).features)[0], np.float32)
    logits[:, [one.tokenizer.bos, one.tokenizer.pad]] = -np.inf
    if not temperature:
        return logits.argmax(axis=-1)
    request = requests.keys([PROMPT], 5)
    draw = lambda n: int(keys.sample(keys.fold(request, n + 1, keys.TOKEN), jnp.asarray(logits[n : n + 1]))[0])  # noqa: E731
    return [draw(n) for n in range(len(ids))]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_of_pearl_are_those_of_its_clock(temperature):
    found, begin = overlapping("pearl", temperature=temperature), requests.encode(data.ByteTokenizer(), PROMPT)
    ids = np.concatenate([begin, found.tokens])
    drafts = following(ids, temperature)
    agrees = [i > 0 and drafts[i - 1] == ids[i] for i in range(len(ids))]
    made = clock.pearl_trace(lambda i: i < len(ids) and agrees[i], LENGTH, len(begin), len(ids) + LENGTH)
    whole = [*itertools.takewhile(lambda step: step.after <= len(ids), made)]  # The next one meets the end of the text.
    assert len(whole) > 5 and [step.clock for step in found.steps][: len(whole)] == whole


def test_llmcad_waits_for_drafts_behind_a_rejection_alone():
    """Rounds by hand: of `LENGTH` drafts behind a rejection, else of those that were written meanwhile."""
    steps = overlapping("llmcad").steps
    fresh = [True, *(step.rejected for step in steps[:-1])]
    assert [step.waited > 0 for step in steps] == fresh and 1 < sum(fresh) < len(steps)
    at = len(requests.encode(data.ByteTokenizer(), PROMPT))
    for step, new in zip(steps, fresh, strict=True):
        assert step.post and step.before == at + new * LENGTH
        at = step.after


def test_seconds_are_the_longer_half_of_each_step_and_what_was_waited_for():
    step = overlapped.Step(True, 9, 12, 3, False, 0.5, 2.0, 1.0, 9.0)
    found = overlapped.Written("", (), (step, step._replace(waited=0.0, draft=3.0)))
    assert found.seconds == 2.5 + 3.0 and found.wall == 18.0


def test_two_processes(tmp_path):
    """A run that drafts for itself is always right; what fails in the other process is said here."""
    folder = tmp_path / "run"
    train(tiny.config(tmp_path, train__steps=2), folder, quiet=True)
    settings = {"temperature": 0.8}
    one = runs.load(folder)
    overlapped.check_pair(one, str(folder))
    target = Row(one, settings, one.config.seed, handed=pending_most("pearl", 4))
    with overlapped.far(str(folder), settings, one.config.seed, [("ab cd", 17, 4), ("", 9, 4)]) as channel:
        found = [write(target, channel, "ab cd", 17), write(target, channel, "", 9)]
    options = one.config.generate.to_dict() | settings
    maker = Generator(one.program, one.tokenizer)
    for made, (prompt, count) in zip(found, [("ab cd", 17), ("", 9)], strict=True):
        assert made.text == maker(one.params, [prompt], options | {"max_tokens": count}, seed=one.config.seed)[0]
    assert [step.after - step.before for step in found[0].steps][:4] == [4, 4, 4, 4] and len(found[0].steps) == 5
    with overlapped.far(str(tmp_path / "none"), settings, 0, []) as channel:
        with pytest.raises(RuntimeError, match="drafts ended: .*none"):
            channel.recv()
        with pytest.raises(RuntimeError, match="has gone"):
            channel.recv()


def test_what_cannot_be_is_said_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="schedule='serial'"):
        pending_most("serial", 4)
    with pytest.raises(ConfigError, match="length=1"):
        pending_most("pearl", 1)
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        overlapped.check_pair(model(), str(tmp_path / "nowhere"))
