"""Generation is the model's own law: the full forward decides every token, in any batch, chunk or padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from configs import base, transformer
from experiments.generation import requests
from experiments.generation.text import Generator
from experiments.program import build
from experiments.program.sharding import make_mesh
from experiments.settings import smoke
from experiments.settings.errors import ConfigError
from kernels import masks
from models.decoding import parts as sockets

PROMPTS = ["a", "def main(", "", "x" * 37]
OPTIONS = base.get_config().generate.to_dict() | {"max_tokens": 24, "temperature": 1.0}
# Between runs of other shapes logits differ by float32 sums of width 32: far below the gap between two choices.


@functools.cache
def made(devices: int = 1):
    """A program with weights large enough that its choices are sharp, and its parameters."""
    config = smoke.shrink(transformer.get_config("tiny"))
    config.model.init, config.model.init_std, config.mesh.data = "fan_in", 0.5, devices
    program = build(config.lock(), vocab_size=259, mesh=make_mesh(config, jax.devices()[:devices]))
    return program, program.init()["params"]


@functools.cache
def generator(devices: int = 1, eos: int = 257) -> tuple[Generator, dict]:
    """One generator for all tests, so that each shape and setting compiles once."""
    program, params = made(devices)
    tokenizer = data.ByteTokenizer()
    tokenizer.eos = eos
    return Generator(program, tokenizer), params


@functools.cache
def drawn(prompt: str, **changes) -> str:
    """One prompt alone."""
    maker, params = generator()
    return maker(params, [prompt], OPTIONS | changes, seed=5)[0]


@functools.cache
def forward():
    program, params = made()

    @jax.jit
    def logits(ids, length):
        features, *_ = program.merge(params)(ids, mask=masks.Causal())
        return program.merge(params).logits(features)[0, length - 1]

    return lambda ids: np.asarray(logits(jnp.asarray([list(ids) + [0] * (96 - len(ids))]), len(ids)), np.float64)


def greedy(prompt: str, count: int, tokenizer) -> list[int]:
    """Argmax of the full forward over the whole text so far, one token at a time, without a cache."""
    ids = [tokenizer.bos, *tokenizer.encode(prompt).tolist()]
    new = []
    for _ in range(count):
        scores = forward()(ids + new)
        scores[[tokenizer.bos, tokenizer.pad]] = -np.inf
        new.append(int(scores.argmax()))
        if new[-1] == tokenizer.eos:
            break
    return new


def text(ids: list[int], tokenizer) -> str:
    decoder = data.StreamDecoder(tokenizer)
    return "".join(decoder.push(i) for i in ids if i != tokenizer.eos)


def test_prompts_lie_in_rows_with_room_behind_the_longest():
    text, length = requests.padded([np.array([5, 6]), np.array([7])], 62, 9)
    assert text.shape == (2, 64) and text[:, :3].tolist() == [[5, 6, 9], [7, 9, 9]] and (text[:, 3:] == 9).all()
    assert length.tolist() == [2, 1] and requests.padded([np.array([5, 6])], 63, 9)[0].shape == (1, 128)
    assert [requests.first_pass(np.array([1, n])) for n in (1, 2, 17, 18)] == [0, 16, 16, 32]


@pytest.mark.parametrize("prompt", [*PROMPTS[:3], "naïve 日本"])
def test_temperature_zero_is_the_argmax_of_the_full_forward(prompt):
    tokenizer = data.ByteTokenizer()
    assert drawn(prompt, temperature=0.0) == text(greedy(prompt, 24, tokenizer), tokenizer)


def test_one_candidate_is_greedy():
    for changes in ({"top_k": 1}, {"top_p": 1e-6}):
        assert drawn("def main(", **changes) == drawn("def main(", temperature=0.0), changes


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
def test_a_request_gives_the_same_text_in_any_batch(changes):
    """Prompts of other lengths beside it change neither its padding's effect nor its randomness."""
    maker, params = generator()
    together = maker(params, PROMPTS, OPTIONS | changes, seed=5)
    assert together == [drawn(prompt, **changes) for prompt in PROMPTS]
    assert len({*together}) == len(PROMPTS)
    turned = maker(params, PROMPTS[::-1], OPTIONS | changes, seed=5)
    assert turned == together[::-1]


def test_the_same_prompt_twice_is_two_requests():
    maker, params = generator()
    first, second = maker(params, ["a", "a"], OPTIONS, seed=5)
    assert first == drawn("a") != second
    assert maker(params, ["a"], OPTIONS, seed=4)[0] != first


def test_rows_are_cut_over_devices():
    """One prompt on eight devices, and three: as on one."""
    maker, params = generator(devices=8)
    assert maker(params, PROMPTS[:1], OPTIONS, seed=5) == [drawn(PROMPTS[0])]
    assert maker(params, PROMPTS[:3], OPTIONS, seed=5) == [drawn(prompt) for prompt in PROMPTS[:3]]


