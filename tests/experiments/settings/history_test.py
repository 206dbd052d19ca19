"""Runs outlive the house: a knob that is added, renamed or given another default changes nothing of an older run.

tests/fixtures/old_house holds a run that an older house saved at step 2 of 4, in a folder of the name that it had then
(the hash of all its keys), and the metrics of the same run left alone to its end. `model.lact.rank=8` in its config was
read by nothing, and not refused.
"""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from configs import base, knobs
from configs.knobs.kinds import number, readers, whole
from experiments import sweep
from experiments import workdir as files
from experiments.claims import arms
from experiments.settings import history, identity, keys
from experiments.settings.errors import ConfigError
from experiments.sweep import trials
from experiments.training import stopping, train
from experiments.workdir import saved
from experiments.workdir.saved import check_workdir, saved_config
from tests.configs_test import house, make
from tests.experiments.training.train_test import assert_same_bits, final_state

pytestmark = pytest.mark.usefixtures("one_device")

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "fixtures" / "old_house"
OLD = FOLDER / "0073b642441e"
DIGEST = "15713e4761cb"  # Of its config today, and whatever is added; readers that are told more narrowly change it.
ADDED = {
    "generate.epsilon": number(0.0, "x", least=0, before=0.0),
    "model.attention.sharpness": number(2.0, "x", least=0, before=1.0, of="model.mixer=attention"),
    "model.lact.grown": whole(3, "x", before=0, of="model.mixer=lact"),
    "train.rehearsals": whole(0, "x", least=0, before=0),
}


@pytest.fixture
def added(monkeypatch):
    """A house with four more knobs; two have defaults other than what runs before them were made with."""
    monkeypatch.setattr(knobs, "KNOBS", knobs.KNOBS | ADDED)
    saved._once.cache_clear()


def moved(tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(OLD, tmp_path / "runs" / OLD.name))


def finished(workdir: pathlib.Path) -> pathlib.Path:
    (workdir / files.RESULT).write_text(json.dumps({"step": 4, "tokens": 64, "parameters": 1, "eval/loss": 3.0}))
    return workdir


def test_an_older_run_has_the_values_under_which_it_was_made(added, caplog):
    for _ in range(2):
        config = saved_config(OLD)
    assert config.generate.epsilon == 0.0 and config.model.attention.sharpness == 1.0
    assert base.get_config().model.attention.sharpness == 2.0
    keys.check_keys(config)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, told  # Once, not at every reading.
    # Of hundreds of settings those are named that would decide something today, and of these a few.
    lacks = history.later(history.changed(saved.read_saved(OLD)))
    assert len(lacks) > 100 and set(ADDED) <= set(lacks)
    assert told[0].startswith(f"--workdir={OLD} is older than {len(lacks)} settings; its model was made with ")
    changed = {key: value for key, value in lacks.items() if value != knobs.KNOBS[key].default}
    assert (
        told[0].endswith(f" and {len(changed) - 4} more, as it stays.") if len(changed) > 4 else "more" not in told[0]
    )
    assert all(f"{key}={keys.short(changed[key])}" in told[0] for key in list(changed)[:4]) and len(told[0]) < 400
    assert changed["model.attention.sharpness"] == 1.0 and changed["model.lact.grown"] == 0
    assert "generate.epsilon" not in changed and "epsilon" not in told[0]
    assert "model.lact.rank=8" in told[1] and config.model.lact.rank == base.get_config().model.lact.rank


def test_of_many_settings_four_are_named_and_the_rest_counted():
    assert saved._listed({f"eval.k{i}": i for i in range(4)}) == "eval.k0=0, eval.k1=1, eval.k2=2, eval.k3=3"
    assert saved._listed({f"eval.k{i}": i for i in range(6)}) == "eval.k0=0, eval.k1=1, eval.k2=2, eval.k3=3 and 2 more"


def test_every_knob_that_runs_can_lack_says_under_which_value_they_were_made():
    """A knob that was added without `before=` makes older runs unreadable: here by name."""
    held = keys.flatten(json.loads((OLD / files.CONFIG).read_text())["config"])
    assert [key for key, knob in knobs.KNOBS.items() if key not in held and knob.before is knobs.NEVER] == []
    assert saved_config(OLD).model.width == 8


