"""Sweeps: plain trials, all checked first, run side by side, killed anywhere and ended with the same table."""

import _thread
import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from configs.sweeps import scaling as scaling_study
from configs.sweeps import transfer
from experiments import modes, preflight, scaling, sweep
from experiments import workdir as files
from experiments.program import build, counting, sharding
from experiments.settings.errors import ConfigError, Refused
from experiments.sweep import launchers, pool, process, search, table, trials
from experiments.sweep.launchers import local
from tests import environment
from tests.experiments import tiny
from tests.experiments.cli_test import flags

_ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of seconds that saves after every few steps, unlocked."""
    config = tiny.config(tmp_path_factory.mktemp("sweep")).copy_and_resolve_references().unlock()
    config.train.steps, config.eval.every, config.checkpoint.every = 40, 0, 4
    return config


def test_trials_are_plain_named_and_each_once(base):
    made = {
        "base": base,
        "trials": [
            {"model.width": 32, "optimizer.learning_rate": lambda c: 0.1 / c.model.width},
            {"optimizer.learning_rate": lambda c: 0.1 / c.model.width, "model.width": 64},
        ],
        "grid": {"seed": [0, 1, 1], "eval.batch_size": [8]},
    }
    found = trials.resolve(base, trials.points(made), [("model.num_layers", "3")])
    assert [trial.name for trial in found] == [f"width={w} seed={s}" for w in (32, 64) for s in (0, 1)]
    for trial in found:
        assert trial.config.is_locked and trial.config.model.num_layers == 3
        assert (
            trial.values["optimizer.learning_rate"]
            == trial.config.optimizer.learning_rate
            == 0.1 / (trial.values["model.width"])
        )
        assert trial.digest == files.config_hash(trial.config.to_dict())
        json.dumps(trial.values)
    # The command line has the last word, and functions see what it says.
    (one,) = trials.resolve(base, [{"model.width": 32, "seed": lambda c: c.model.width}], [("model.width", "48")])
    assert (one.config.model.width, one.config.seed, one.values) == (48, 48, {"model.width": 48, "seed": 48})
    narrow = [{"model.width": width, "seed": seed} for width in (32, 64) for seed in (0, 1)]
    assert len(trials.resolve(base, narrow, shrink=True)) == 2  # widths become one; seeds stay
    # What is computed is named where trials are told apart by it only.
    steps = [{"model.width": 32, "seed": lambda c: 3, "train.steps": lambda c, k=k: 4 * k} for k in (1, 2)]
    assert [trial.name for trial in trials.resolve(base, steps)] == ["steps=4", "steps=8"]


def test_all_problems_of_all_trials_are_told_before_anything_runs(base, tmp_path):
    wrong = [{"model.widht": 3}, {"seed": "x"}, {"seed": lambda c: c.nothing}, {"model": 3}]
    with pytest.raises(ConfigError) as caught:
        trials.resolve(base, wrong)
    told = caught.value.problems
    assert len(told) == 4 and all(text.startswith("trial '") and "\n" not in text for text in told)
    assert "did you mean model.width?" in told[0] and "seed='x' is a str; use a value like 0." in told[1]
    assert "seed cannot be computed: AttributeError" in told[2]
    grid = {"model.num_heads": [3, 2, 5], "train.steps": [0, 4]}
    with pytest.raises(ConfigError) as caught:
        sweep.run({"base": base, "grid": grid}, tmp_path / "w", quiet=True)
    told = caught.value.problems
    assert len(told) == 5 and not (tmp_path / "w").exists()  # three with 0 steps; 3 and 5 heads with 4
    assert told[1].startswith("trial 'num_heads=3 steps=4': model.width=32 does not divide by model.num_heads=3")
    space = {"model.num_heads": ("choice", 2, 3), "optimizer.learning_rate": ("log", 1e-3, 1e3)}
    with pytest.raises(ConfigError) as caught:
        sweep.run({"base": base, "search": {"space": space}}, tmp_path / "w", quiet=True)
    (told,) = caught.value.problems
    assert "optimizer.learning_rate=1000.0 must lie between" in told and not (tmp_path / "w").exists()
    with pytest.raises(ConfigError, match="^trial 'length=100000': data.length=100000 is longer than the whole"):
        sweep.run({"base": base, "trials": [{"data.length": 10**5}, {"seed": 1}]}, tmp_path / "w", quiet=True)
    assert not (tmp_path / "w").exists()


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    def refused(text, told, **given):
        path = tmp_path / "s.py"
        path.write_text(f"from configs import base\n{text}")
        with pytest.raises(Refused, match=told) as caught:
            modes.run(flags(**{"mode": "sweep", "config": str(path), "workdir": str(tmp_path / "w"), **given}), [])
        assert "\n" not in str(caught.value) and not (tmp_path / "w").exists()

    made = "def get_sweep():\n    return {'base': base.get_config(), %s}"
    refused(made % "'grids': {}", "'grids' is not a key of a sweep; did you mean 'grid'?")
    refused("def get_sweep():\n    return {}", "base=None is no config")
    refused("def get_config():\n    return base.get_config()", "no function get_sweep.*use it with --mode=train")
    refused(made % "", "--config is missing", config=None)
    refused(made % "'trials': []", "trials must be a list of")
    refused(made % "'grid': {'seed': []}", r"grid\['seed'\]=\[\] is no list of values")
    refused(made % "", "--jobs=0 must be at least 1", jobs=0)
    refused(made % "'resources': {'gpus': 2}", "resources=.* do not suit --launcher=local")
    refused(made % "'search': {'spaces': 1}", "search.spaces is not a setting; did you mean 'space'?")
    refused(made % "'search': {'space': {'seed': ('log', 3, 1)}}", r"search.space\['seed'\]=.* is no range")


def test_the_study_of_the_house_holds_out_its_largest_budget():
    made = scaling_study.get_sweep()
    found = trials.resolve(made["base"], trials.points(made))
    assert len({trial.name for trial in found}) == len(found) == 21

    def spent(config):
        return scaling_study.flops_per_token(config) * config.train.steps * config.data.batch_size * config.data.length

    flops = sorted(spent(trial.config) for trial in found)
    assert flops[15] / flops[14] > 2.9 and flops[-1] / flops[15] < 1.02  # a budget of 6 runs, 15 below it
    for trial, about in ((found[0], 33e3), (found[-1], 2.8e6)):  # what its formula says is what the house counts
        program = build(trial.config, vocab_size=259, mesh=sharding.make_mesh(trial.config))
        counted = counting.flops_per_token(program)["total"]
        assert scaling_study.flops_per_token(trial.config) == pytest.approx(counted, rel=0.01)
        assert counting.parameters(program)["total"] == pytest.approx(about, rel=0.05)


def test_the_sweep_of_learning_rates_is_the_whole_grid():
    made = transfer.get_sweep()
    found = trials.resolve(made["base"], trials.points(made))
    assert len(found) == 24 and "python main.py" in transfer.__doc__ and "xpect" in transfer.__doc__
    for trial in found:
        preflight.check(trial.config, num_devices=1)
        assert trial.config.model.width == 16 * trial.config.model.num_heads
    narrow = {trial.config.model.parametrization for trial in found if trial.config.model.width == 32}
    assert narrow == {"standard", "mup"} and made["base"].model.mup.base_width == 32  # There they are one model.


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_package_is_one_sentence(name, monkeypatch, tmp_path):
    module, package = launchers.LAUNCHERS[name]
    monkeypatch.delitem(sys.modules, f"experiments.sweep.launchers.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # As Python has it when an import must fail.
    with pytest.raises(Refused, match=f"--launcher={name} needs the package {package}; pip install {package}.$"):
        launchers.make(name, 1, tmp_path, {})


def test_slurm_where_there_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYTHONPATH", "")  # Restored: the launcher adds the house to it.
    with pytest.raises(Refused, match="--launcher=slurm finds no cluster from here .*; use --launcher=local.$"):
        launchers.make("slurm", 1, tmp_path, {})


class Pretended:
    """A place where a trial takes two looks and ends as `codes` say; None never ends until it is stopped."""

    def __init__(self, codes):
        self.codes, self.started, self.stopped = codes, [], []

    def start(self, workdir, slot):
        here, place = self, json.loads((workdir / files.CONFIG).read_text())["config"]["seed"]
        here.started.append((place, slot))
        codes = self.codes.get(place, [0])

        class Job:
            looks = 0

            def poll(self):
                self.looks += 1
                code = codes[0]
                if place in here.stopped:
                    return 0
                if self.looks < 2 or code is None:
                    return None
                codes[:1] = codes[1:] or codes[:1]
                if code == 0:
                    files.write_json(workdir / files.RESULT, {"step": 3, "eval/bits_per_byte": 1.0 + place})
                elif code != process.LOCKED:
                    (workdir / process.LOG).write_text("noise\nerror: it broke.\n")
                return code

            def stop(self):
                here.stopped.append(place)

        return Job()

    def close(self):
        pass


def pretend(base, workdir, codes, count=4, jobs=2):
    made = trials.resolve(base, [{"seed": seed} for seed in range(count)])
    place = Pretended(codes)
    work = {trial.digest: 1.0 + k for k, trial in enumerate(made)}  # the last is the largest, and goes first
    failed = pool.run(made, workdir, jobs=jobs, launcher=place, work=work, command="c", quiet=True)
    return made, place, {trial.config.seed: failed[trial.digest] for trial in made if trial.digest in failed}


def test_the_pool_skips_the_finished_reports_the_failed_and_waits_for_others(base, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_AGAIN", 0.3)
    made, place, failed = pretend(base, tmp_path, {1: [2], 3: [process.LOCKED, 0]})
    assert [seed for seed, _ in place.started[:2]] == [3, 2] and {slot for _, slot in place.started} == {0, 1}
    assert sorted(seed for seed, _ in place.started) == [0, 1, 2, 3, 3] and failed == {1: "it broke."}
    rows = table.rows(made, tmp_path, {made[1].digest: "it broke."})
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "finished"]
    assert rows[1]["error"] == "it broke." and rows[2]["eval/bits_per_byte"] == 3.0
    _, place, failed = pretend(base, tmp_path, {})
    assert place.started == [(1, 0)] and failed == {}  # only what is left


def test_a_signal_stops_every_trial_and_waits_for_it(base, tmp_path):
    def interrupt():
        while len(list(tmp_path.glob(f"*/{files.CONFIG}"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pretend(base, tmp_path, {2: [None], 3: [None]})
    thread.join()
    assert not list(tmp_path.glob(f"*/{files.RESULT}"))


def test_a_trial_is_locked_and_pinned_while_it_runs(base, tmp_path, monkeypatch):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys, time, pathlib\n"
        "out = pathlib.Path(sys.argv[1].partition('=')[2])\n"
        "time.sleep(0.3)\n"  # The affinity is set from outside, once the process is there.
        "flags = os.environ.get('OMP_NUM_THREADS'), os.environ.get('XLA_FLAGS')\n"
        "print(sorted(os.sched_getaffinity(0)), *flags, flush=True)\n"
        "while not (out / 'go').exists(): time.sleep(0.02)\n"
    )
    monkeypatch.setattr(process, "_MAIN", script)
    core = sorted(os.sched_getaffinity(0))[-1]
    child = process.start(tmp_path, (core,))
    assert process.start(tmp_path) is None and process.wait(str(tmp_path)) == process.LOCKED
    (tmp_path / "go").touch()
    assert child.wait() == 0
    told = (tmp_path / process.LOG).read_text()
    assert told.startswith(f"[{core}] 1 ") and "xla_cpu_multi_thread_eigen=false" in told
    again = process.start(tmp_path)  # Whoever held the lock is gone, and the lock with it.
    assert again is not None and again.wait() == 0


def test_a_cancelled_task_lets_its_process_save(tmp_path, monkeypatch):
    script = tmp_path / "main.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "out = pathlib.Path(sys.argv[1].partition('=')[2])\n"
        "def save(*_):\n    time.sleep(0.2); (out / 'saved').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(out / 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(process, "_MAIN", script)

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        _thread.interrupt_main()  # As Ray does it: Python is told, the operating system is not.

    thread = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell may start its jobs deaf to it.
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            process.wait(str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    assert (tmp_path / "saved").exists()


def test_slots_share_out_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7})
    assert local.shares(2) == ((0, 1), (2, 5, 7)) and local.shares(5) == ((0,), (1,), (2,), (5,), (7,))
    assert local.shares(7)[5:] == ((0,), (1,))
    assert local.launcher(1, pathlib.Path()).slots == ((),)


def row(values, outcome, **more):
    return {"name": "t", "hash": json.dumps(values), "status": "finished", "values": values, **more} | (
        {} if outcome is None else {"eval/bits_per_byte": outcome}
    )


@pytest.mark.parametrize("method", search.METHODS)
def test_a_search_that_is_killed_asks_the_same_again(method, tmp_path):
    optuna = pytest.importorskip("optuna")
    space = {"optimizer.learning_rate": ("log", 1e-4, 1.0), "model.width": ("choice", 16, 32), "seed": ("int", 0, 9)}
    made = {"search": {"method": method, "space": space, "trials": 14, "batch": 4, "seed": 3}}
    asked = {}

    def run(name, stop=99):
        asked[name] = []

        def go(points):
            if len(asked[name]) >= stop:
                raise KeyboardInterrupt
            asked[name] += points
            # One setting diverges; the others are better near a rate of 0.01.
            return [row(p, None if p["seed"] == 4 else abs(p["optimizer.learning_rate"] - 0.01)) for p in points]

        return search.run(made, tmp_path / name, go)

    rows = run("whole")
    assert len(rows) == 14 and all(1e-4 <= r["values"]["optimizer.learning_rate"] <= 1 for r in rows)
    for stop in (0, 8):
        with pytest.raises(KeyboardInterrupt):
            run("killed", stop)
    assert run("killed") == rows and asked["killed"] == asked["whole"]
    journal = tmp_path / "killed" / search.JOURNAL
    whole = journal.read_bytes()
    for data in (whole[:-40], whole[:300] + b"\0" + whole[301:], b"[]\n", b"[" * 100_000 + b"\n", b"\xff\xfe\n", b""):
        journal.write_bytes(data)  # Torn by a kill, or damaged: it follows from the trials, and is written anew.
        assert run("killed") == rows and asked["killed"] == asked["whole"]
        assert len(search._stored(optuna, journal.parent).get_trials()) == 14
    assert len(list(journal.parent.glob(f"damaged-{search.JOURNAL}-*"))) == 4
    assert asked["whole"][:4] != asked["whole"][4:8]
    made["search"]["seed"] = 4
    assert run("other") != rows


def three(base):
    """More trials than run at a time."""
    return {"base": base, "grid": {"seed": [0, 1, 2]}}


@pytest.fixture(scope="module")
def quick_children():
    """Children find the compiled programs of the children before them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.child().items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def on_submitit(base, quick_children, tmp_path_factory):
    """The rows of three trials on submitit's local executor."""
    pytest.importorskip("submitit")
    made = three(base) | {"resources": {"cluster": "local"}}
    return sweep.run(made, tmp_path_factory.mktemp("slurm"), jobs=2, launcher="slurm", quiet=True)


