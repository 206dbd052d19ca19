"""What rows wait while a long prompt is read: which gaps count, by hand, and that the simulator gives the same."""

import numpy as np
import pytest

from experiments.bench import stalls
from experiments.generation.serving import traces
from experiments.generation.serving.costs import StepCost
from experiments.generation.serving.jobs import Asked, Blocks
from experiments.generation.serving.sarathi import Limits
from experiments.generation.serving.schedulers import Sarathi
from experiments.generation.serving.simulator import Log, Machine, Served, simulate


def test_gaps_count_from_the_first_piece_of_the_prompt_to_its_first_token():
    log = Log()
    log.served[0] = Served(Asked(0, 0.0, 2, 6), 0.0, [1.0, 2.0, 3.0, 7.0, 9.0, 10.0])
    log.served[1] = Served(Asked(1, 0.0, 2, 3), 0.0, [1.0, 3.0, 6.0])
    log.served[2] = Served(Asked(2, 2.5, 9, 1), 3.0, [9.0])
    before, during, first = stalls.stalls(log)
    assert sorted(before) == [1.0, 1.0, 2.0] and sorted(during) == [2.0, 3.0, 4.0] and first == 6.5
    found = stalls.figures({"a": log})
    assert found == {
        "a_step_ms": 1000.0,
        "a_p99_steps": pytest.approx(float(np.quantile([2, 3, 4], 0.99))),
        "a_largest_steps": 4.0,
        "a_first_token_s": 6.5,
    }


def test_gaps_are_in_units_of_the_same_tokens_without_the_prompt():
    log, control = Log(), Log()
    log.served[0] = Served(Asked(0, 0.0, 2, 6), 0.0, [1.0, 2.0, 3.0, 7.0, 9.0, 10.0])
    log.served[1] = Served(Asked(1, 0.0, 2, 3), 0.0, [1.0, 3.0, 6.0, 8.0])
    log.served[2] = Served(Asked(2, 2.5, 9, 1), 3.0, [9.0])
    control.served[0] = Served(Asked(0, 0.0, 2, 6), 0.0, [0.0, 1.0, 2.0, 4.0, 9.0])
    control.served[1] = Served(Asked(1, 0.0, 2, 3), 0.0, [0.0, 1.0, 2.0, 6.0])  # Gaps 1, 1, 2, 5 and 1, 1, 4.
    assert sorted(stalls.against(log, control, near=0)) == [2 / 3, 4 / 3, 3.0]
    assert sorted(stalls.against(log, control, near=2)) == [2.0, 3.0, 4.0]
    found = stalls.figures({"a": log}, control)
    assert found["a_p99_own_steps"] == pytest.approx(float(np.quantile([2, 3, 4], 0.99)))


def test_short_prompts_are_read_at_once_and_the_long_one_in_chunks():
    """3 rows with prompts of 5, one of 40 in chunks of 4; a step takes a second and a tenth a token."""
    cost = StepCost((1.0, 0.1, 0, 0, 0))
    requests = traces.asked([0.0, 0.0, 0.0, 6.0], [5, 5, 5, 40], [30, 30, 30, 2])
    logs = {}
    for name, policy in {"chunked": Sarathi(Limits(budget=7)), "whole": stalls.FirstCome()}.items():
        made = stalls.Late(policy, 40) if name == "chunked" else policy
        logs[name] = simulate(requests, [Machine(made, cost, Blocks(1000))])
    assert dict(logs["chunked"].steps[0].plan.chunks) == {0: 5, 1: 5, 2: 5}
    assert all(set(step.plan.chunks.values()) <= {4} for step in logs["chunked"].steps[1:])
    found = stalls.figures(logs)
    assert found["chunked_step_ms"] == found["whole_step_ms"] == pytest.approx(1300)
    assert found["chunked_largest_steps"] == pytest.approx(1.7 / 1.3)
    assert found["whole_largest_steps"] == pytest.approx((1 + 0.3 + 4.0) / 1.3)
