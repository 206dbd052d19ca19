"""Nothing of a workdir is lost, taken for what it is not, or touched outside of it."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.settings.errors import CheckpointError
from experiments.workdir import disk, retention, states, vouched
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments.program.program_test import program

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def made():
    return program()


@pytest.fixture(scope="module")
def state(made):
    """A state that has taken no step, and its like after 5, 10 and 15."""
    start = made.init()
    return {0: start} | {step: start | {"step": jnp.int32(step)} for step in (5, 10, 15)}


@pytest.fixture(scope="module")
def three(tmp_path_factory, state):
    """A workdir with steps 5, 10 and 15 of one config, to copy."""
    folder = tmp_path_factory.mktemp("three") / "run"
    saves = Checkpoints(folder, keep_last=5)
    for step in (5, 10, 15):
        saves.save(step, state[step], {"config": {"seed": 0, "train": {"steps": 20}}}, loss=1.0 / step)
    saves.close()
    return folder


@pytest.fixture
def run(three, tmp_path):
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def restored(run, made, **kw):
    return Checkpoints(run, **kw).restore(made.abstract, made.shardings)


def revouch(root, step):
    """Checksums as they would be, had the files always been so."""
    folder = root / str(step)
    vouched.write_checksums(root, step, vouched.hashes(folder, disk.files_below(folder)))


def snapshot(folder):
    """Every file and link below a folder, with what it holds."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


# ==================== Which step is good ====================


def drop_checksums(root):
    (root / "15.sha256.json").unlink()


def swap(root):
    for a, b in (("15", "x"), ("10", "15"), ("x", "10")):
        (root / a).rename(root / b)
        (root / f"{a}.sha256.json").rename(root / f"{b}.sha256.json")


def checksums_hold(text):
    def harm(root):
        (root / "15.sha256.json").write_text(text)

    return harm


def add_a_file(root):
    (root / "15" / "state" / "added").write_text("")


def link_a_file(root):
    victim = root / "15" / "about" / "metadata"
    victim.rename(root.parent / "elsewhere")
    victim.symlink_to(root.parent / "elsewhere")


def link_the_folder(root):
    (root / "15").rename(root.parent / "elsewhere")
    (root / "15").symlink_to(root.parent / "elsewhere")


def pipe(root):
    os.mkfifo(root / "15" / "state" / "pipe")


def pipe_as_checksums(root):
    (root / "15.sha256.json").unlink()
    os.mkfifo(root / "15.sha256.json")


def consistent(name, data):
    """Damage that the checksums vouch for."""

    def harm(root):
        (root / "15" / name).write_bytes(data)
        revouch(root, 15)

    return harm


def another_seed(root):
    about = json.loads((root / "15/about/metadata").read_text())
    about["config"]["seed"] = 1
    consistent("about/metadata", json.dumps(about).encode())(root)


def says(**facts):
    """A description that is whole but for what `facts` replace, vouched for."""

    def harm(root):
        about = json.loads((root / "15/about/metadata").read_text())
        consistent("about/metadata", json.dumps(about | facts).encode())(root)

    return harm


def emptied(root):
    shutil.rmtree(root / "15")
    (root / "15").mkdir()
    (root / "15.sha256.json").write_text("{}")


def folder_as_checksums(root):
    (root / "15.sha256.json").unlink()
    (root / "15.sha256.json").mkdir()