def test_submitit_runs_three_real_trials(on_submitit):
    assert [r["status"] for r in on_submitit] == ["finished"] * 3
    assert len({r["loss"] for r in on_submitit}) == 3


def test_ray_runs_the_same_three_trials(base, quick_children, on_submitit, tmp_path):
    pytest.importorskip("ray")
    assert sweep.run(three(base), tmp_path, jobs=2, launcher="ray", quiet=True) == on_submitit


def test_killed_and_started_again_a_sweep_gives_the_same_table(
    base, quick_children, on_submitit, tmp_path, monkeypatch
):
    """The first trial is killed once it has saved: it is reported, the other finishes, and the next start goes on."""
    made = {"base": base, "grid": {"seed": [0, 1]}}
    folder = tmp_path / on_submitit[0]["hash"]

    children, start = [], process.start
    monkeypatch.setattr(process, "start", lambda *given: children.append(start(*given)) or children[-1])

    def kill():
        while not any((folder / files.CHECKPOINTS).glob("*.sha256.json")):
            time.sleep(0.001)
        children[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    first = sweep.run(made, tmp_path, quiet=True)
    thread.join()
    assert [r["status"] for r in first] == ["failed", "finished"] and first[0]["error"]
    saved = files.read_json(folder / files.RUN)["starts"]
    again = sweep.run(made, tmp_path, quiet=True)
    assert again == on_submitit[:2]
    assert len(files.read_json(folder / files.RUN)["starts"]) == len(saved) + 1
    runs = scaling.read_csv(tmp_path / table.CSV)
    assert len(runs) == 2 and runs["loss"].tolist() == [r["loss"] for r in again]
    before = {name: (tmp_path / name).read_bytes() for name in (table.CSV, table.JSON)}
    assert sweep.run(made, tmp_path, quiet=True) == again  # finished: nothing runs
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert table.compare(again, tmp_path).stat().st_size > 1000
    assert "no fit: 2 runs cannot fix the 5 parameters" in table.study({"laws": ("chinchilla",)}, tmp_path)
