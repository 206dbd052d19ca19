"""A run loses nothing: not to a kill, a signal, a damaged file, a diverged loss, or a second start."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import preflight
from experiments import training as training
from experiments import workdir as files
from experiments.program import inputs
from experiments.training import TrainingDiverged, evaluate, train
from experiments.workdir import trained
from experiments.workdir.checkpoints import CheckpointError, Checkpoints
from tests import environment, kill_anywhere
from tests.experiments import tiny

pytestmark = pytest.mark.usefixtures("one_device")


def final_state(workdir: pathlib.Path):
    import orbax.checkpoint as ocp

    steps = Checkpoints(workdir).steps()
    with ocp.PyTreeCheckpointer() as reader:
        return steps[-1], reader.restore((workdir / "checkpoints" / str(steps[-1]) / "state").absolute())


def assert_same_bits(a: pathlib.Path, b: pathlib.Path):
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    (step_a, x), (step_b, y) = final_state(a), final_state(b)
    assert step_a == step_b
    for p, q in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        np.testing.assert_array_equal(p, q)


def test_two_runs_of_one_config_are_bit_identical(tmp_path):
    config = tiny.config(tmp_path, eval__sample_prompt="ab")
    for name in ("one", "two"):
        result = train(config, tmp_path / name, quiet=True)
        assert result["step"] == config.train.steps and np.isfinite(result["eval/bits_per_byte"])
    assert_same_bits(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one/samples.jsonl").read_bytes() == (tmp_path / "two/samples.jsonl").read_bytes()


def test_training_learns(tmp_path):
    config = tiny.config(
        tmp_path, train__steps=60, optimizer__learning_rate=1e-2, train__log_every=1, checkpoint__every=20,
        eval__every=0,
    )  # fmt: skip
    train(config, tmp_path / "run", quiet=True)
    lines, _ = files.read_lines(tmp_path / "run" / files.METRICS)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 61))  # Saves write none again.
    # Eight letters and a blank are at most log(9) = 2.2 nats; the untrained model has log(259) = 5.6.
    assert np.mean(losses[-10:]) < np.log(9) < 5.0 < losses[0]


def test_a_finished_run_does_nothing_again(tmp_path):
    config = tiny.config(tmp_path)
    first = train(config, tmp_path / "run", quiet=True)
    metrics = (tmp_path / "run/metrics.jsonl").read_bytes()
    again = train(config, tmp_path / "run", quiet=True)
    assert {k: first[k] for k in first if k != "seconds"} == {k: again[k] for k in first if k != "seconds"}
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics
    (tmp_path / "run/metrics.jsonl").write_bytes(metrics[:-10])  # The last evaluation, torn: it is made anew.
    mended = train(config, tmp_path / "run", quiet=True)
    assert {k: first[k] for k in first if k != "seconds"} == {k: mended[k] for k in first if k != "seconds"}
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == metrics


def test_killed_anywhere_ends_with_the_same_bits():
    found, wrong = kill_anywhere.trial(kills=2, steps=25, seed=1)
    assert not wrong
    assert found, "the run ended before a kill"


def test_sigterm_saves_leaves_with_zero_and_goes_on(tmp_path):
    texts = tiny.corpus(tmp_path)
    args = (tmp_path / "stopped", texts, tmp_path / "cache", 200)
    process = subprocess.Popen(
        kill_anywhere.command(*args), cwd=environment.ROOT, env=environment.child(), stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not Checkpoints(tmp_path / "stopped").steps() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"SIGTERM" in out and b"goes on from there" in out
    step = Checkpoints(tmp_path / "stopped").steps()[-1]
    lines, _ = files.read_lines(tmp_path / "stopped" / files.METRICS)
    assert 0 < step < 200 and lines[-1]["step"] == step


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, caplog):
    config = tiny.config(tmp_path, train__steps=6, checkpoint__every=2, checkpoint__keep_last=3)
    train(config, tmp_path / "alone", quiet=True)
    train(config, tmp_path / "run", quiet=True)
    saves = Checkpoints(tmp_path / "run")
    assert saves.steps() == [2, 4, 6]
    flip_a_byte(saves.root / "6" / "state")
    train(config, tmp_path / "run", quiet=True)
    assert "checkpoint 6 is damaged" in caplog.text
    assert_same_bits(tmp_path / "alone", tmp_path / "run")
    for step in saves.steps():
        flip_a_byte(saves.root / str(step) / "state")
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged .*new --workdir"):
        train(config, tmp_path / "run", quiet=True)


def flip_a_byte(folder: pathlib.Path):
    largest = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(bytes(data))


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = tiny.config(tmp_path, train__steps=8, checkpoint__every=1, eval__every=0, train__log_every=100)
    from models.objectives import next_token

    honest = next_token.loss

    def poisoned(model, batch, key, **kw):
        out = honest(model, batch, key, **kw)
        # The rate of step 5 is the only one of its size: poison by the key, which is folded from the step.
        bad = jax.random.key_data(key)[0] == bad_key
        return out._replace(total=jax.numpy.where(bad, jax.numpy.nan, out.total))

    train_key = jax.random.split(jax.random.key(config.seed))[1]
    bad_key = jax.random.key_data(jax.random.fold_in(train_key, 5))[0]
    monkeypatch.setattr(next_token, "loss", poisoned)
    with pytest.raises(TrainingDiverged, match="step 6; the last good checkpoint is step 5; .*learning_rate"):
        train(config, tmp_path / "run", quiet=True)
    lines, _ = files.read_lines(tmp_path / "run" / files.METRICS)
    assert lines[-1]["step"] == 6 and np.isnan(lines[-1]["train/loss"])


def test_another_config_is_refused_with_the_difference(tmp_path):
    train(tiny.config(tmp_path), tmp_path / "run", quiet=True)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(preflight.ConfigError, match="another config.*\n.*seed: 0 there, 1 asked for"):
        train(tiny.config(tmp_path, seed=1), tmp_path / "run", quiet=True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_warm_start_takes_parameters_and_nothing_else(tmp_path):
    train(tiny.config(tmp_path), tmp_path / "first", quiet=True)
    config = tiny.config(
        tmp_path, init__warm_start=str(tmp_path / "first"), train__steps=1, optimizer__learning_rate=1e-12
    )
    train(config, tmp_path / "second", quiet=True)
    _, old = final_state(tmp_path / "first")
    step, new = final_state(tmp_path / "second")
    assert step == 1
    for p, q in zip(jax.tree.leaves(old["params"]), jax.tree.leaves(new["params"]), strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-7)
    (tmp_path / "first").rename(tmp_path / "moved")  # A run that has saved goes on alone, and a new one cannot begin.
    config = config.copy_and_resolve_references().unlock()
    config.train.steps = 2
    assert train(config, tmp_path / "second", quiet=True)["step"] == 2
    with pytest.raises(preflight.ConfigError, match="init.warm_start=.*holds no finished checkpoint"):
        train(config, tmp_path / "fourth", quiet=True)
    (tmp_path / "moved").rename(tmp_path / "first")
    other = tiny.config(tmp_path, init__warm_start=str(tmp_path / "first"), model__width=64)
    with pytest.raises(CheckpointError, match="other parameters than the config describes:\n.*saved .*wanted"):
        train(other, tmp_path / "third", quiet=True)


def test_a_disk_that_fills_up_is_told_in_one_sentence(tmp_path):
    """A file-size limit of the process stands in for a full disk: both are an OSError in the middle of a write."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
    code = limit + "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('main.py', run_name='__main__')"
    args = kill_anywhere.command(tmp_path / "run", tiny.corpus(tmp_path), tmp_path / "cache", 20)
    done = subprocess.run(
        [sys.executable, "-c", code, *args[1:]], cwd=environment.ROOT, env=environment.child(),
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().startswith("error: ") and "Traceback" not in done.stderr
    assert any(words in done.stderr for words in ("cannot be used", "cannot be written", "not written")), done.stderr


def test_signals_outside_the_main_thread_are_left_alone(tmp_path):
    import threading

    seen = []
    thread = threading.Thread(target=lambda: seen.append(train(tiny.config(tmp_path), tmp_path / "run", quiet=True)))
    thread.start()
    thread.join()
    assert seen and seen[0]["step"] == 4


def test_the_average_is_what_evaluation_uses(tmp_path):
    config = tiny.config(tmp_path, optimizer__ema=0.5)
    train(config, tmp_path / "run", quiet=True)
    _, state = final_state(tmp_path / "run")
    averaged, newest = jax.tree.leaves(state["ema"]), jax.tree.leaves(state["params"])
    assert any(not np.array_equal(a, b) for a, b in zip(averaged, newest, strict=True))


def test_a_trained_model_of_schedule_free_is_its_average(tmp_path):
    """What is evaluated in training and what is loaded from the workdir are one model, and not the last point."""
    config = tiny.config(tmp_path, optimizer__name="schedule_free", optimizer__schedule="constant")
    result = train(config, tmp_path / "run", quiet=True)
    model = trained.load(tmp_path / "run")
    found = evaluate.evaluate(
        model.program, evaluate.make_step(model.program), model.params,
        inputs.eval_batches(model.config, model.corpus, model.program.rows), model.tokenizer.token_bytes,
    )  # fmt: skip
    # The average is worked out in another program than in training: float32 sums in another order.
    assert found["eval/loss"] == pytest.approx(result["eval/loss"], rel=1e-6)
    _, state = final_state(tmp_path / "run")
    last, average = jax.tree.leaves(state["params"]), jax.tree.leaves(model.params)
    assert any(not np.allclose(a, b, rtol=1e-4) for a, b in zip(last, average, strict=True))


def test_the_profiler_window_writes_a_trace(tmp_path):
    train(tiny.config(tmp_path, train__profile_step=1, train__profile_steps=2), tmp_path / "run", quiet=True)
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


def test_run_json_says_what_ran(tmp_path):
    train(tiny.config(tmp_path), tmp_path / "run", quiet=True)
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["corpus"]["hash"] and run["flops_per_token"] > 0 and run["environment"]["jax"] == jax.__version__
    assert training._due(tiny.config(tmp_path), 4, 4, first=False) == {"evaluate": True, "save": True}
