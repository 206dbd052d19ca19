"""The simulator against queues whose times are known, and every scheduler against the laws of serving."""

import dataclasses

import numpy as np
import pytest

from experiments.generation.pool import Pool
from experiments.generation.serving import lamina, sarathi, splitwise, traces
from experiments.generation.serving.costs import Offloaded, StepCost, Work, fit, nonnegative, packed, padded, terms
from experiments.generation.serving.jobs import Asked, Blocks, Job, Seen, Slots
from experiments.generation.serving.plan import StepPlan
from experiments.generation.serving.report import meets, report
from experiments.generation.serving.schedulers import SCHEDULERS, Batches, FirstCome, Sarathi
from experiments.generation.serving.simulator import Machine, Served, simulate

COST = StepCost((2.0, 0.01, 1e-4, 1e-5, 0.1))
ONE = StepCost((1.0, 0, 0, 0, 0))


def test_one_at_a_time_is_the_queue_of_deterministic_service():
    """D/D/1 and any arrivals: a request of 3 steps of a second begins when it is there and the one before has gone."""
    for arrivals in ([0, 2, 4, 6, 8, 10], traces.poisson(0.3, 200, 0), traces.bursts(0.3, 60, 1, size=5)):
        log = simulate(
            traces.asked(arrivals, [10] * len(arrivals), [3] * len(arrivals)), [Machine(FirstCome(1), ONE, Blocks(100))]
        )
        free, waits = 0.0, []
        for arrival in arrivals:  # Lindley's recursion.
            begin = max(arrival, free)
            waits.append(begin - arrival)
            free = begin + 3
        np.testing.assert_allclose([log.served[i].queued for i in range(len(arrivals))], waits, rtol=0, atol=1e-9)
        np.testing.assert_allclose([s.first for s in log.served.values()], np.add(waits, 1), rtol=0, atol=1e-9)
        assert all(gap == pytest.approx(1) for s in log.served.values() for gap in s.gaps)
    assert log.makespan == pytest.approx(free)


def test_a_small_trace_by_hand():
    """Two rows. Step 0: prompt 0 (4 tokens); 1: 0 draws, prompt 1; 2: both; 3: 1 alone; 4: prompt 2, 1 draws last."""
    requests = [Asked(0, 0.0, 4, 3), Asked(1, 0.5, 2, 4), Asked(2, 1.0, 1, 1)]
    cost = StepCost((1.0, 0.1, 0, 0, 0))
    log = simulate(requests, [Machine(FirstCome(2), cost, Blocks(100))])
    # Tokens of the steps: 4; 1 + 2; 2; 1 + 1 (prompt 2 joins when 0 has gone); 1.
    ends = np.cumsum([1.4, 1.3, 1.2, 1.2, 1.1])
    for id, times in enumerate((ends[:3], ends[1:], ends[3:4])):
        np.testing.assert_allclose(log.served[id].times, times)
    assert [step.plan.tokens for step in log.steps] == [4, 3, 2, 2, 1]
    assert [step.used for step in log.steps] == [4, 5 + 2, 6 + 3, 4 + 1, 5]
    assert log.served[2].queued == pytest.approx(ends[2] - 1.0)
    assert report(log).read == 7 and report(log).tokens == pytest.approx(8 / log.makespan)


def test_memory_of_a_row_follows_its_rules():
    """lag 1: the newest token is not in memory. lag 0: the first pass of decoding reads the prompt's last token."""
    new, old = Job(0, 0.0, 10, 9), Job(0, 0.0, 10, 9, read=10, since=3, done=3)
    assert (new.held, new.grown, new.context, new.ready) == (10, 10, 0, False)
    assert (old.held, old.grown, old.context, old.ready) == (12, 13, 12, True)
    apart = dataclasses.replace(old, lag=0)
    assert (apart.held, apart.grown, apart.context) == (14, 15, 13)
    again = old.preempted(keeps=False)
    assert (again.prompt, again.read, again.since, again.done, again.first_prompt) == (13, 0, 0, 3, 10)
    back = old.preempted(keeps=True)
    assert back.kept and (back.prompt, back.read, back.since) == (10, 10, 3)
    assert not dataclasses.replace(old, read=4, since=0).preempted(keeps=True).kept  # A prompt half read is read anew.


