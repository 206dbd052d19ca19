"""Whatever a config holds, the preflight accepts it or says in readable sentences what is wrong with it."""

import json
import os
import pathlib
import re

import jax
import pytest

from configs import base, transformer
from experiments import preflight
from experiments.settings import smoke
from experiments.settings.errors import ConfigError, sentence
from experiments.workdir.saved import check_workdir, saved_config
from tests.configs_test import house, make
from tests.experiments import tiny
from tests.fuzz_configs import assert_readable, fuzz, mutated, set_key

pytestmark = pytest.mark.usefixtures("one_device")

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_no_config_breaks_the_preflight():
    """Every preset eight times with keys dropped, misspelt, retyped or out of range: accepted, or refused readably.

    About one in four is accepted. The bounds on the share lie so far away that chance does not reach them.
    """
    accepted = refused = 0
    for case in house():
        for seed in range(8):
            config, touched = mutated(f"{seed} {case.id}", make(*case.values).to_dict())
            try:
                preflight.check(config, num_devices=8)
                accepted += 1
            except ConfigError as error:
                refused += 1
                assert_readable(error.problems, touched)
    assert 0.05 < accepted / (accepted + refused) < 0.6, (accepted, refused)


def test_what_the_preflight_accepts_of_any_config_can_be_built_and_trained():
    """As `python -m tests.fuzz_configs --count=10000` does; one of these trains a step."""
    starts = {case.id: smoke.shrink(make(*case.values)).to_dict() for case in house()}
    found = fuzz(starts, range(2 * len(starts)), steps=1, seed=1)
    assert not found.faults, found.faults[0]
    share = (found.counts["built"] + found.counts["stepped"]) / (2 * len(starts))
    assert 0.05 < share < 0.6 and found.counts["stepped"] == 1, found.counts


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.width", 129, "model.width=129 does not divide by model.num_heads=4; use e.g. model.width=128."),
        ("model.num_heads", 3, "model.width=256 does not divide by model.num_heads=3; use e.g. model.num_heads=4."),
        ("model.num_kv_heads", 3, "model.num_kv_heads=3 must divide model.num_heads=4; use e.g. model.num_kv_heads=2."),
        ("model.num_kv_heads", 2_000_000_000, "must divide model.num_heads=4; use e.g. model.num_kv_heads=4."),
        ("model.num_layers", 0, "model.num_layers=0 must be at least 1, e.g. 4."),
        ("model.mixer", "atention", "model.mixer='atention' is unknown; did you mean 'attention'? choose one of"),
        ("model.attention.implementation", "flash", "model.attention.implementation='flash' is unknown"),
        ("model.dtype", "float16", "model.dtype='float16' is unknown; did you mean 'bfloat16'?"),
        ("data.batch_size", 12, "data.batch_size=12 does not divide over 8"),
        ("data.batch_size", 12, "use e.g. data.batch_size=16."),
        (
            "data.tokenizer",
            "./gone.json",
            "data.tokenizer='./gone.json' is not a saved tokenizer; use 'bytes'",
        ),
        ("eval.batch_size", 9, "eval.batch_size=9 does not divide over 8"),
        ("mesh.fsdp", 3, "needs a multiple of 3 devices and 8 are here"),
        ("optimizer.learning_rate", 0.0, "optimizer.learning_rate=0.0 must lie between 1e-12 and 100, e.g. 0.001."),
        ("optimizer.weight_decay", float("inf"), "optimizer.weight_decay=inf must be below"),
        ("optimizer.decay_roles", ("kernels",), "did you mean 'kernel'?"),
        ("optimizer.name", "schedule_free", "use optimizer.schedule='constant'."),
        ("generate.top_p", 0.0, "generate.top_p=0.0 must lie between 1e-06 and 1"),
        ("generate.stop", ("",), "must not hold the empty text"),
        ("generate.stop", (3,), "generate.stop[0]=3 must be text"),
        ("init.warm_start", "/nowhere", "init.warm_start='/nowhere' holds no finished checkpoint"),
        ("init.warm_start", "é" * 500, "holds no finished checkpoint"),
        ("init.grow_from", "\0", "init.grow_from='\\x00' holds no finished checkpoint"),
        ("data.tokenizer", "é" * 500 + ".json", "is not a saved tokenizer"),
        ("seed", 2**40, "seed=1099511627776 must be below 2147483648"),
    ],
)
def test_a_problem_names_key_value_and_one_that_works(key, value, told):
    config = base.get_config()
    set_key(config, key, value)
    with pytest.raises(ConfigError) as caught:
        preflight.check(config, num_devices=8)
    assert told in str(caught.value) and len(caught.value.problems) == 1


def test_the_value_that_is_offered_works():
    """Follow the advice and the refusal is gone."""
    for key, value in [
        ("model.width", 130),
        ("model.num_kv_heads", 3),
        ("data.batch_size", 12),
        ("eval.batch_size", 9),
    ]:
        config = base.get_config()
        set_key(config, key, value)
        with pytest.raises(ConfigError) as caught:
            preflight.check(config, num_devices=8)
        offered, number = re.search(r"use e\.g\. ([a-z_.]+)=(\d+)\.$", str(caught.value)).groups()
        set_key(config, offered, int(number))
        preflight.check(config, num_devices=8)


