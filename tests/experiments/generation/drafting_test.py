"""Drafters behind the generator and the engine: many devices, lanes, what a terminal and a report see, refusals."""

import functools
import types

import jax
import numpy as np
import pytest

import data
from configs import base, transformer
from experiments import preflight, report
from experiments import workdir as files
from experiments.generation import beside, drafted, held_out, requests
from experiments.generation.drafted import Drafted
from experiments.generation.engine import Engine
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import CheckpointError, ConfigError

PROMPTS = ["a", "def main(main(", "x" * 37]
OPTIONS = base.get_config().generate.to_dict() | {"max_tokens": 24, "temperature": 0.0}
DRAFTERS = {
    "recycling": {"template": "2x2x1", "shared": True},
    "trie": {"size": 6, "branch": 4},
    "exit": {"layers": 1, "length": 3},
    "ppd": {"tree": "dynamic:12:0.6,0.2/0.4,0.2/0.3,0.1"},
}


@functools.cache
def made(devices=1, mixer="attention", objective="next_token"):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.objective = objective
    config.model.update({"init": "fan_in", "init_std": 0.5, "num_layers": 2, "mixer": mixer})
    config.mesh.data = devices
    config = smoke.shrink(config)
    config.model.num_layers = 2
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    params, tokenizer = program.init()["params"], data.ByteTokenizer()
    return types.SimpleNamespace(config=config, program=program, params=params, tokenizer=tokenizer)


@functools.cache
def plain():
    one = made()
    return Generator(one.program, one.tokenizer)(one.params, PROMPTS, OPTIONS, seed=5)


def options(drafter, **own):
    return OPTIONS | {"drafter": drafter, drafter: OPTIONS[drafter] | DRAFTERS.get(drafter, {}) | own}


@pytest.mark.parametrize("drafter", ["recycling", "trie", "ppd"])
def test_four_devices_write_what_one_writes(drafter):
    four = made(4, objective="prompt_tokens" if drafter == "ppd" else "next_token")
    maker = Generator(four.program, four.tokenizer)
    assert maker(four.params, PROMPTS, options(drafter), seed=5) == plain()
    found = maker.drafted
    assert found.wrote.shape[0] == found.calls.shape[0] == 3 and found.tokens <= 3 * 24
    np.testing.assert_array_equal(found.wrote.sum(axis=1), found.calls)  # Attention reads nothing twice.


@pytest.mark.parametrize("drafter", ["recycling", "trie", "ppd"])
def test_lanes_that_come_and_go_write_what_each_request_writes_alone(drafter):
    given = {"drafter": drafter, drafter: DRAFTERS[drafter]}
    one = made(objective="prompt_tokens" if drafter == "ppd" else "next_token")
    lanes = Engine(one, lanes=2, capacity=192, chunk=32, rounds=3, **given)
    assert lanes.generate(PROMPTS, seed=5, max_tokens=24, temperature=0.0) == plain()


def test_what_a_terminal_sees_behind_drafts(capsys):
    one = made()
    maker = Generator(one.program, one.tokenizer)
    given = options("trie") | {"max_tokens": 80}
    requests.interactive(maker, one.params, ["a"], given, seed=5)
    out, err = capsys.readouterr()
    assert out.startswith("a") and "a call; drafts that stay by depth" in err and "times plain decoding (" in err
    requests.interactive(maker, one.params, ["a"], OPTIONS, seed=5)
    assert "a call" not in capsys.readouterr().err


def test_the_line_and_its_numbers_by_hand():
    """Three rounds of one token, two of two, five of four: 27 tokens; a recurrence read two of them twice."""
    wrote = np.array([[3, 1, 0, 4], [0, 1, 0, 1]])
    found = Drafted(wrote, np.array([9, 3]), seconds=2.0, timed=20)
    assert found.tokens == 27 and found.per_call == 27 / 12 and found.per_second == 10
    np.testing.assert_allclose(drafted.acceptance(wrote), [7 / 10, 5 / 7, 1])
    assert drafted.histogram(wrote) == [(1, 3), (2, 2), (3, 0), (4, 5)]
    slow = Drafted(np.array([[8]]), np.array([8]), seconds=2.0, timed=8)
    assert drafted.line(found, slow) == (
        "27 tokens in 12 calls of the model, 2.25 a call; drafts that stay by depth 0.70 0.71 1.00; "
        "2.50 times plain decoding (10 against 4 tokens a second)"
    )
    assert drafted.line(slow) == "8 tokens in 8 calls of the model, 1.00 a call"
    assert np.isnan(drafted.acceptance(np.array([4, 0, 0]))[1])


def test_a_report_shows_the_newest_measurement_of_each_drafter(tmp_path):
    config = base.get_config()
    files.write_config(tmp_path, config.to_dict(), "python main.py")
    found, slow = (
        Drafted(np.array([[3, 1, 6]]), np.array([10]), 1.0, 20),
        Drafted(np.array([[9]]), np.array([9]), 1.0, 8),
    )
    lines = [held_out.record(options("trie"), step, found, slow) for step in (1, 2)]
    lines[0]["wrote"] = [99, 0, 0]
    (tmp_path / files.DRAFTS).write_bytes(b"".join(map(files.line, lines)))
    page = report.write(tmp_path).read_text()
    assert "<code>trie</code>" in page and page.count("<code>trie</code>") == 1
    assert "2.30" in page and "2.50" in page and "█" * 18 in page and "█" * 30 not in page