def trace(seed, count=40, rate=0.15):
    arrivals = traces.poisson(rate, count, seed) if seed % 2 else traces.bursts(rate, count, seed)
    prompts = traces.lengths(30, 0.8, count, seed + 100, most=120)
    outputs = traces.lengths(12, 0.8, count, seed + 200, most=60)
    return traces.asked(arrivals, prompts, outputs, most=60)


MAKE = {
    **SCHEDULERS,
    "sarathi": lambda: SCHEDULERS["sarathi"](budget=24, rows=12),
    "batchllm": lambda: SCHEDULERS["batchllm"](budget=24),
    "past_future": lambda: SCHEDULERS["past_future"](longest=60),
}
PLACES = {  # What rows may hold: blocks, blocks of one token, the engine's rectangle.
    "blocks": (Blocks(60, 4), 1, False),
    "tokens": (Blocks(200, 1), 1, True),
    "slots": (Slots(Pool(8, 192, 640, block=16)), 0, True),
}


def replay(log, requests, memory, lag, keeps):
    """The log's plans carried out by themselves: what each row has read, written and holds, token by token."""
    asked = {r.id: r for r in requests}
    read, wrote, there, text = {}, {r.id: 0 for r in requests}, [], {r.id: r.prompt for r in requests}
    fresh = dict.fromkeys(asked, 0)  # tokens of a row behind what it had to read
    for step in log.steps:
        for id in step.plan.preempt:
            there.remove(id)
            if not (keeps and read[id] == text[id]):
                text[id], read[id], fresh[id] = text[id] + fresh[id], 0, 0
        for id in step.plan.admit:
            assert id not in there and step.start >= asked[id].arrival
            there.append(id)
            read.setdefault(id, 0)
        for id in step.plan.decodes:
            assert id in there and read[id] == text[id]
            wrote[id], fresh[id] = wrote[id] + 1, fresh[id] + 1
        for id, tokens in step.plan.chunks.items():
            assert id in there
            read[id] += tokens
            assert read[id] <= text[id]
            if lag and read[id] == text[id]:
                wrote[id], fresh[id] = wrote[id] + 1, fresh[id] + 1
        needs = [text[id] + (max(0, fresh[id] - 1) if lag else fresh[id] + 1) for id in there]
        used = memory.used(needs)
        assert used is not None and used == step.used <= memory.total
        there = [id for id in there if wrote[id] < asked[id].output]
    assert not there and wrote == {r.id: r.output for r in requests}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_laws_of_serving(name, place):
    """Each request once, no token twice, memory never exceeded, the budget kept, the same log twice."""
    memory, lag, keeps = PLACES[place]
    preempted = 0
    for seed in range(4):
        requests = trace(seed)
        log = simulate(requests, [Machine(MAKE[name](), COST, memory, lag, keeps)])
        assert all(len(log.served[r.id].times) == r.output for r in requests)
        assert all(t > r.arrival for r in requests for t in log.served[r.id].times)
        replay(log, requests, memory, lag, keeps)
        again = simulate(requests, [Machine(MAKE[name](), COST, memory, lag, keeps)])
        assert again.steps == log.steps and again.served == log.served
        if name in ("sarathi", "batchllm"):
            assert all(step.plan.tokens <= max(24, len(step.plan.decodes)) for step in log.steps)
        if name not in ("batchllm",):  # First come first served: prompts are begun in the order of arrival.
            begun = [log.served[r.id].admitted for r in requests]
            assert begun == sorted(begun)
        preempted += sum(s.preempted for s in log.served.values())
    # Who does not look ahead preempts where memory is short.
    assert preempted > 0 or name not in ("first_come", "aggressive", "sarathi", "batchllm")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_without_limits_nobody_is_preempted(name):
    requests = trace(1)
    log = simulate(requests, [Machine(MAKE[name](), COST, Blocks(10**6, 4))])
    assert not any(s.preempted or s.again for s in log.served.values())
    if name in ("first_come", "aggressive", "conservative", "past_future"):  # Who comes is in the next step.
        assert all(s.queued <= max(step.seconds for step in log.steps) + 1e-9 for s in log.served.values())


