"""How claims are decided: planted effects and the verdicts that they get, controls, budgets, and arms tuned alike."""

import collections
import math
import types

import numpy as np
import pytest
from scipy import stats

from configs.claims import digits_reversed
from experiments import claims
from experiments import workdir as files
from experiments.claims import arms, method, rejudge, statistics, tuning
from experiments.claims.evidence import UNDECIDED, Evidence
from experiments.program import inputs
from experiments.settings.errors import ConfigError, Refused
from experiments.sweep import trials
from tests.experiments.claims.claims_test import small

CONTROL = {"says": "easy", "reads": ("exact", "easy"), "least": 0.9}


def stated(looks=(3, 6, 12), effect=1.0, hours=1e9, **more):
    """A claim with a method and nothing to train."""
    made = {"statement": "s", "source": "a", "published": "p", "check": "contrast", "seeds": tuple(range(looks[-1]))}
    return made | {"looks": looks[:-1], "effect": effect, "hours": hours, "control": CONTROL} | more


def made_up(draws, easy=1.0):
    """A check whose differences by seed are `draws`."""

    def run(claim, workdir, *, jobs, quiet):
        values = [draws[seed] for seed in claim["seeds"]]
        judged = method.judge(claim, values)
        numbers = {"seeds": list(claim["seeds"]), "exact": {"easy": [easy] * len(values)}, **judged.to_dict()}
        return [Evidence("s", "p", f"{judged.mean:.3f}", "none", judged.verdict, numbers)]

    return types.SimpleNamespace(run=run)


def verdicts(effect, deviation, looks, folder, repetitions=1000):
    """How often each verdict is given where differences are normal with mean `effect`, the smallest of interest 1."""
    rng, found = np.random.default_rng(round(1000 * effect + 1000) + len(looks)), collections.Counter()
    for draws in rng.normal(effect, deviation, (repetitions, looks[-1])):
        (row,) = claims._looks(made_up(draws), stated(looks), folder, jobs=1, quiet=True)
        found[row["verdict"]] += 1
    return found


@pytest.mark.parametrize("looks", [(3, 6, 12), (5, 10, 20, 40)])
def test_planted_effects_get_their_verdicts(looks, tmp_path):
    """A thousand made-up studies each: no effect, a tiny one either way, one of the size of interest, a large one."""
    deviation = 0.9
    found = {effect: verdicts(effect, deviation, looks, tmp_path) for effect in (-0.1, 0.0, 0.1, 1.0, 2.0)}
    for effect in (-0.1, 0.0, 0.1):  # 5% and two standard errors of a share of 1,000
        assert found[effect]["holds"] <= 64 and found[effect]["does not"] <= 64, found[effect]
    assert found[0.0]["holds"] + found[0.0]["does not"] <= 64
    assert found[1.0]["does not"] + found[2.0]["does not"] == 0
    # Where the budget makes the interval narrower than the effect, null and tiny effects are called equal.
    level = statistics.look_level([n / looks[-1] for n in looks])
    narrow = 2 * statistics.half_width(deviation, looks[-1], level) < 0.9
    for effect in (-0.1, 0.0, 0.1):
        assert not narrow or found[effect]["equal within the effect"] > 900
    # Power is at least that of a single look at the whole budget at its own, stricter level, which it is stated by.
    for effect in (1.0, 2.0):
        power = statistics.power(effect, deviation, looks[-1], level)
        # An effect of just the size of interest is taken for a smaller one by level / 2 of looks: mean + half < effect.
        mistaken = level / 2 * len(looks) if effect == 1.0 else 0.0
        least = power - mistaken - 3 * math.sqrt(0.25 / 1000)
        assert found[effect]["holds"] / 1000 > least, (effect, found[effect], power)
    assert sum(found[0.0][name] for name in ("holds", "does not", "equal within the effect", "cost too high")) == 1000


