"""Prompts in merged tokens: greedy text is that of whole passes over vectors, and what cannot be is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
from experiments import generation
from experiments.generation import dynamic
from experiments.settings.errors import ConfigError
from experiments.workdir.trained import Trained
from kernels import masks
from tests.experiments.generation import generate_test

PROMPTS = ["abab abab cd", "cd abab x"]


def model(**options):
    program, params = generate_test.made()
    config = program.config.copy_and_resolve_references().unlock()
    told = {"merges": 2, "max_tokens": 6, "temperature": 0.0, **options}
    config.generate.update(told)
    return Trained(config.lock(), program, params, data.ByteTokenizer(), None, 0, {})


def test_greedy_text_behind_merged_prompts_is_that_of_whole_passes(capsys):
    old = model()
    new = dynamic.merged(old, PROMPTS)
    assert "2 pairs" in capsys.readouterr().err
    E, W = np.asarray(old.params["embedding"], float), old.params["embedding"].shape[0]
    ab = [ord("a"), ord("b")]
    assert new.tokenizer.units == [tuple(ab), tuple(ab + ab)]
    table = np.asarray(new.params["embedding"])
    np.testing.assert_array_equal(table[:W], old.params["embedding"])
    np.testing.assert_allclose(table[W:], [E[ab].mean(0)] * 2, rtol=1e-6)
    maker = generation.make(new.program, new.tokenizer)
    texts = maker(new.params, PROMPTS, new.config.generate.to_dict())

    @jax.jit
    def logits(vectors):
        made = old.program.merge(old.params)
        return made.logits(made(vectors, mask=masks.Causal()).features)

    scale = old.program.spec.embedding_scale
    for prompt, text in zip(PROMPTS, texts, strict=True):
        units = {"abab": E[ab].mean(0), "ab": E[ab].mean(0)}
        cut = [old.tokenizer.bos, *(p for p in prompt.replace("abab", "\1"))]
        rows = [E[c] if isinstance(c, int) else units["abab"] if c == "\1" else E[ord(c)] for c in cut]
        drawn = []
        for _ in range(6):
            padded = np.zeros((1, 24, E.shape[1]))
            padded[0, : len(rows)] = np.array(rows) * scale
            scores = np.array(logits(jnp.asarray(padded, jnp.float32))[0, len(rows) - 1, : old.tokenizer.vocab_size])
            scores[[old.tokenizer.bos, old.tokenizer.pad]] = -np.inf
            drawn.append(int(scores.argmax()))
            if drawn[-1] == old.tokenizer.eos:
                break
            rows.append(E[drawn[-1]])
        reader = data.StreamDecoder(old.tokenizer)
        assert text == "".join(map(reader.push, drawn))
    v = 100 * np.random.default_rng(0).normal(size=E.shape[1])
    wild = {"embedding": jnp.asarray(np.concatenate([table[:W], [v, -v]]), jnp.float32)}
    others, options = ["xyz wq", "k"], new.config.generate.to_dict()
    likeliest = maker(new.params, others, options)
    assert maker(new.params | wild, others, options) == likeliest, "no merged token is ever written"


def test_without_a_pair_that_comes_twice_it_is_the_model_itself():
    old = model()
    assert dynamic.merged(old, ["abc"]) is old


def test_a_hypernetwork_says_the_rows(monkeypatch):
    """Of the run's text; what it is asked for are the ids of the units, and one that is padding."""
    old, asked = model(merge_rows="zett"), []
    monkeypatch.setattr(Trained, "corpus", "text")
    D = old.params["embedding"].shape[1]

    def predicted(program, params, tokenizer, encode, run):
        assert program is old.program and run == (old.config, "text")
        return lambda forms: asked.append(forms) or {"embedding": np.arange(len(forms) * D).reshape(-1, D) / 7}

    monkeypatch.setattr(dynamic.zett, "predicted", predicted)
    new = dynamic.merged(old, PROMPTS)
    np.testing.assert_array_equal(asked[0][:, :5], [[97, 98, -1, -1, -1], [97, 98, 97, 98, -1]])
    np.testing.assert_allclose(new.params["embedding"][-2:], np.arange(2 * D).reshape(2, D) / 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"drafter": "lookup"}, "generate.drafter='lookup' reads ids of prompts"),
        ({"chat": True}, "generate.chat=True reads ids of prompts"),
    ],
)
def test_what_reads_ids_otherwise_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        dynamic.merged(model(**options), PROMPTS)
    with pytest.raises(ConfigError, match="give --prompt or --prompts"):
        dynamic.merged(model(), [])
