"""Values with all their gradients, for tests that compare two ways to compute the same."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def probe(out: jax.Array) -> jax.Array:
    """A scalar whose gradient weighs every output differently."""
    return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def with_gradients(f: Callable, whole: Callable[[Any], jax.Array] = lambda result: result) -> Callable:
    """(result, gradients of every argument) of f, whose output is `whole` of its result, compiled as one program."""

    def run(*args):
        def scalar(*args):
            result = f(*args)
            return probe(whole(result)), result

        (_, result), grads = jax.value_and_grad(scalar, tuple(range(len(args))), has_aux=True)(*args)
        return result, grads

    return jax.jit(run)


def joined(result: Any) -> jax.Array:
    """All numbers of a result in one row, in float32 or wider."""
    return jnp.concatenate([x.ravel().astype(jnp.promote_types(x.dtype, jnp.float32)) for x in jax.tree.leaves(result)])