def test_the_rule_of_verdicts():
    decide = method.decide
    assert decide(0.2, 0.1, 0.9, 1.0, last=False) == "equal within the effect"  # above 0, and known to be small
    assert decide(1.5, 0.1, 2.9, 1.0, last=False) == "holds"
    assert decide(0.9, 0.1, 1.7, 1.0, last=False) == UNDECIDED  # wide, and below what is of interest: seen by luck?
    assert decide(0.9, 0.1, 1.7, 1.0, last=True) == "holds"
    assert decide(0.9, 0.5, 1.3, 1.0, last=False) == "holds"  # narrower than the effect
    assert decide(-0.9, -1.7, -0.1, 1.0, last=True) == "does not"
    assert decide(-0.9, -1.7, -0.1, 1.0, last=False) == UNDECIDED
    assert decide(-2.0, -3.0, -1.0, 1.0, last=False) == "does not"
    assert decide(0.3, -0.7, 1.3, 1.0, last=False) == UNDECIDED
    assert decide(0.3, -0.7, 1.3, 1.0, last=True) == "cost too high"
    assert decide(0.0, -1.0, 1.0, 1.0, last=True) == "cost too high"  # as wide as the effect is not within it
    for mean in np.linspace(-3, 3, 61):  # An interval narrower than the effect always decides.
        assert decide(mean, mean - 0.49, mean + 0.49, 1.0, last=False) in (
            "holds",
            "does not",
            "equal within the effect",
        )