def test_all_problems_are_told_together():
    config = base.get_config()
    config.update({"model": {"width": -3, "norm": "norm"}, "optimizer": {"clip": -1.0}, "objective": "next"})
    with pytest.raises(ConfigError) as caught:
        preflight.check(config, num_devices=1)
    assert {p.split("=")[0] for p in caught.value.problems} == {
        "model.width", "model.norm", "optimizer.clip", "objective",
    }  # fmt: skip


def test_a_path_that_is_not_there(tmp_path):
    config = base.get_config()
    config.data.source = "text"
    for path, told in (
        ("", "names no corpus"),
        (str(tmp_path / "x"), "does not exist"),
        ("~nobody/x", "does not exist"),
    ):
        config.data.path = path
        with pytest.raises(ConfigError, match=f"data.path='.*{told}"):
            preflight.check(config, num_devices=1)
    config.data.path = str(tmp_path)
    preflight.check(config, num_devices=1)


def test_a_kernel_of_another_chip_is_refused_before_anything_is_written():
    config = base.get_config()
    config.model.attention.implementation, config.model.pattention.implementation = "pallas_gpu_hopper", "gpu"
    preflight.check_platform(config, "gpu")
    both = r"(?s)attention.implementation='pallas_gpu_hopper' runs on gpu only.* a cpu.*pattention.implementation='gpu'"
    with pytest.raises(ConfigError, match=both):
        preflight.check_platform(config, "cpu")


def saved(folder: pathlib.Path, config) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return folder


def test_a_workdir_of_another_config_is_refused_with_the_difference(tmp_path):
    config = transformer.get_config("tiny")
    workdir = saved(tmp_path / "run", config)
    check_workdir(config, workdir)
    config.generate.temperature, config.train.wandb = 0.1, "project"  # decide nothing about the numbers of the run
    check_workdir(config, workdir)
    config.seed, config.model.width = 3, 64
    with pytest.raises(ConfigError) as caught:
        check_workdir(config, workdir)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith(
        "belongs to a run of another config; give a new folder, or add --overwrite to move that run "
        "aside and start over:"
    )
    assert lines == ["  model.width: 128 there, 64 asked for", "  seed: 0 there, 3 asked for"]
    assert os.listdir(workdir) == ["config.json"]


def test_a_workdir_that_cannot_be_one(tmp_path):
    config = base.get_config()
    (tmp_path / "file").write_text("")
    (tmp_path / "orphan" / "checkpoints" / "3").mkdir(parents=True)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text('{"config": ')
    for name, told in (
        ("file", "file is a file; give a folder"),
        ("file/below", "which is a file; give a folder"),
        ("orphan", "holds checkpoints but no config.json"),
        ("damaged", "config.json is damaged"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_workdir(config, tmp_path / name)
    check_workdir(config, tmp_path / "deep" / "new")
    assert sorted(os.listdir(tmp_path)) == ["damaged", "file", "orphan"]  # The probe left nothing.


def test_a_workdir_that_cannot_be_written(tmp_path):
    for place in (pathlib.Path("/sys"), pathlib.Path("/proc")):
        if place.is_dir():
            with pytest.raises(OSError) as caught:
                check_workdir(base.get_config(), place / "run")
            told = sentence(caught.value)
            assert told.startswith(f"'{place}/run' cannot be used: ") and told.endswith(".")


def test_a_saved_config_of_another_version_is_not_read_in_part(tmp_path):
    config = base.get_config()
    assert saved_config(saved(tmp_path / "good", config)) == config
    config.model.gone = 3
    with pytest.raises(ConfigError, match="model.gone is not a key of the config.*the run is of another version"):
        saved_config(saved(tmp_path / "other", config))
    with pytest.raises(ConfigError, match="holds no run"):
        saved_config(tmp_path)


def test_text_that_is_too_short_is_told_before_anything_is_written(tmp_path):
    from experiments.training import train

    for changes, told in (
        ({"data__length": 10**6}, r"data.length=1000000 is longer than the whole training split; use \d+ or less."),
        ({"data__validation": 0.0}, "data.validation=0.0 leaves the held-out split of the corpus without text"),
        ({"model__vocab_size": 100}, "model.vocab_size=100 is smaller than the 259 ids"),
    ):
        with pytest.raises(ConfigError, match=told):
            train(tiny.config(tmp_path, **changes), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_only_the_house_speaks_in_sentences():
    """A ValueError of a library is a fault of the program and keeps its traceback."""

    def caught(make):
        try:
            make()
        except Exception as error:
            return sentence(error)

    assert caught(lambda: int("x")) == "" and caught(lambda: jax.numpy.zeros((2, 3)) @ jax.numpy.zeros(2)) == ""
    assert caught(lambda: base.choose("k", "v", {"w": 0})) == "k='v' is unknown; choose one of: w."
    assert (
        caught(lambda: pathlib.Path("/nowhere").read_text()) == "'/nowhere' cannot be used: no such file or directory."
    )
    assert caught(lambda: {}["x"]) == ""