def test_a_key_that_the_house_does_not_explain_is_refused(monkeypatch):
    monkeypatch.setattr(knobs, "KNOBS", knobs.KNOBS | {"train.rehearsals": whole(0, "x")})
    with pytest.raises(
        ConfigError, match="train.rehearsals is missing; its default is 0: the run is of another version"
    ):
        saved_config(OLD)
    gone = {key: knob for key, knob in knobs.KNOBS.items() if key != "seed"}
    monkeypatch.setattr(knobs, "KNOBS", gone)
    with pytest.raises(ConfigError, match="seed is not a key of the config.*another version"):
        saved_config(OLD)


def test_a_new_knob_changes_the_digest_of_no_config(monkeypatch):
    before = {case.id: files.config_hash(make(*case.values).to_dict()) for case in house()}
    assert files.config_hash(saved_config(OLD).to_dict()) == DIGEST
    monkeypatch.setattr(knobs, "KNOBS", knobs.KNOBS | ADDED)
    assert files.config_hash(saved_config(OLD).to_dict()) == DIGEST
    for case in house():
        config = make(*case.values)
        config.model.attention.sharpness, config.model.lact.grown = 1.0, 0
        assert files.config_hash(config.to_dict()) == before[case.id]
        if "attention" in config.model.mixer.split(","):
            config.model.attention.sharpness = 2.0  # The default, but not what older runs were made with.
            assert files.config_hash(config.to_dict()) != before[case.id]


def test_what_nothing_reads_and_what_decides_nothing_are_not_in_a_digest():
    config = saved_config(OLD)
    for key, value in (
        ("model.lact.rank", 5),
        ("generate.top_k", 7),
        ("masked_diffusion.steps", 9),
        ("plan.search", True),
    ):
        keys.assign(config, key, value)
        assert files.config_hash(config.to_dict()) == DIGEST, key
    for key, value in (("model.mlp.hidden", 9), ("seed", 1), ("model.mixer", "lact"), ("eval.rows", 3)):
        other = config.copy_and_resolve_references()
        keys.assign(other, key, value)
        assert files.config_hash(other.to_dict()) != DIGEST, key


def test_an_older_trial_is_found_finished_under_its_old_name(added, tmp_path, monkeypatch):
    workdir = finished(moved(tmp_path))
    config = saved_config(OLD)
    made = trials.placed(trials.resolve(config, [{}, {"seed": 1}]), workdir.parent)
    assert [trial.digest == OLD.name for trial in made] == [True, False]
    monkeypatch.setattr(sweep.pool, "_LOOK", 0)
    (row,) = sweep.run_trials(trials.resolve(config, [{}]), workdir.parent, quiet=True)
    assert (row["hash"], row["status"]) == (OLD.name, "finished")
    assert [path.name for path in workdir.parent.iterdir() if path.name != "jobs"] == [OLD.name]
    # Nor is it taken for the run of a config that differs in what came later.
    config.model.attention.sharpness = 2.0
    (other,) = trials.placed(trials.resolve(config, [{}]), workdir.parent)
    assert other.digest not in (OLD.name, DIGEST)
    assert files.folder_of(workdir.parent, saved_config(OLD).to_dict()) == workdir
    assert files.folder_of(workdir.parent, config.to_dict()) == workdir.parent / other.digest


def test_settings_of_generation_that_changed_are_noted_in_a_finished_trial(tmp_path):
    """Answers are drawn as the config in the folder says."""
    workdir = finished(moved(tmp_path))
    config = saved_config(OLD)
    config.generate.temperature = 0.25
    sweep.run_trials(trials.resolve(config, [{}]), workdir.parent, quiet=True)
    assert saved_config(workdir).generate.temperature == 0.25
    assert files.read_json(workdir / files.CONFIG)["command"] == files.read_json(OLD / files.CONFIG)["command"]


def test_a_run_goes_on_under_what_it_was_made_with_and_nothing_else(added):
    config = saved_config(OLD)
    check_workdir(config, OLD)
    config.model.attention.sharpness = 2.0
    with pytest.raises(ConfigError) as caught:
        check_workdir(config, OLD)
    assert str(caught.value).splitlines()[1:] == ["  model.attention.sharpness: 1.0 there, 2.0 asked for"]


