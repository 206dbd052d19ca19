"""The check `pairs`: who decides, by loops on a few tokens; and all of it on two small models."""

import numpy as np
import pytest

from configs.claims import two_models
from experiments.claims import pairs
from tests.experiments import tiny

READ = {
    "small": np.array([1.0, 4.0, 2.0, 3.0, 0.5]), "large": np.array([1.0, 1.0, 2.5, 0.0, 0.5]),
    "entropy": np.array([0.1, 0.9, 0.8, 0.3, 0.2]), "top": np.array([0.9, 0.2, 0.8, 0.7, 0.95]),
    "critical": np.array([0.0, 0.1, 0.2, 0.9, 0.3]), "differ": np.array([False, True, True, True, False]),
    "begins": np.array([True, True, False, False, True]), "first": np.array([True, False, False, False, False]),
}  # fmt: skip


def test_who_decides_by_hand():
    found = pairs.deciders(READ, 0.4)
    bits = lambda *which: np.mean([READ["large" if i in which else "small"][i] for i in range(5)])  # noqa: E731
    left = lambda *which: 1 - sum(READ["differ"][i] for i in range(5) if i not in which) / 5  # noqa: E731
    for name, which in {"entropy": (1, 2), "router": (3, 4), "oracle": (1, 3)}.items():
        np.testing.assert_allclose([found[name][key] for key in ("bits", "agreement", "share")],
                                   [bits(*which), left(*which), 0.4])  # fmt: skip
    np.testing.assert_allclose(found["random"]["bits"], 0.6 * 2.1 + 0.4 * 1.0)
    np.testing.assert_allclose(found["random"]["agreement"], 1 - 0.6 * 0.6)
    # Any that asks for 1 asks until a blank: for 1, 2 and 3, more than 2 of 5; so that none is asked for.
    assert found["nudging"]["share"] == found["random as nudging"]["share"] == 0
    more = pairs.deciders(READ, 0.6)
    assert more["nudging"]["share"] == 0.6 and more["nudging"]["bits"] == bits(1, 2, 3)


def test_nudges_are_words_and_end_with_their_row():
    assert pairs.nudged(READ, 0.5).tolist() == [False, True, True, True, False]
    assert pairs.nudged(READ, 0.92).tolist() == [True, True, True, True, False]
    assert not pairs.nudged(READ, 0.1).any() and pairs.nudged(READ, 1.1).all()
    other = READ | {"first": np.array([True, False, False, True, False])}
    assert pairs.nudged(other, 0.5).tolist() == [False, True, True, False, False]


@pytest.mark.usefixtures("one_device")
def test_the_claim_on_two_small_models(tmp_path):
    claim = two_models.get_claim()
    few = {"train.steps": 2}
    claim |= {
        "base": tiny.config(tmp_path), "seeds": (0, 1), "looks": (2,),
        "arms": {"small": {"model.num_layers": 1, **few}, "large": {"model.num_layers": 2, **few}},
        "router": claim["router"] | few,
    }  # fmt: skip
    rows = pairs.run(claim, tmp_path, jobs=1, quiet=True)
    numbers = rows[0].numbers
    assert len(rows) == 4 and all(len(values) == 2 for values in numbers["bits"].values())
    for at in range(2):
        bits = {name: values[at] for name, values in numbers["bits"].items()}
        assert bits["oracle"] <= min(bits["entropy"], bits["router"], bits["random"])
        # A classifier that has learned for two steps leaves the held model as it was.
    assert all(abs(share - 0.3) < 0.05 for share in numbers["shares"]["entropy"])
