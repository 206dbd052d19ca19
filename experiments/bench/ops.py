"""Shared by the bench rows of all kernels: a call from an implementation, a row from the calls, their check."""

import concurrent.futures
import contextvars
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.comparison import Comparison
from experiments.planning import hlo, traffic
from experiments.planning.chips import CHIPS
from kernels import platforms

Forward = Callable[..., jax.Array]
CALLS = 10


def call(forward: Forward, backward: bool) -> Any:
    """`(inputs, cotangent) -> output`, or `-> (output, gradient of every input)`, jitted."""
    if not backward:
        return jax.jit(lambda inputs, cotangent: forward(*inputs))

    def run(inputs: Sequence[jax.Array], cotangent: jax.Array) -> Any:
        out, vjp = jax.vjp(forward, *inputs)
        return out, *vjp(cotangent)

    return jax.jit(run)


def row(
    name: str, forwards: Mapping[str, Forward], args: tuple | Mapping[str, tuple], backward: bool, **rest: Any
) -> Comparison:
    """A Comparison of every implementation that compiles for `args = (inputs, cotangent)`; `rest`: its other fields.

    `args` are those of all implementations, or those of each by its name. An implementation that raises
    NotImplementedError is left out. `rest["extra"]` are candidates that are not jax: zero-argument calls. On an
    accelerator a turn is `CALLS` calls.
    """

    def compiled(implementation: str) -> Any:
        given = args[implementation] if isinstance(args, Mapping) else args
        program = call(forwards[implementation], backward).lower(*given).compile()
        return functools.partial(program, *given), program.memory_analysis().temp_size_in_bytes

    made = at_once(compiled, forwards)
    rest["again"] = {name: functools.partial(lambda name: compiled(name)[0], name) for name in made}
    candidates, temporaries = ({name: x[i] for name, x in made.items()} for i in range(2))
    candidates |= rest.pop("extra", {})
    if jax.default_backend() != "cpu":
        rest.setdefault("calls", CALLS)
    return Comparison(name=name, candidates=candidates, temporaries=temporaries, **rest)


def at_once(make: Callable[[str], Any], names: Iterable[str]) -> dict[str, Any]:
    """make(name) for each name, on as many threads: compilers use them. Implementations without it are left out."""

    def one(name: str) -> dict[str, Any]:
        try:
            return {name: make(name)}
        except NotImplementedError:
            return {}

    with concurrent.futures.ThreadPoolExecutor() as pool:
        contexts = [(contextvars.copy_context(), name) for name in names]
        found = pool.map(lambda each: each[0].run(one, each[1]), contexts)
        return {name: x for some in found for name, x in some.items()}


def tolerance(dtype: str, roundings: int, terms: int) -> float:
    """Tolerance as a share of the largest value, for a number of roundings between the inputs and the last gradient.

    Sums are float32. Their own rounding, over `terms` terms of random signs, counts beside roundings to float32, but
    not beside those to a shorter type.
    """
    return roundings * float(jnp.finfo(dtype).eps) * (math.sqrt(terms) if dtype == "float32" else 1)


def wrong(forwards: Mapping[str, Forward], exact: Forward, args: tuple, backward: bool, tolerance: float) -> str:
    """The results that differ from `exact` (float32) by more than `tolerance` of the largest value; "" if none does."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    expected = jax.tree.leaves(call(exact, backward)(*wide))
    results = at_once(lambda implementation: call(forwards[implementation], backward)(*args), forwards)
    for implementation, got in results.items():
        for a, b in zip(jax.tree.leaves(got), expected, strict=True):
            error = float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b)))
            if not error <= tolerance:
                return f"{implementation} is off by {error:.1e} of the largest value (allowed {tolerance:.1e})"
    return ""


def ahead_of_time(
    forwards: Mapping[str, Forward], args: tuple, backward: bool, generation: str, flops: float = 0
) -> dict[str, Any]:
    """The figures of a TPU generation's compiler for a kernel, and for other forms beside it.

    Args:
      forwards: by name, the kernel first.
      args: shapes of (inputs, cotangent).
      backward: whether gradients of the inputs are asked for.
      generation: v5e, v5p, v6e or tpu7x.
      flops: of a call; with them the roofline is said.

    Returns: of the kernel `temporaries` (bytes in HBM), `kernels` in the program, `MiB` that it moves between HBM and
      the chip, `at least`, the MiB of its inputs and outputs, and `ms` of the roofline at the vendor's peak rates, of
      its bytes and of its FLOPs; of each other form its MiB, and how many times fewer the kernel moves.
    """
    chip, said = CHIPS[generation], {}
    for name, forward in forwards.items():
        traced = platforms.trace_for_tpu(call(forward, backward), *args, generation=generation)
        compiled = platforms.compile_described(traced)
        moved = traffic.scheduled(hlo.computations(compiled.as_text())) + traffic.again(traced.jaxpr.jaxpr)
        if not said:
            arrays = jax.tree.leaves((args if backward else args[0], traced.out_info))
            said = {
                "temporaries": compiled.memory_analysis().temp_size_in_bytes,
                "kernels": compiled.as_text().count("tpu_custom_call"),
                "MiB": moved / 2**20,
                "at least": sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays) / 2**20,
                "ms of bytes": 1e3 * moved / chip.bandwidth,
                **({"ms of FLOPs": 1e3 * flops / chip.flops} if flops else {}),
            }
            continue
        said |= {f"MiB, {name}": moved / 2**20, f"fewer than {name}": moved / 2**20 / said["MiB"]}
    return said


def normal(dtype: str, *sizes: tuple[int, ...]) -> list[jax.Array]:
    """One standard normal array of each size."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return [jax.random.normal(key, size, jnp.dtype(dtype)) for key, size in zip(keys, sizes, strict=True)]