def test_a_look_has_pocock_s_level_in_student_s_t_and_a_bound_shifts_it():
    claim, values = stated(), [0.1, 0.5, 0.9]
    level = statistics.look_level((0.25, 0.5, 1.0))
    half = stats.t.ppf(1 - level / 2, 2) * np.std(values, ddof=1) / math.sqrt(3)
    judged = method.judge(method.first(claim, 3), values)
    assert judged.ends == pytest.approx((0.5, 0.5 - half, 0.5 + half)) and judged.numbers["differences"] == values
    assert method.judge(claim | {"effect": 0.01}, [5.5] * 11 + [5.6], bound=5.0).verdict == "holds"
    assert method.judge(claim | {"effect": 0.01}, [5.5] * 11 + [5.6], bound=6.0).verdict == "does not"
    plain = {key: claim[key] for key in ("seeds", "check")}  # without a method: the interval of old
    assert method.judge(plain, [1.0, 2.0, 3.0]).ends == pytest.approx((2.0, 2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert method.judge(plain, [1.0, 2.0, 3.0]).verdict == "undecided"
    for given in (plain, claim):
        with pytest.raises(Refused, match="use at least 2"):
            method.judge(given, [1.0])


def test_seeds_are_added_until_a_look_decides_and_a_verdict_stays(tmp_path):
    asked = []

    def check(draws):
        inner = made_up(draws)

        def run(claim, workdir, **options):
            asked.append(len(claim["seeds"]))
            return inner.run(claim, workdir, **options)

        return types.SimpleNamespace(run=run)

    draws = np.array([2.0, 2.1, 1.9] + [-9.0] * 9)
    (row,) = claims._looks(check(draws), stated(), tmp_path, jobs=1, quiet=True)
    assert asked == [3] and row["verdict"] == "holds" and "control: easy 1 (>= 0.9 asked for)" in row["measured"]
    assert row["numbers"]["control"] == {"says": "easy", "value": 1.0, "least": 0.9, "reached": True}
    asked.clear()
    wide = np.array([3.0, -3.0] * 6)
    (row,) = claims._looks(check(wide), stated(), tmp_path, jobs=1, quiet=True)
    assert asked == [3, 6, 12] and row["verdict"] == "cost too high"
    deviation, level = np.std(wide, ddof=1), statistics.look_level((0.25, 0.5, 1.0))
    needed = row["numbers"]["needs"]["seeds"]
    assert (
        needed == statistics.seeds_for_width(1.0, deviation, level) and f"needs about {needed} seeds" in row["measured"]
    )
    asked.clear()  # A control that fails ends it at once, whatever the difference.
    lost = types.SimpleNamespace(
        run=lambda claim, w, **o: (asked.append(0), *made_up(draws, 0.2).run(claim, w, **o))[1:]
    )
    (row,) = claims._looks(lost, stated(), tmp_path, jobs=1, quiet=True)
    assert row["verdict"] == "control failed" and len(asked) == 1 and "easy 0.2 (>= 0.9 asked for)" in row["measured"]


def test_two_rows_are_decided_each_at_its_own_look(tmp_path):
    one, other = np.array([2.0, 2.1, 1.9] + [-9.0] * 9), np.array([3.0, -3.0] * 6)
    both = types.SimpleNamespace(run=lambda *a, **o: [row for d in (one, other) for row in made_up(d).run(*a, **o)])
    first, second = claims._looks(both, stated(), tmp_path, jobs=1, quiet=True)
    assert first["verdict"] == "holds" and len(first["numbers"]["seeds"]) == 3  # not what twelve seeds would say
    assert second["verdict"] == "cost too high" and len(second["numbers"]["seeds"]) == 12


def test_no_look_begins_that_the_hours_do_not_allow(tmp_path):
    inner = made_up(np.array([3.0, -3.0] * 6))

    def run(claim, workdir, **options):
        for seed in claim["seeds"]:  # half an hour each
            files.write_json(workdir / claims.RUNS / str(seed) / files.RESULT, {"seconds": 1800.0})
            files.write_json(workdir / claims.RUNS / str(seed) / files.CONFIG, {"config": {"seed": seed}})
        return inner.run(claim, workdir, **options)

    check = types.SimpleNamespace(run=run)
    for hours, seeds in ((6.1, 12), (3.1, 6), (2.9, 3)):  # The next look doubles what three seeds took: 3 hours.
        folder = tmp_path / str(seeds)
        (row,) = claims._looks(check, stated(hours=hours), folder, jobs=1, quiet=True)
        assert row["verdict"] == "cost too high" and len(row["numbers"]["seeds"]) == seeds
    needs = row["numbers"]["needs"]
    assert needs["hours"] == pytest.approx(needs["seeds"] * 0.5)
    (row,) = claims._looks(check, stated(hours=3.1), tmp_path / "12", jobs=1, quiet=True)
    assert len(row["numbers"]["seeds"]) == 6  # runs of later looks that are there already cost this one nothing
    files.write_json(tmp_path / "t" / claims.TUNING / claims.RUNS / "t" / files.RESULT, {"seconds": 1800.0})
    (row,) = claims._looks(check, stated(hours=3.1), tmp_path / "t", jobs=1, quiet=True)
    assert len(row["numbers"]["seeds"]) == 3  # what tuning took is spent, too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": None}, "not its control; add e.g. control="),
        ({"hours": None}, "not its hours"),
        ({"effect": 0.0}, "effect=0.0 must be positive"),
        ({"looks": (1, 12)}, "must rise from 2"),
        ({"looks": (6, 3, 12)}, "must rise"),
        ({"control": {"says": "a", "reads": ("x",)}}, "needs says, reads, and least or most"),
        ({"control": {**CONTROL, "most": 1.0}}, "needs says, reads, and least or most"),
    ],
)
def test_a_method_that_cannot_decide_is_refused(changes, message):
    with pytest.raises(Refused, match=message):
        method.of(stated() | changes)


def test_the_last_look_is_at_all_seeds():
    assert method.of(stated()).looks == (3, 6, 12) and method.of(stated() | {"looks": ()}).looks == (12,)
    assert method.of(stated() | {"seeds": (0, 1)}).looks == (2,)  # fewer than the looks name
    assert method.of(method.first(stated(), 3)).looks == (3, 6, 12)  # at a look the budget stays what it was


