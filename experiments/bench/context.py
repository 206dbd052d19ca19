"""Bench rows of `kernels/context_attention`: its schedules side by side, and the block that one device computes."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from kernels.attention import reference
from kernels.attention.flash import row_terms
from kernels.attention.scoring import Result, Scoring
from kernels.context_attention import (
    SCHEDULES,
    blocks,
    context_attention,
    from_layout,
    score_entries,
    to_layout,
)

BASELINE = "ring"
T, N, K, H = 4096, 8, 8, 64  # of the whole sequence
BLOCK = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # tokens of the local block


def planned(platform: str) -> Iterator[Planned]:
    """Schedules where there are devices to share a sequence (`--simulate=8`), the local block everywhere."""
    P = jax.device_count()
    for backward in (False, True):
        which = "f+b" if backward else "fwd"
        if P > 1 and T % (2 * P) == 0:
            name = f"context/causal/{P}x{T // P}/{which}"
            yield Planned(name, functools.partial(_schedules, name, backward))
        C = BLOCK[platform]
        name = f"context/block/{C}/{which}"
        yield Planned(name, functools.partial(_block, name, C, platform, backward))


def _schedules(name: str, backward: bool) -> Comparison:
    """Every schedule on all devices, each on tokens in its own order, as a model has them."""
    P = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("context",))
    cut = NamedSharding(mesh, PartitionSpec(None, "context"))
    names = [s for s in SCHEDULES if s != "ulysses" or N % P == 0]
    given = ops.normal("float32", *[(1, T, n, H) for n in (N, K, K, N)])
    candidates, temporaries, counted = {}, {}, {}
    for schedule in names:
        attend = functools.partial(context_attention, mesh=mesh, schedule=schedule, mask="causal", layout="schedule")
        q, k, v, cotangent = (jax.device_put(to_layout(x, P, schedule), cut) for x in given)
        args = (q, k, v), cotangent
        compiled = ops.call(attend, backward).lower(*args).compile()
        candidates[schedule] = functools.partial(compiled, *args)
        temporaries[schedule] = compiled.memory_analysis().temp_size_in_bytes
        counted[schedule] = critical_path(schedule, P)
    return Comparison(
        name,
        candidates,
        BASELINE,
        check=functools.partial(_wrong, candidates, given, backward, P),
        flops=4 * N * H * T * (T + 1) / 2 * (3.5 if backward else 1),
        work=(T, "tokens"),
        temporaries=temporaries,
        counted=("critical entries", counted),
    )


def critical_path(schedule: str, P: int) -> int:
    """Score entries of a causal mask, per head, that the slowest rank of each step computes, added over the steps."""
    return int(score_entries(schedule, P, T, masks.Causal()).max(1).sum())


def _wrong(candidates: dict[str, Any], given: list[jax.Array], backward: bool, P: int) -> str:
    """The results that differ from one device's by more than rounding; "" if none does."""
    *inputs, cotangent = given
    mask = masks.Causal()
    one = ops.call(lambda q, k, v: reference.forward(q, k, v, Scoring(mask, H**-0.5))[0], backward)
    expected = jax.tree.leaves(one(inputs, cotangent))
    for schedule, run in candidates.items():
        for got, value in zip(jax.tree.leaves(run()), expected, strict=True):
            error = float(jnp.abs(from_layout(got, P, schedule) - value).max() / jnp.abs(value).max())
            if not error <= 1e-5:  # Sums of T products in another order.
                return f"{schedule} is off by {error:.1e} of the largest value (allowed 1e-5)"
    return ""


def _block(name: str, C: int, platform: str, backward: bool) -> Comparison:
    """One block of every key seen, C queries against C keys, by the platform's kernel and by XLA with all scores."""
    dtype = "float32" if platform == "cpu" else "bfloat16"
    mask, scale = masks.Full(), H**-0.5

    @jax.custom_vjp
    def block(q, k, v):
        return blocks.forward(q, k, v, mask, scale)[0]

    def forward(q, k, v):
        out, lse = blocks.forward(q, k, v, mask, scale)
        return out, (q, k, v, out, lse)

    def back(kept, d_out):
        q, k, v, out, lse = kept
        delta = row_terms(Result(out, lse), Result(d_out, None))[0]
        grads = blocks.backward(q, k, v, d_out, lse, delta, mask, scale)
        return tuple(g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))

    block.defvjp(forward, back)
    plain = lambda q, k, v: reference.forward(q, k, v, Scoring(mask, scale))[0].astype(q.dtype)  # noqa: E731
    *inputs, cotangent = ops.normal(dtype, *[(1, C, n, H) for n in (N, K, K, N)])
    forwards = {"block": block, "all scores": plain}
    short = [x[:, :512] for x in inputs], cotangent[:, :512]
    tolerance = ops.tolerance(dtype, 4, 512)  # as of `kernels.attention`, whose blocks these are
    return ops.row(
        name,
        forwards,
        (inputs, cotangent),
        backward,
        baseline="all scores",
        check=lambda: ops.wrong(forwards, plain, short, backward, tolerance),
        flops=4 * N * H * C * C * (3.5 if backward else 1),
        work=(C, "tokens"),
    )
