"""Claims of experts: the figures of a layer by loops, scores of single pairs, paths, and a law's leverage."""

import dataclasses

import numpy as np
import pytest

from configs.claims import efficiency_leverage, experts
from experiments.claims import arms, contrast, leverage, paths, routed
from experiments.scaling import leverage as law
from experiments.sweep import trials

pytestmark = pytest.mark.usefixtures("one_device")


def test_figures_of_a_layer_are_sums_over_its_tokens():
    """Eight costly experts and two without cost, two choices, rows of 20 tokens of which some are padding."""
    rng = np.random.default_rng(2)
    index = np.stack([rng.permutation(10)[:2] for _ in range(3 * 20)]).reshape(3, 20, 2)
    index[rng.random(index.shape) < 0.2] = -1
    there = np.ones((3, 20), bool)
    there[1, 13:] = there[2, :5] = False
    found = routed.of_layer(index, there, 10, 8)
    sets = [[set(index[r, t][index[r, t] >= 0]) if there[r, t] else set() for t in range(20)] for r in range(3)]
    tokens = there.sum()
    costly = [{e for e in each if e < 8} for row in sets for each in row]
    assert found["costly"] == pytest.approx(sum(map(len, costly)) / tokens)
    assert found["token_sparsity"] == pytest.approx(1 - sum(map(len, costly)) / tokens / 8)
    load = [sum(len(each & {e, e + 1}) for each in costly) for e in (0, 2, 4, 6)]
    assert found["imbalance"] == pytest.approx((max(load) - min(load)) / tokens)
    windows = [(r, t) for r in range(3) for t in (0, 8) if there[r, t : t + 8].all()]
    union = [len({e for t in range(t0, t0 + 8) for e in sets[r][t] if e < 8}) for r, t0 in windows]
    assert 0 < len(windows) < 6 and found["chunk_sparsity"] == pytest.approx(1 - np.mean(union) / 8)
    counted = np.array([[sum(e in each for each in row) for e in range(10)] for row in sets])
    p = counted / counted.sum()
    alone = np.outer(p.sum(1), p.sum(0))
    assert found["specialisation"] == pytest.approx(np.sum(p[p > 0] * np.log(p[p > 0] / alone[p > 0])))


def test_a_pair_may_have_its_own_score_and_a_control_an_arm(tmp_path, monkeypatch):
    """Two arms with made-up runs: the loss decides one row, the experts of a token the other."""
    bits = {"few": [3.0, 3.1, 3.2], "many": [2.9, 3.2, 3.0]}
    costly = {"few": [1.0, 1.1, 1.2], "many": [2.0, 2.0, 2.0]}
    keys = {"loss": 1.0, "flops": 1e9, "parameters": 1e5, "tokens": 1e6}
    made = {a: [{"eval/bits_per_byte": b, "workdir": f"{a} {k}", **keys} for k, b in enumerate(bits[a])] for a in bits}
    monkeypatch.setattr(arms, "train", lambda *_, **__: made)
    monkeypatch.setattr(arms, "compare", lambda *_: None)
    monkeypatch.setattr(routed, "figures", lambda place: {"costly": costly[place.split()[0]][int(place[-1])]})
    told = {"published": "", "better": "few", "worse": "many"}
    claim = {
        "base": experts.get_claim()["base"], "arms": {"few": {}, "many": {}}, "score": "bits_per_byte",
        "reference": "many", "seeds": (0, 1, 2),
        "pairs": [{"statement": "bits", **told}, {"statement": "cost", "score": "costly", **told}],
    }  # fmt: skip
    first, second = contrast.run(claim, tmp_path, jobs=1, quiet=True)
    np.testing.assert_allclose(first.numbers["differences"], [-0.1, 0.1, -0.2])
    np.testing.assert_allclose(second.numbers["differences"], [1.0, 0.9, 0.8])
    assert second.verdict == "holds" and "1.100 costly experts a token" in second.measured
    np.testing.assert_allclose(first.numbers["ahead"]["few"], [-0.1, 0.1, -0.2])
    assert first.numbers["ahead"]["many"] == [0, 0, 0] and first.numbers["bits_per_byte"] == bits


def test_the_longer_run_costs_what_two_of_eight_cost():
    claim = experts.get_claim()
    configs = {arm: trials.resolve(claim["base"], [claim["arms"][arm]])[0].config for arm in ("top 2", "moe++, longer")}
    spent = {arm: arms.flops_per_step(config) * config.train.steps for arm, config in configs.items()}
    assert abs(spent["moe++, longer"] / spent["top 2"] - 1) < 1 / 400


