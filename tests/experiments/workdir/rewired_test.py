"""A trained run becomes one whose later layers read an early one; it is distilled, resumed, decoded; or refused."""

import shutil

import jax
import numpy as np
import pytest

from experiments import preflight
from experiments.generation.engine import Engine
from experiments.settings.errors import ConfigError
from experiments.training import train
from experiments.workdir import rewired, trained
from kernels import masks
from tests.experiments import tiny
from tests.experiments.training.train_test import final_state

pytestmark = pytest.mark.usefixtures("one_device")
LAYERS = {"model__num_layers": 4}
FREEZE = ("*", "!stack/late/*/q/*", "!stack/late/keys/*", "!stack/norm/*")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a trained Transformer, beside its corpus."""
    folder = tmp_path_factory.mktemp("teacher")
    train(tiny.config(folder, **LAYERS, train__steps=3), folder / "run", quiet=True)
    return folder / "run"


def student(teacher, **changes):
    swift = {"model__kind": "swiftkv", "model__swiftkv__layer": 2, "model__swiftkv__share": 2}
    start = {"init__rewire_from": str(teacher), "companions__teacher__workdir": str(teacher)}
    learns = {"objective": "swiftkv", "optimizer__freeze": FREEZE}
    return tiny.config(teacher.parent, **(LAYERS | swift | start | learns | changes))


def test_a_run_is_distilled_and_goes_on_after_a_stop(teacher, tmp_path):
    """From a checkpoint at half of its steps it ends in the same bits; what is held is the teacher's."""
    saves = {"checkpoint__every": 2, "checkpoint__keep_last": 2}
    config = student(teacher, train__steps=4, init__rewire_from="teacher", **saves)
    train(config, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "4")
    (tmp_path / "again" / "result.json").unlink()
    train(config, tmp_path / "again", quiet=True)
    (_, once), (_, taught) = final_state(tmp_path / "whole"), final_state(teacher)
    jax.tree.map(np.testing.assert_array_equal, once["params"], final_state(tmp_path / "again")[1]["params"])
    new, old = once["params"]["stack"], taught["params"]["stack"]["period"]["0_attention"]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:2]), new["period"]["0_attention"], old)
    for i in range(2):
        block = new["late"][f"{i}_attention"]
        np.testing.assert_array_equal(block["mixer"]["out"]["kernel"], old["mixer"]["out"]["kernel"][2 + i : 3 + i])
        assert np.any(block["mixer"]["q"]["kernel"] != old["mixer"]["q"]["kernel"][2 + i : 3 + i])
    mean = np.mean(old["mixer"]["k"]["kernel"][2:], axis=0)
    gap = np.abs(new["late"]["keys"]["k"]["kernel"][0] - mean).max()
    assert 0 < gap < 4 * student(teacher).optimizer.learning_rate * 4


def test_text_of_a_rewired_run_is_that_of_its_passes(teacher):
    """The engine, with prompts of different lengths in one batch, against the whole text read at once."""
    model = rewired.rewire(teacher, layer=1, share=3)
    assert len(model.params["stack"]["late"]["keys"]["k"]["kernel"]) == 1
    prompts = ["abc de", "f"]
    texts = Engine(model, lanes=2).generate(prompts, max_tokens=6, temperature=0.0)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = [model.tokenizer.bos, *model.tokenizer.encode(prompt)]
        for _ in range(6):
            features = model.program.merge(model.params)(np.asarray([ids]), mask=masks.Causal()).features
            ids.append(int(np.argmax(model.program.merge(model.params).logits(features)[0, -1])))
        assert model.tokenizer.decode(ids[-6:]) == text


WRONG = [
    ({"model__swiftkv__layer": 5}, "model.swiftkv.layer=5 is not a layer of model.num_layers=4; use"),
    ({"model__swiftkv__layer": 1, "model__swiftkv__share": 2}, "share=2 does not divide the 3 layers .* use"),
    ({"model__mixer": "lact"}, "model.mixer='lact' does not go with model.kind='swiftkv'; use model.mixer='attention'"),
    ({"model__channel": "moe"}, "model.channel='moe' does not go with model.kind='swiftkv'"),
    ({"generate__drafter": "exit"}, "generate.drafter='exit' does not go with model.kind='swiftkv'"),
    ({"model__width": 24}, "model.width=24 was .*; rewiring changes model.kind alone"),
    ({"init__rewire_from": "teacher", "companions__teacher__workdir": "self"}, "init.rewire_from='teacher' names no"),
    ({"init__rewire_from": "/nowhere"}, "init.rewire_from='/nowhere' holds no finished checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_what_does_not_fit_is_a_sentence(teacher, changes, words):
    with pytest.raises(ConfigError, match=words):
        preflight.check(student(teacher, **changes), num_devices=1)


def test_only_the_layers_are_what_another_kind_makes_of_them(teacher):
    """All layers below l: the trained model itself, bit for bit."""
    old, new = trained.load(teacher), rewired.rewire(teacher, layer=4)
    jax.tree.map(np.testing.assert_array_equal, old.params, new.params)
