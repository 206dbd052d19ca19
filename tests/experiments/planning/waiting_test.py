"""A schedule played through by hand."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.planning import chips, hlo, waiting
from tests.kernels.described import compile_for_tpu

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


PRODUCTS = {  # two numbers for each pair that is multiplied
    "plain": ("td,df->tf", (64, 256), (256, 128), 2 * 64 * 256 * 128),
    "rows": ("btd,df->btf", (4, 64, 256), (256, 128), 2 * 4 * 64 * 256 * 128),
    "kernel's gradient": ("btd,btf->df", (4, 64, 256), (4, 64, 128), 2 * 4 * 64 * 256 * 128),
    "heads": ("btd,dnh->bnth", (4, 64, 256), (256, 8, 32), 2 * 4 * 64 * 256 * 256),
    "of heads": ("btnh,nhd->btd", (4, 64, 8, 32), (8, 32, 256), 2 * 4 * 64 * 256 * 256),
    "batched": ("bnth,bnsh->bnts", (4, 8, 64, 32), (4, 8, 128, 32), 2 * 4 * 8 * 64 * 128 * 32),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_a_compiled_program_are_counted(name):
    """A TPU's compiler writes them as convolutions, a batch or heads as windows that reach into padding."""
    equation, first, second, flops = PRODUCTS[name]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (first, second)]
    found = hlo.computations(compile_for_tpu(functools.partial(jnp.einsum, equation), *shapes).as_text())
    counted = 0
    for times, instructions in hlo.scheduled(found):
        shape = {i.name: i.shape for i in instructions}
        counted += times * sum(waiting.flops(i, shape, found) for i in instructions)
    assert counted == flops


def test_a_product_takes_its_flops_where_they_last_longer_than_its_bytes():
    """`[20, 50]` by `[50, 40]`: 80,000 FLOPs at 1e9 a second, 15,200 bytes at 1e6, then at 1e9."""
    text = """HloModule m

ENTRY %main () -> f32[20,40] {
  %x = f32[20,50]{1,0} parameter(0)
  %w = f32[50,40]{1,0} parameter(1)
  ROOT %y = f32[20,40]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    found = hlo.computations(text)
    assert waiting.played(found, PLACES, CHIP)["work"] == pytest.approx(1e-6 * 4 * (20 * 50 + 50 * 40 + 20 * 40))
    quick = dataclasses.replace(CHIP, bandwidth=1e9)
    assert waiting.played(found, PLACES, quick)["work"] == pytest.approx(1e-9 * 2 * 20 * 50 * 40)


def test_windows_count_what_they_read_of_the_array():
    """Windows of three over five places, one of padding on either side, every second place; then with zeros between."""
    line = "f32[1,{out},1]{{2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels=b0f_0io->b0f"
    shapes = {"x": "f32[1,5,1]{2,1,0}", "w": "f32[3,1,1]{2,1,0}"}

    def pairs(out: int, window: str) -> float:
        text = f"ENTRY %main () -> f32[1] {{\n  %y = {line.format(out=out, window=window)}\n}}\n"
        return waiting.flops(hlo.computations(text)["ENTRY"][0], shapes, {}) / 2

    assert pairs(3, "size=3 stride=2 pad=1_1") == 2 + 3 + 2
    assert pairs(5, "size=3 pad=1_1") == 2 + 3 + 3 + 3 + 2
    assert pairs(5, "size=3 pad=2_2 rhs_dilate=2") == 2 + 2 + 3 + 2 + 2
    assert pairs(9, "size=3 pad=1_1 lhs_dilate=2") == 1 + 2 + 1 + 2 + 1 + 2 + 1 + 2 + 1