def test_leverage_of_curves_that_follow_a_law():
    """Losses C^-0.1 of the dense model, and of shapes that need EL times less: the fit tells unseen shapes exactly."""
    claim = {**efficiency_leverage.get_claim(), "after": 100}
    truth = dataclasses.replace(law.PUBLISHED, a=0.9, d=-0.02, a_start=0.03, a_max=np.inf)
    steps = np.arange(50, 451, 50.0)
    dense = np.geomspace(1e9, 1e13, 4001)
    curves = {"dense": (np.arange(4001.0), dense, dense**-0.1)}
    for arm, (E, K, h) in claim["shapes"].items():
        C = steps * 1e9
        curves[arm] = (steps, C, (C * law.leverage(K / E, 2 * 64 / h, C, truth)) ** -0.1)
    found = leverage.figures(claim, curves, 64)
    assert found["error of the law"] < 1e-5 < 0.05 < found["error of the mean"]
    assert found["unseen"] == pytest.approx(found["error of the mean"], abs=1e-5)
    assert found["a"] == pytest.approx(0.9, rel=1e-2) and found["a_start"] == pytest.approx(0.03, rel=1e-2)
    few, many = (np.log(law.leverage(A, 4 / 3, 4.5e11, truth)) for A in (1 / 8, 1 / 2))
    assert found["activation"] == pytest.approx(few - many, rel=1e-4)
    fine, coarse = (np.log(law.leverage(1 / 4, G, 4.5e11, truth)) for G in (16 / 3, 4 / 3))
    assert found["granularity"] == pytest.approx(fine - coarse, rel=1e-4)
    assert found["leverage"]["2 of 8"] == pytest.approx(law.leverage(1 / 4, 4 / 3, 4.5e11, truth), rel=1e-4)


def test_a_law_is_tried_on_a_shape_that_its_fit_has_not_seen():
    """All shapes but one follow a law, that one saves 1.2 times as much: the fit to the others is off by log 1.2."""
    claim = {**efficiency_leverage.get_claim(), "unseen": ("4 of 16",)}
    truth = dataclasses.replace(law.PUBLISHED, a=0.9, d=-0.02, a_start=0.03, a_max=np.inf)
    dense = np.geomspace(1e9, 1e13, 4001)
    curves = {"dense": (np.arange(4001.0), dense, dense**-0.1)}
    for arm, (E, K, h) in claim["shapes"].items():
        C = np.array([1e11, 2e11, 4e11])
        more = 1.2 if arm == "4 of 16" else 1.0
        curves[arm] = (np.full(3, 1e4), C, (C * more * law.leverage(K / E, 2 * 64 / h, C, truth)) ** -0.1)
    assert leverage.figures(claim, curves, 64)["error of the law"] == pytest.approx(np.log(1.2), rel=1e-3)


def test_paths_of_a_table_that_is_known(monkeypatch):
    """Two layers of big, small and skip; the loss of a path at token t is 5 - 2 a - b, a and b by module and parity."""

    class Model:
        class program:
            class spec:
                L, D = 2, 8
                options = {"moe": None}

    worth = np.array([[1.0, 0.6, 0.2], [0.0, 0.9, 0.1]])  # even tokens, odd ones
    loss = lambda t, a, b: 5 - 2 * worth[t % 2][a] - worth[t % 2][b]  # noqa: E731
    own = np.array([[0, 2], [1, 1], [2, 2], [0, 1]])

    def losses(row, index):
        out = np.empty(index.shape[1:])
        for r in range(index.shape[1]):
            for t in range(index.shape[2]):
                out[r, t] = loss(t, *index[:, r, t])
        return out

    Model.program.spec.options["moe"] = {
        "experts": 1, "small": 1, "constant": 0, "copy": 0, "zero": 1, "null": 0, "hidden": 8, "small_hidden": 2,
    }  # fmt: skip
    monkeypatch.setattr(paths, "_passes", lambda model: (losses, lambda row: own))
    monkeypatch.setattr(paths, "_texts", lambda model, count: [np.zeros((2, 4), int)] * count)
    found = paths.figures(Model, 3)
    every = [(a, b) for a in range(3) for b in range(3)]
    cost = lambda path: sum((1, 0.25, 0)[m] for m in path)  # noqa: E731
    mean = lambda each: float(np.mean([each(t) for t in range(4)]))  # noqa: E731
    assert found["all big"] == pytest.approx(mean(lambda t: loss(t, 0, 0)))
    assert found["all skip"] == pytest.approx(mean(lambda t: loss(t, 2, 2)))
    assert found["one big"] == pytest.approx(mean(lambda t: min(loss(t, *p) for p in every if p.count(0) <= 1)))
    assert found["router"] == pytest.approx(mean(lambda t: loss(t, *own[t])))
    within = lambda t: [p for p in every if cost(p) <= cost(own[t]) + 1e-9]  # noqa: E731
    assert found["oracle"] == pytest.approx(mean(lambda t: min(loss(t, *p) for p in within(t))))
    spent = mean(lambda t: cost(own[t]))
    open_ = [p for p in every if cost(p) <= spent]
    assert found["fixed"] == pytest.approx(min(mean(lambda t, p=p: loss(t, *p)) for p in open_))
    assert found["spent"] == pytest.approx(spent) and found["big layers"] == 0.5
