"""Foreign models in: their logits, from committed files in every run and against torch where it is installed."""

import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import families, pretrained
from experiments.preflight import pretrained as preflight
from experiments.pretrained import reading
from kernels import masks
from models.lm import LM
from models.spec import Spec
from tests.experiments.pretrained import cases

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
LIVE = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")


def read(folder, dtype="float32"):
    """(a function from ids to logits, its parameters) of the model in a folder."""
    config = pretrained.get_config(str(folder)).model
    config.dtype = config.param_dtype = dtype
    spec = Spec.from_config(config.to_dict(), vocab_size=config.vocab_size)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: LM(spec, rngs=nnx.Rngs(0))), nnx.Param)
    abstract = nnx.to_pure_dict(state)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = reading.reader(spec, abstract, folder).parameters(jax.tree.map(lambda _: here, abstract))

    def logits(params, ids):
        model = nnx.merge(graphdef, params)
        return model.logits(model(ids, mask=masks.Causal()).features)

    return jax.jit(logits), params


@pytest.mark.parametrize("name", cases.FIXTURES)
def test_logits_of_committed_files_are_those_of_transformers(name):
    logits, params = read(FIXTURES / name)
    want = np.load(FIXTURES / name / "logits.npy")
    got = np.asarray(logits(params, jnp.asarray(cases.IDS)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


@pytest.mark.skipif(not LIVE, reason="torch and transformers are not installed")
@pytest.mark.parametrize("name", [name for name in cases.CASES if name not in cases.FIXTURES])
def test_logits_are_those_of_transformers(name, tmp_path):
    model = cases.build(name)
    model.save_pretrained(tmp_path)
    logits, params = read(tmp_path)
    want = cases.logits(model)
    got = np.asarray(logits(params, jnp.asarray(cases.IDS)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def copied(tmp_path, name="qwen3"):
    return pathlib.Path(shutil.copytree(FIXTURES / name, tmp_path / name))


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_field_that_is_not_known_is_refused(tmp_path):
    folder = copied(tmp_path)
    change(folder, some_new_scale=2.0)
    with pytest.raises(families.Unreadable, match=r"some_new_scale=2.0, a field that is not known"):
        families.describe(folder)
    change(folder, model_type="mamba")
    with pytest.raises(families.Unreadable, match=r"model_type='mamba', which is unknown; known are llama"):
        families.describe(folder)


def damage(folder, what):
    """A folder with one thing wrong."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if what == "cut off":
        path.write_bytes(data[:-10])
    elif what == "no header":
        path.write_bytes(data[:20])
    elif what == "type":
        name = next(key for key in header if key != "__metadata__")
        header[name]["dtype"] = "F8_E4M3"
        new = json.dumps(header).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])
    elif what == "shard":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    elif what == "pickle":
        path.rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut off", "is cut off: tensor .* ends 10 bytes behind its end"),
        ("no header", "is damaged or cut off within its header"),
        ("type", "has the type .F8_E4M3., which is not handled; handled are"),
        ("shard", "lacks .gone.safetensors., one of 1 files"),
        ("pickle", "pickled weights are never opened"),
    ],
)
def test_damage_is_told_before_anything_is_allocated(what, said, tmp_path):
    folder = copied(tmp_path)
    damage(folder, what)
    with pytest.raises(families.Unreadable, match=said):
        read(folder)


def test_a_model_of_another_size_than_its_config_is_refused(tmp_path):
    folder = copied(tmp_path)
    change(folder, intermediate_size=25)
    with pytest.raises(families.Unreadable, match=r"has the shape .*24.*, and the config asks for .*25"):
        read(folder)


def test_the_losses_of_experts_may_be_set_when_a_model_is_trained_on():
    """They change no logit; what does is refused."""
    config = pretrained.get_config(str(FIXTURES / "mixtral"))
    assert config.model.moe.balance == 0.02 / 2 and not config.model.moe.z_loss
    config.model.moe.update({"balance": 0.0, "z_loss": 0.1})
    assert not [*preflight.problems(config)]
    config.model.moe.k = 3
    assert [said for said in preflight.problems(config) if said.startswith("model.moe.k=3 is 2 in the mixtral at")]
