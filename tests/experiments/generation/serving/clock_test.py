"""Clocks against walks of their rules, and against the figures that the closed forms give."""

import numpy as np
import pytest

from experiments.generation.serving import clock
from experiments.generation.serving.clock import StepCosts

COSTS = StepCosts(draft=1.0, target=4.0)


def test_the_figures_of_the_closed_forms():
    """g = 4 = target / draft; a = 0.8 and 0.3, worked out by hand from the sums."""
    assert clock.pearl_tokens_per_step(0.8, 4) == pytest.approx(1 / (0.2 * (1 + 0.8 / (1 - 0.4096))), rel=1e-14)
    assert clock.pearl_speedup(0.8, 4, COSTS) == pytest.approx(2.123, abs=5e-4)
    assert clock.serial_speedup(0.8, 4, COSTS) == pytest.approx((1 + 0.8 + 0.64 + 0.512 + 0.4096) / 2, rel=1e-14)
    assert clock.pearl_speedup(0.3, 4, COSTS) == pytest.approx(1.097, abs=5e-4)
    assert clock.serial_speedup(0.3, 4, COSTS) == pytest.approx(0.713, abs=5e-4)
    assert clock.serial_speedup(0.51, 4, COSTS) < 1 < clock.serial_speedup(0.53, 4, COSTS)
    assert all(clock.pearl_speedup(a, 4, COSTS) >= 1 for a in np.linspace(0, 1, 21))
    assert clock.pearl_tokens_per_step(1, 7) == 7 and clock.pearl_tokens_per_step(1 - 1e-9, 7) == pytest.approx(7)


def test_tokens_of_a_round():
    for a, g in ((0.0, 3), (0.4, 1), (0.9, 5), (1.0, 4)):
        share = clock.round_lengths(a, g)
        assert share.sum() == pytest.approx(1) and len(share) == g + 1
        mean = share @ np.arange(1, g + 2)
        assert clock.tokens_per_round(a, g) == pytest.approx(mean, rel=1e-14)
        assert clock.tokens_per_round_without_bonus(a, g) == pytest.approx(mean - a**g, rel=1e-12, abs=1e-14)


def walk(text, draft, g, start, end):
    """PEARL on strings: the draft writes what `draft` says where it agrees with the text, the target what `text` says.

    Both are strings; the text as it stands is a prefix of `text` and pending drafts. Returns the lengths after steps.
    """
    written, pending, lengths = list(text[:start]), [], []
    while len(written) + len(pending) < end:
        at = len(written) + len(pending)
        new = [draft[at + i] for i in range(g)]
        checked = pending + new[:1]
        for token in checked:
            if token != text[len(written)]:
                written.append(text[len(written)])
                pending = []
                break
            written.append(token)
        else:
            pending = new[1:]
        lengths.append(len(written) + len(pending))
    return lengths, "".join(written)


@pytest.mark.parametrize("g", [1, 2, 4, 5])
def test_the_trace_of_pearl_is_the_walk_on_strings(g):
    rng = np.random.default_rng(g)
    text = "".join(rng.choice(list("ab"), 200))
    draft = "".join(c if rng.uniform() < 0.8 else "x" for c in text)
    steps = clock.pearl_trace(lambda i: draft[i] == text[i], g, 6, 120)
    lengths, written = walk(text, draft, g, 6, 120)
    assert [step.after for step in steps] == lengths
    assert [step.before for step in steps] == [6, *lengths[:-1]]
    assert clock.pearl_verified(steps, g) == len(written) and written == text[: len(written)]
    # The steps of a run are those of the formula.
    runs = clock.accepted_runs(steps)
    whole = sum(clock.pearl_steps_of_run(run, g) for run in runs)
    last = max(i for i, step in enumerate(steps) if step.rejected)
    assert whole == last + 1
    assert sum(runs) + len(runs) == steps[last].after - 6


def test_steps_of_runs_average_to_the_closed_form():
    """sum_L a^L (1 - a) steps(L) = 1 + a / (1 - a^g), summed until the rest is below 1e-15."""
    for a, g in ((0.3, 1), (0.8, 4), (0.6, 3)):
        mean = sum(a**L * (1 - a) * clock.pearl_steps_of_run(L, g) for L in range(400))
        assert mean == pytest.approx(1 + a / (1 - a**g), rel=1e-12)
        assert clock.pearl_tokens_per_step(a, g) == pytest.approx(1 / (1 - a) / mean, rel=1e-12)


def test_times_of_traces():
    costs = StepCosts(draft=1.0, target=5.0, node=0.5, exchange=0.25)
    assert costs.verify(1) == 5 and costs.verify(4) == 6.5
    assert clock.serial_time([3, 0], costs) == (3 + 6.5) + 5
    steps = clock.pearl_trace(lambda i: True, 4, 0, 12)
    assert len(steps) == 3 and clock.pearl_time(steps, 4, costs) == 3 * (6.5 + 0.25)
    assert clock.pearl_time(steps, 8, costs) == 3 * (8.5 + 0.25)
    assert clock.pearl_time(steps, 8, StepCosts(2.0, 5.0)) == 3 * 16
    # LLMCad: 3 drafts and a verification of 6.5, in which 6 more are made; the next 8 need 2, after a rejection all.
    assert clock.llmcad_time([3, 8, 2], [True, False, True], costs) == (3 + 6.5) + (2 + 9) + (2 + 6)
    assert clock.llmcad_time([3, 2], [True, True], costs) == (3 + 6.5) + (0 + 6)


def test_dovetail_takes_fewer_nodes_where_they_cost():
    free, dear = StepCosts(1.0, 10.0), StepCosts(1.0, 10.0, node=3.0)
    assert clock.tree_speedup(3.0, 4, 16, dear) == 30 / (4 + 55)
    assert clock.best_drafts(0.8, free, 12) > clock.best_drafts(0.8, dear, 12)
    for costs in (free, dear):
        best = clock.best_drafts(0.8, costs, 12)
        assert clock.serial_speedup(0.8, best, costs) == max(clock.serial_speedup(0.8, g, costs) for g in range(13))
    assert clock.best_drafts(0.0, free, 5) == 0
    once = StepCosts(1.0, 10.0, node=3.0, more=5.0)
    assert (once.verify(1), once.verify(2), once.verify(4)) == (10.0, 18.0, 24.0)


def test_costs_are_fitted_to_measured_passes():
    tokens = np.array([1, 2, 4, 8, 16])
    target, node = clock.fit_target(tokens, 3.0 + 0.2 * (tokens - 1))
    assert target == pytest.approx(3.0) and node == pytest.approx(0.2)
    assert clock.fit_target(tokens, 3.0 - 0.1 * (tokens - 1))[1] == 0
