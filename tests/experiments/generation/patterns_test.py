"""The search of sparse patterns on a model: queries and keys of its layers, and the best candidate of each head."""

import functools
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generation import patterns
from experiments.settings.errors import ConfigError, Refused
from tests.experiments.generation.generate_test import made
from tests.experiments.generation.memories_test import T, batches

CHOICES = "a_shape:1:2, block_sparse:2:4, a_shape:1:23"


@functools.cache
def layers():
    program, params = made()
    tokens = next(batches())["tokens"][0]
    return tokens, [tuple(map(np.asarray, pair)) for pair in patterns.queries_and_keys(program, params, tokens)]


def test_queries_and_keys_are_those_of_the_layers():
    """The first layer's by its own projections of the embedded text; every layer's by the right number of heads."""
    program, params = made()
    tokens, found = layers()
    model = program.decoder(params).for_decoding()
    (block,) = model.stack.periods[0].blocks.values()
    x = block.mixer_norm(model.embed(jnp.asarray(tokens)[None]))
    q, k, _ = block.mixer.project(x, jnp.arange(T)[None])
    assert len(found) == len(model.stack.periods)
    np.testing.assert_allclose(found[0][0], q[0], atol=1e-5)  # float32 sums of width 32
    np.testing.assert_allclose(found[0][1], k[0], atol=1e-5)


def test_mass_and_pairs_are_counted_one_by_one_and_the_best_keeps_the_most():
    choices = patterns.candidates(CHOICES)
    assert choices == (("a_shape", 1, 2), ("block_sparse", 2, 4), ("a_shape", 1, 23))
    found = patterns.searched(layers()[1], choices)
    for layer, (q, k) in enumerate(layers()[1]):
        N, K = q.shape[1], k.shape[1]
        for n in range(N):
            kept = pairs = 0.0
            for i in range(T):
                x = np.array([q[i, n] @ k[j, n // (N // K)] for j in range(i + 1)], np.float64) / np.sqrt(q.shape[2])
                p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
                seen = [j for j in range(i + 1) if j < 1 or i - j < 2]
                kept, pairs = kept + p[seen].sum() / T, pairs + len(seen)
            assert found["mass"][layer][0][n] == pytest.approx(kept, abs=1e-5)  # float32 probabilities
            assert found["pairs"][layer][0][n] == pytest.approx(pairs / (T * (T + 1) / 2))
            assert found["mass"][layer][2][n] == pytest.approx(1, abs=1e-5) and found["pairs"][layer][2][n] == 1
            assert found["best"][layer][n] == 2


def test_a_run_is_searched_and_what_cannot_be_is_told(tmp_path, monkeypatch):
    program, params = made()
    config = program.config.copy_and_resolve_references().unlock()
    config.eval.patterns = CHOICES
    model = types.SimpleNamespace(
        config=config, program=program, params=params, step=3, corpus=types.SimpleNamespace(hash="a")
    )
    monkeypatch.setattr(patterns.inputs, "eval_batches", lambda *_: batches())
    said = patterns.of_run(model, tmp_path).splitlines()
    heads = sum(q.shape[1] for q, _ in layers()[1])
    assert [line.split()[0] for line in said[1:4]] == ["a_shape:1:2", "block_sparse:2:4", "a_shape:1:23"]
    assert said[3].split()[1:4] == [str(heads), "of", str(heads)] and said[1].split()[4] == "-"
    assert json.loads((tmp_path / "patterns.json").read_text())["step"] == 3
    other = types.SimpleNamespace(rows=program.rows, objective=types.SimpleNamespace(generator="canvas"))
    with pytest.raises(Refused, match="has none; use eval.patterns=''"):
        patterns.of_run(types.SimpleNamespace(**(vars(model) | {"program": other})), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a_shap:1:2", "'a_shap' is unknown; did you mean 'a_shape'"),
        ("a_shape:1", "'a_shape:1' needs two whole numbers"),
        ("a_shape:1:x", "'a_shape:1:x' needs two whole numbers"),
        ("a_shape:0:4", "'a_shape:0:4' needs two whole numbers"),
    ],
)
def test_patterns_that_are_none_are_told(text, says):
    with pytest.raises(ConfigError, match=says):
        patterns.candidates(text)
    assert patterns.candidates("minference")[0] == ("a_shape", 100, 800)
