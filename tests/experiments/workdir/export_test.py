"""Exported parameters come back bit for bit, here and in any program that reads safetensors."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from experiments import workdir as files
from experiments.settings import keys
from experiments.training import train
from experiments.workdir import export, trained
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def test_parameters_come_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "embedding": rng.standard_normal((7, 3)).astype(np.float32),
        "stack": {"0_a": {"kernel": rng.standard_normal((2, 3, 4)).astype(ml_dtypes.bfloat16)}, "scale": np.float32(2)},
        "turned": rng.standard_normal((4, 5)).astype(np.float32).T,
        "odd": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
    }
    config = {"model": {"width": 3, "name": "é"}, "stop": ["\n"]}
    count = export.save(params, config, tmp_path / "deep" / "m.safetensors")
    assert count == 21 + 24 + 1 + 20 + 4
    read, told = export.load(tmp_path / "deep" / "m.safetensors")
    assert told == config and jax.tree.structure(read) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()


def test_a_trained_model_goes_out_and_another_program_opens_it(tmp_path):
    train(tiny.config(tmp_path), tmp_path / "run", quiet=True)
    model = trained.load(tmp_path / "run")
    path = tmp_path / "run" / export.FILE
    export.save(model.params, files.plain(model.config.to_dict()), path)
    alone = safetensors.numpy.load_file(path)  # Nothing of the house.
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    names = ["/".join(str(key.key) for key in keys) for keys, _ in leaves]
    assert sorted(alone) == sorted(names)
    for name, (_, leaf) in zip(names, leaves, strict=True):
        np.testing.assert_array_equal(alone[name], leaf)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "tessera"
    _, config = export.load(path)
    assert keys.flatten(config)["model.width"] == model.config.model.width


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(files.WorkdirError, match="part of the path is a file"):
        export.save({"a": np.zeros(3)}, {}, tmp_path / "file" / "m.safetensors")