@pytest.mark.parametrize("count", [1, 17, 18, 33])
def test_pieces_concatenate_to_the_whole_and_fewer_tokens_are_the_beginning_of_more(count):
    maker, params = generator()
    pieces = list(maker.stream(params, PROMPTS[:1], OPTIONS | {"max_tokens": count}, seed=5))
    assert "".join(piece for _, piece in pieces) == drawn("a", max_tokens=count)
    assert all(piece and row == 0 for row, piece in pieces)
    assert drawn("a", max_tokens=33).startswith(drawn("a", max_tokens=count))
    if count == 33:
        assert len(pieces) == 3  # It did stream: the first token, and twice sixteen.


def test_a_stop_string_cuts_the_text_before_it_wherever_chunks_fall():
    whole = drawn("def main(", max_tokens=33)
    assert len(whole) > 8
    maker, params = generator()
    for start in range(0, len(whole) - 3, 2):
        stop = whole[start : start + 3]
        cut = whole[: whole.find(stop)]
        pieces = maker.stream(params, ["def main(", "a"], OPTIONS | {"max_tokens": 33, "stop": (stop, "never")}, seed=5)
        assert "".join(piece for row, piece in pieces if row == 0) == cut
    assert drawn("def main(", max_tokens=33, stop=("never seen",)) == whole


def test_the_end_token_ends_its_row_and_no_other():
    """The token that a prompt would draw fifth, taken as the end: that row stops where it first stood."""
    plain = data.ByteTokenizer()
    tokens = {prompt: greedy(prompt, 24, plain) for prompt in PROMPTS[:2]}
    eos = tokens["a"][4]
    maker, params = generator(eos=eos)
    found = maker(params, PROMPTS[:2], OPTIONS | {"temperature": 0.0})
    for prompt, got in zip(PROMPTS[:2], found, strict=True):
        row = tokens[prompt]
        kept = row[: row.index(eos)] if eos in row else row
        assert got == text(kept, plain)
    assert len(found[0]) <= 4


def test_the_first_token_follows_the_law_of_the_model():
    """4,000 requests of one prompt against softmax(logits / T) of the full forward: chi-square at 1 in 10,000."""
    from scipy import stats

    maker, params = generator()
    n = 4000
    scores = forward()([256, *b"ab"]) / 0.8
    scores[[256, 258]] = -np.inf
    law = np.exp(scores - scores.max())
    law /= law.sum()
    prompt = np.tile(np.asarray([[256, *b"ab", 0, 0]], np.int32), (n, 1))
    keys = np.asarray(jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), n)))
    decoder, asked = maker.decoder, OPTIONS | {"temperature": 0.8}
    parts = decoder.parts([asked])
    weights, length = decoder.weights(params, parts), np.full(n, 3, np.int32)
    dials = {name: np.repeat(value, n) for name, value in sockets.dials([asked], parts).items()}
    p = decoder.start(weights, prompt, length, length + 1, keys, dials, parts=parts, size=2, capacity=8)
    tokens = decoder.extend(weights, p, 1, n + 1, parts=parts).text[:, 3]
    counts = np.bincount(np.asarray(tokens), minlength=len(law))
    assert counts[[256, 258]].sum() == 0
    order = np.argsort(law)[::-1]
    often = order[law[order] * n >= 5]
    rest = np.setdiff1d(np.arange(len(law)), often)
    observed = np.append(counts[often], counts[rest].sum())
    expected = np.append(law[often], law[rest].sum()) * n
    kept = expected > 1e-9
    assert len(often) > 5
    assert stats.chisquare(observed[kept], expected[kept] * observed[kept].sum() / expected[kept].sum()).pvalue > 1e-4


def test_options_out_of_range_are_refused_by_name():
    maker, params = generator()
    for key, value in (("max_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("stop", ("",)), ("top_k", 1.5)):
        with pytest.raises(ConfigError, match=f"generate.{key}="):
            maker(params, ["a"], OPTIONS | {key: value})
    with pytest.raises(ConfigError, match="generate.topp is not a key of the config; did you mean 'top_p'"):
        maker(params, ["a"], OPTIONS | {"topp": 1.0})
    assert maker(params, [], OPTIONS) == []


def test_what_a_terminal_sees(capsys):
    maker, params = generator()
    told = []
    options = OPTIONS | {"max_tokens": 4}
    requests.interactive(maker, params, ["a"], options, seed=5, write=told.append)
    assert "".join(told) == "a" + drawn("a", max_tokens=4) + "\n" and len(told) >= 3
    assert capsys.readouterr().err == ""
    requests.interactive(maker, params, ["a", "caf\udce9"], options, seed=5)
    out, err = capsys.readouterr()
    assert out.split("=" * 20 + "\n")[2].startswith("caf\ufffd") and err == ""
    requests.interactive(maker, params, ["x" * 40], options, seed=5)
    assert "the model was trained on 32" in capsys.readouterr().err
