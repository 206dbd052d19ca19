"""Which implementation runs where: chosen while lowering, or named and then that one or a refusal."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.lowering import by_platform
from kernels.pattention import gpu, tpu, xla
from kernels.pattention.rules import Given, Returned, Rule

IMPLEMENTATIONS = ("reference", "xla", "tpu", "gpu")
CPU_CHUNK_BYTES = 4 * 2**20  # of scores: a chunk that stays in a core's cache
_PLATFORMS = {"tpu": "tpu", "gpu": "cuda"}


def explain(implementation: str | None, dtype: jnp.dtype, platform: str) -> str:
    """One line: which implementation a call takes when lowered for `platform` (cpu, tpu or cuda), and why."""
    if implementation is not None:
        return f"{implementation}: named by the caller"
    if dtype == jnp.float64 and platform != "cpu":
        return "xla: the kernels compute in float32 and the inputs are float64"
    return {
        "tpu": "tpu: Pallas kernel tiled over tokens and parameter tokens",
        "cuda": "gpu: Pallas (Triton) products with the pointwise work in their epilogue; its backward pass is not "
        "faster than xla, which is taken for that",
    }.get(platform, "xla: the formulas in jnp, in chunks of tokens")


def select(kind: str, rule: Rule, args: tuple, **static: Any) -> Any:
    """Runs `forward` or `backward` (kind) of the implementation that fits the platform in the making.

    args: what each token brings (`Given` or `Returned`), keys, values and, forward, tau.
    """
    implementation, dtype, static = rule.implementation, args[0].x.dtype, {"rule": rule, **static}
    plain = functools.partial(getattr(xla, kind), **static)
    kernels = {
        name: functools.partial(_flat, getattr(room, kind), **static) for name, room in (("tpu", tpu), ("gpu", gpu))
    }
    if implementation == "xla" or (implementation is None and dtype == jnp.float64):
        return plain(*args)
    if implementation is None:
        return by_platform(
            *args,
            cpu=functools.partial(plain, limit=CPU_CHUNK_BYTES),
            tpu=kernels["tpu"],
            cuda=plain if kind == "backward" else kernels["gpu"],  # as measured on an H100: docs/LEDGER.md
            default=plain,
        )
    if rule.interpret:
        return kernels[implementation](*args)
    if dtype == jnp.float64:
        raise NotImplementedError(
            f"pattention: implementation={implementation!r} computes in float32, not float64; use 'xla'."
        )
    reason = (
        f"pattention: implementation={implementation!r} is a kernel for {_PLATFORMS[implementation]}, the program is "
        "lowered for another platform; use implementation=None or 'xla'."
    )

    return by_platform(*args, default=reason, **{_PLATFORMS[implementation]: kernels[implementation]})


def _flat(fn: Callable, rows: Given | Returned, *args: Any, **static: Any) -> Any:
    """Calls a kernel with the token axes of `rows` joined to one, and splits those of the results."""
    lead = rows.x.shape[:-1]
    results = fn(jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rows), *args, **static)
    keep = (1, 2) if isinstance(rows, Returned) else ()  # dkeys and dvalues are no rows
    return tuple(leaf if at in keep else leaf.reshape(*lead, leaf.shape[-1]) for at, leaf in enumerate(results))
