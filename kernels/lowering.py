"""One function of several, by the platform that a program is lowered for. Only that function is traced."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

OTHERWISE = ""  # the platforms that have no function of their own


def by_platform(*args: Any, default: Callable | str, **functions: Callable) -> Any:
    """`functions[p](*args)` where the program is lowered for platform p (cpu, tpu, cuda, rocm), else `default(*args)`.

    `jax.lax.platform_dependent` traces every function at once. Here the functions of platforms other than this
    process's are traced when a program is lowered for their platform. They therefore take every array through `args`,
    not by closure, and cannot be differentiated: kernels bring their own gradients. All functions return the same tree
    of the same types. `default` may be a sentence: lowering for another platform then raises NotImplementedError with
    it.
    """
    leaves, tree = jax.tree.flatten(args)

    def flat(run: Callable | str) -> Callable | str:
        return run if isinstance(run, str) else lambda *leaves: jax.tree.leaves(run(*jax.tree.unflatten(tree, leaves)))

    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in functions:
        platform = next(iter(functions)) if isinstance(default, str) else OTHERWISE
    traced, out = jax.make_jaxpr(functions.get(platform, default), return_shape=True)(*args)
    choices = tuple((name, flat(run)) for name, run in [*functions.items(), (OTHERWISE, default)])
    outs = _by_platform.bind(*leaves, choices=choices, platform=platform, traced=traced)
    return jax.tree.unflatten(jax.tree.structure(out), outs)


def first_that_can(by: Callable[[str], Callable], names: Sequence[str]) -> Callable:
    """f(*args) = by(name)(*args) of the first of `names` that neither lacks a package nor raises NotImplementedError.

    by: makes an implementation of its name when it is wanted; the last of the names must do it.
    """

    def run(*args: Any) -> Any:
        *first, last = names
        for name in first:
            with contextlib.suppress(NotImplementedError, ImportError):
                return by(name)(*args)
        return by(last)(*args)

    return run


_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True
_by_platform.def_abstract_eval(lambda *_, traced, **__: traced.out_avals)
_by_platform.def_impl(lambda *leaves, **params: jax.jit(functools.partial(_by_platform.bind, **params))(*leaves))


def _lower(lowered_for: str, ctx: Any, *operands: Any, choices: tuple, platform: str, traced: Any) -> Any:
    functions = dict(choices)
    chosen = lowered_for if lowered_for in functions else OTHERWISE
    run = jaxpr_as_fun(traced) if chosen == platform else functions[chosen]
    if isinstance(run, str):
        raise NotImplementedError(run)
    return mlir.lower_fun(run)(ctx, *operands)


mlir.register_lowering(_by_platform, functools.partial(_lower, OTHERWISE))
for _platform in ("cpu", "tpu", "cuda", "rocm"):
    mlir.register_lowering(_by_platform, functools.partial(_lower, _platform), platform=_platform)


def _batch(leaves: tuple, axes: tuple, *, choices: tuple, **_: Any) -> Any:
    mapped = {name: run if isinstance(run, str) else jax.vmap(run, in_axes=axes) for name, run in choices}
    outs = by_platform(*leaves, default=mapped.pop(OTHERWISE), **mapped)
    return outs, (0,) * len(outs)


batching.primitive_batchers[_by_platform] = _batch
