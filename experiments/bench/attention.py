"""Bench rows of `kernels/attention`: every implementation and library peer, forward and forward + backward."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.rows import Planned, Row
from kernels import masks, platforms
from kernels.attention import attention, shapes


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
    """Query-key pairs that a mask without arrays lets see each other: exact, by tiles."""
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


def _inputs(shape: shapes.Shape, T: int = 0, S: int = 0) -> list[jax.Array]:
    T, S = T or shape.T, S or shape.S
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(shape.B, T, shape.N, shape.H), *[(shape.B, S, shape.K, shape.H)] * 2, (shape.B, T, shape.N, shape.H)]
    return [jax.random.normal(key, size, jnp.dtype(shape.dtype)) for key, size in zip(keys, sizes, strict=True)]


def _call(shape: shapes.Shape, implementation: str | None, backward: bool) -> Any:
    forward = functools.partial(attention, mask=masks.parse(shape.mask), implementation=implementation)
    if implementation == "jax.nn":
        forward = _jax_nn(shape)
    if not backward:
        return jax.jit(lambda q, k, v, g: forward(q, k, v))

    def run(q, k, v, g):
        out, vjp = jax.vjp(forward, q, k, v)
        return out, *vjp(g)

    return jax.jit(run)


def _jax_nn(shape: shapes.Shape) -> Any:
    """The library's attention with the mask as it takes it: by name where it can, else dense."""
    mask = masks.parse(shape.mask)
    if isinstance(mask, masks.Causal):
        return functools.partial(jax.nn.dot_product_attention, is_causal=True)
    if isinstance(mask, masks.Full):
        return jax.nn.dot_product_attention
    return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask.dense(shape.T, shape.S)[None, None])


def _implementations(shape: shapes.Shape, platform: str) -> list[str]:
    kernel = {"tpu": ["pallas_tpu"], "cuda": ["pallas_gpu"], "gpu": ["pallas_gpu"]}.get(platform, [])
    names = [*kernel, "chunked", "jax.nn"]
    if shape.T * shape.S <= 2048 * 2048:
        names.append("reference")
    return [*names, "decode"] if shape.T == 1 else names


def _row(name: str, shape: shapes.Shape, backward: bool, platform: str) -> Row:
    args = _inputs(shape)
    candidates, temporaries = {}, {}
    for implementation in _implementations(shape, platform):
        call = _call(shape, implementation, backward)
        try:
            compiled = call.lower(*args).compile()
        except NotImplementedError:
            continue
        candidates[implementation] = functools.partial(compiled, *args)
        temporaries[implementation] = compiled.memory_analysis().temp_size_in_bytes
    if torch_call := _torch(shape, backward, args):
        candidates["torch"] = torch_call
    pairs = seen_pairs(masks.parse(shape.mask), shape.T, shape.S)
    # Two matmuls forward, five backward, 2 FLOPs a multiply-add.
    flops = 2 * pairs * shape.B * shape.N * shape.H * (2 + 5 * backward)
    size = sum(x.size for x in args) * args[0].dtype.itemsize
    return Row(
        name=name,
        candidates=candidates,
        baseline="jax.nn",
        check=lambda: _check(shape, backward, platform),
        flops=flops,
        bytes=size * (2 if backward else 1),
        temporaries=temporaries,
        rounds=7 if shape.T <= 2048 else 5,
    )


def _check(shape: shapes.Shape, backward: bool, platform: str) -> str:
    """Every implementation against the reference in float32, on the row's heads and at most 512 of its tokens."""
    short = shape._replace(T=min(shape.T, 512), S=min(shape.S, 512), B=1)
    if "blockdiffusion" in shape.mask:
        short = short._replace(mask="blockdiffusion(256, 64)")
    args = _inputs(short)
    wide = [x.astype(jnp.float32) for x in args]
    exact = jax.tree.leaves(_call(short._replace(dtype="float32"), "reference", backward)(*wide))
    # Rounding of inputs and outputs, times the square root of the longest sum (errors of random sign).
    tolerance = float(jnp.finfo(args[0].dtype).eps) * 4 * math.sqrt(short.S)
    for implementation in _implementations(short, platform):
        try:
            got = jax.tree.leaves(_call(short, implementation, backward)(*args))
        except NotImplementedError:
            continue
        for a, b in zip(got, exact, strict=True):
            error = float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
            if not error <= tolerance:
                return f"{implementation} is off by {error:.1e} of the largest value (allowed {tolerance:.1e})"
    return ""


def _ahead_of_time(shape: shapes.Shape, backward: bool, generation: str) -> dict[str, Any]:
    """What the TPU compiler says of the kernel: temporaries outside VMEM, and that it compiles."""
    args = jax.eval_shape(lambda: _inputs(shape))
    compiled = platforms.compile_for_tpu(_call(shape, "pallas_tpu", backward), *args, generation=generation)
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "kernels": compiled.as_text().count("tpu_custom_call"),
    }


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
