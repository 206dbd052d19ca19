"""Controls behind the generator: on two devices they write what one writes, whatever stands beside a row; off, the
plain text; a stop string cuts the text of each where it stands; without the head that they read, a sentence."""

import functools
import types

import jax
import numpy as np
import pytest

import data
from configs import base, transformer
from experiments.gallery import composition
from experiments.generation import beside, requests, text
from experiments.generation.between import NO_TOKEN
from experiments.generation.engine import Engine
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError

PROMPTS, OTHERS = ["a", "def main(", "\nx = "], ["a", "zz", "q" * 9]
OPTIONS = base.get_config().generate.to_dict() | {"max_tokens": 6, "temperature": 0.0}
SETTINGS = {
    "budget": {"tokens": 3},
    "where": {"predicate": "len(text) < 4"},
    "semantic": {"weight": 30.0, "length": 2},
    "superposed": {"drafts": 2, "top": 4},
    "skip": {"least": 1},
    "early_exit": {"threshold": 0.2},
    "sets": {"on": True},
    "best_of_n": {"n": 3, "choose": "majority"},
}
READS = {"budget": "remaining", "early_exit": "exits"}
DEEP = ("skip", "early_exit")  # Others are as they are in a model of one layer, which compiles in half the time.
HOT = ("best_of_n", "cntp")  # Draws that are greedy are all alike.
STEPS = {
    "adadec": {"threshold": 0.1, "candidates": 2, "length": 1},
    "beam": {"beams": 2},
    "cntp": {"most": 2, "high": 0.1, "places": 2, "length": 2},
}
LANES = {
    "logit_bias": {"ids": "97:5, 98:4"}, "penalties": {"repetition": 1.5}, "min_length": {"tokens": 5},
    "no_repeat_ngram": {"n": 1}, "dry": {"multiplier": 2.0}, "typical_p": {"mass": 0.5}, "top_n_sigma": {"n": 0.5},
    "mirostat": {"tau": 1.0, "rate": 0.3}, "constraint": {"pattern": "[a-d]{9,12}"}, "json": {"on": True},
    "gedi": {"weight": 1.0, "wanted": "a", "other": "b"}, "r2r": {"threshold": 3.0}, "nudging": {"threshold": 0.3},
    "swi": {"steps": 12, "window": 1}, "vectors": {"strength": 2.0},
}  # fmt: skip
RUNS = ("gedi", "r2r", "nudging")


@functools.cache
def made(devices, objective, layers=1):
    config = smoke.shrink(transformer.get_config("tiny"))
    config.objective = objective
    config.model.update(
        {"init": "fan_in", "init_std": 0.5, "num_layers": layers, "width": 16, "num_heads": 2, "tied": False}
    )
    config.mesh.data = devices
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    if devices > 1:  # Nothing is compiled to begin with what one device has.
        params = jax.device_put(jax.device_get(made(1, objective, layers)[1]), program.shardings["params"])
        return Generator(program, data.ByteTokenizer()), params
    params, rng = program.init()["params"], np.random.default_rng(0)
    if "heads" in params:  # Drawn: untrained ones say nothing.
        params["heads"] = jax.tree.map(
            lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding), params["heads"]
        )
    return Generator(program, data.ByteTokenizer()), params


def of(name):
    """(objective, layers) of the model that a control is tried with."""
    return READS.get(name, "next_token"), 3 if name in DEEP else 1


def written(name, devices, prompts, path, stop=(), **settings):
    maker, params = made(devices, *of(name))
    own = (SETTINGS | STEPS)[name] | ({"path": path} if name == "semantic" else {}) | settings
    options = OPTIONS | {"control": name, name: OPTIONS[name] | own, "temperature": 1.0 if name in HOT else 0.0}
    return maker(params, prompts, options | {"stop": stop}, seed=5)


@functools.cache
def plain(model, temperature):
    maker, params = made(1, *model)
    return maker(params, PROMPTS, OPTIONS | {"temperature": temperature}, seed=5)


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("semantic") / "verifier.npz"
    np.savez(path, kernel=np.random.default_rng(1).normal(size=16) * 9, bias=np.zeros(()))
    return str(path)


