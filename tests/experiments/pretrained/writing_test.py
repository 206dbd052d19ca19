"""Models out: what was read is written again bit for bit, and what no family computes is refused by the part's name."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, families, knobs, pretrained
from configs.families import outward, resolved
from experiments.pretrained import names, reading, tensors, writing
from models.spec import Spec
from tests.experiments.pretrained import cases
from tests.experiments.pretrained.pretrained_test import FIXTURES, read

LIVE = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")


@pytest.mark.parametrize("name", cases.FIXTURES)
def test_what_was_read_is_written_bit_for_bit(name):
    folder, config = FIXTURES / name, pretrained.get_config(str(FIXTURES / name)).model
    model = config.to_dict()
    family, told = outward.hugging_face_config(model, knobs.defaults()["model"], longest=64)
    again = resolved.merged(knobs.defaults()["model"], families.hugging_face.describe(told, "again")[1])
    assert not resolved.differences(resolved.resolved(model), resolved.resolved(again))
    spec = Spec.from_config(model, vocab_size=config.vocab_size)
    params = {path: np.asarray(leaf) for path, leaf in reading.flatten(read(folder)[1]).items()}
    own = json.loads((folder / "config.json").read_text())["model_type"]
    written, source = writing.theirs(spec, params, names.HUGGING_FACE[own]), tensors.open_tensors(folder)
    assert {*written} == {key for key in source.shapes if key in written or not config.tied}
    for key, value in written.items():
        np.testing.assert_array_equal(value, source.read(key))


@pytest.mark.skipif(not LIVE, reason="torch and transformers are not installed")
@pytest.mark.parametrize("name", cases.FIXTURES)
def test_transformers_computes_the_same_from_what_was_written(name, tmp_path):
    import torch
    import transformers
    from safetensors.numpy import save_file

    config = pretrained.get_config(str(FIXTURES / name)).model
    family, told = outward.hugging_face_config(config.to_dict(), knobs.defaults()["model"], longest=64)
    spec = Spec.from_config(config.to_dict(), vocab_size=config.vocab_size)
    logits, params = read(FIXTURES / name)
    flat = {path: np.asarray(leaf) for path, leaf in reading.flatten(params).items()}
    save_file(writing.theirs(spec, flat, names.HUGGING_FACE[family]), tmp_path / "model.safetensors", {"format": "pt"})
    told |= {"architectures": [writing.ARCHITECTURES[family]], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(told))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        want = model(torch.from_numpy(cases.IDS)).logits.numpy()
    got = np.asarray(jax.jit(logits)(params, jnp.asarray(cases.IDS)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixer": "gated_delta"}, "model.mixer=.*gated_delta"),
        ({"attention.sinks": 2, "attention.window": 4}, "model.attention.sinks=2"),
        ({"swiglu.activation": "relu2", "parallel": True}, "cannot be exported: the nearest family"),
        ({"logit_scale": 0.3, "norm_offset": True}, "cannot be exported: the nearest family"),
        ({"channel": "swiglu,mlp", "mixer": "attention,attention"}, r"model.channel='mlp' cannot be exported"),
        (
            {"mixer": "attention,attention", "by_position": ({"swiglu": {"hidden": 8}}, {})},
            r"model.swiglu.hidden=\d+ cannot be exported: the nearest family, \w+, has \d+ there",
        ),
    ],
)
def test_what_no_family_computes_is_refused_by_name(changes, said):
    config = base.get_config().model
    config.update_from_flattened_dict({"channel": "swiglu", "vocab_size": 29, **changes})
    with pytest.raises(families.Unreadable, match=said):
        outward.hugging_face_config(config.to_dict(), knobs.defaults()["model"], longest=64)