def test_a_control_is_read_by_its_path_and_a_pair_may_have_its_own():
    made = method.of(stated(), {"effect": 0.5, "control": {"says": "c", "reads": ("loss", "a", "4"), "most": 1.0}})
    assert made.effect == 0.5
    assert method.controlled(made, {"loss": {"a": {"4": [0.8, 1.0]}}}) == (
        True, {"says": "c", "value": pytest.approx(0.9), "most": 1.0},
    )  # fmt: skip
    assert not method.controlled(made, {"loss": {"a": {"4": [1.2, 1.0]}}})[0]
    with pytest.raises(Refused, match="finds no 'a'; there are \\['b'\\]"):
        method.controlled(made, {"loss": {"b": 1}})


def test_pairs_of_one_seed_read_the_same_rows_and_begin_alike(tmp_path):
    """Two arms that differ in a rate: the same batches, and what a seed draws is what the other arm has, too."""
    base = small(digits_reversed.get_claim()["base"], tmp_path)
    loaders = []
    for trial in trials.resolve(base, [{"optimizer.learning_rate": rate, "seed": 3} for rate in (1e-3, 2e-3)]):
        loaders.append(inputs.train_loader(trial.config, inputs.load(trial.config)))
    for step in (0, 5):
        np.testing.assert_array_equal(loaders[0].batch(step)["tokens"], loaders[1].batch(step)["tokens"])


def test_arms_are_tuned_alike_on_rows_that_the_verdict_does_not_read(tmp_path, monkeypatch):
    claim = digits_reversed.get_claim()
    claim |= {"tune": {"optimizer.learning_rate": (1e-3, 4e-3, 1e-2), "optimizer.b2": (0.95, 0.99)}, "score": "loss"}
    best, seen = {"reversed": (4e-3, 0.99), "plain": (1e-2, 0.95)}, []

    def train(base, given, seeds, workdir, **_):
        assert seeds == (tuning.SEED,) and workdir == tmp_path / claims.TUNING
        assert base.eval.skip == base.eval.rows == claim["base"].eval.rows
        seen.extend(given)
        rate = lambda values: (values["optimizer.learning_rate"], values["optimizer.b2"])  # noqa: E731
        kind = lambda values: "reversed" if "reverse" in values["data.name"] else "plain"  # noqa: E731
        return {arm: [{"loss": float(rate(values) != best[kind(values)])}] for arm, values in given.items()}

    monkeypatch.setattr(arms, "train", train)
    made, said = tuning.tuned(claim, tmp_path, jobs=1, quiet=True)
    assert len(seen) == 2 * 6
    for arm, (rate, b2) in best.items():
        assert made["arms"][arm] == {
            **claim["arms"][arm], "optimizer.learning_rate": rate, "optimizer.b2": b2
        }  # fmt: skip
        assert said[arm]["chosen"] == {"optimizer.learning_rate": rate, "optimizer.b2": b2}
        assert len(said[arm]["tried"]) == 6 and sum(t["loss"] for t in said[arm]["tried"]) == 5
    untouched = {key: value for key, value in digits_reversed.get_claim().items() if key != "tune"}
    assert tuning.tuned(untouched, tmp_path, jobs=1, quiet=True) == (untouched, {})


def test_an_arm_borrows_what_was_best_for_another(tmp_path, monkeypatch):
    """The base is best at 2: borrowed as it is. A wider arm that is best at 2, too, is left with its second best."""
    loss = {8: {1: 2.0, 2: 1.0, 4: 3.0}, 16: {1: 0.5, 2: 0.4, 4: 0.6}, 32: {1: 0.2, 2: 0.4, 4: 0.6}}
    claim = digits_reversed.get_claim() | {"tune": {"optimizer.learning_rate": (1, 2, 4)}, "score": "loss"}
    claim["arms"] = {f"{width}": {"model.width": width} for width in loss}
    claim["borrow"] = {f"{width} lent": (f"{width}", "8") for width in (16, 32)}

    def train(base, given, seeds, workdir, **_):
        assert not any("lent" in arm for arm in given)
        return {a: [{"loss": loss[v["model.width"]][v["optimizer.learning_rate"]]}] for a, v in given.items()}

    monkeypatch.setattr(arms, "train", train)
    made, said = tuning.tuned(claim, tmp_path, jobs=1, quiet=True)
    rates = {arm: values["optimizer.learning_rate"] for arm, values in made["arms"].items()}
    assert rates == {"8": 2, "16": 1, "32": 1, "16 lent": 2, "32 lent": 2}
    assert made["arms"]["32 lent"]["model.width"] == 32 and said["32 lent"]["chosen"] == {"optimizer.learning_rate": 2}
    assert [t["loss"] for t in said["16"]["tried"]] == [0.5, 0.4, 0.6] and said["16 lent"]["tried"] == []
    for wrong in ({"16 lent": ("16", "no arm")}, {"16": ("32", "8")}):
        with pytest.raises(Refused, match=r"borrow: '16.* takes .* a new name two of: 8, 16, 32"):
            tuning.refuse_unequal(claim | {"borrow": wrong})