def test_the_command_that_began_a_run_goes_on_with_it_under_newer_defaults(added, caplog):
    """What stands at a default that came later is taken as the run has it; what was asked for by name is not."""
    config = saved_config(OLD)
    config.model.attention.sharpness, config.train.rehearsals = 2.0, 5
    made = saved.as_begun(config.lock(), OLD)
    assert made.model.attention.sharpness == 1.0 and config.model.attention.sharpness == 2.0 and made.is_locked
    assert made.train.rehearsals == 5 and made.optimizer.counting == "steps"
    assert "goes on as it began, with model.attention.sharpness=1.0" in caplog.text
    made = made.copy_and_resolve_references().unlock()
    made.train.rehearsals = 0
    check_workdir(made, OLD)
    assert saved.as_begun(config, OLD / "nothing") is config


def test_trials_beside_older_ones_are_made_as_those_were(added, tmp_path):
    workdir = finished(moved(tmp_path))
    config = saved_config(OLD)
    config.model.attention.sharpness = 2.0
    made = trials.placed(trials.resolve(config, [{}, {"seed": 1}], workdir=workdir.parent), workdir.parent)
    assert [trial.digest == OLD.name for trial in made] == [True, False]
    assert [trial.config.model.attention.sharpness for trial in made] == [1.0, 1.0]
    (alone,) = trials.resolve(config, [{}], workdir=tmp_path / "new")
    assert alone.config.model.attention.sharpness == 2.0


def test_a_claim_finds_the_runs_that_an_older_house_finished(tmp_path):
    """Its base has today's defaults: it is made as its runs were."""
    run = tmp_path / arms.RUNS / OLD.name
    shutil.copytree(OLD, run)
    finished(run)
    config = saved_config(OLD)
    config.optimizer.counting = knobs.KNOBS["optimizer.counting"].default
    assert config.optimizer.counting != "steps"
    for _ in range(2):
        rows = arms.train(config, {"arm": {}}, [config.seed], tmp_path, jobs=1, quiet=True)["arm"]
        assert [row["workdir"] for row in rows] == [run]
    assert os.listdir(tmp_path / arms.RUNS) == [OLD.name]


def test_the_command_goes_on_again_after_a_newer_house_wrote_the_config(added, tmp_path):
    """As a start and a sweep do; what came later is remembered as often as it is written, and of older runs alone."""
    workdir = finished(moved(tmp_path))
    config = saved_config(OLD)
    config.model.attention.sharpness, config.optimizer.counting = 2.0, "updates"
    for _ in range(3):
        (trial,) = trials.placed(trials.resolve(config, [{}], workdir=workdir.parent), workdir.parent)
        assert trial.digest == OLD.name and trial.config.model.attention.sharpness == 1.0
        made = saved.as_begun(config, workdir)
        assert (made.model.attention.sharpness, made.optimizer.counting) == (1.0, "steps")
        check_workdir(made, workdir)
        files.write_config(workdir, made.to_dict(), "c", keys.base())
    assert "optimizer.counting" in files.read_json(workdir / files.CONFIG)["later"]
    made.optimizer.counting = "updates"  # A run of today there: it began with every knob.
    files.write_config(workdir, made.to_dict(), "c")
    assert saved.as_begun(config, workdir).optimizer.counting == "updates"
    for _ in range(2):
        files.write_config(tmp_path / "new", config.to_dict(), "c")
        assert "later" not in files.read_json(tmp_path / "new" / files.CONFIG)
    record = files.read_json(workdir / files.CONFIG) | {"later": ["seed", 3, "no.knob", ["x"], "train.rehearsals"]}
    files.write_json(workdir / files.CONFIG, record)
    assert saved.came_later(workdir) == {"train.rehearsals": 0}