def test_long_prompts_do_not_starve():
    """Short requests that never stop coming do not hold up a prompt that fills most of the memory."""
    arrivals = [0.5 * i for i in range(200)]
    requests = traces.asked(arrivals, [90 if i == 10 else 4 for i in range(200)], [4] * 200)
    for name in MAKE:
        if name == "batchllm":
            continue  # Its batch is known from the start, and finite.
        log = simulate(requests, [Machine(MAKE[name](), COST, Blocks(100))])
        assert log.served[10].admitted <= log.served[11].admitted


def test_who_was_preempted_is_not_overtaken():
    """Rows of 4 and 4 tokens in memory for 10: the second leaves, and a request of one token does not pass it."""
    requests = [Asked(0, 0.0, 4, 6), Asked(1, 0.0, 4, 6), Asked(2, 1.5, 1, 1)]
    for keeps in (True, False):
        log = simulate(requests, [Machine(FirstCome(), ONE, Blocks(10), keeps=keeps)])
        plans = [(s.start, s.plan.preempt, s.plan.admit) for s in log.steps if s.plan.preempt or s.plan.admit]
        assert plans == [(0, (), (0, 1)), (2, (1,), ()), (6, (), (1, 2))]
        assert log.served[1].preempted == 1 and log.served[1].again == (0 if keeps else 5)


def test_what_cannot_be_is_an_error():
    with pytest.raises(RuntimeError, match="request 0 is never served"):
        simulate([Asked(0, 0.0, 101, 2)], [Machine(Sarathi(), ONE, Blocks(100))])
    with pytest.raises(ValueError, match="do not fit the memory"):
        simulate([Asked(0, 0.0, 99, 5)], [Machine(FirstCome(), ONE, Blocks(100))])
    with pytest.raises(ValueError, match="ids of their own"):
        simulate([Asked(0, 0.0, 1, 1)] * 2, [Machine(FirstCome(), ONE, Blocks(100))])

    class Wrong(FirstCome):
        def __init__(self, plan):
            super().__init__()
            self.plan = plan

        def step(self, seen):
            return self.plan

    for plan, says in (
        (StepPlan(admit=(7,), decodes=()), "does not wait"),
        (StepPlan(admit=(0,), chunks={0: 5}, decodes=()), "reads 5 of 4"),
        (StepPlan(admit=(0,), chunks={0: 2}, decodes=(0,)), "a row draws once"),
    ):
        with pytest.raises(ValueError, match=says):
            simulate([Asked(0, 0.0, 4, 2)], [Machine(Wrong(plan), ONE, Blocks(100))])


def test_two_pools_by_hand():
    """A prompt of 4 takes 4 s, a step of decoding 1 s, sending 2 s; the token machine does not wait for prompts."""
    reads, writes = StepCost((0, 1.0, 0, 0, 0)), ONE
    machines = [
        Machine(FirstCome(1), reads, Blocks(99), pool="prompt"),
        Machine(FirstCome(), writes, Blocks(99), pool="token"),
    ]
    requests = [Asked(0, 0.0, 4, 3), Asked(1, 1.0, 4, 3)]
    log = simulate(requests, machines, route=lambda machines, request: 0, transfer=lambda job: 2.0)
    assert log.served[0].times == [4, 7, 8] and log.served[1].times == [8, 11, 12]
    assert log.sent == [2, 2] and [step.machine for step in log.steps] == [0, 0, 1, 1, 1, 1]
    one = simulate(requests, [Machine(FirstCome(1), lambda work: 4.0 if work.chunks else 1.0, Blocks(99))])
    assert one.served[0].times == [4, 5, 6] and one.served[1].times == [10, 11, 12]
    # Its memory stays at the first machine until it has been sent: with room for one prompt the second waits for that.
    machines = [
        Machine(FirstCome(), reads, Blocks(5), pool="prompt"),
        Machine(FirstCome(), writes, Blocks(99), pool="token"),
    ]
    log = simulate(requests, machines, route=lambda machines, request: 0, transfer=lambda job: 2.0)
    assert log.served[1].times == [10, 13, 14]


