"""A schedule played through by hand."""

import types

import pytest

from experiments.planning import chips, hlo, waiting

PLACES = [types.SimpleNamespace(coords=(x, y, 0)) for x, y in ((0, 0), (0, 1), (0, 2), (0, 3))]
CHIP = chips.Chip("made up", flops=1e9, hbm=1e9, bandwidth=1e6, link=1e6, ports=4)
MOVED = "(f32[1000]{0}, f32[1000]{0}) collective-permute-start(%x)"
ONE = "f32[1]{0}"


def played(*lines: str) -> dict[str, float]:
    """Milliseconds of a schedule of these instructions, of x of 4,000 bytes and c of 4."""
    body = "\n".join(f"  {line}" for line in lines)
    given = f"  %x = f32[1000]{{0}} parameter(0)\n  %c = {ONE} parameter(1)"
    text = f"HloModule m\n\nENTRY %main () -> f32[1] {{\n{given}\n{body}\n}}\n"
    found = waiting.played(hlo.computations(text), PLACES, CHIP)
    return {name: pytest.approx(seconds * 1e3, abs=0.02) for name, seconds in found.items()}


def kernel(name: str, ms: float) -> str:
    flops = f'backend_config={{"cost_estimate":{{"flops":"{int(ms * 1e6)}"}}}}'
    return f'%{name} = {ONE} custom-call(%c), custom_call_target="tpu_custom_call", {flops}'


def start(name: str, *pairs: tuple[int, int]) -> str:
    return f"%{name} = {MOVED}, source_target_pairs={{{','.join(f'{{{a},{b}}}' for a, b in pairs)}}}"


def done(name: str) -> str:
    return f"%{name}-done = f32[1000]{{0}} collective-permute-done(%{name})"


def test_what_is_not_hidden_is_waited_for():
    """Two messages share the link in the middle: 8 ms, of which a kernel hides 3."""
    across = (0, 2), (1, 3), (2, 0), (3, 1)
    assert {"work": 3, "links": 8, "waiting": 5} == played(start("s", *across), kernel("k", 3), done("s"))
    assert {"work": 9, "links": 8, "waiting": 0} == played(start("s", *across), kernel("k", 9), done("s"))
    assert {"work": 9, "links": 8, "waiting": 8} == played(start("s", *across), done("s"), kernel("k", 9))


def test_a_direction_sends_one_after_another_and_two_at_once():
    """Of 4 ms each: two ahead end after 8, one back after 4; the second kernel hides what is left of the last."""
    ahead, again, back = start("a", (0, 1), (1, 2)), start("b", (2, 3)), start("d", (1, 0))
    assert {"work": 1, "links": 8, "waiting": 7} == played(ahead, again, kernel("k", 1), done("a"), done("b"))
    assert {"work": 1, "links": 8, "waiting": 3} == played(ahead, back, kernel("k", 1), done("a"), done("d"))
    between = ahead, again, kernel("k", 5), done("a"), kernel("l", 2), done("b")
    assert {"work": 7, "links": 8, "waiting": 1} == played(*between)


def test_others_are_waited_for_and_work_without_an_estimate_takes_its_bytes():
    """An all-reduce of four sends 6,000 bytes, both ways at once; an addition moves 12,000 bytes."""
    total = "%r = f32[1000]{0} all-reduce(%x), replica_groups={{0,1,2,3}}"
    assert {"work": 12, "links": 3, "waiting": 3} == played(total, "%z = f32[1000]{0} add(%x, %r)")
    stays = "%p = f32[1000]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}"
    assert {"work": 2, "links": 4, "waiting": 4} == played(stays, kernel("k", 2))
