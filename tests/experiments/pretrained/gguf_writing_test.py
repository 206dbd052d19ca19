"""Models out as .gguf files: read again bit for bit, by this house and by the gguf package, tokenizer included."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import families, pretrained
from data import conversations, library_tokenizer
from experiments.pretrained import gguf_tokenizer, gguf_writing, loaded, reading, tensors
from experiments.program import build, sharding
from experiments.settings.errors import ConfigError
from experiments.workdir.trained import Trained
from kernels import masks
from tests.experiments.pretrained import cases
from tests.experiments.pretrained.lora_test import Ids
from tests.experiments.pretrained.pretrained_test import FIXTURES, read


def model(name, **changes):
    config = pretrained.get_config(str(FIXTURES / name))
    config.model.update_from_flattened_dict(changes)
    config.lock()
    program = build(config, vocab_size=29, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    return Trained(config, program, loaded.parameters(program, Ids()), Ids(), FIXTURES / name, 0, {})


def logits_of(trained):
    run = jax.jit(lambda p, ids: (lambda m: m.logits(m(ids, mask=masks.Causal()).features))(trained.program.merge(p)))
    return np.asarray(run(trained.params, jnp.asarray(cases.IDS)))


# By fixture: what is set otherwise, because its architecture in GGUF has no field for it.
WRITTEN = {
    "llama3": {}, "qwen3": {}, "qwen3-moe": {}, "mixtral": {"attention.window": 0},
    "gpt-oss": {"moe.limit": 7.0, "moe.alpha": 1.702},
}  # fmt: skip


# What llama.cpp calls them: it looks for other tensors under another name.
ARCHITECTURES = {"llama3": "llama", "qwen3": "qwen3", "qwen3-moe": "qwen3moe", "mixtral": "llama", "gpt-oss": "gpt-oss"}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_bit_for_bit(name, tmp_path):
    trained = model(name, **WRITTEN[name])
    count = gguf_writing.save(trained, tmp_path / "m.gguf")
    assert count == sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    assert families.describe(tmp_path / "m.gguf")[0] == ARCHITECTURES[name]
    logits, params = read(tmp_path / "m.gguf")
    got, want = reading.flatten(params), reading.flatten(trained.params)
    assert set(got) == set(want)
    for path, value in want.items():
        np.testing.assert_array_equal(got[path], value)
    wanted = logits_of(trained) if WRITTEN[name] else np.load(FIXTURES / name / "logits.npy")
    np.testing.assert_allclose(logits(params, cases.IDS), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_tensors_of_experts_lie_as_llama_cpp_has_them(tmp_path):
    """[E, out, in] of all experts together, routers and biases in float32 whatever the model is stored in."""
    E, D, F = 4, 16, 8
    trained = model("gpt-oss", param_dtype="bfloat16", **WRITTEN["gpt-oss"])
    gguf_writing.save(trained, tmp_path / "m.gguf")
    source = tensors.open_tensors(tmp_path / "m.gguf")
    theirs = tensors.open_tensors(FIXTURES / "gpt-oss")
    near = lambda x: np.asarray(x, np.float32).astype("bfloat16").astype(np.float32)  # noqa: E731
    for i in range(4):
        block, layer = f"blk.{i}.", f"model.layers.{i}."
        both = theirs.read(f"{layer}mlp.experts.gate_up_proj")
        for at, part in enumerate(("gate", "up")):
            found = source.read(f"{block}ffn_{part}_exps.weight")
            assert found.shape == (E, F, D) and found.dtype == "bfloat16"
            for e in range(E):
                np.testing.assert_array_equal(found[e].astype(np.float32), near(both[e][:, at::2].T))
        down = source.read(f"{block}ffn_down_exps.weight")
        assert down.shape == (E, D, F)
        np.testing.assert_array_equal(
            down.astype(np.float32), near(theirs.read(f"{layer}mlp.experts.down_proj")).swapaxes(1, 2)
        )
        for name in ("ffn_gate_inp.weight", "ffn_gate_inp.bias", "ffn_down_exps.bias", "attn_sinks.weight"):
            assert source.read(block + name).dtype == np.float32
        np.testing.assert_array_equal(source.read(f"{block}ffn_gate_inp.weight"), near(theirs.read(
            f"{layer}mlp.router.weight")))  # fmt: skip
        np.testing.assert_array_equal(
            source.read(f"{block}post_attention_norm.weight"),
            near(theirs.read(f"{layer}post_attention_layernorm.weight")),
        )


def test_norms_of_gemma_hold_one_more(tmp_path):
    trained = model("gemma3")
    with pytest.raises(ConfigError, match=r"attention.scale.* cannot be exported: the nearest family, gemma3"):
        gguf_writing.save(trained, tmp_path / "m.gguf")
    scaled = trained.config.copy_and_resolve_references().unlock()
    scaled.model.attention.scale = 0.0
    program = build(scaled.lock(), vocab_size=29, mesh=trained.program.mesh)
    trained = dataclasses.replace(trained, config=scaled, program=program)
    gguf_writing.save(trained, tmp_path / "m.gguf")
    logits, params = read(tmp_path / "m.gguf")
    want = logits_of(trained)
    np.testing.assert_allclose(logits(params, cases.IDS), want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt2-all", "has no name in that family"),
        ("mistral", r"model.attention.window=5 cannot be exported"),
        ("gpt-oss", r"model.moe.(limit|alpha)=.* cannot be exported: the nearest family, gpt-oss"),
    ],
)
def test_what_no_architecture_has_is_refused(name, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        gguf_writing.save(model(name), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def byte_level(pattern):
    letters = {byte: letter for letter, byte in library_tokenizer.byte_alphabet().items()}
    pieces = [letters[byte] for byte in range(256)] + ["ab", "Ġa", "abc"]
    specials = {"<|start|>": 259, "<|end|>": 260}
    merges = ["a b", "Ġ a", "ab c"]
    text = library_tokenizer.byte_level({piece: i for i, piece in enumerate(pieces)}, merges, pattern, specials)
    return library_tokenizer.LibraryTokenizer(text, 259, 260, 260, True, "chatml")


def blanks():
    """A BPE of SentencePiece, with bytes for what it has no piece for."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcd", "\u2581a", "bc"]
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
             "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": ["b c", "\u2581 a"]}  # fmt: skip
    normal = [{"type": "Prepend", "prepend": "\u2581"},
              {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]  # fmt: skip
    back = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}]  # fmt: skip
    text = json.dumps({"version": "1.0", "truncation": None, "padding": None, "post_processor": None,
        "added_tokens": library_tokenizer.added_tokens({"<s>": 1, "</s>": 2}), "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "decoder": {"type": "Sequence", "decoders": back}, "model": model})  # fmt: skip
    return library_tokenizer.LibraryTokenizer(text, 1, 2, 2, True, "")


@pytest.mark.parametrize(
    "make", [lambda: byte_level(gguf_tokenizer.PATTERNS["smollm"]), blanks], ids=["bytes", "blanks"]
)
def test_the_tokenizer_goes_with_it(make, tmp_path):
    kept = make()
    fields = {"general.architecture": "llama", **gguf_writing.tokenizer_fields(kept, kept.vocab_size + 3)}
    (tmp_path / "t.gguf").write_bytes(b"".join(bytes(part) for part in gguf_writing.file(fields, {})))
    again = gguf_tokenizer.load(tmp_path / "t.gguf")
    text = "abc abcd 12 ab" + chr(233) + " a bcd"
    np.testing.assert_array_equal(again.encode(text), kept.encode(text))
    told = [{"role": "user", "content": "abc"}]
    if kept.chat:
        assert conversations.rendered(again, "", told, answer=True) == conversations.rendered(
            kept, "", told, answer=True
        )
    assert (again.bos, again.eos, again.pad, again.add_bos) == (kept.bos, kept.eos, kept.pad, kept.add_bos)
    assert again.vocab_size == kept.vocab_size + 3 and {*kept.specials.items()} <= {*again.specials.items()}


def test_a_tokenizer_that_has_no_name_is_refused():
    with pytest.raises(families.Unreadable, match="cuts words by a rule that has no name in GGUF"):
        gguf_writing.tokenizer_fields(byte_level(["[a-z]+"]), 261)
    assert gguf_writing.tokenizer_fields(Ids(), 29) == {"tokenizer.ggml.model": "none"}


@pytest.mark.skipif(not importlib.util.find_spec("gguf"), reason="gguf is not installed")
def test_the_gguf_package_reads_it(tmp_path):
    import gguf

    trained = model("llama3", param_dtype="bfloat16")
    gguf_writing.save(trained, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    source = tensors.open_tensors(tmp_path / "m.gguf")
    assert {tensor.name for tensor in reader.tensors} == {*source.shapes}
    for tensor in reader.tensors:
        there = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(source.shapes[tensor.name])
        np.testing.assert_array_equal(there, np.asarray(source.read(tensor.name), np.float32))
        assert tensor.tensor_type.name == ("F32" if len(tensor.shape) == 1 else "BF16")
    assert reader.fields["llama.block_count"].contents() == 2
    assert "rope_freqs.weight" in source.shapes


@pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("gguf")),
    reason="torch or gguf is not installed",
)
def test_transformers_computes_the_same_from_it(tmp_path):
    import torch
    import transformers

    trained = model("qwen3")
    gguf_writing.save(trained, tmp_path / "m.gguf")
    config = transformers.AutoConfig.from_pretrained(FIXTURES / "qwen3")
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", config=config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        got = other(torch.from_numpy(cases.IDS)).logits.numpy()
    want = np.load(FIXTURES / "qwen3" / "logits.npy")
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_a_damaged_file_is_one_sentence(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_writing.save(model("llama3"), path)
    whole = path.read_bytes()
    front = whole.index(b"rope_freqs.weight") + 40
    for size in (*range(0, front, 61), len(whole) - 33):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"^[^\n]*\.$"):
            read(path)
    rng = np.random.default_rng(0)
    for _ in range(400):  # In the front any byte may be wrong: a sentence, or a file that still says something whole.
        raw = bytearray(whole)
        raw[rng.integers(0, front)] = rng.integers(0, 256)
        path.write_bytes(bytes(raw))
        try:
            families.describe(path)
        except families.Unreadable as error:
            assert "\n" not in str(error)
