"""Layers that only some tokens take, while a text is decoded: a rule says which, and what the others leave there.

A rule stands in the place of the call of a layer: `through(block, x, context, state) -> Through`. Its report says, for
each layer, which tokens took it, `took [L, B, T]`. Padding takes nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.mixers.context import Context

GO_ON, EXIT, STOP = 0, 1, 2  # Classes of an exit's classifier.


class Depth:
    """Base of the rules: a frozen dataclass without arrays; those come in `context.layers` and `context.flow`."""

    def start(self, x: jax.Array) -> Mapping[str, jax.Array]:
        """What tokens carry from layer to layer, `[B, T, ...]`, before the first."""
        return {}

    def through(self, block: Any, x: jax.Array, context: Context, state: Any) -> Any:
        """A layer's `Through`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Skipping(Depth):
    """Rows take the layers that `context.layers["active"] [L, B]` says. A layer that no row takes is not computed.

    A row that skips a layer keeps its stream. Keys that it leaves there when others of the batch take the layer are
    read by nobody, as long as its later tokens skip the layer, too.
    """

    def through(self, block: Any, x: jax.Array, context: Context, state: Any) -> Any:
        """See `Depth.through`."""
        took = context.layers["active"][:, None] & (context.positions >= 0)

        def all_of_it() -> Any:
            return block(x, context, state)

        def nothing() -> Any:
            made = jax.eval_shape(all_of_it)
            return made._replace(x=x, state=state, report=_zeros(made.report), flow=dict(context.flow))

        made = jax.lax.cond(jnp.any(took), all_of_it, nothing)
        return made._replace(x=jnp.where(took[..., None], made.x, x), report=made.report | {"took": took})


@dataclasses.dataclass(frozen=True)
class Exiting(Depth):
    """Tokens leave behind the first layer whose classifier says so, and stay as they are from there on.

    Layers above an exit write keys and values from the state that left, so that later tokens find them; nothing else of
    them is computed where no token is left. `context.layers` has `exits`: kernel `[D, 3]`, bias `[3]` of each layer,
    `[L, ...]`, and the rows' threshold `[L, B]`; tokens of prompts take all layers. The report has `decision
    [L, B, T]`: GO_ON, EXIT, STOP; GO_ON where the token had left.
    """

    stops: bool = True

    def start(self, x: jax.Array) -> Mapping[str, jax.Array]:
        """See `Depth.start`: whether each token has left."""
        return {"left": jnp.zeros(x.shape[:2], jnp.float32)}

    def through(self, block: Any, x: jax.Array, context: Context, state: Any) -> Any:
        """See `Depth.through`."""
        here, mine = context.layers["exits"], context.positions >= 0
        left = (context.flow["left"] > 0) | ~mine

        def all_of_it() -> Any:
            return block(x, context, state)

        def keys_alone() -> Any:
            made = jax.eval_shape(all_of_it)
            return made._replace(
                x=x, state=block.written(x, context, state), report=_zeros(made.report), flow=dict(context.flow)
            )

        made = jax.lax.cond(jnp.any(~left), all_of_it, keys_alone)
        x = jnp.where(left[..., None], x, made.x)
        drawn = mine & (context.positions >= (context.asked.prompt - 1)[:, None])
        decision = jnp.where(drawn & ~left, decided(x, here["kernel"], here["bias"], here["threshold"]), GO_ON)
        if not self.stops:
            decision = jnp.where(decision == STOP, GO_ON, decision)
        flow = dict(made.flow) | {"left": (left | (decision != GO_ON)).astype(jnp.float32)}
        return made._replace(x=x, report=made.report | {"took": ~left, "decision": decision}, flow=flow)


def decided(x: jax.Array, kernel: jax.Array, bias: jax.Array, threshold: jax.Array) -> jax.Array:
    """Class of each token: x `[B, T, D]`, kernel `[D, 3]`, bias `[3]`, threshold `[B]` -> `[B, T]`.

    The likeliest of unit(x) kernel + bias, unit(x) of mean square 1; GO_ON where its chance is below the threshold.
    """
    chance = jax.nn.softmax(unit(x) @ kernel.astype(jnp.float32) + bias, axis=-1)
    best = jnp.argmax(chance, axis=-1)
    return jnp.where(jnp.max(chance, axis=-1) >= threshold[:, None], best, GO_ON)


def unit(x: jax.Array) -> jax.Array:
    """x over the root of its mean square along the last axis, float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
