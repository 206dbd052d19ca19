"""LoRA on a pretrained model: it starts as that model, trains its adapters alone, and is merged on the way out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from configs import pretrained
from data import ByteTokenizer
from experiments.pretrained import loaded, reading, writing
from experiments.program import build, sharding
from experiments.workdir.trained import Trained
from kernels import masks
from tests.experiments.pretrained import cases
from tests.experiments.pretrained.pretrained_test import FIXTURES, read


class Ids(ByteTokenizer):
    """As many ids as the fixtures have; no text is read here."""

    def __init__(self):
        super().__init__()
        self.vocab_size = 29


def adapted(name="qwen3", **options):
    config = pretrained.get_config(str(FIXTURES / name))
    config.model.projection = "lora"
    config.model.lora.update({"rank": 2, "alpha": 3.0, **options})
    config.optimizer.freeze = ("*", "!adapter")
    config.lock()
    tokenizer = Ids()
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    program = build(config, vocab_size=29, mesh=mesh)
    return Trained(config, program, loaded.parameters(program, tokenizer), tokenizer, FIXTURES / name, 0, {})


def logits(trained):
    def run(params, ids):
        model = trained.program.merge(params)
        return model.logits(model(ids, mask=masks.Causal()).features)

    return np.asarray(jax.jit(run)(trained.params, jnp.asarray(cases.IDS)))


def test_it_starts_as_the_pretrained_model_and_is_merged_when_it_is_written(tmp_path):
    trained = adapted()
    want = np.load(FIXTURES / "qwen3" / "logits.npy")
    np.testing.assert_allclose(logits(trained), want, rtol=0, atol=2e-5 * np.abs(want).max())
    initial = reading.flatten(jax.jit(trained.program.initial)(jax.random.split(jax.random.key(0))[0]))
    rng = np.random.default_rng(0)
    flat = reading.flatten(trained.params)
    for path, value in flat.items():
        if path.endswith("lora_in"):
            np.testing.assert_array_equal(value, initial[path])
        if path.endswith("lora_out"):
            flat[path] = jnp.asarray(rng.normal(size=value.shape), value.dtype)
    trained = dataclasses.replace(trained, params=writing.nested(flat, "/"))
    want = logits(trained)
    assert np.abs(want - np.load(FIXTURES / "qwen3" / "logits.npy")).max() > 0.1
    writing.hugging_face(trained, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "qwen3"
    again, params = read(tmp_path / "hf")
    got = np.asarray(again(params, jnp.asarray(cases.IDS)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
