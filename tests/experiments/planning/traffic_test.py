"""Bytes that a program moves: by hand from its text, and blocks of kernels that a grid comes back to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from experiments.planning import hlo, traffic


def test_traffic_counts_reads_and_writes_and_only_the_slices_that_a_fusion_takes():
    text = """HloModule m, is_scheduled=true

%inside (a: f32[4,256], i: s32[]) -> f32[1,256] {
  %a = f32[4,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %cut = f32[1,256]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,256}
}

ENTRY %main (x: f32[4,256], n: s32[]) -> f32[256,256] {
  %x = f32[4,256]{1,0:T(8,128)} parameter(0)
  %n = s32[] parameter(1)
  %row = f32[1,256]{1,0:T(8,128)S(1)} fusion(%x, %n), kind=kLoop, calls=%inside
  ROOT %out = f32[256,256]{1,0:T(8,128)} dot(%row, %row), lhs_contracting_dims={0}
}
"""
    found = hlo.computations(text)
    assert traffic.scheduled(found) == (1024 + 4) + 256 * 256 * 4  # the row itself lies on chip
    assert hlo.largest(found) == [(256 * 256 * 4, "f32[256,256] out")]


BIG = "f32[64,256]{1,0:T(8,128)}"
ON_CHIP = "f32[64,256]{1,0:T(8,128)S(1)}"
ROW, WHOLE = 256 * 4, 64 * 256 * 4


@pytest.mark.parametrize(
    ("line", "bytes"),
    [
        (f"%y = {BIG} add(%x, %x)", 3 * WHOLE),
        (f"%y = {ON_CHIP} add(%x, %x)", 2 * WHOLE),
        (f"%y = {BIG} dynamic-update-slice(%x, %row, %n, %n)", 2 * ROW + 8),  # In place: its row, read and written.
        (f"%y = {BIG} fusion(%x, %row, %n), kind=kLoop, calls=%put", 2 * ROW + 4),
        (f"%y = {BIG} fusion(%x, %row, %n), kind=kLoop, calls=%twice", 2 * ROW + WHOLE + 4),
        ("%y = f32[1,256]{1,0} dynamic-slice(%x, %n, %n), dynamic_slice_sizes={1,256}", 2 * ROW + 8),
        (f"%y = ({ON_CHIP}, {BIG}, u32[]{{S(2)}}) copy-start(%x)", WHOLE),
        (f"%y = ({BIG}, {ON_CHIP}, u32[]{{S(2)}}) copy-start(%chip)", WHOLE),
        (f"%y = ({BIG}, {BIG}, u32[]{{S(2)}}) copy-start(%x)", 2 * WHOLE),
        (f"%y = (({BIG}), f32[1,256]{{1,0S(1)}}, s32[1]{{0S(2)}}) slice-start(%x), slice={{[0:1], [0:256]}}", ROW),
    ],
)
def test_bytes_of_an_instruction_by_hand(line, bytes):
    body = "{\n  %a = f32[64,256]{1,0} parameter(0)\n  %b = f32[1,256]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"
    text = f"""HloModule m, is_scheduled=true

%put (a: f32[64,256], b: f32[1,256], i: s32[]) -> f32[64,256] {body}
  %same = f32[64,256]{{1,0}} bitcast(%a)
  ROOT %made = f32[64,256]{{1,0}} dynamic-update-slice(%same, %b, %i, %i)
}}

%twice (a: f32[64,256], b: f32[1,256], i: s32[]) -> f32[64,256] {body}
  %sum = f32[1,256]{{1,0}} reduce(%a, %b), to_apply=%add
  ROOT %made = f32[64,256]{{1,0}} dynamic-update-slice(%a, %sum, %i, %i)
}}

ENTRY %main (x: f32[64,256], row: f32[1,256], n: s32[]) -> f32[64,256] {{
  %x = {BIG} parameter(0)
  %row = f32[1,256]{{1,0:T(1,128)}} parameter(1)
  %n = s32[] parameter(2)
  %chip = {ON_CHIP} parameter(3)
  {line}
}}
"""
    assert traffic.scheduled(hlo.computations(text)) == pytest.approx(bytes, abs=8)  # A context of a copy is a word.


def tiled(x, y, tile=(16, 8, 12)):
    """A product by tiles m, k, n, the sum innermost."""
    (M, K), N, (m, k, n) = x.shape, y.shape[1], tile

    def body(x, y, out):
        out[...] = x[...] @ y[...]

    return pl.pallas_call(
        body,
        grid=(M // m, N // n, K // k),
        in_specs=[pl.BlockSpec((m, k), lambda i, j, l: (i, l)), pl.BlockSpec((k, n), lambda i, j, l: (l, j))],
        out_specs=pl.BlockSpec((m, n), lambda i, j, l: (i, j)),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
    )(x, y)


X, Y = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 48), jnp.float32)
TILED = 4 * ((48 // 12 - 1) * 64 * 32 + (64 // 16 - 1) * 32 * 48)  # x once for each column of tiles, y for each row.


def test_blocks_that_a_grid_comes_back_to_are_moved_again():
    again = lambda f: traffic.again(jax.jit(f).trace(X, Y).jaxpr)  # noqa: E731
    assert again(tiled) == TILED
    assert again(lambda x, y: tiled(x, y, (64, 32, 48))) == 0
    assert again(lambda x, y: tiled(x, y, (16, 32, 48))) == 0  # y stays while the rows go by.
    assert again(lambda x, y: jax.lax.scan(lambda c, _: (c + tiled(x, y).sum(), None), 0.0, None, length=5)[0]) == (
        5 * TILED
    )
    assert again(lambda x, y: jax.lax.cond(x[0, 0] > 0, tiled, lambda x, y: x @ y, x, y)) == TILED


def test_a_block_is_moved_when_its_index_changes():
    index = np.array([[0, 0], [0, 0], [0, 1], [0, 0], [1, 0], [1, 0]])
    assert traffic.moved((8, 6), (4, 3), index) == 4 * 12
    assert traffic.moved((1, 6), (4, 3), index[:2]) == 3
