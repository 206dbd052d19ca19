"""From a config to a corpus: what is known before it is read, what is said of it, and an older run's own split."""

import hashlib

import numpy as np
import pytest
from absl import logging

import data
from configs import base
from experiments import preflight
from experiments import workdir as files
from experiments.planning import text
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained
from tests.experiments import tiny


@pytest.fixture
def said(monkeypatch):
    """Warnings, one after another."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    return lines


def test_the_ids_of_a_tokenizer_are_known_before_the_corpus_is_read_or_assumed_aloud(tmp_path, said):
    assert inputs.vocabulary(tiny.config(tmp_path)) == (259, "")
    assert inputs.vocabulary(tiny.config(tmp_path, data__source="digits", data__path="")) == (20, "")
    config = tiny.config(tmp_path, data__tokenizer="bpe", data__vocab_size=50_304)
    ids, assumed = inputs.vocabulary(config)
    assert ids == 50_304 and assumed.startswith("data.vocab_size=50304 is filled; the tokenizer is not learned yet")
    assert f"assumed: {assumed}" in text.plan(config)
    learned = inputs.load(config).tokenizer
    assert inputs.vocabulary(config) == (learned.vocab_size, "") and learned.vocab_size < 50_304
    assert "assumed:" not in (plan := text.plan(config)) and f"[{learned.vocab_size}," in plan
    (note,) = said
    assert note.startswith("data.vocab_size=50304 is not filled: the training split (4 MiB of it) gives")
    learned.save(tmp_path / "saved.json")
    saved = tiny.config(tmp_path, data__tokenizer=str(tmp_path / "saved.json"))
    assert inputs.vocabulary(saved) == (learned.vocab_size, "")
    away = tiny.config(tmp_path, data__tokenizer="bpe", data__vocab_size=5000, data__path="/nowhere")
    assert inputs.vocabulary(away)[0] == 5000


def test_what_the_data_room_says_names_keys_of_the_config(tmp_path):
    config = tiny.config(tmp_path)
    for said, told in (
        ("path='a b' is (name='x'); use source='text'", "data.path='a b' is (data.name='x'); use data.source='text'"),
        ("components[0].weight=0 is none", "data.components[0].weight=0 is none"),
        ("no.path='x' has my name", "no.path='x' has my name"),
    ):
        assert inputs.keyed(config, said) == told
    with pytest.raises(ConfigError, match=r"data.path='/x' is no folder for data.source='stdlib'; use data.source="):
        inputs.load(tiny.config(tmp_path, data__source="stdlib", data__path="/x"))


def test_the_sample_that_bpe_learns_from_is_a_setting(tmp_path, said):
    one, other = (
        inputs.load(tiny.config(tmp_path, data__tokenizer="bpe", data__vocab_size=300, data__tokenizer_sample=n))
        for n in (500, 0)
    )
    assert one.tokenizer.hash != other.tokenizer.hash
    with pytest.raises(ConfigError, match="data.tokenizer_sample=-1"):
        inputs.load(tiny.config(tmp_path, data__tokenizer="bpe", data__tokenizer_sample=-1))


def test_both_sizes_of_a_corpus_are_said(tmp_path):
    corpus = inputs.load(tiny.config(tmp_path, data__validation=0.3))
    train_, valid = corpus.info["splits"]["train"], corpus.info["splits"]["valid"]
    assert inputs.sizes(corpus) == (
        f"training: {train_['documents']} documents, {train_['bytes']:,} bytes; "
        f"held out: {valid['documents']} documents, {valid['bytes']:,} bytes"
    )
    corpus.info["splits"]["valid"]["documents"] = 1
    assert "held out: 1 document, " in inputs.sizes(corpus)
    task = inputs.load(tiny.config(tmp_path, data__source="task:recall", data__path=""))
    assert inputs.sizes(task).endswith("held out: 4,096 documents")


def test_a_tokenizer_stands_in_for_the_one_that_was_trained(tmp_path, said):
    config = tiny.config(tmp_path, data__tokenizer="bpe", data__vocab_size=300)
    made = inputs.load(config).tokenizer
    made.save(tmp_path / "tokenizer.json")
    for path in (tmp_path / "texts").iterdir():
        path.write_text("another text altogether " * 40 + path.name)
    assert inputs.load(config).tokenizer.hash != made.hash
    assert inputs.load(config, str(tmp_path / "tokenizer.json")).tokenizer.hash == made.hash
    plain = tiny.config(tmp_path)  # bytes have only one
    assert inputs.load(plain, str(tmp_path / "tokenizer.json")).tokenizer.name == "bytes"


def test_a_run_goes_on_with_the_split_that_it_began_with(tmp_path, said, monkeypatch):
    """Two equal documents, of which one was held out by chance: such a run is read and goes on as it is."""
    folder = tmp_path / "same"
    folder.mkdir()
    words = " ".join(f"word{k}" for k in range(400))
    for name in "ab":
        (folder / f"{name}.txt").write_text(words)
    config = tiny.config(tmp_path, data__path=str(folder))
    digest = hashlib.sha256(words.encode()).digest()
    before = hashlib.sha256(b"train" + digest + b"valid" + digest).hexdigest()
    with monkeypatch.context() as then:
        then.setattr(inputs, "load", lambda config, **_: data.load(**inputs._arguments(config), expected=before))
        train(config, tmp_path / "run", quiet=True)
    assert inputs.began_with(tmp_path / "run") == before != inputs.load(config).hash
    assert train(config, tmp_path / "run", quiet=True)["step"] == config.train.steps
    assert trained.load(tmp_path / "run").corpus.hash == before


def test_a_damaged_run_json_is_no_hash(tmp_path):
    for content in ("", "{", "[]", "null", '{"corpus": null}', '{"corpus": []}', '{"corpus": {"hash": 3}}'):
        (tmp_path / files.RUN).write_text(content)
        assert inputs.began_with(tmp_path) == ""
    assert inputs.began_with(tmp_path / "nowhere") == ""


@pytest.mark.parametrize("given", [0, 1, 3, 9])
@pytest.mark.parametrize("objective", ["next_token", "masked_diffusion"])
def test_targets_among_the_first_tokens_of_a_document_do_not_count(tmp_path, objective, given):
    """A causal objective's target stands one place behind its token, a bidirectional one's is the token."""
    config = tiny.config(tmp_path, objective=objective)
    corpus = inputs.load(config)
    batch = inputs.train_loader(config, corpus).batch(2)
    every = inputs.prepare(config, corpus, batch)["scored"]
    config = tiny.config(tmp_path, objective=objective, data__given=given)
    found = inputs.prepare(config, corpus, batch)["scored"]
    for b, t in np.ndindex(*every.shape):
        place = batch["positions"][b, t] + (objective == "next_token")
        assert found[b, t] == (every[b, t] and place >= given)
    assert given < 2 or found.sum() < every.sum()


def test_a_prefix_that_is_read_both_ways_has_no_targets():
    made = base.get_config()
    made.model.mixer, made.model.linear_attention.prefix, made.data.given = "linear_attention", 16, 15
    said = "model.linear_attention.prefix=16 is read both ways, and targets within it would be read before they"
    with pytest.raises(ConfigError, match=said):
        preflight.check(made, num_devices=1)
    made.data.given = 16
    preflight.check(made, num_devices=1)
    made.mesh.update({"data": 1, "context": 2})
    with pytest.raises(ConfigError, match=r"prefix=16 is read by every token of a row, and mesh\.context cuts rows"):
        preflight.check(made, num_devices=2)