HARMS = {
    "no checksums": (drop_checksums, "15.sha256.json is missing"),
    "swapped folders": (swap, "it holds step 10"),
    "checksums {}": (checksums_hold("{}"), "holds no checksums"),
    "checksums []": (checksums_hold("[]"), "holds no checksums"),
    "checksums null": (checksums_hold("null"), "holds no checksums"),
    "checksums nest deep": (checksums_hold('{"a":' * 5000 + "1" + "}" * 5000), "holds no checksums"),
    "checksums of numbers": (checksums_hold('{"state/_METADATA": 3}'), "holds no checksums"),
    "checksums of one file": (checksums_hold(json.dumps({"about/metadata": "0" * 64})), "was added"),
    "a file too many": (add_a_file, "state/added was added"),
    "a file is a link": (link_a_file, "about/metadata is no plain file"),
    "the folder is a link": (link_the_folder, "it is a link or a file"),
    "a pipe": (pipe, "state/pipe is no plain file"),
    "a pipe as checksums": (pipe_as_checksums, "no plain file"),
    "a folder as checksums": (folder_as_checksums, "plain file"),
    "an empty folder": (emptied, "holds no checksums"),
    "about is []": (consistent("about/metadata", b"[]"), "cannot be read"),
    "about nests deep": (consistent("about/metadata", b"[" * 5000 + b"]" * 5000), "cannot be read"),
    "about is a number": (consistent("about/metadata", b'{"arrays": 3}'), "does not describe"),
    "about is of another model": (consistent("about/metadata", b'{"arrays": {"x": "float32[1]"}}'), "another model"),
    "about's corpus is a number": (says(corpus=5), "does not describe"),
    "about's tokenizer is null": (says(tokenizer=None), "does not describe"),
    "about's config is a list": (says(config=[]), "does not describe"),
    "about's step is text": (says(step="15"), "does not describe"),
    "about's companion is a number": (says(companions={"teacher": 5}), "does not describe"),
    "about's companion says no step": (says(companions={"teacher": {"workdir": "x", "checksum": "y"}}), "not describe"),
    "about's companion has a list": (
        says(companions={"teacher": {"workdir": "x", "step": 4, "checksum": []}}),
        "does not describe",
    ),
    "about's count is true": (says(taken=True), "does not describe"),
    "_METADATA is rubbish": (consistent("state/_METADATA", b"rubbish"), "cannot be read"),
    "_METADATA is null": (consistent("state/_METADATA", b"null"), "cannot be read"),
    "the manifest is rubbish": (consistent("state/manifest.ocdbt", b"rubbish"), "cannot be read"),
    "another seed": (another_seed, "it is of another run: seed 1 there, 0 here"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_step_that_is_not_good_is_named_and_the_one_before_it_used(run, made, caplog, name):
    harm, why = HARMS[name]
    harm(run / "checkpoints")
    before = snapshot(run)
    step, got, _ = restored(run, made, config={"seed": 0, "train": {"steps": 20}})
    # Of swapped folders neither is what its name says.
    assert (step, int(got["step"])) == ((5, 5) if name == "swapped folders" else (10, 10))
    assert "checkpoint 15 is damaged" in caplog.text and why in caplog.text
    assert snapshot(run) == before  # Reading moves nothing.


def test_steps_that_are_not_finite_are_passed_over(run, made, state, caplog):
    poisoned = jax.tree.map(jnp.copy, state[15]) | {"step": jnp.int32(17)}
    poisoned["params"]["embedding"] = poisoned["params"]["embedding"].at[0, 0].set(jnp.inf)
    saves = Checkpoints(run, keep_last=9)
    saves.save(17, poisoned, {})
    saves.close()
    assert restored(run, made)[0] == 15
    assert "['params']['embedding'] is not finite" in caplog.text
    assert Checkpoints(run).read_parameters(made)[0] == 15
    with pytest.raises(CheckpointError, match="checkpoint 17: .*not finite"):
        Checkpoints(run).read_parameters(made, step=17)


def test_a_folder_whose_name_only_looks_like_a_number_is_no_step(run, made):
    for name in ("²", "007", "-3", "1e3", "٣", "99999999999", "15 "):
        (run / "checkpoints" / name).mkdir()
    assert Checkpoints(run).present() == [5, 10, 15]
    assert restored(run, made)[0] == 15


def test_what_cannot_be_read_is_passed_over(run, made, monkeypatch):
    """Where the right is missing the system says so when the file is opened; root has every right."""
    opened = os.open

    def refused(path, *rest, **kw):
        if "/15/" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *rest, **kw)

    monkeypatch.setattr(os, "open", refused)
    assert "permission is denied" in vouched.problem(run / "checkpoints", 15)
    assert restored(run, made)[0] == 10


def test_without_any_vouched_step_everything_stays_and_the_way_out_is_told(run, made):
    for step in (5, 10, 15):
        (run / "checkpoints" / f"{step}.sha256.json").unlink()
    before = snapshot(run)
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged .*steps 5, 10, 15.*--overwrite.*\n.*15"):
        restored(run, made)
    with pytest.raises(CheckpointError, match="--step=15 is no finished checkpoint"):
        Checkpoints(run).named("15")
    assert snapshot(run) == before


def test_retention_deletes_its_own_steps_only(run, made, state):
    """A step that nobody vouches for, a stranger's, and what is no step at all outlive every save."""
    root = run / "checkpoints"
    drop_checksums(root)
    (root / "notes").mkdir()
    shutil.copytree(root / "5", root / "7")
    shutil.copyfile(root / "5.sha256.json", root / "7.sha256.json")  # Of step 5, by what it says of itself.
    saves = Checkpoints(run, keep_last=1)
    for step in (16, 17):
        saves.save(step, state[15], {})
    saves.close()
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == ["15", "17", "7", "notes"]


def test_a_step_that_stands_in_the_way_is_moved_aside_with_its_checksums(run, made, state, caplog):
    root = run / "checkpoints"
    drop_checksums(root)
    inside = snapshot(root / "15")
    saves = Checkpoints(run, keep_last=3)
    saves.save(15, state[15], {})
    saves.close()
    (aside,) = root.glob("damaged-15-*")
    assert snapshot(aside) == inside and "checkpoint 15 was moved to" in caplog.text
    assert restored(run, made)[0] == 15


def test_links_in_the_folder_of_checkpoints_lead_nowhere(run, made, state, tmp_path):
    victim = tmp_path / "victim"
    for name in ("20", "600.saving"):
        (victim / name).mkdir(parents=True)
        (victim / name / "precious").write_text("x")
    root = run / "checkpoints"
    (root / "20").symlink_to(victim / "20")
    (root / "600.saving").symlink_to(victim / "600.saving")
    (root / "600.deleted").symlink_to(victim)
    (root / "16.sha256.json").symlink_to(victim / "20" / "precious")
    before = snapshot(victim)
    assert restored(run, made)[0] == 15
    saves = Checkpoints(run)
    saves.save(16, state[15], {})
    saves.forget_after(15)
    saves.close()
    assert snapshot(victim) == before
    shutil.rmtree(root)
    root.symlink_to(victim)
    with pytest.raises(CheckpointError, match="it is a link, and a run follows none"):
        Checkpoints(run).save(1, state[0], {})
    assert snapshot(victim) == before


def test_the_best_are_remembered_over_restarts(tmp_path, state):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5, 6: None, 7: 2.8}
    for step, loss in losses.items():
        saves = Checkpoints(tmp_path, keep_last=1, keep_best=2)  # A start for every step.
        saves.save(step, state[0], {}, loss=loss)
        saves.close()
    saves = Checkpoints(tmp_path)
    assert saves.steps() == [2, 3, 7]
    assert saves.named("best") == 2 and saves.named("7") == 7 and saves.named("") is None
    with pytest.raises(CheckpointError, match="--step=4 is no finished checkpoint in .*; there are 2, 3, 7"):
        saves.named("4")


