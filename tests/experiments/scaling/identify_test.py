"""What runs say about a law: errors against scipy's, degenerate fits named, and the page of a study."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from scipy import optimize

from experiments import scaling
from experiments.scaling import page
from tests.experiments.scaling.scaling_test import TRUE, grid


def fitted(columns, law="chinchilla", **options):
    made = scaling.fit(law, columns, **options)
    return made, scaling.identify(made, columns)


@functools.cache
def of_grid():
    return fitted(grid())


def slopes(law, theta, inputs):
    """d log(target) / d theta, `[R, P]`, by central differences: no analytic gradient."""

    def at(k, step):
        moved = theta.copy()
        moved[k] += step
        return law.evaluate(moved, *inputs)[0]

    return np.stack([(at(k, 1e-5) - at(k, -1e-5)) / 2e-5 for k in range(len(theta))], axis=1)


def test_errors_are_those_of_least_squares():
    """scipy's own covariance of the same least squares, with its own differences."""
    columns = grid()
    made, found = fitted(columns, delta=np.inf)
    inputs = np.stack([columns["parameters"], columns["tokens"]])
    predict = lambda x, *theta: scaling.CHINCHILLA.evaluate(np.array(theta), *x)[0]  # noqa: E731
    start = scaling.CHINCHILLA.theta(made.values)
    _, covariance = optimize.curve_fit(predict, inputs, np.log(columns["loss"]), p0=start, xtol=1e-12)
    np.testing.assert_allclose(list(found.errors.values()), np.sqrt(np.diag(covariance)), rtol=5e-3)
    whole = np.sqrt(covariance[3, 3] * covariance[4, 4])
    assert found.correlation["alpha, beta"] == pytest.approx(covariance[3, 4] / whole, abs=5e-3)


def test_an_exponent_is_determined_by_the_interval_of_two_sides():
    """At 75 degrees of freedom t is 1.992; of one side it would be 1.665."""
    made, found = of_grid()
    errors = made.values["beta"] / found.errors["beta"]  # errors grow with the residual
    for away, determined in ((1.9, False), (2.1, True)):
        noisy = dataclasses.replace(made, residual=made.residual * errors / away)
        assert scaling.identify(noisy, grid()).determined["beta"] == determined


def test_a_sound_grid_determines_everything_and_says_nothing_bad():
    _, found = fitted(grid(), bootstrap=40)
    assert all(found.determined.values()) and found.remarks == ()
    # Sizes around the best of budgets from 1e17 to 8e19, a factor of ten to either side.
    sizes = grid()["parameters"]
    assert found.spans["parameters"] == pytest.approx(np.log10(sizes.max() / sizes.min()))


def test_the_next_run_is_the_one_that_narrows_most():
    columns = grid()
    made, found = of_grid()
    following = found.next_run
    relative = {name: found.errors[name] / made.values[name] for name in ("alpha", "beta")}
    assert following["parameter"] == max(relative, key=relative.get) == "beta"
    assert found.errors["alpha"] > found.errors["beta"]  # The larger error, of the larger exponent.
    limit = 4 * columns["flops"].max()
    assert following["flops"] == pytest.approx(6 * following["parameters"] * following["tokens"])
    assert following["flops"] <= limit * 1.0001
    law, theta = made.law, made.law.theta(made.values)
    k = law.parameters.index(following["parameter"])
    before = slopes(law, theta, [columns["parameters"], columns["tokens"]])
    scale = made.residual * np.sqrt(80 / 75)

    def error(N, D):
        rows = np.vstack([before, slopes(law, theta, [np.array([N]), np.array([D])])])
        return scale * np.sqrt(np.linalg.inv(rows.T @ rows)[k, k])

    assert error(following["parameters"], following["tokens"]) == pytest.approx(following["after"], rel=1e-3)
    assert following["after"] < following["before"] == found.errors[following["parameter"]]
    rng = np.random.default_rng(0)
    columns = [columns["parameters"], columns["tokens"]]
    others = [np.exp(rng.uniform(np.log(x.min() / 2), np.log(4 * x.max()), 300)) for x in columns]
    least = min(error(N, D) for N, D in zip(*others, strict=True) if 6 * N * D <= limit)
    assert following["after"] < 1.05 * least  # A grid of nine by nine misses little.


def study_of_the_issue(seed=0):
    """Fifteen small runs with 3% of noise, as two cores make them in ten minutes: E runs to zero."""
    rng = np.random.default_rng(seed)
    N = np.array([33e3, 68e3, 115e3, 250e3] * 3 + [476e3, 830e3, 1.5e6])
    C = np.array([1e11] * 4 + [3e11] * 4 + [9e11] * 4 + [2.7e12] * 3)
    D = C / 6 / N
    loss = (0.9 + 8 * N**-0.2 + 60 * D**-0.3) * np.exp(0.03 * rng.normal(size=15))
    return {"parameters": N, "tokens": D, "flops": C, "loss": loss}