REFUSED = {
    "the law": (options("trie") | {"verifier": "token", "temperature": 1.0}, "needs the law of the drafts"),
    "a tree": (
        options("model_tree", workdir="runs/small") | {"verifier": "token", "temperature": 1.0, "model_tree":
        OPTIONS["model_tree"] | {"builder": "dyspec"}}, "judges one draft behind the other",
    ),
    "dependent": (
        options("model_tree", builder="dyspec") | {"verifier": "kseq", "temperature": 1.0}, "drawn independently",
    ),
    "all layers": (options("exit", layers=2), "generate.exit.layers=2 leaves nothing .* use at most .*=1"),
    "no heads": (options("heads"), "needs heads of the tokens ahead"),
    "no tree": (options("recycling", template="oak"), "generate.recycling.template='oak' names no tree of drafts"),
    "no vectors": (options("ppd"), "needs the prompt tokens that objective='prompt_tokens' trains"),
    "no states": (options("ppd", tree="dynamic:12:0.5"), "generate.ppd.tree='dynamic:12:0.5' names no trees of prompt"),
    "no oak": (options("ppd", tree="oak"), "generate.ppd.tree='oak' names no tree of drafts"),
    "too small": (options("trie", size=4, branch=6), "generate.trie.size=4 nodes hold no branch"),
    "no room": (options("model_tree", size=3, levels=3, width=3), "use generate.model_tree.size=5"),
    "too long": (options("lookup", length=500), "drafts 500 tokens behind each other and a row has room for 64"),
    "too many": (options("recycling", template="recycling"), "drafts 80 nodes and a row has slots for 64"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_said_in_one_sentence(case):
    one, (given, says) = made(), REFUSED[case]
    with pytest.raises(ConfigError, match=says) as error:
        Generator(one.program, one.tokenizer)(one.params, PROMPTS, given)
    assert str(error.value).count(". ") == 0


def test_a_recurrence_reads_no_tree_and_lanes_have_room_for_drafts():
    one = made(mixer="gated_delta")
    with pytest.raises(ConfigError, match="drafts a tree, which model.mixer='gated_delta'"):
        Generator(one.program, one.tokenizer)(one.params, PROMPTS, options("recycling"))
    with pytest.raises(ConfigError, match="a row has slots for 70; draft at most 70"):
        Engine(made(), lanes=1, capacity=70, drafter="recycling", recycling={"template": "recycling"})


def test_a_tree_deeper_than_the_prompt_tokens_that_were_trained_and_a_law_they_have_not():
    one = made(objective="prompt_tokens")
    with pytest.raises(ConfigError, match="needs 4 prompt tokens and the model has 3; use .*tree='1x1x1'"):
        Generator(one.program, one.tokenizer)(one.params, PROMPTS, options("ppd", tree="1x1x1x1"))
    with pytest.raises(ConfigError, match="'token' needs the law of the drafts, which generate.drafter='ppd' has not"):
        Generator(one.program, one.tokenizer)(
            one.params, PROMPTS, options("ppd") | {"verifier": "token", "temperature": 1}
        )


def test_objectives_of_drafters_say_what_they_cannot_read():
    base_ = smoke.shrink(transformer.get_config("tiny"))
    base_.objective = "prompt_tokens"
    for key, value, says in (
        ("mixer", "gated_delta", "beside the text, as a tree, which model.mixer='gated_delta' does not"),
        ("attention.window", 8, "model.attention.window=8 would count prompt tokens"),
    ):
        config = base_.copy_and_resolve_references()
        config.model.update_from_flattened_dict({key: value})
        with pytest.raises(ConfigError, match=says):
            preflight.check(config, num_devices=1)


def test_a_draft_of_another_tokenizer_is_said(monkeypatch):
    theirs = types.SimpleNamespace(objective=types.SimpleNamespace(causal=True), config=None)
    saves = types.SimpleNamespace(steps=lambda: [1], newest_about=lambda: {"tokenizer": "another-hash"})
    monkeypatch.setattr(beside.companions, "structure", lambda *_: theirs)
    monkeypatch.setattr(beside, "Checkpoints", lambda _: saves)
    with pytest.raises(CheckpointError, match="generate.model_draft.workdir=runs/b was trained with another tokenizer"):
        beside.load(None, data.ByteTokenizer(), {"model_draft.workdir": "runs/b"})


def test_prompts_are_the_same_held_out_rows_for_any_batch_size():
    rng = np.random.default_rng(0)
    rows, real = rng.integers(97, 123, (11, 8)).astype(np.int32), np.ones((11, 8), bool)
    real[2] = False  # A row of padding, as they stand at the end of a batch.
    model = types.SimpleNamespace(tokenizer=data.ByteTokenizer())

    def asked(size):
        return held_out.prompts(
            model, ({"tokens": rows[at : at + size], "scored": real[at : at + size]} for at in range(0, 11, size))
        )

    halves = ["".join(map(chr, row[:4])) for row in rows]
    assert asked(1) == asked(3) == asked(11) == [*halves[:2], *halves[3 : held_out.ROWS + 1]]


def test_a_run_that_sees_both_sides_of_a_token_is_no_guide(monkeypatch):
    theirs = types.SimpleNamespace(
        objective=types.SimpleNamespace(causal=False), config=types.SimpleNamespace(objective="masked_diffusion")
    )
    monkeypatch.setattr(beside.companions, "structure", lambda *_: theirs)
    with pytest.raises(ConfigError, match="generate.r2r.workdir=runs/b was trained with objective='masked_diffusion'"):
        beside.load(None, data.ByteTokenizer(), {"r2r.workdir": "runs/b"})
