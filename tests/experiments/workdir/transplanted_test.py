"""Transplants of trained models: the same vocabulary keeps every bit, another one is filled and goes on to train."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from configs import knobs, pretrained
from data.library_tokenizer import LibraryTokenizer
from data.saved_tokenizers import load_tokenizer
from data.tokenizers import sampled
from experiments import preflight
from experiments import program as programs
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import trained, transplanted, zett
from kernels import masks
from models import hypernetwork, transplant
from tests.experiments import pretrained as pretrained_tests
from tests.experiments import tiny
from tests.experiments.pretrained import cases

FIXTURES = pathlib.Path(pretrained_tests.__file__).parent / "fixtures"

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
    made = programs.build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=trained.load(old).program.mesh)
    return made, corpus.tokenizer, transplanted.state(made, old, corpus)["params"]


@pytest.mark.parametrize("rule", ["random", "zett"])
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


ZETT = {
    f"init__zett__{name}": value
    for name, value in {
        "steps": 4,
        "identity_steps": 101,
        "learning_rate": 3e-3,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "pool": 2,
    }.items()
}


def test_a_hypernetwork_learns_rows_on_the_frozen_model(old, caplog):
    """The old rows are reproduced ever better, and new pieces have rows that no other rule gives."""
    was = trained.load(old)
    with caplog.at_level("INFO", logger="absl"):
        _, tokenizer, params = started(old, "zett", data__tokenizer="lzw", data__vocab_size=300, **ZETT)
    said = [line.split() for line in caplog.messages if line.startswith("hypernetwork: step")]
    losses = {(int(line[2].strip(",")), line[3]): float(line[4]) for line in said}
    assert losses[100, "distance"] < losses[50, "distance"] < losses[0, "distance"]
    assert {what for _, what in losses} == {"distance", "loss"}
    known = transplant.shared(was.tokenizer.pieces, tokenizer.pieces)
    E, new = (np.asarray(some["embedding"]) for some in (was.params, params))
    new = new[: len(known)]
    np.testing.assert_array_equal(new[known >= 0], E[known[known >= 0]])
    others = [i for i, piece in enumerate(tokenizer.pieces) if piece and known[i] < 0]
    means = np.array([E[was.tokenizer.encode(tokenizer.pieces[i])].mean(0) for i in others])
    assert others and np.isfinite(new).all() and np.abs(new[others] - means).max() > 0.1 * E.std()
    jax.tree.map(np.testing.assert_array_equal, params["stack"], was.params["stack"])


def test_the_loss_of_a_hypernetwork_in_plain_numpy(old, x64):
    """nats a target of the model with predicted rows, and the distance of pieces that are one old id."""
    was = trained.load(old)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), was.params)
    config = was.config.copy_and_resolve_references().unlock()
    config.model.dtype = config.model.param_dtype = "float64"
    program = programs.build(config.lock(), vocab_size=was.tokenizer.vocab_size, mesh=was.program.mesh)
    E, T = params["embedding"], 8
    corpus = inputs.load(was.config)
    texts = zett.documents(inputs.train_loader(was.config, corpus).batch(0), was.tokenizer)[:2]
    pieces = [*sampled.BYTES, b"ab", b"cd "]
    forms = hypernetwork.surface_forms(pieces, was.tokenizer.encode, zett.PAD)
    encode = sampled.Encoder({piece: -1.0 for piece in pieces})
    small = was.config.copy_and_resolve_references().unlock()
    small.data.update({"length": T, "batch_size": 2})
    batch = zett.batch(texts, encode, len(pieces), small)
    ids = [len(pieces), *encode(texts[0][0])] if texts[0][1][0] else encode(texts[0][0])
    assert batch["tokens"][0].tolist() == ids[:T] and batch["targets"][0].tolist() == ids[1 : T + 1]
    own = zett.batch([(b"ab", (True, True)), (b"cab", (False, True))], encode, 258, small)
    assert own["tokens"][0].tolist() == [258, 256, 259, 99, 256, 259, 260, 260]
    assert own["scored"][0].tolist() == [True, True, False, True, True, False, False, False]
    p = hypernetwork.initial(jax.random.key(1), *[E.shape[1]] * 2, 8, 1) | hypernetwork.scales(E)
    key, told = jax.random.key(0), {"heads": 2, "lexical": 0.25}
    nats = zett.frozen(program, params, len(pieces), was.tokenizer)
    source = jnp.asarray(E)
    got = jax.jit(lambda p: zett.loss(p, nats, source, (forms, batch), key, **told))(p)
    rows = np.asarray(jax.jit(lambda p: hypernetwork.predict(forms, source, zett.PAD, p, 2))(p))
    table = np.concatenate([rows, E[[was.tokenizer.bos, was.tokenizer.eos, was.tokenizer.pad]]])
    inner = jax.jit(
        lambda x: (
            program.merge(params)(
                x, mask=masks.Causal(), positions=batch["positions"], segment_ids=batch["segment_ids"]
            ).features
        )
    )
    logits = (
        np.asarray(inner(table[batch["tokens"]] * program.spec.embedding_scale)) @ table.T * program.spec.logit_scale
    )
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    each = -np.take_along_axis(log_p, batch["targets"][..., None], axis=-1)[..., 0]
    single = [i for i, piece in enumerate(pieces) if len(was.tokenizer.encode(piece)) == 1]
    apart = [np.linalg.norm(rows[i] - E[was.tokenizer.encode(pieces[i])[0]]) for i in single]
    want = each[batch["scored"]].mean() + 0.25 * np.mean(apart)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    alone = jax.jit(lambda p: zett.loss(p, None, source, (forms, batch), key, **told))(p)
    np.testing.assert_allclose(alone, 0.25 * np.mean(apart), rtol=1e-12)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A committed model of transformers' with a tokenizer of its 29 ids: letters, pairs, and specials in front."""
    folder = tmp_path_factory.mktemp("foreign") / "llama3"
    shutil.copytree(FIXTURES / "llama3", folder)
    letters = ["\u0120", *"abcdefgh"]
    pairs = [a + b for a in "abc" for b in "abcdef"][:17]
    names = ["<pad>", "<s>", "</s>", *letters, *pairs]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [(pair[0], pair[1]) for pair in pairs])
    )
    library.add_special_tokens(["<pad>", "<s>", "</s>"])
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False, use_regex=True)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def of_foreign(old, foreign, **overrides):
    """A config whose model is that of the files, of which a run is to start."""
    config = tiny.config(old.parent).copy_and_resolve_references().unlock()
    config.model = pretrained.get_config(str(foreign)).model
    config.model.update({"dtype": "float32", "param_dtype": "float32"})
    config.update_from_flattened_dict({"init.transplant": str(foreign), "data.length": 16, **overrides})
    return config.lock()