def test_requests_go_to_the_shortest_queue():
    machines = [Machine(FirstCome(1), StepCost((0, 1.0, 0, 0, 0)), Blocks(99)) for _ in range(2)]
    requests = [Asked(i, 0.1 * i, p, 1) for i, p in enumerate((9, 2, 2, 2, 2, 2, 2))]
    log = simulate(requests, machines)
    # 9 at the first; 2, 4, 6, 8 and 10 at the second, the step under way counted; then 10 > 9.
    where = {id: step.machine for step in log.steps for id in step.plan.admit}
    assert where == {0: 0, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 0}
    assert splitwise.shortest([9, 8]) == 1


def test_costs_are_found_again():
    rng = np.random.default_rng(0)
    costs = np.array([2e-3, 1e-5, 3e-8, 2e-9, 1e-4])

    def work():
        chunks = tuple((int(n), int(c)) for n, c in rng.integers(1, 500, (rng.integers(0, 3), 2)))
        return Work(tuple(rng.integers(1, 2000, rng.integers(1, 9)).tolist()), chunks)

    works = [work() for _ in range(60)]
    assert terms(Work((10, 20), ((4, 6), (2, 0)))).tolist() == [1, 8, 30, 4 * 8 + 2 * 1, 4]
    exact = [float(terms(w) @ costs) for w in works]
    found = fit(works, exact)
    np.testing.assert_allclose(found.cost.costs, costs, rtol=1e-8)
    assert found.error < 1e-9 and found.cost(works[0]) == pytest.approx(exact[0])
    noisy = fit(works, exact * rng.normal(1, 0.05, 60))
    assert 0.01 < noisy.error < 0.08 and min(noisy.cost.costs) >= 0
    # A term that would be negative is 0, and the others are those of a fit without it.
    design = np.stack([np.ones(9), np.arange(9.0)], axis=1)
    assert nonnegative(design, 10 - np.arange(9.0))[1] == 0
    # Of one term the fit is the mean of times, and of many it has their sum, however they vary.
    times = np.array([1.0, 1.0, 2.0, 8.0])
    assert nonnegative(np.ones((4, 1)), times)[0] == pytest.approx(3.0, rel=1e-12)
    rng = np.random.default_rng(3)
    design = rng.uniform(0, 5, (200, 3))
    times = design @ [0.3, 0.0, 2.0] * rng.lognormal(0, 0.6, 200)
    found = nonnegative(design, times)
    assert (design @ found).sum() == pytest.approx(times.sum(), rel=1e-9)
    # The equations of the minimum with its own weights: no other cost, of those that are there or not, is better.
    slope = design.T @ ((times - design @ found) / (design @ found))
    assert (abs(slope[found > 0]) < 1e-6).all() and (slope < 1e-6).all() and (found >= 0).all()


def test_padded_packed_and_offloaded_steps():
    work = Work((5, 7), ((4, 0), (9, 0), (5, 0)))
    assert padded(work).chunks == ((9, 0),) * 3 and padded(work).decodes == (5, 7)
    assert packed(work).chunks == ((9, 0),) * 2 and packed(Work()).chunks == ()
    # Two batches of two rows: contexts 50 each at 0.1 are 5 s, the model takes 5 s, 2 tokens of 8 bytes at 4 a second.
    cost = Offloaded(StepCost((5.0, 0, 1.0, 0, 0)), 0.1, traffic=8.0, bandwidth=4.0)
    assert cost(Work((10, 20, 30, 40))) == 2 * max((5 + 9) / 2, 5 + 4, 5)
    alone = dataclasses.replace(cost, batches=1)
    assert alone(Work((10, 20, 30, 40))) == 5 + 10 + 8 == lamina.interval(5, 10, 8, 1)


