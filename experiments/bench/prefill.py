"""Bench rows of sparse prefill: attention of one prompt of shape b (8 heads of 64) within patterns, against all of it.

    prefill/4096    4,096 tokens
    prefill/8192    8,192 tokens

Queries and keys are random, so that of slashes only the nearest hundred are taken, which always are. `pairs` are those
of queries and keys that are computed, FLOPs are of these and of the products that find them.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from kernels.attention import attention, sparse

LENGTHS, HEADS, WIDTH = (4096, 8192), 8, 64
PATTERNS = {
    "a_shape 100 800": ("a_shape", 100, 800), "vertical_slash 100 100": ("vertical_slash", 100, 100),
    "vertical_slash 1000 100": ("vertical_slash", 1000, 100), "block_sparse 16 64": ("block_sparse", 16, 64),
}  # fmt: skip


def planned() -> Iterator[Planned]:
    """All rows of this module."""
    for T in LENGTHS:
        yield Planned(f"prefill/{T}", functools.partial(row, f"prefill/{T}", T))


def row(name: str, T: int, heads: int = HEADS) -> Comparison:
    """Dense attention and all of PATTERNS on the same prompt of T tokens."""
    shape = (1, T, heads, WIDTH)
    q, k, v, _ = ops.normal(jnp.float32, shape, shape, shape, shape)
    length = jnp.asarray([T])
    runs = {"dense": jax.jit(functools.partial(attention, mask=masks.Causal()))}
    pairs, flops = {"dense": heads * T * (T + 1) // 2}, {"dense": 4.0 * WIDTH * heads * T * (T + 1) / 2}
    for text, pattern in PATTERNS.items():
        made = sparse.Heads.of([sparse.Pattern(*pattern)] * heads, T)
        runs[text] = jax.jit(functools.partial(sparse.sparse_attention, heads=made, length=length))
        pairs[text] = int(sparse.pairs(jax.jit(sparse.find)(q, k, made, length), made, T).sum())
        look = {"vertical_slash": sparse.ROWS * T, "block_sparse": (T // made.block) ** 2}.get(pattern[0], 0)
        flops[text] = WIDTH * (4.0 * pairs[text] + 2.0 * heads * look)
    calls = {text: functools.partial(run, q, k, v) for text, run in runs.items()}

    def check() -> str:
        """A-shape is exact: attention under its mask."""
        kind, sinks, window = PATTERNS["a_shape 100 800"]
        near = masks.Causal() & (masks.Window(window - 1, window - 1) | masks.Sinks(sinks))
        want = jax.jit(functools.partial(attention, mask=near))(q, k, v)
        apart = float(np.abs(np.asarray(want) - np.asarray(calls[f"{kind} {sinks} {window}"]())).max())
        return "" if apart < 1e-4 else f"a_shape is {apart:.1e} off attention under its mask"

    return Comparison(
        name=name, candidates=calls, baseline="dense", check=check, flops=flops, work=(T, "tokens"),
        counted=("pairs", pairs),
    )  # fmt: skip