def test_a_pretrained_model_keeps_its_logits_with_its_own_tokenizer(old, foreign):
    config = of_foreign(old, foreign, **{"data.tokenizer": str(foreign), "init.transplant_rule": "random"})
    preflight.check(config, num_devices=1)
    corpus = inputs.load(config)
    made = programs.build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=trained.load(old).program.mesh)
    params = transplanted.state(made, foreign, corpus)["params"]

    def logits(params):
        model = made.merge(params)
        return model.logits(model(jnp.asarray(cases.IDS), mask=masks.Causal()).features)

    want = np.load(FIXTURES / "llama3" / "logits.npy")
    np.testing.assert_allclose(jax.jit(logits)(params), want, rtol=0, atol=2e-5 * np.abs(want).max())
    theirs = safetensors.numpy.load_file(foreign / "model.safetensors")
    np.testing.assert_array_equal(params["embedding"], theirs["model.embed_tokens.weight"])


def test_pieces_are_cut_as_they_stand_inside_a_text():
    """Of a tokenizer that puts a blank in front of a text."""
    names = ["<e>", "\n", "\u2581", "a", "b", "\u2581a"]
    library = tokenizers.Tokenizer(tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [("\u2581", "a")]))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made = LibraryTokenizer(library.to_str(), 0, 0, 0, False, "")
    encode = transplanted.encoder(made)
    assert made.encode(b"ab").tolist() == [5, 4] and encode(b"ab") == [3, 4]
    assert encode(b" ab") == [5, 4] and encode(b"\n") == [1]


def test_a_pretrained_model_goes_over_to_another_tokenizer(old, foreign):
    config = of_foreign(old, foreign, **{"data.tokenizer": "lzw", "data.vocab_size": 280, "model.vocab_size": 0})
    corpus = inputs.load(config)
    made = programs.build(config, vocab_size=corpus.tokenizer.vocab_size, mesh=trained.load(old).program.mesh)
    params, tokenizer = transplanted.state(made, foreign, corpus)["params"], corpus.tokenizer
    theirs = safetensors.numpy.load_file(foreign / "model.safetensors")
    own = load_tokenizer(foreign)
    assert (own.bos, own.eos, own.pad) == (1, 2, 0), "which stand in front, in another order than ours"
    for name, table in (("embedding", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
        E, new = theirs[table], np.asarray(params[name])
        np.testing.assert_array_equal(new[[tokenizer.bos, tokenizer.eos, tokenizer.pad]], E[[1, 2, 0]])
        np.testing.assert_array_equal(new[tokenizer.pieces.index(b"a")], E[4])
        many = [i for i, piece in enumerate(tokenizer.pieces) if len(own.encode(piece)) > 1]
        want = [E[own.encode(tokenizer.pieces[i])].astype(float).mean(0) for i in many]
        np.testing.assert_allclose(new[many], want, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(new[tokenizer.pieces.index(b"z")], E[:29].mean(0), rtol=1e-5, atol=1e-7)
    with pytest.raises(ConfigError, match="model.num_layers=3 is 2 in the llama at init.transplant="):
        preflight.check(of_foreign(old, foreign, **{"model.num_layers": 3, "data.tokenizer": "lzw"}), num_devices=1)


def test_it_goes_on_to_train(old, tmp_path):
    config = tiny.config(old.parent, init__transplant=str(old), model__vocab_multiple=16, train__steps=2)
    assert np.isfinite(train(config, tmp_path / "new", quiet=True)["eval/loss"])


def test_the_knob_names_every_rule_and_mistakes_are_sentences(old):
    assert set(knobs.KNOBS["init.transplant_rule"].choices) == set(transplant.RULES)
    with pytest.raises(ConfigError, match="init.transplant='/nowhere' holds no finished checkpoint"):
        preflight.check(tiny.config(old.parent, init__transplant="/nowhere"), num_devices=1)
    with pytest.raises(ConfigError, match="not the only start of the run"):
        preflight.check(tiny.config(old.parent, init__transplant=str(old), init__warm_start=str(old)), num_devices=1)
    sizes = {"init__transplant": str(old), "init__transplant_rule": "zett"}
    with pytest.raises(ConfigError, match="init.zett.heads=3 does not divide the 32 numbers .*use init.zett.width=30"):
        preflight.check(tiny.config(old.parent, **sizes, init__zett__heads=3), num_devices=1)
    with pytest.raises(ConfigError, match="init.zett.pieces=256 leaves no piece"):
        preflight.check(tiny.config(old.parent, **sizes, init__zett__pieces=256), num_devices=1)
    with pytest.raises(ConfigError, match="only the vocabulary may differ"):
        started(old, "mean", model__width=64)