def test_a_claim_that_tunes_one_arm_only_is_void():
    arm = {"a": {"model.width": 8, "optimizer.learning_rate": 1e-3}, "b": {"model.width": 16}}
    with pytest.raises(Refused, match="'a' sets optimizer.learning_rate and 'b' does not: a claim that tunes one arm"):
        tuning.refuse_unequal({"arms": arm})
    tuning.refuse_unequal({"arms": {name: {**values, "optimizer.learning_rate": 1e-3} for name, values in arm.items()}})
    search = {"optimizer.learning_rate": (1e-3, 1e-2)}
    with pytest.raises(Refused, match="'a' sets optimizer.learning_rate, which tune searches"):
        tuning.refuse_unequal({"arms": arm, "tune": search})
    with pytest.raises(Refused, match="no search that all arms share"):
        tuning.refuse_unequal({"arms": {"a": {}, "b": {}}, "tune": {"a": search}})
    with pytest.raises(Refused, match="has no arms to tune"):
        tuning.refuse_unequal({"lines": {}, "tune": search})
    with pytest.raises(Refused, match="hold 10000, with which"):
        tuning.refuse_unequal({"arms": {"a": {}, "b": {}}, "tune": search, "seeds": (0, 10_000)})


def test_skipped_rows_are_those_that_others_read(tmp_path):
    """Of 100 held-out rows the 13 behind the first 7, in batches of 4: the same rows as one by one, no other scored."""
    config = small(digits_reversed.get_claim()["base"], tmp_path)
    config.eval.rows, config.eval.batch_size = 100, 4
    corpus = inputs.load(config)

    def rows(**changes):
        made = config.copy_and_resolve_references()
        made.eval.update(changes)
        batches = list(inputs.eval_batches(made, corpus))
        stacked = {key: np.concatenate([batch[key] for batch in batches]) for key in ("tokens", "scored")}
        return stacked["tokens"][stacked["scored"].any(1)]

    every = rows()
    assert len(every) == 100
    np.testing.assert_array_equal(rows(rows=13, skip=7), every[7:20])
    np.testing.assert_array_equal(rows(rows=13, skip=7, batch_size=5), every[7:20])
    np.testing.assert_array_equal(rows(rows=4, skip=8), every[8:12])
    with pytest.raises(ConfigError, match="leaves none of"):
        rows(skip=10**9)


