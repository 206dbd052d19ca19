"""Bench rows of `kernels.column_sums`: what each key got of all queries of a prompt, 8 heads of 64 over 4 key heads.

    columns/2048    2,048 tokens
    columns/8192    8,192 tokens

`attention` is the causal pass that a prompt takes anyway and that gives the sums their lse; `sums` are ours, behind it;
`materialised` sums the weights of all pairs, as one that has the array of them would (up to MOST of them).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import ops
from experiments.bench.comparison import Comparison, Planned
from kernels import masks
from kernels.attention import attention
from kernels.column_sums import column_sums, row_lse

LENGTHS, N, K, H = (2048, 8192), 8, 4, 64
MOST = 2048 * 2048  # pairs of a head that are materialised
ROUNDINGS = 6  # the product, its scale, lse, exp, their difference, the sum


def planned(platform: str) -> Iterator[Planned]:
    """All rows of this module; bfloat16 on accelerators."""
    dtype = "float32" if platform == "cpu" else "bfloat16"
    for T in LENGTHS:
        name = f"columns/{T}"
        yield Planned(name, functools.partial(row, name, T, dtype), functools.partial(ahead_of_time, T, "bfloat16"))


def calls(T: int) -> dict[str, Callable[..., jax.Array]]:
    """`(q [1, T, N, H], k [1, T, K, H], lse [1, N, T]) -> array` of each candidate."""

    def materialised(q: jax.Array, k: jax.Array, lse: jax.Array) -> jax.Array:
        x = jnp.einsum("btkgh,bskh->bkgts", q.reshape(1, -1, K, N // K, H), k, preferred_element_type=jnp.float32)
        seen = masks.Causal().dense(q.shape[1], q.shape[1])
        p = jnp.where(seen, jnp.exp(x * H**-0.5 - lse.reshape(1, K, N // K, -1, 1)), 0)
        return p.sum((2, 3))

    made = {
        "attention": lambda q, k, lse: attention(q, k, k, mask=masks.Causal()),
        "sums": lambda q, k, lse: column_sums(q, k, lse, mask=masks.Causal()),
    }
    return made | ({"materialised": materialised} if T * T <= MOST else {})


def inputs(T: int, dtype: str) -> tuple[jax.Array, ...]:
    """q, k and the lse of every query."""
    q, k = ops.normal(dtype, (1, T, N, H), (1, T, K, H))
    return q, k, row_lse(q, k)


def row(name: str, T: int, dtype: str) -> Comparison:
    """Time and temporaries of each."""
    given = inputs(T, dtype)
    programs = {name: jax.jit(run).lower(*given).compile() for name, run in calls(T).items()}
    pairs = N * T * (T + 1) / 2
    return Comparison(
        name=name,
        candidates={name: functools.partial(program, *given) for name, program in programs.items()},
        baseline="attention",
        check=lambda: wrong(min(T, 512), dtype),
        flops={name: (4.0 if name == "attention" else 2.0) * H * pairs for name in programs},
        work=(T, "tokens"),
        temporaries={name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()},
        calls=1 if jax.default_backend() == "cpu" else ops.CALLS,
    )  # fmt: skip


def wrong(T: int, dtype: str) -> str:
    """ "" where the sums are those of the weights of all pairs."""
    given, made = inputs(T, dtype), calls(T)
    got, want = (jax.jit(made[name])(*given) for name in ("sums", "materialised"))
    error, allowed = float(jnp.abs(got - want).max() / want.max()), ops.tolerance(dtype, ROUNDINGS, T)
    return "" if error <= allowed else f"sums are off by {error:.1e} of the largest (allowed {allowed:.1e})"


def ahead_of_time(T: int, dtype: str, generation: str) -> dict[str, Any]:
    """What a TPU generation's compiler says of the sums."""
    given = jax.eval_shape(functools.partial(inputs, T, dtype))
    return ops.ahead_of_time({"sums": calls(T)["sums"]}, (given, given[2]), False, generation)
