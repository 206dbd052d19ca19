"""What a sweep says of its trials: the signal that ended one, the best by what it sets, names, and Optuna's plots."""

import pytest

from experiments.sweep import process, search, table, trials
from tests.experiments.sweep.sweep_test import base, pretend, row

__all__ = ["base"]  # A fixture.


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-9, "ended by the signal SIGKILL; a process that asks for more memory than there is ends so; the same"),
        (137, "ended by the signal SIGKILL; "),
        (-11, "ended by the signal SIGSEGV; the same command goes on with it"),
        (143, "ended by the signal SIGTERM; the same"),
        (2, "it broke."),
        (127, "it broke."),
        (1, "it broke."),
    ],
)
def test_a_trial_that_a_signal_ended_says_which(code, told, tmp_path):
    (tmp_path / process.LOG).write_text("noise\nerror: it broke.\n")
    assert process.error(tmp_path, code).startswith(told)
    (tmp_path / process.LOG).write_text("\n")
    assert process.error(tmp_path, code).startswith(told if "signal" in told else "it wrote nothing")


def test_the_pool_passes_the_signal_on(base, tmp_path):
    assert pretend(base, tmp_path, {1: [-9]}, count=2)[2] == {1: process.error(tmp_path, -9)}


def test_the_best_trial_is_named_by_what_it_sets(tmp_path):
    found = [
        row({"optimizer.learning_rate": rate, "model.width": 32}, bits) | {"eval/kind": "<="}
        for rate, bits in ((0.1, 3.0), (0.01, 2.5), (0.001, None), (0.2, float("nan")))
    ]
    told = table.best(found, tmp_path)
    assert told.startswith("best: --config.optimizer.learning_rate=0.01 --config.model.width=32\n  <= 2.5000 bits per")
    assert told.endswith(str(tmp_path / found[1]["hash"]))
    assert table.best([row({"seed": 1}, None)], tmp_path) == ""


def test_trials_of_a_search_are_named_by_its_whole_space(base):
    """One trial a batch: there is nothing that it could differ from."""
    (one,) = trials.resolve(base, [{"model.width": 32, "seed": 1}], named=("model.width", "seed"))
    assert one.name == "width=32 seed=1"
    assert trials.resolve(base, [{"model.width": 32}])[0].name == "base"


def test_a_search_is_drawn_by_optuna_and_leaves_no_figure(tmp_path):
    pytest.importorskip("optuna")
    from matplotlib import pyplot

    space = {"optimizer.learning_rate": ("log", 1e-4, 1.0), "model.width": ("choice", 16, 32)}
    made = {"search": {"method": "random", "space": space, "trials": 6, "batch": 3}}
    search.run(made, tmp_path, lambda points: [row(p, p["optimizer.learning_rate"]) for p in points])
    before = pyplot.get_fignums(), dict(pyplot.rcParams)
    drawn = search.draw(made, tmp_path)
    assert [path.name for path in drawn] == ["history.svg", "slice.svg", "contour.svg", "parallel.svg"]
    assert all(path.parent == tmp_path / "search" and b"<svg" in path.read_bytes() for path in drawn)
    assert before == (pyplot.get_fignums(), dict(pyplot.rcParams))
    one = {"search": made["search"] | {"trials": 1, "space": {"seed": ("int", 0, 9)}}}
    search.run(one, tmp_path / "one", lambda points: [row(p, 1.0) for p in points])
    assert search.draw(one, tmp_path / "one") == []
