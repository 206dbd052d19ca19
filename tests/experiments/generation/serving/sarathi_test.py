"""Sarathi's step plan against tables by hand and against a scheduler that hands out tokens one at a time."""

import numpy as np
import pytest

from experiments.generation.serving import sarathi
from experiments.generation.serving.sarathi import Limits, Row


def test_decodes_come_first_and_prompts_share_what_is_left():
    """Budget 10, blocks of 4, of 20. Row 1 decodes; row 2 reads 6 of 13; row 3 begins with the last 3 tokens."""
    running = [Row(2, 2.0, 19, read=6, blocks=5), Row(1, 1.0, 5, read=5, written=3, blocks=2)]
    waiting = [Row(3, 3.0, 9), Row(4, 4.0, 2)]
    plan = sarathi.step(running, waiting, Limits(budget=10, block=4, total=20))
    assert (plan.preempt, plan.admit, dict(plan.chunks), plan.decodes) == ((), (), {2: 9}, (1,))
    running[0] = Row(2, 2.0, 12, read=6, blocks=3)
    plan = sarathi.step(running, waiting, Limits(budget=10, block=4, total=20))
    assert (plan.admit, dict(plan.chunks), plan.decodes, plan.tokens) == ((3,), {2: 6, 3: 3}, (1,), 10)


def test_admissions_leave_the_watermark_and_keep_the_order():
    """200 blocks of 1: two stay free. A prompt of 199 blocks all behind it, whatever would fit."""
    limits = Limits(budget=512, block=1, total=200)
    assert sarathi.watermark_blocks(200) == 2 and sarathi.watermark_blocks(99) == 0
    assert sarathi.step([], [Row(0, 0.0, 199), Row(1, 1.0, 1)], limits).admit == ()
    plan = sarathi.step([], [Row(0, 0.0, 198), Row(1, 1.0, 1)], limits)
    assert plan.admit == (0,) and dict(plan.chunks) == {0: 198}
    rows = [Row(i, i, 1) for i in range(5)]
    assert sarathi.step([], rows, Limits(rows=3)).admit == (0, 1, 2)
    assert sarathi.step([], rows, Limits(), now=1.5).admit == (0, 1)


def test_who_is_preempted():
    """4 blocks of 2, none free. Row 0 needs a block: the last row gives its own; row 1 then has what it needs."""
    rows = [Row(0, 0.0, 2, 2, 1, blocks=1), Row(1, 1.0, 3, 3, 1, blocks=2), Row(2, 2.0, 2, 2, 0, blocks=1)]
    limits = Limits(block=2, total=4)
    plan = sarathi.step(rows, [Row(9, 9.0, 1)], limits)
    assert plan.preempt == (2, 1) and plan.decodes == (0,)  # Row 1 has room, but as released it asks for a free block.
    assert plan.admit == ()  # 1 stands in front of the queue: its prompt is read, it has no chunk.
    plan = sarathi.step(rows, [], Limits(block=2, total=4, spare=False))
    assert plan.preempt == (2,) and plan.decodes == (0, 1)
    alone = [Row(0, 0.0, 4, 4, 1, blocks=2)]
    assert sarathi.step(alone, [], Limits(block=2, total=2)).preempt == (0,)  # No other: itself.


def test_a_prompt_under_way_that_is_preempted_may_come_back_at_once():
    rows = [Row(0, 0.0, 2, 2, 1, blocks=1), Row(1, 1.0, 4, 3, blocks=2)]
    plan = sarathi.step(rows, [], Limits(block=2, total=3, watermark=0.0))
    assert plan.preempt == (1,) and plan.decodes == (0,) and plan.admit == ()  # One block is left, two it needs.
    plan = sarathi.step([Row(0, 0.0, 2, 2, 1, blocks=1), Row(1, 1.0, 2, 1, blocks=2)], [], Limits(block=2, total=3))
    assert plan.preempt == (1,) and plan.admit == (1,) and dict(plan.chunks) == {1: 1}


