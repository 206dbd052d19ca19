"""Bench rows of `kernels/attention`: every implementation and library peer, forward and forward + backward."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from kernels.attention import attention, shapes

# The library writes all scores to memory, several times over in a backward pass: above this many bytes it is left out.
MOST_SCORES = 16 * 2**30


def planned(platform: str) -> Iterator[Planned]:
    """Rows for `platform`: its shapes, each forward and forward + backward (decoding: forward only)."""
    for shape in shapes.BENCH_CPU if platform == "cpu" else shapes.BENCH_ACCELERATOR:
        for backward in (False, True)[: 1 if shape.T == 1 else 2]:
            name = f"attention/{shape.name}/{'f+b' if backward else 'fwd'}"
            yield Planned(
                name,
                functools.partial(_row, name, shape, backward, platform),
                functools.partial(_ahead_of_time, shape, backward),
            )


def seen_pairs(mask: masks.Mask, T: int, S: int, block: int = 1024) -> float:
    """The number of query-key pairs that a mask without arrays sees: exact, by tiles."""
    kinds = mask.tiles(T, S, block, block)
    total = 0.0
    for i, j in np.ndindex(kinds.shape[-2:]):
        kind = kinds.reshape(-1, *kinds.shape[-2:])[0, i, j]
        if kind == masks.EMPTY:
            continue
        q = np.arange(i * block, min(T, (i + 1) * block))[:, None]
        k = np.arange(j * block, min(S, (j + 1) * block))[None]
        total += len(q) * k.size if kind == masks.FULL else float(np.sum(mask.evaluate(q, k, (), (), (), T, S)))
    return total


def _inputs(shape: shapes.Shape) -> tuple[list[jax.Array], jax.Array]:
    """q, k, v and the cotangent of the output."""
    keys = (shape.B, shape.S, shape.K, shape.H)
    queries = (shape.B, shape.T, shape.N, shape.H)
    *inputs, cotangent = ops.normal(shape.dtype, queries, keys, keys, queries)
    return inputs, cotangent


def _forward(shape: shapes.Shape, implementation: str) -> ops.Forward:
    if implementation == "jax.nn":
        return _jax_nn(shape)
    return functools.partial(attention, mask=masks.parse(shape.mask), implementation=implementation)


def _jax_nn(shape: shapes.Shape) -> Any:
    """The library's attention with the mask as it takes it: by name where it can, else dense."""
    mask = masks.parse(shape.mask)
    if isinstance(mask, masks.Causal):
        return functools.partial(jax.nn.dot_product_attention, is_causal=True)
    if isinstance(mask, masks.Full):
        return jax.nn.dot_product_attention
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask.dense(shape.T, shape.S)[None, None])


def _forwards(shape: shapes.Shape, platform: str) -> dict[str, ops.Forward]:
    names = {"tpu": ["pallas_tpu"], "gpu": ["library", "pallas_gpu"]}.get(platform, [])
    if getattr(jax.devices()[0], "compute_capability", "").startswith("9."):
        names.append("pallas_gpu_hopper")
    if 4 * shape.B * shape.N * shape.T * shape.S <= MOST_SCORES:
        names.append("jax.nn")
    if shape.T <= 8192:
        names.append("chunked")
    if shape.T * shape.S <= 2048 * 2048:
        names.append("reference")
    if shape.T == 1:
        names.append("decode")
    return {name: _forward(shape, name) for name in names}


def _row(name: str, shape: shapes.Shape, backward: bool, platform: str) -> Comparison:
    args = _inputs(shape)
    pairs = seen_pairs(masks.parse(shape.mask), shape.T, shape.S)
    size = sum(x.nbytes for x in jax.tree.leaves(args))
    torch_call = _torch(shape, backward, [*args[0], args[1]])
    forwards = _forwards(shape, platform)
    return ops.row(
        name,
        forwards,
        args,
        backward,
        baseline="jax.nn" if "jax.nn" in forwards else next(iter(forwards)),
        check=lambda: _check(shape, backward, platform),
        # Two matmuls forward, five backward, 2 FLOPs a multiply-add.
        flops=2 * pairs * shape.B * shape.N * shape.H * (2 + 5 * backward),
        bytes=size * (2 if backward else 1),
        rounds=7 if shape.T <= 2048 else 5,
        extra={"torch": torch_call} if torch_call else {},
    )


def _check(shape: shapes.Shape, backward: bool, platform: str) -> str:
    """Every implementation against the reference in float32, on the row's heads and at most 512 of its tokens."""
    short = shape._replace(T=min(shape.T, 512), S=min(shape.S, 512), B=1)
    if "blockdiffusion" in shape.mask:
        short = short._replace(mask="blockdiffusion(256, 64)")
    tolerance = ops.tolerance(shape.dtype, 4, short.S)  # p, out, ds and the result
    return ops.wrong(_forwards(short, platform), _forward(short, "reference"), _inputs(short), backward, tolerance)


def _ahead_of_time(shape: shapes.Shape, backward: bool, generation: str) -> dict[str, Any]:
    args = jax.eval_shape(lambda: _inputs(shape))
    return ops.ahead_of_time({"pallas_tpu": _forward(shape, "pallas_tpu")}, args, backward, generation)


def _torch(shape: shapes.Shape, backward: bool, args: list[jax.Array]) -> Any:
    """torch's scaled_dot_product_attention on CPU, when torch happens to be installed and knows the mask."""
    try:
        import torch
    except ImportError:
        return None
    if shape.mask not in ("causal", "full") or shape.N != shape.K or args[0].devices().pop().platform != "cpu":
        return None
    q, k, v, g = (torch.from_numpy(np.array(x.transpose(0, 2, 1, 3))).requires_grad_(backward) for x in args)
    causal = shape.mask == "causal"

    def call() -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return torch.autograd.grad(out, (q, k, v), g) if backward else out

    def run() -> None:
        with torch.set_grad_enabled(backward):
            call()

    return run