def test_a_key_with_another_name_or_meaning_is_a_function_of_the_whole_config(monkeypatch, tmp_path):
    """Batches become rows, one count of tokens becomes two: the saved config reads as it would be written today."""
    config = saved_config(OLD)
    today = {key: knob for key, knob in knobs.KNOBS.items() if key not in ("eval.batches", "model.pattention.tokens")}
    today["eval.rows"] = whole(320, "x", least=0)
    of = readers("model.projection=pattention")
    for name in ("q", "v"):
        today[f"model.pattention.{name}"] = knobs.Knob(0, "x", of=of)
    rows = lambda batches, flat: batches * flat["eval.batch_size"]  # noqa: E731
    changes = (
        history.renamed("eval.batches", "eval.rows", value=rows),
        history.renamed("model.pattention.tokens", "model.pattention.q", "model.pattention.v"),
    )
    monkeypatch.setattr(knobs, "KNOBS", today)
    monkeypatch.setattr(history, "CHANGES", changes)
    made = saved_config(OLD)
    held = json.loads((OLD / files.CONFIG).read_text())["config"]["eval"]
    assert made.eval.rows == held["batches"] * held["batch_size"] == 4 and "batches" not in made.eval
    assert made.model.pattention.q == made.model.pattention.v == config.model.pattention.tokens
    assert history.filled(made.to_dict()) == made.to_dict()  # A config of today is left alone.
    check_workdir(made, OLD)
    runs = moved(tmp_path).parent
    assert files.folder_of(runs, made.to_dict()).name == OLD.name
    made.eval.rows = 5  # What is measured may change between two starts.
    check_workdir(made, OLD)
    made.seed = 5
    with pytest.raises(ConfigError, match=r"seed: 0 there, 5 asked for"):
        check_workdir(made, OLD)


def test_two_configs_differ_in_what_one_of_them_reads():
    old, new = base.get_config(), base.get_config()
    new.model.lact.rank = 8
    assert identity.differing(old.to_dict(), new.to_dict()) == []
    new.model.mixer = "lact"
    assert identity.differing(old.to_dict(), new.to_dict()) == ["model.lact.rank", "model.mixer"]


class _StopAt:
    def __init__(self, step):
        self.step, self.requested = step, ""

    def look(self, step):
        self.requested = "SIGTERM" if step == self.step else ""


def test_a_run_of_an_older_house_goes_on_to_the_bits_of_one_left_alone(added, tmp_path, monkeypatch):
    """What was saved is read to the bit. Stopped once more or not, the run ends the same; and as the older house ended
    it: to the bit where this house and these compiler flags still make its step 2 bit for bit, else up to the rounding
    of sums of at most 64 float32 terms (64 x 2^-24 = 4e-6) in two more steps.
    """
    for name in ("whole", "parts"):
        shutil.copytree(OLD, tmp_path / name)
    config = saved_config(OLD).lock()
    _, was = final_state(OLD)
    train(config, tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "collected", lambda: contextlib.nullcontext(_StopAt(3)))
        assert train(config, tmp_path / "parts", quiet=True)["stopped"] == "SIGTERM"
    train(config, tmp_path / "parts", quiet=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert saved_config(tmp_path / "whole").model.attention.sharpness == 1.0

    train(config, tmp_path / "alone", quiet=True)
    lines, _ = files.read_lines(tmp_path / "whole" / files.METRICS)
    for other in (FOLDER / "left_alone.jsonl", tmp_path / "alone" / files.METRICS):
        alone, _ = files.read_lines(other)
        for line, want in zip(lines, alone, strict=True):
            assert line.keys() == want.keys()
            for key in line:
                if key != "eval/kind":
                    assert line[key] == pytest.approx(want[key], rel=1e-5), key
    early, _ = files.read_lines(OLD / files.METRICS)
    here, _ = files.read_lines(tmp_path / "alone" / files.METRICS)
    if early == here[:2]:
        assert_same_bits(tmp_path / "whole", tmp_path / "alone")
    assert was["step"] == 2 and np.isfinite(lines[-1]["eval/loss"])


def test_a_control_that_has_another_name_is_read_by_the_old_one():
    """`exits` is `early_exit` today, alone and in a list, with its options; other words stay."""
    old = {
        "generate": {"control": "exits, typical_p", "exits": {"threshold": 0.4, "stops": False}},
        "exits": {"weight": 2.0},
    }
    found = history.changed(old)
    assert found == {
        "generate.control": "early_exit, typical_p", "generate.early_exit.threshold": 0.4,
        "generate.early_exit.stops": False, "exits.weight": 2.0,
    }  # fmt: skip
    for same in ("early_exit", "", "penalties"):
        assert history.changed({"generate": {"control": same}}) == {"generate.control": same}