def test_what_is_kept_of_what():
    losses = {step: loss for step, loss in enumerate([3.0, 1.0, 1.0, None, 2.0, None], start=1)}
    assert retention.kept(losses, last=1, every=0, best=0) == {6}
    assert retention.kept(losses, last=0, every=0, best=0) == {6}  # Never none.
    assert retention.kept(losses, last=2, every=3, best=0) == {3, 5, 6}
    assert retention.kept(losses, last=1, every=0, best=1) == {3, 6}  # Of equals the newer.
    assert retention.kept(losses, last=1, every=0, best=9) == {1, 2, 3, 5, 6}  # Without a loss, not among the best.
    assert retention.kept({}, last=1, every=1, best=1) == set()


ODD = ("run[1]", "a\\b", "a*b", "a?b", "a b", "-x", "ü 日本", "gs:", "s3:x", "{x}", "a\nb", "'\"", "[!a]", "%20", "~x")


@pytest.mark.parametrize("name", ODD)
def test_a_workdir_may_have_any_name(tmp_path, made, state, name):
    saves = Checkpoints(tmp_path / name)
    saves.save(5, state[5], {})
    saves.close()
    step, got, _ = restored(tmp_path / name, made)
    assert step == 5
    np.testing.assert_array_equal(got["params"]["embedding"], state[5]["params"]["embedding"])


def test_a_first_save_that_cannot_be_read_back_ends_the_run(tmp_path, state, monkeypatch):
    monkeypatch.setattr(states, "Alias", lambda folder: type("Raw", (), {"path": folder, "close": lambda self: None})())
    saves = Checkpoints(tmp_path / "run[1]")
    saves.save(5, state[5], {})
    with pytest.raises(CheckpointError, match="checkpoint 5 was not written"):
        saves.wait()


def test_the_reduction_finds_every_array_that_is_not_finite():
    tree = {"a": jnp.ones(3), "b": {"c": jnp.array([1.0, jnp.nan]), "n": jnp.int32(3)}, "d": jnp.array([-jnp.inf])}
    assert states.not_finite(tree) == ["['b']['c']", "['d']"]
    assert states.not_finite({"n": jnp.int32(1)}) == [] == states.not_finite({"a": jnp.full(3, 3e38)})
    assert states.not_finite({"h": jnp.array([jnp.inf], jnp.bfloat16)}) == ["['h']"]