@pytest.mark.parametrize("name", [*SETTINGS, *STEPS])
def test_two_devices_write_what_one_writes_beside_anything(name, verifier):
    asked = PROMPTS if name != "sets" else ["[[a||b]]:", "[[x||yy||z]] is", "[[1||2]]+"]
    one = written(name, 1, asked, verifier)
    assert written(name, 2, asked, verifier) == one
    beside = OTHERS if name != "sets" else [asked[0], "[[k||l]]!", "[[mm||n||o]]?"]
    assert written(name, 1, beside, verifier)[0] == one[0]
    if name not in ("sets", "best_of_n"):  # Something is done; of these their own tests say so.
        assert one != plain(of(name), 1.0 if name in HOT else 0.0)


def cut(answer, stop):
    """The text before the first place where one of the strings begins."""
    return answer[: min((at for at in map(answer.find, stop) if at >= 0), default=len(answer))]


def apart(answers):
    """Two stop strings that cut the texts of a batch at places as unlike as can be, one of them not at all at once."""
    pieces = sorted({answer[i : i + n] for answer in answers for i in range(len(answer)) for n in (1, 2)})
    ways = [(one, other) for one in pieces for other in (*pieces, "never")]
    return max(
        ways, key=lambda stop: (len({len(cut(a, stop)) for a in answers}), sum(a != cut(a, stop) for a in answers))
    )


@pytest.mark.parametrize("stop", [("bc", "abc"), ("abc", "bc")])
def test_of_stop_strings_that_end_together_the_first_to_begin_cuts(stop):
    tokenizer = data.ByteTokenizer()
    row = requests.RowText(tokenizer, stop)
    assert row.push(np.array(tokenizer.encode("xabcd")), last=False) == "x" and row.stopped


@pytest.mark.parametrize("name", [*SETTINGS, *STEPS])
def test_a_stop_string_cuts_what_is_written_without_one(name, verifier, monkeypatch):
    """Rows of a batch that stop at different places; the text as it comes token by token, and at once."""
    asked = PROMPTS if name != "sets" else ["[[a||b]]:", "[[x||yy||z]] is", "[[1||2]]+"]
    milder = {"threshold": 0.99} if name == "early_exit" else {}  # Else nothing is written.
    whole = written(name, 1, asked, verifier, **milder)
    stop = apart(whole)
    want = [cut(answer, stop) for answer in whole]
    assert want != whole and len({len(answer) for answer in want}) > 1
    for chunk in (1, text.CHUNK):
        monkeypatch.setattr(text, "CHUNK", chunk)
        assert written(name, 1, asked, verifier, stop, **milder) == want


def test_what_a_stop_string_has_ended_need_not_be_fulfilled():
    """A predicate that the second row alone fulfils: without the stop string the first comes to its limit with a
    message, and so would the batch."""
    asked = {"predicate": "'<' in text"}
    assert [answer.find("<") for answer in plain(of("where"), 0.0)] == [-1, 2, -1]
    with pytest.raises(RuntimeError, match="at the limit"):
        written("where", 1, PROMPTS, "", **asked)
    assert written("where", 1, PROMPTS, "", ("m", "\ufffd\ufffdJ"), **asked) == ["", "\ufffd\ufffd<J\ufffd", ""]


def test_rows_whose_controls_leave_no_token_end_with_a_message():
    """Behind the a of the pattern a bias forbids the b; a stop string before it is soon enough."""
    maker, params = made(1, "next_token")
    small = {"pattern": "ab", "states": 8, "classes": 8}
    options = OPTIONS | {"control": "constraint,logit_bias", "constraint": OPTIONS["constraint"] | small}
    options["logit_bias"] = {"ids": "98:-inf"}
    with pytest.raises(RuntimeError, match=NO_TOKEN):
        maker(params, ["x", "y"], options)
    assert maker(params, ["x", "y"], options | {"stop": ("a",)}) == ["", ""]


def test_every_control_is_among_these():
    assert {*SETTINGS, *STEPS, *LANES, *composition.SAMPLING} == {*composition.CONTROLS, *composition.SAMPLING}