def test_stored_evidence_is_judged_by_what_its_claim_states_today():
    values = np.array([0.5, 0.9, 1.6])
    half = stats.t.isf(0.025, 2) * values.std(ddof=1) / math.sqrt(3)
    numbers = {"seeds": [0, 1, 2], "mean": values.mean(), "low": values.mean() - half, "high": values.mean() + half}
    numbers["exact"] = {"easy": [1.0, 0.95, 0.9]}
    row = {"statement": "s", "measured": "m", "verdict": "undecided", "numbers": numbers}
    record = {"claim": "a.py", "rows": [row, {"verdict": "exact", "numbers": {"error": 0.0}}]}
    found = rejudge.rejudged(record, stated())
    one, exact = found["rows"]
    fresh = method.judge(method.first(stated(), 3), values)
    assert one["numbers"]["deviation"] == pytest.approx(values.std(ddof=1))
    assert (one["numbers"]["low"], one["numbers"]["high"]) == pytest.approx(fresh.ends[1:])
    needed = statistics.seeds_for_width(1.0, values.std(ddof=1), fresh.numbers["level_of_a_look"])
    assert one["numbers"]["needs"] == {"seeds": needed} and 6 < needed <= 12 and one["verdict"] == "undecided"
    assert one["measured"].endswith(f"a decision within 1 needs about {needed} seeds") and exact == record["rows"][1]
    again = rejudge.rejudged(found, stated())["rows"][0]  # as often as one likes
    assert again["measured"] == one["measured"] and again["verdict"] == one["verdict"]
    assert again["numbers"]["low"] == pytest.approx(one["numbers"]["low"], rel=1e-12)
    dear = rejudge.rejudged(record, stated() | {"effect": 0.1})["rows"][0]
    assert dear["verdict"] == "cost too high" and dear["numbers"]["needs"]["seeds"] > 12
    lost = rejudge.rejudged(record, stated() | {"control": {**CONTROL, "least": 0.96}})["rows"][0]
    assert lost["verdict"] == "control failed" and "easy 0.95 (>= 0.96 asked for)" in lost["measured"]
    assert rejudge.rejudged(record, {"seeds": (0, 1, 2)}) == record


def test_evidence_that_was_judged_so_from_the_start_stays_as_it_is(tmp_path):
    """Same verdict, control, effect and looks: no bit changes, and no page says that the method came after the runs."""
    (row,) = claims._looks(made_up([0.5, 0.9, 1.6]), stated((3,)), tmp_path, jobs=1, quiet=True)
    record = {"claim": "a.py", "rows": [row]}
    assert rejudge.rejudged(record, stated((3,))) == record
    for change in ({"effect": 3.0}, {"looks": (2,)}, {"control": {**CONTROL, "least": 0.8}}):
        assert rejudge.rejudged(record, stated((3,)) | change)["judged_anew"], change
    wrong = {"claim": "a.py", "rows": [row | {"verdict": "does not"}]}
    assert rejudge.rejudged(wrong, stated((3,)))["rows"][0]["verdict"] == row["verdict"] != "does not"


def test_errors_are_judged_anew_by_what_counts_as_reliable():
    """Errors of 1.5% to 2.5%, less of which is better: above 1%, below 4%, and equal to 2% within 2 points."""
    numbers = {"seeds": [0, 1, 2], "mean": 0.02, "low": 0.015, "high": 0.025, "exact": {"easy": [1.0]}}
    claim = stated((3,)) | {"check": "overtraining"}
    for within, effect, verdict in (
        (0.01, 0.004, "does not"),
        (0.04, 0.004, "holds"),
        (0.02, 0.02, "equal within the effect"),
    ):
        row = {"statement": "s", "measured": "m", "verdict": "undecided", "numbers": numbers | {"within": within}}
        found = rejudge.rejudged({"claim": "a.py", "rows": [row]}, claim | {"effect": effect})
        assert found["rows"][0]["verdict"] == verdict


def test_growth_keeps_losses_and_less_of_them_is_better():
    """Grown less rival, -1.1 to -0.9: the grown model is better, and the row's numbers stay as they are."""
    numbers = {"seeds": [0, 1, 2], "mean": -1.0, "low": -1.1, "high": -0.9, "exact": {"easy": [1.0]}}
    record = {
        "claim": "a.py",
        "rows": [{"statement": "s", "measured": "m", "verdict": "undecided", "numbers": numbers}],
    }
    claim = stated() | {"check": "growth", "seeds": (0, 1, 2), "looks": (3,)}
    found = rejudge.rejudged(record, claim)["rows"][0]
    assert found["verdict"] == "holds"
    assert [found["numbers"][name] for name in ("mean", "low", "high")] == pytest.approx([-1.0, -1.1, -0.9])
    assert rejudge.rejudged(record, claim | {"check": "contrast"})["rows"][0]["verdict"] == "does not"
