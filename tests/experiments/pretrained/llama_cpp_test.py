"""Models out as .gguf files, computed by llama.cpp where its package xllamacpp is: every token's probability."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrained
from experiments.pretrained import gguf_tokenizer, gguf_writing
from experiments.program import build, sharding
from experiments.workdir.trained import Trained
from kernels import masks
from tests.experiments.pretrained.gguf_writing_test import FIXTURES, WRITTEN, byte_level

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="xllamacpp is not installed")
CASES = WRITTEN | {"gemma3": {"attention.scale": 0.0}}
IDS = np.random.default_rng(1).integers(0, 256, 40)
ENDS = (1, 2, 5, 6, 17, 40)  # Within windows, at their ends, beyond them, and beyond what rotary scaling leaves alone.


def model(name):
    """A model of random numbers of the fixture's sizes, with a tokenizer that llama.cpp knows."""
    config, tokenizer = pretrained.get_config(str(FIXTURES / name)), byte_level(gguf_tokenizer.PATTERNS["smollm"])
    config.model.update_from_flattened_dict({**CASES[name], "vocab_size": tokenizer.vocab_size})
    config.init.pretrained = ""
    config.lock()
    program = build(config, vocab_size=tokenizer.vocab_size, mesh=sharding.make_mesh(config, jax.devices()[:1]))
    leaves, form = jax.tree.flatten(program.initial(jax.random.key(0)))
    rng = np.random.default_rng(3)
    drawn = [
        x + jnp.asarray(rng.normal(size=x.shape) * (0.3 if x.ndim < 3 else 0.5 / x.shape[-2] ** 0.5), x.dtype)
        for x in leaves
    ]
    return Trained(config, program, jax.tree.unflatten(form, drawn), tokenizer, pathlib.Path(), 0, {})


def theirs(path, vocabulary):
    """Log probabilities of the token behind each of the first ENDS ids, by llama.cpp in float32: [len(ENDS), V]."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 256, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server, found = xllamacpp.Server(params), np.full((len(ENDS), vocabulary), np.nan)
    for row, end in enumerate(ENDS):
        asked = {"prompt": IDS[:end].tolist(), "n_predict": 1, "n_probs": vocabulary, "temperature": 0.0}
        told = server.handle_completions(asked | {"cache_prompt": False})
        for each in told["completion_probabilities"][0]["top_logprobs"]:
            found[row, each["id"]] = each["logprob"]
    return found


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same_from_it(name, tmp_path):
    trained = model(name)
    gguf_writing.save(trained, tmp_path / "m.gguf")

    def ours(params, ids):
        made = trained.program.merge(params)
        return jax.nn.log_softmax(made.logits(made(ids, mask=masks.Causal()).features))

    want = np.asarray(jax.jit(ours)(trained.params, jnp.asarray(IDS)[None]))[0, np.array(ENDS) - 1]
    got = theirs(tmp_path / "m.gguf", want.shape[-1])
    there = ~np.isnan(got)
    assert there.sum() > 0.9 * there.size  # Tokens that have no text may be left out.
    np.testing.assert_allclose(got[there], want[there], rtol=0, atol=1e-3 * np.abs(want).max())
