"""Elementwise activations of channels and of experts, by the names that configs give them."""

from collections.abc import Callable

import jax

from models import projections

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "silu": jax.nn.silu,
}


def through(activation: Callable[..., jax.Array], down: projections.Projection, *hidden: jax.Array) -> jax.Array:
    """`down(activation(*hidden))`; the backward pass keeps the arrays `hidden` alone, `[B, T, F]` each.

    The backward pass computes the activation again, a few operations a number, instead of keeping its output and its
    slopes. A projection whose gradient needs more than its input would be computed again too; the input of such a
    projection is kept.
    """
    if down.keeps_input_alone:
        return jax.checkpoint(lambda *hidden: down(activation(*hidden)))(*hidden)
    return down(jax.checkpoint(activation)(*hidden))
