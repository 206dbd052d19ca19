"""Companions of a run: read from workdirs, the same after a kill, refused where they are not what it began with."""

import json
import shutil

import pytest

from configs import distillation
from experiments import preflight
from experiments.program import build, companions
from experiments.program.sharding import make_mesh
from experiments.settings.errors import CheckpointError, ConfigError
from experiments.training import stopping, train
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments import tiny
from tests.experiments.training.train_test import assert_same_bits

pytestmark = pytest.mark.usefixtures("one_device")


def config(folder, teacher="", **changes):
    """A student of the run in `teacher`, or the config of a teacher."""
    also = {"objective": "distillation", "companions__teacher__workdir": str(teacher)} if teacher else {}
    return tiny.config(folder, **{"train__steps": 4, "checkpoint__every": 2, "eval__every": 0, **also, **changes})


@pytest.fixture(scope="module")
def taught(tmp_path_factory, one_device):
    """A folder with a trained teacher that keeps an average, and a student of it that was left alone."""
    folder = tmp_path_factory.mktemp("taught")
    train(config(folder, optimizer__ema=0.5, model__width=48), folder / "teacher", quiet=True)
    train(config(folder, folder / "teacher"), folder / "alone", quiet=True)
    return folder


def cut_short(monkeypatch, config, workdir, at=3):
    """Trains until a signal is seen at step `at`."""
    look = stopping.Stop.look

    def asked(self, step):
        look(self, step)
        if step == at:
            self.requested = "SIGTERM"

    monkeypatch.setattr(stopping.Stop, "look", asked)
    train(config, workdir, quiet=True)
    monkeypatch.setattr(stopping.Stop, "look", look)
    assert Checkpoints(workdir).steps()[-1] == at


def test_a_run_that_goes_on_has_the_same_companion(taught, tmp_path, monkeypatch):
    """The same bits, though its teacher was trained on; another one is refused, and so is one that is gone."""
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(taught / "teacher", teacher)
    made = config(taught, teacher)
    cut_short(monkeypatch, made, run)
    about = Checkpoints(run).about(3)["companions"]["teacher"]
    assert about["workdir"] == str(teacher) and about["step"] == 4 and len(about["checksum"]) == 16
    shutil.copytree(run, tmp_path / "second")
    train(made, run, quiet=True)
    shutil.copytree(tmp_path / "second", tmp_path / "third")
    shutil.copytree(teacher, tmp_path / "moved")
    train(config(taught, tmp_path / "moved"), tmp_path / "third", quiet=True)  # The same model in another place.
    assert Checkpoints(tmp_path / "third").about(4)["companions"]["teacher"] == about | {
        "workdir": str(tmp_path / "moved")
    }
    left_alone = (taught / "alone/metrics.jsonl").read_bytes()
    assert (tmp_path / "third/metrics.jsonl").read_bytes() == left_alone
    assert (run / "metrics.jsonl").read_bytes() == left_alone and b"train/kl" in left_alone
    # Of another seed: the same structure and other numbers.
    shutil.rmtree(teacher)
    train(config(taught, optimizer__ema=0.5, model__width=48, seed=1), teacher, quiet=True)
    with pytest.raises(CheckpointError, match="companions.teacher.workdir=.* holds other parameters at step 4 than"):
        train(made, tmp_path / "second", quiet=True)
    shutil.copytree(teacher, tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds other parameters at step 4 than"):
        train(config(taught, tmp_path / "other"), tmp_path / "second", quiet=True)
    for path in Checkpoints(teacher).root.glob("4*"):
        path.rename(path.with_name(path.name.replace("4", "9", 1)))
    with pytest.raises(CheckpointError, match="no longer holds step 4, with which this run began"):
        train(made, tmp_path / "second", quiet=True)


def test_a_run_that_is_its_own_companion_goes_on_with_what_it_began(taught, tmp_path, monkeypatch):
    """And that may be another run's model, its average: the student stays near it."""
    made = config(taught, "self", model__width=48, init__warm_start=str(taught / "teacher"))
    train(made, tmp_path / "alone", quiet=True)
    program = build(made, vocab_size=259, mesh=make_mesh(made))
    begun = companions.checksum(Checkpoints(taught / "teacher").parameters(program))
    assert Checkpoints(tmp_path / "alone").about(4)["companions"]["teacher"]["checksum"] == begun
    lines = [json.loads(line) for line in (tmp_path / "alone/metrics.jsonl").read_text().splitlines()]
    divergence = [line["train/kl"] for line in lines if "train/kl" in line]
    assert abs(divergence[0]) < 1e-6 < 1e-5 < divergence[-1]  # It moves away from where it began.
    cut_short(monkeypatch, made, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "lost")
    train(made, tmp_path / "run", quiet=True)
    assert_same_bits(tmp_path / "alone", tmp_path / "run")
    shutil.rmtree(tmp_path / "lost" / "start")
    with pytest.raises(CheckpointError, match="start"):
        train(made, tmp_path / "lost", quiet=True)


def test_what_is_refused(taught, tmp_path):
    with pytest.raises(ConfigError, match="objective='distillation' reads a teacher; use companions.teacher.workdir="):
        preflight.check(config(taught, objective="distillation"), num_devices=1)
    with pytest.raises(ConfigError, match="companions.teacher.workdir=.* is not used by objective='next_token'"):
        preflight.check(config(taught, taught / "teacher", objective="next_token"), num_devices=1)
    with pytest.raises(ConfigError, match="companions.teacher.workdir=.*nowhere holds no run"):
        train(config(taught, taught / "nowhere"), tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="was trained with another tokenizer .* data.vocab_size=0"):
        train(
            config(taught, taught / "teacher", data__tokenizer="bpe", data__vocab_size=300),
            tmp_path / "run",
            quiet=True,
        )
    with pytest.raises(ConfigError, match="kept no average; use companions.teacher.average=False"):
        train(config(taught, taught / "alone", companions__teacher__average=True), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    shutil.copytree(taught / "teacher", tmp_path / "both")
    saved = json.loads((tmp_path / "both/config.json").read_text())
    saved["config"]["objective"] = "masked_diffusion"
    (tmp_path / "both/config.json").write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="objective='masked_diffusion', which sees both sides"):
        preflight.check(config(taught, tmp_path / "both"), num_devices=1)


def test_averaged_parameters_are_others(taught):
    made = config(taught, taught / "teacher")
    program = build(config(taught, optimizer__ema=0.5, model__width=48), vocab_size=259, mesh=make_mesh(made))
    saves = Checkpoints(taught / "teacher")
    sums = [companions.checksum(saves.read_parameters(program, average=average)[1]) for average in (False, True)]
    about = Checkpoints(taught / "alone").about(4)["companions"]["teacher"]
    assert about["checksum"] == sums[0] != sums[1]


def test_the_preset_names_the_run_that_its_page_trains():
    assert distillation.get_config().companions.teacher.workdir == "runs/tiny"