def test_dynamic_chunks():
    """linspace(128, 512, 4) = 128, 256, 384, 512; (32, 100, 3): 32, 66, 100 -> 32, 64, 96; a stage is 4096 / 4."""
    assert sarathi.chunk_sizes(128, 512, 4) == [512, 384, 256, 128]
    assert sarathi.chunk_sizes(32, 100, 3) == [96, 64, 32]
    assert sarathi.chunk_sizes(32, 112, 2) == [128, 32]  # 3.5 multiples: to the even one.
    assert sarathi.chunk_sizes(32, 80, 2) == [64, 32]  # 2.5 multiples, too.
    assert sarathi.chunk_sizes(8, 20, 2) == [16, 8]  # Below 32 the multiple is `low`; 2.5 of them.
    assert [sarathi.chunk_at(read, [9, 8, 7], 10) for read in (0, 3, 4, 7, 8, 11)] == [9, 9, 8, 8, 7, 7]
    with pytest.raises(ValueError, match="longest=13"):
        sarathi.chunk_at(12, [9, 8, 7], 10)
    limits = Limits(sizes=(8, 4), longest=20, block=100)
    plan = sarathi.step([Row(0, 0.0, 5, 5, 1, blocks=1), Row(1, 0.0, 20, 10, blocks=1)], [Row(2, 0.0, 20)], limits)
    assert dict(plan.chunks) == {1: 3, 2: 4}  # 4 - 1; 8 - 4.


def test_decodes_beyond_the_budget_stall_prompts():
    rows = [Row(i, i, 1, 1, 1, blocks=1) for i in range(5)] + [Row(9, 9, 4, 1, blocks=1)]
    plan = sarathi.step(rows, [Row(10, 10, 1)], Limits(budget=3))
    assert len(plan.decodes) == 5 and not plan.chunks and not plan.admit
    assert sarathi.next_chunk(4, 3, 5) == 0 and sarathi.released_next_chunk(4, 3, 5) == -2


def token_by_token(running, waiting, budget, block, total, most):
    """The same rule, a token and a block at a time, where memory is never short for decodes."""
    left, free = budget, total - sum(row.blocks for row in running)
    chunks = {}
    for row in running:
        if row.read == row.prompt:
            left -= 1
            text = row.prompt + row.written
            free -= sum(b * block < text for b in range(total)) - row.blocks
    here = len(running)
    for row in running:
        while left > 0 and row.read + chunks.get(row.id, 0) < row.prompt:
            chunks[row.id] = chunks.get(row.id, 0) + 1
            left -= 1
    admitted = []
    for row in waiting:
        needs = sum(b * block < row.prompt for b in range(total))
        if here >= most or left <= 0 or (free - needs) * 100 < total - total % 100:
            break
        admitted.append(row.id)
        free, here = free - needs, here + 1
        chunks[row.id] = min(left, row.prompt)
        left -= chunks[row.id]
    return chunks, admitted


def test_steps_equal_tokens_handed_out_one_at_a_time():
    rng, busy = np.random.default_rng(0), 0
    for _ in range(300):
        block, budget, most = (int(x) for x in rng.integers((1, 1, 1), (9, 40, 9)))
        running = []
        for i in range(rng.integers(0, 6)):
            prompt = int(rng.integers(1, 40))
            read = prompt if rng.uniform() < 0.5 else int(rng.integers(0, prompt))
            written = int(rng.integers(1, 10)) if read == prompt else 0
            running.append(Row(i, i, prompt, read, written, -(-(prompt + max(0, written - 1)) // block)))
        waiting = [Row(10 + i, 10 + i, int(rng.integers(1, 40))) for i in range(5)]
        total = sum(row.blocks for row in running) + 6 + int(rng.integers(0, 300))
        limits = Limits(budget=budget, block=block, total=total, rows=most)
        plan = sarathi.step(reversed(running), waiting, limits)
        chunks, admitted = token_by_token(running, waiting, budget, block, total, most)
        assert dict(plan.chunks) == chunks and list(plan.admit) == admitted and not plan.preempt
        assert plan.decodes == tuple(row.id for row in running if row.read == row.prompt)
        assert plan.tokens <= max(budget, len(plan.decodes))
        busy += bool(admitted)
    assert busy > 50