OFF = {
    "budget": {"tokens": 0}, "where": {"predicate": ""}, "semantic": {"weight": 0.0}, "superposed": {"drafts": 0},
    "skip": {"least": 0}, "early_exit": {"threshold": 2.0}, "sets": {"on": False}, "best_of_n": {"n": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_off_they_are_the_plain_model(name, verifier):
    want = plain(of(name), 1.0 if name in HOT else 0.0)
    assert written(name, 1, PROMPTS, verifier, **OFF[name]) == want


def lanes(devices, path, patch):
    """An engine whose program has all of LANES; other parameters of the same model read along."""
    maker, params = made(devices, "next_token")
    program, other = maker.program, jax.tree.map(lambda x: x[..., ::-1], params)
    trained = types.SimpleNamespace(
        config=program.config, program=program, params=params, tokenizer=data.ByteTokenizer()
    )
    patch.setattr(beside, "load", lambda _, __, runs: (dict.fromkeys(runs, program), dict.fromkeys(runs, other)))
    groups = {name: {"workdir": "other"} for name in RUNS} | {"vectors": {"path": path}}
    groups["constraint"] = {"states": 64, "classes": 16}
    engine = Engine(trained, lanes=8, capacity=64, rounds=3, control=",".join(LANES), max_tokens=12, **groups)
    patch.setattr(engine.decoder, "parts", functools.partial(engine.decoder.parts, every=True))  # One program.
    return engine


def answers(engine, stop):
    """Of requests under each of LANES alone, and of plain ones, which draw with the same bits."""
    ids = {}
    for name, group in (LANES | {"": {}}).items():
        for number, prompt in enumerate(PROMPTS[:2]):
            own = {name: group} if name else {}
            settings = {"temperature": 1.0, "stop": stop.get((name, prompt), ())}
            ids[engine.admit(prompt, number=number, **own, **settings)] = name, prompt
    return {ids[result.id]: result for result in engine.results()}


def test_a_stop_string_ends_a_lane_under_each_control(tmp_path, monkeypatch):
    """Requests of unlike controls in one program, on two devices: each ends at a stop string of its own, and no other
    does, where its text on one device has it."""
    np.save(tmp_path / "u.npy", np.random.default_rng(2).normal(size=(1, 16)))
    whole = answers(lanes(1, str(tmp_path / "u.npy"), monkeypatch), {})
    assert not any(result.failed for result in whole.values())
    text_of = lambda name: [whole[name, prompt].text for prompt in PROMPTS[:2]]  # noqa: E731
    same = {name for name in LANES if text_of(name) == text_of("")}
    assert same <= {"min_length", "dry"}  # No text ends early or repeats what it has.
    at = {key: i % 4 for i, key in enumerate(whole) if i % 5}
    stop = {key: (whole[key].text[n : n + 2], "never seen") for key, n in at.items() if whole[key].text[n : n + 2]}
    found = answers(lanes(2, str(tmp_path / "u.npy"), monkeypatch), stop)
    for key, result in found.items():
        assert result.text == cut(whole[key].text, stop.get(key, ())), key
        assert result.reason == ("stop" if key in stop else whole[key].reason), key
    assert len(stop) > len(LANES)


def test_all_layers_is_the_plain_model_in_the_program_of_fewer():
    """Where the control is in the program and its setting is neutral: a schedule of all layers for every token."""
    assert written("skip", 1, PROMPTS, "", least=3) == plain(of("skip"), 0.0)


@pytest.mark.parametrize("name, says", [
    ("budget", "objective='next_token' does not train; use a run of objective='remaining'"),
    ("early_exit", "objective='next_token' does not train; use a run of objective='exits'"),
    ("r2r", "objective='next_token' does not train; use a run of objective='router'"),
])  # fmt: skip
def test_a_run_without_the_head_is_refused_in_one_sentence(name, says):
    maker, params = made(1, "next_token")
    own = SETTINGS.get(name, {"measure": "router", "threshold": 0.5})
    with pytest.raises(ConfigError, match=says) as refused:
        maker(params, PROMPTS, OPTIONS | {"control": name, name: OPTIONS[name] | own})
    assert len(refused.value.problems) == 1 and "generate." in str(refused.value)
