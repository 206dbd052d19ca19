"""Models that an objective reads beside the one it trains: a teacher, and what else `Objective.companions` names.

A companion is the `Program` of a trained run on the mesh of the run that reads it. Its parameters are an argument of
the training step, neither part of the state nor constants of the program. Where they come from is in
experiments/workdir/companions.py.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp

from models.objectives import companions as names

SELF = "self"  # in place of a workdir: the model as the run starts


def check(program: Any) -> None:
    """Raises ValueError where the objective reads a companion of which the structure is not there."""
    if missing := [name for name in names(program.objective) if name not in program.companions]:
        raise ValueError(
            f"objective={program.config.objective!r} reads companions.{missing[0]}, which is not attached to the "
            "program; build it with experiments.workdir.companions.attach(program)."
        )


def shardings(program: Any) -> dict[str, Any]:
    """How the parameters of each companion lie, by its name."""
    return {name: beside.shardings["params"] for name, beside in program.companions.items()}


def abstract(program: Any) -> dict[str, Any]:
    """Shapes and dtypes of the parameters of each companion, as they lie, by its name."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return {
        name: jax.tree.map(place, beside.abstract["params"], beside.shardings["params"])
        for name, beside in program.companions.items()
    }


def itself(program: Any) -> Any:
    """`program` as a companion of its own."""
    return dataclasses.replace(program, companions={})


def checksum(params: Any) -> str:
    """Sixteen hex digits that name parameters: their paths, types, shapes and bits, however they lie on devices.

    Each bit pattern is mixed with its place and the results are added up modulo 2^32 where they lie: nothing moves.
    """
    sums = jax.device_get(jax.jit(functools.partial(jax.tree.map, _sum))(params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    facts = [
        [jax.tree_util.keystr(path), str(leaf.dtype), list(leaf.shape), int(total)]
        for (path, leaf), total in zip(leaves, jax.tree.leaves(sums), strict=True)
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _sum(x: jax.Array) -> jax.Array:
    """Sum over all numbers of x of `mix(bits + 2654435761 * place)` modulo 2^32; place counts from 1, row by row."""
    width = 32 if x.dtype.itemsize >= 4 else 8 * x.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)  # float64: [..., 2]
    place, stride = jnp.ones((), jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        place = place + jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        stride *= bits.shape[axis]
    return jnp.sum(_mix(bits + jnp.uint32(2654435761) * place), dtype=jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit changes about half of the others (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x
