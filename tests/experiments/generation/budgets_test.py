"""A sweep of policies over budgets: what a budget makes of options, what is refused, one table and one figure."""

import json
import types

import numpy as np
import pytest

from experiments.generation import budgets, memories
from experiments.report import kept
from experiments.settings.errors import ConfigError
from kernels import masks
from models.mixers.memory import MEMORIES, Policy, group
from tests.experiments.generation.generate_test import OPTIONS, made
from tests.experiments.generation.memories_test import BYTES, CUT, T, batches


@pytest.mark.parametrize("name", budgets.POLICIES)
@pytest.mark.parametrize("budget", [2, 5, 16, 64])
def test_options_at_a_budget_stand_and_keep_so_many(name, budget):
    options = budgets.options_at(name, OPTIONS[group(name)], budget)
    assert list(MEMORIES[name].problems(options)) == []
    length, N = 200, 2
    made_of = [Policy(name, tuple(options.items()), layer=i, layers=4) for i in range(4)]
    kept = [policy.empty(1, length, N=N, K=2, H=4, dtype=np.float32).k.shape[2] for policy in made_of]
    if name == "token_select":
        assert options["initial"] + options["budget"] + options["local"] == max(budget, 3)
    elif name == "quest":
        assert budget - options["page"] < max(options["least"], budget // options["page"]) * options["page"] <= budget
    elif name == "pyramid":  # As released, about a token a layer above the mean; one slot is free.
        assert 4 * budget <= sum(kept) - 4 <= 4 * budget + 4
    else:  # Slots for the budget, and up to three that are free.
        assert len(set(kept)) == 1 and budget < kept[0] <= budget + 3
    if name in budgets.HALF:
        assert options["recent"] == budget // 2


def test_settings_are_all_pairs_with_budgets_that_may_be_shares():
    asked = list(budgets.settings(OPTIONS, "h2o, quest", "0.5, 4", T, CUT))
    assert [(name, budget) for name, budget, _ in asked] == [("h2o", 4), ("h2o", 5), ("quest", 4), ("quest", 5)]
    assert all(options["memory"] == name and options["max_tokens"] == T - CUT for name, _, options in asked)
    assert asked[1][2]["h2o"]["budget"] == 5.0 and OPTIONS["h2o"]["budget"] != 5.0
    names = {name for name, _, _ in budgets.settings(OPTIONS, "all", "8", T, CUT)}
    assert names == {*budgets.POLICIES} and names | {"full", "window"} == {*MEMORIES}


@pytest.mark.parametrize(
    ("policies", "counts", "says"),
    [
        ("h20", "8", "eval.memories='h20': 'h20' has no budget; did you mean 'h2o'"),
        ("full", "8", "'full' has no budget"),
        ("h2o", "8, x", "eval.budgets='8, x': 'x' is no number of tokens from 2 on"),
        ("h2o", "2.5", "'2.5' is no number of tokens"),
        ("h2o", "0.01", "'0.01' is no number of tokens"),
        ("h2o", "inf", "'inf' is no number of tokens"),
        ("h2o", "nan", "'nan' is no number of tokens"),
    ],
)
def test_what_is_no_policy_or_budget_is_told(policies, counts, says):
    with pytest.raises(ConfigError, match=says):
        list(budgets.settings(OPTIONS, policies, counts, T, CUT))


def model_shape(program):
    """(K, H) of every layer."""
    stack = program.decoder(made()[1]).for_decoding().stack
    blocks = [block for period in stack.periods for block in period.blocks.values()]
    return [(block.mixer.K, block.mixer.H) for block in blocks]


def test_one_table_and_one_figure_of_all_and_a_killed_sweep_goes_on(tmp_path, monkeypatch):
    program, params = made()
    config = program.config.copy_and_resolve_references().unlock()
    config.eval.update({"memories": "streaming, h2o", "budgets": "4, 64", "prompt": CUT, "batch_size": 2})
    config.data.length = T
    config.generate.update({key: value for key, value in OPTIONS.items() if not isinstance(value, dict)})
    model = types.SimpleNamespace(
        config=config, program=program, params=params, step=3, corpus=types.SimpleNamespace(hash="a"),
        tokenizer=types.SimpleNamespace(token_bytes=BYTES),
    )  # fmt: skip
    monkeypatch.setattr(memories.inputs, "eval_batches", lambda *_: batches())
    said = budgets.of_run(model, tmp_path).splitlines()
    assert [line.split()[0] for line in said] == ["policy", "full", "streaming", "streaming", "h2o", "h2o"]
    folder = tmp_path / "memories"
    points = json.loads((folder / "budgets.json").read_text())["points"]
    assert [(row["policy"], row["budget"]) for row in points] == [
        ("streaming", 4), ("streaming", 64), ("h2o", 4), ("h2o", 64),
    ]  # fmt: skip
    for row in points:
        if row["budget"] == 64:  # The whole text: float32 sums of width 32.
            assert row["bits_per_byte"] == pytest.approx(row["full_bits_per_byte"], abs=1e-4)
            assert row["accuracy"] == row["full_accuracy"]
        else:
            assert abs(row["bits_per_byte"] - row["full_bits_per_byte"]) > 1e-3
            assert row["state_bytes"] < row["full_state_bytes"]
        # Two layers of keys and values of a row in float32, and the slots' positions and counters.
        shape = model_shape(program)
        assert row["full_state_bytes"] == 4 * (T + 1) + sum(2 * 4 * T * K * H for K, H in shape)
    assert len({row["full_bits_per_byte"] for row in points}) == 1  # The full cache was read once.
    assert (folder / "budgets.svg").exists() and (folder / "budgets.png").exists()
    monkeypatch.setattr(memories, "scored", None)  # Nothing is computed again.
    assert budgets.of_run(model, tmp_path).splitlines() == said
    page = "".join(kept.section(tmp_path))
    assert page.count("<figure>") == 5 and page.count("data:image/png;base64,") == 1


def test_right_tokens_and_exact_rows_are_counted_by_hand():
    """Rows whose every scored target behind the prompt is the likeliest token; padding counts nowhere."""
    program, params = made()
    given = list(batches())
    found = memories.scored(program, Policy(), CUT, watch=False)(
        params, *(given[0][name] for name in ("tokens", "targets", "scored"))
    )  # fmt: skip
    assert found["right"].shape == (2, T - CUT) and found["right"].dtype == bool
    targets = given[0]["targets"].copy()
    model = program.merge(params)
    logits = model.logits(model(given[0]["tokens"], mask=masks.Causal()).features)
    best = np.asarray(logits).argmax(-1)
    targets[0] = best[0]
    targets[1, :-1], targets[1, -1] = best[1, :-1], (best[1, -1] + 1) % 256
    rows = memories.Rows(program, params, [given[0] | {"targets": targets}, given[1]], BYTES, CUT)
    other = np.asarray(model.logits(model(given[1]["tokens"], mask=masks.Causal()).features)).argmax(-1)
    lucky = int((other[0] == given[1]["targets"][0])[CUT:].sum())
    options = OPTIONS | {"memory": "h2o", "h2o": OPTIONS["h2o"] | {"budget": 64.0, "recent": 2.0}}
    made_of = memories.evaluate(rows, options)
    assert made_of["memory/accuracy"] == made_of["memory/full_accuracy"]
    assert made_of["memory/accuracy"] == (2 * (T - CUT) - 1 + lucky) / (3 * (T - CUT))
    assert made_of["memory/exact"] == made_of["memory/full_exact"] == pytest.approx(1 / 3)
