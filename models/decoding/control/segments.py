"""Control `roles`: who the tokens of a text come from, for models with `model.roles`; it is there for all of them."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding.control import Control


@dataclasses.dataclass(frozen=True)
class Roles(Control):
    """The model is told the role of each token: of a prompt's as the side has it, `count` - 1 of what it writes.

    `experiments.generation.speakers` finds the roles of a prompt; `marked` is of it.
    """

    own = ("marked",)
    whole = True

    count: int = 0
    marked: bool = False

    def problems(self, config: Any, parts: Any) -> Iterator[str]:
        """See `Control.problems`."""
        if not self.count:
            yield "generate.control='roles' is there by itself where model.roles is not 0; leave it out."
        if other := [name for name, part in parts.control if type(part).parsed is not Control.parsed]:
            yield (
                f"generate.control={other[0]!r} reads prompts in its own way, and so does a model of model.roles="
                f"{self.count}; leave {other[0]!r} out."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Control.init`: the role of each token of the prompt."""
        return {"prompt": jnp.zeros((batch, capacity), jnp.int32)}

    def enters(self, models: Mapping[str, Any], side: Any, p: Any) -> Mapping[str, Any]:
        """See `Control.enters`."""

        def at(positions: jax.Array) -> jax.Array:
            own = jnp.take_along_axis(side["prompt"], jnp.clip(positions, 0, side["prompt"].shape[1] - 1), axis=1)
            return jnp.where(positions < p.prompt[:, None], own, self.count - 1)

        return {"roles": at}


PARTS = {"roles": Roles}
