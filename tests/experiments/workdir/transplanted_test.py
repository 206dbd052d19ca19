"""Transplants of trained models: the same vocabulary keeps every bit, another one is filled and goes on to train."""

import jax
import numpy as np
import pytest

from configs import knobs
from experiments import preflight
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained, transplanted
from models import transplant
from tests.experiments import tiny

BPE = {"data__tokenizer": "bpe", "data__vocab_size": 270}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The workdir of a run with BPE, beside its corpus."""
    folder = tmp_path_factory.mktemp("old")
    train(tiny.config(folder, **BPE, train__steps=2, model__vocab_multiple=16), folder / "run", quiet=True)
    return folder / "run"


def started(old, rule, **overrides):
    changes = {"init__transplant": str(old), "init__transplant_rule": rule, "model__vocab_multiple": 16, **overrides}
    config = tiny.config(old.parent, **changes)
    corpus = inputs.load(config)
    from experiments import program as programs

    made = programs.build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=trained.load(old).program.mesh)
    return made, corpus.tokenizer, transplanted.state(made, old, corpus.tokenizer)["params"]


@pytest.mark.parametrize("rule", ["random", "tokenadapt"])
def test_the_same_tokenizer_gives_the_same_logits_bit_for_bit(old, rule):
    was = trained.load(old)
    made, tokenizer, params = started(old, rule, **BPE)
    assert tokenizer.hash == was.tokenizer.hash
    jax.tree.map(np.testing.assert_array_equal, params, was.params)
    tokens = np.array([tokenizer.encode("abc def gh")[:6]])

    def logits(program, params):
        model = program.merge(params)
        return model.logits(model(tokens, mask=program.objective.mask).features)

    a, b = (jax.jit(lambda p, made=made: logits(made, p))(p) for made, p in ((made, params), (was.program, was.params)))
    np.testing.assert_array_equal(a, b)


def test_another_tokenizer_has_the_rows_of_the_rule(old):
    was = trained.load(old)
    _, tokenizer, params = started(old, "copy_mean", data__tokenizer="lzw", data__vocab_size=300)
    E, new = np.asarray(was.params["embedding"]), np.asarray(params["embedding"])
    ids = {piece: i for i, piece in enumerate(was.tokenizer.pieces) if piece}
    known = [i for i, piece in enumerate(tokenizer.pieces) if piece in ids]
    assert len(known) >= 256
    np.testing.assert_array_equal(new[known], E[[ids[tokenizer.pieces[i]] for i in known]])
    others = [i for i, piece in enumerate(tokenizer.pieces) if piece and piece not in ids]
    assert others
    for i in others:
        parts = was.tokenizer.encode(tokenizer.pieces[i])
        np.testing.assert_allclose(new[i], E[parts].astype(float).mean(0), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(new[tokenizer.bos], E[was.tokenizer.bos])
    jax.tree.map(np.testing.assert_array_equal, params["stack"], was.params["stack"])


def test_it_goes_on_to_train(old, tmp_path):
    config = tiny.config(old.parent, init__transplant=str(old), model__vocab_multiple=16, train__steps=2)
    assert np.isfinite(train(config, tmp_path / "new", quiet=True)["eval/loss"])


def test_the_knob_names_every_rule_and_mistakes_are_sentences(old):
    assert set(knobs.KNOBS["init.transplant_rule"].choices) == set(transplant.RULES)
    with pytest.raises(ConfigError, match="init.transplant='/nowhere' holds no finished checkpoint"):
        preflight.check(tiny.config(old.parent, init__transplant="/nowhere"), num_devices=1)
    with pytest.raises(ConfigError, match="not the only start of the run"):
        preflight.check(tiny.config(old.parent, init__transplant=str(old), init__warm_start=str(old)), num_devices=1)
    with pytest.raises(ConfigError, match="only the vocabulary may differ"):
        started(old, "mean", model__width=64)