def test_an_amplitude_below_the_noise_is_named_whatever_its_interval():
    made, found = fitted(study_of_the_issue(), bootstrap=30)
    low, high = made.intervals()["E"]
    assert made.values["E"] < 1e-9 and high - low < 1e-12  # The interval that looked like a result.
    assert not found.determined["E"] and found.remarks[0].startswith("E=2.69e-12 is not measured: its term is at most")
    assert not found.determined["alpha"] and any(text.startswith("alpha=") for text in found.remarks)


def along_one_line():
    """Runs of 20 tokens per parameter, where both terms are of one form."""
    N = np.geomspace(1e6, 1e9, 12)
    columns = {"parameters": N, "tokens": 20 * N, "flops": 120 * N**2}
    loss = scaling.CHINCHILLA.predict(TRUE | {"alpha": 0.3, "beta": 0.3}, columns)
    return {**columns, "loss": loss * np.exp(np.random.default_rng(0).normal(0, 0.005, 12))}


def test_an_exponent_that_is_not_positive_is_named():
    made, found = fitted(along_one_line())
    assert made.values["alpha"] < 0 and not found.determined["alpha"]
    assert any(text.startswith("alpha=-1.54 is not positive") for text in found.remarks)


def test_an_exponent_whose_term_is_not_seen_is_not_measured():
    columns = study_of_the_issue()
    columns["loss"] = 2 + columns["parameters"] ** 0.05 + 60 * columns["tokens"] ** -0.3
    _, found = fitted(columns)
    assert found.errors["alpha"] == np.inf and np.isnan(found.correlation["alpha, beta"])
    assert "alpha=0.05 is not measured: no loss of these runs depends on it." in found.remarks
    assert found.next_run is None and found.to_dict()["errors"]["alpha"] is None
    assert not any("separated" in text for text in found.remarks)


def test_runs_of_one_ratio_cannot_separate_the_exponents():
    """Given the truth, and no noise to speak of: the directions of alpha and beta are nearly one."""
    columns, values = along_one_line(), TRUE | {"alpha": 0.3, "beta": 0.31}
    made = scaling.Fit(scaling.CHINCHILLA, values, 0.0, 1e-6, 12, np.empty((0, 5)), 1.0)
    found = scaling.identify(made, columns)
    J = slopes(made.law, made.law.theta(values), [columns["parameters"], columns["tokens"]])
    covariance = np.linalg.inv(J.T @ J)
    rho = covariance[3, 4] / np.sqrt(covariance[3, 3] * covariance[4, 4])
    assert found.correlation["alpha, beta"] == pytest.approx(rho, abs=1e-3) and abs(rho) > 0.99
    assert any(text.startswith("alpha, beta cannot be separated") for text in found.remarks)


def test_every_law_has_a_report():
    rng = np.random.default_rng(1)
    flops = np.geomspace(1e18, 1e22, 20)
    columns = {"flops": flops, "loss": (1.7 + 900 * flops**-0.16) * np.exp(0.002 * rng.normal(size=20))}
    _, found = fitted(columns, "power", bootstrap=20)
    assert found.next_run is None and set(found.determined) == {"E", "A", "alpha"} and found.determined["alpha"]


def test_a_study_says_it_in_lines_and_on_a_page(tmp_path):
    path, columns = tmp_path / "runs.csv", study_of_the_issue()
    evil = "<b>\u202e"
    rows = [f"{evil}{k}," + ",".join(repr(float(v[k])) for v in columns.values()) for k in range(15)]
    path.write_text("\n".join(["name," + ",".join(columns), *rows]) + "\n")
    runs = scaling.read_csv(path)
    record = scaling.study(runs, laws=("chinchilla",), bootstrap=20, folder=tmp_path / "out", formats=("svg",))
    assert json.loads((tmp_path / "out" / "scaling.json").read_text()) == record
    lines = scaling.table(record).splitlines()
    (line,) = [line for line in lines if line.startswith("  E ")]
    assert line.endswith("not determined")
    assert any(line.startswith("  E=2.69e-12 is not measured") for line in lines)
    assert any(line.startswith("  What would narrow it most: one run of ") for line in lines)
    shown = (tmp_path / "out" / page.NAME).read_text()
    for word in ("is not measured", "What would narrow it most", "IsoFLOP minima", "median error", "chinchilla"):
        assert word in shown
    assert shown.count("data:image/svg+xml;base64,") == 3 and "\u202e" not in shown and "<b>\\u202e" not in shown
