"""Differences of exponents: slopes by hand, planted power laws, and the runs that a claim of them asks for."""

import numpy as np
import pytest

from configs.claims import small
from experiments.claims import arms, exponents, method
from experiments.scaling import slope
from experiments.settings.errors import Refused
from experiments.sweep import trials

SIZES = {f"width {D}": {"model.width": D, "model.num_heads": D // 16} for D in (16, 32, 64)}
CONTROL = {"says": "the smallest exponent", "reads": ("lowest",), "least": 0.03}


def claim(**more):
    base = small(1, log_every=1, rows=8)
    base.data.update({"length": 32, "batch_size": 4, "max_files": 4})
    pair = {"statement": "a falls faster", "published": "", "better": "a", "worse": "b"}
    return {
        "base": base, "arms": {"a": {}, "b": {"model.tied": False}}, "sizes": SIZES, "seeds": (0, 1, 2), "looks": (3,),
        "tokens_per_parameter": 2, "effect": 0.01, "control": CONTROL, "hours": 1.0, "pairs": [pair], **more,
    }  # fmt: skip


def test_a_slope_by_hand():
    """Losses 8, 4, 2 at 1, 10, 100 fall by log 2 a decade; the same above a floor; a bend stands in the misfit."""
    found = slope.exponent([1, 10, 100], [8, 4, 2])
    assert found == pytest.approx((np.log10(2), 0.0), abs=1e-14)
    assert slope.exponent([1, 10, 100], [9.5, 5.5, 3.5], 1.5) == pytest.approx(found, abs=1e-14)
    C, loss = np.array([3.0, 11.0, 40.0, 700.0]), np.array([5.0, 4.5, 3.1, 3.0])
    a, b = np.polyfit(np.log(C), np.log(loss), 1)
    left = np.log(loss) - a * np.log(C) - b
    assert slope.exponent(C, loss) == pytest.approx((-a, np.sqrt(np.mean(left**2))), rel=1e-12)
    with pytest.raises(ValueError, match="use as many"):
        slope.exponent([10, 10], [3, 2])
    with pytest.raises(ValueError, match=r"floor=2\.0 is not below the loss 2\.0"):
        slope.exponent([1, 10], [3, 2], 2.0)


def planted(monkeypatch, alphas):
    """Runs whose losses are A C^-alpha by arm, A moved by each seed: exponents are exact, and paired."""

    def trained(base, runs, seeds, workdir, **_):
        made = {}
        for cell, values in runs.items():
            arm, D = cell.split(",")[0], values["model.width"]
            C = float(D) ** 4 * {"a": 1.0, "b": 1.7}[arm]
            rows = [{"flops": C, "parameters": D, "tokens": 2 * D} for _ in seeds]
            wrinkle = (1 + 1e-3 * (D == 32)) ** np.array(seeds)  # at the middle, as far from each end: no slope
            made[cell] = [
                row | {"loss": (3 + seed) * C ** -(alphas[arm] + 1e-4 * seed * seed * (arm == "b")) * bent}
                for row, seed, bent in zip(rows, seeds, wrinkle, strict=True)
            ]
        return made

    monkeypatch.setattr(arms, "train", trained)
    monkeypatch.setattr(arms, "compare", lambda *_: None)
    monkeypatch.setattr(exponents, "grid", lambda each: {
        f"{arm}, {size}": {**each["arms"][arm], **values} for arm in each["arms"] for size, values in SIZES.items()
    })  # fmt: skip


@pytest.mark.parametrize(
    ("alphas", "verdict"),
    [
        ({"a": 0.09, "b": 0.06}, "holds"),
        ({"a": 0.06, "b": 0.09}, "does not"),
        ({"a": 0.074, "b": 0.070}, "equal within the effect"),
    ],
)
def test_a_planted_difference_is_found(alphas, verdict, tmp_path, monkeypatch):
    planted(monkeypatch, alphas)
    if verdict != "holds":
        monkeypatch.setattr(exponents, "_draw", lambda *_: None)  # once is enough
    made = claim()
    (row,) = exponents.run(made, tmp_path, jobs=1, quiet=True)
    np.testing.assert_allclose(row.numbers["exponents"]["a"], [alphas["a"]] * 3, rtol=1e-12)
    moved = 1e-4 * np.array([0, 1, 4])
    np.testing.assert_allclose(row.numbers["differences"], alphas["a"] - alphas["b"] - moved, rtol=1e-9)
    assert row.verdict == verdict
    half = 4.302653 * np.std(moved, ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert row.numbers["high"] - row.numbers["mean"] == pytest.approx(half, rel=1e-6)
    np.testing.assert_allclose(row.numbers["lowest"], np.minimum(alphas["a"], alphas["b"] + moved), rtol=1e-12)
    bend = np.log(1.001) * np.sqrt(2) / 3  # one of three points, off a line by x: root mean square sqrt(2) x / 3
    np.testing.assert_allclose(row.numbers["misfit"]["a"], bend * np.arange(3), rtol=1e-6, atol=1e-15)
    assert method.controlled(method.of(made), row.numbers)[0]
    assert f"a less b {row.numbers['mean']:+.4f} [" in row.measured and "from 6.6e+04 to 2.9e+07 FLOPs" in row.measured
    assert len([*tmp_path.glob("exponents.*")]) == 2 * (verdict == "holds")


def test_a_floor_is_taken_off_before_the_slope():
    """Both fall to 1.2 nats: with the floor the law's exponent is found again, without it a smaller one."""
    C = {"a": {str(D): [10.0**D] * 2 for D in range(6, 10)}}
    loss = {"a": {size: [1.2 + k * flops[0] ** -0.2 for k in (9, 20)] for size, flops in C["a"].items()}}
    found = exponents.figures(C, loss, 1.2)
    np.testing.assert_allclose(found["exponents"]["a"], [0.2, 0.2], rtol=1e-12)
    assert found["lowest"] == found["exponents"]["a"]
    assert 0 < exponents.figures(C, loss, 0.0)["lowest"][0] < 0.1


def test_every_run_has_its_tokens_a_parameter():
    """Of a tied model 12 L D^2 + V D and 2 L + 1 norms; an untied one has V D more. An arm's rate follows the width."""
    rate = {"optimizer.learning_rate": lambda c: c.optimizer.learning_rate * (32 / c.model.width) ** 0.5}
    made = claim(sizes={size: {**rate, **values} for size, values in SIZES.items()})
    made["arms"] = {arm: {"optimizer.learning_rate": 0.01, **values} for arm, values in made["arms"].items()}
    found = exponents.grid(made)
    assert list(found) == [f"{arm}, {size}" for arm in "ab" for size in SIZES]
    for cell, trial in zip(found, trials.resolve(made["base"], list(found.values())), strict=True):
        D, V = trial.config.model.width, 259
        parameters = 12 * 2 * D * D + V * D * (1 if trial.config.model.tied else 2) + 5 * D
        assert trial.config.model.tied == cell.startswith("a")
        assert trial.config.optimizer.learning_rate == pytest.approx(0.01 * (32 / D) ** 0.5, rel=1e-12)
        assert trial.config.train.steps == round(2 * parameters / (4 * 32))
    with pytest.raises(Refused, match="use at least 2"):
        exponents.run(claim(sizes={"one": {}}), None, jobs=1, quiet=True)