def test_reports():
    requests = [Asked(0, 0.0, 1, 3), Asked(1, 0.0, 1, 2), Asked(2, 0.0, 1, 2)]
    log = simulate(requests, [Machine(Batches(2), ONE, Blocks(9))])
    assert log.served[0].times == [1, 2, 3] and log.served[2].times == [4, 5]
    found = report(log, first=1.5, gap=1.0)
    assert found.makespan == 5 and found.met == pytest.approx(2 / 3) and found.goodput == pytest.approx(2 / 5)
    assert found.first == (1.0, pytest.approx(1 + 0.98 * 3)) and found.gap == (1, 1) and found.queued[0] == 0
    assert report(log, stall=1.0).met == 1 and report(log, stall=0.99).met == 0
    assert report(log, first=9, gap=0.9).met == 0 and report(log).met == 1 and found.preempted == 0
    uneven = Served(requests[0], times=[1.0, 1.5, 3.0])  # gaps of 0.5 and 1.5: their mean is 1, the largest 1.5
    assert meets(uneven, 1.0, 1.0) and not meets(uneven, 1.0, 0.99) and not meets(uneven, 0.99, 1.0)
    assert meets(uneven, 1.0, 1.0, 1.5) and not meets(uneven, 1.0, 1.0, 1.49)


def test_traces(tmp_path):
    arrivals = traces.poisson(4.0, 20000, 3)
    assert arrivals == sorted(arrivals) and np.diff(arrivals).mean() == pytest.approx(0.25, rel=0.03)
    assert np.diff(arrivals).std() == pytest.approx(0.25, rel=0.03) and traces.poisson(4.0, 20000, 3) == arrivals
    many = traces.bursts(4.0, 20001, 3, size=10)
    assert len(many) == 20001 and len(set(many)) == 2001 and many[-1] == pytest.approx(5000, rel=0.1)
    drawn = traces.lengths(100, 0.5, 20000, 0, most=10**6)
    assert np.mean(drawn) == pytest.approx(100, rel=0.02) and np.log(drawn).std() == pytest.approx(0.5, rel=0.03)
    assert max(traces.lengths(100, 0.5, 100, 0, most=120)) == 120
    requests = traces.asked([0.0, 1.5], [4, 5], [6, 7], most=9)
    traces.write(tmp_path / "trace.jsonl", requests)
    assert traces.read(tmp_path / "trace.jsonl") == requests and requests[1] == Asked(1, 1.5, 5, 7, 9)
    for line in (
        '{"arrival": 1}',
        "[",
        '{"arrival": -1, "prompt": 1, "output": 1}',
        '{"arrival": 1, "prompt": 1, "output": 0}',
    ):
        (tmp_path / "bad.jsonl").write_text('{"arrival": 0, "prompt": 1, "output": 1}\n' + line + "\n")
        with pytest.raises(ValueError, match="line 2"):
            traces.read(tmp_path / "bad.jsonl")


def test_the_engine_s_plan_is_this_policy_s():
    """First come first served over slots: as many rows as the rectangle has room for."""
    memory = Slots(Pool(8, 64, 256, block=16))
    assert memory.used([]) == 0 and memory.used([1, 16]) == 128 and memory.used([17] * 8) == 256
    assert memory.used([33] * 5) is None and memory.used([33] * 4) == 256 and memory.total == 256
    waiting = tuple(Job(i, 0.0, 20, 30, lag=0) for i in range(9))
    assert FirstCome().step(Seen(0.0, waiting, (), memory)).admit == tuple(range(8))
    long = (Job(0, 0.0, 40, 9, lag=0), *waiting[1:])
    assert FirstCome().step(Seen(0.0, long, (), memory)).admit == (0, 1, 2, 3)
    assert sarathi.blocks_of(17, 16) == 2
