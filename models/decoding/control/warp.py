"""Controls of plain sampling: which ids there are, the temperature, and the rules of `models.decoding.sampling`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding import sampling
from models.decoding.control import Control
from models.decoding.drafts import Tree


@dataclasses.dataclass(frozen=True)
class Allowed(Control):
    """Rules out ids at and above `vocab_size` (padding of V; 0: none) and the `banned` ones, e.g. pad and bos."""

    pure = True

    vocab_size: int = 0
    banned: tuple[int, ...] = ()

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return allowed(logits, self.vocab_size, self.banned), None


def allowed(logits: jax.Array, vocab_size: int, banned: tuple[int, ...] = ()) -> jax.Array:
    """-inf for ids at and above `vocab_size` (0: none is) and for those of `banned`. `[..., V]`."""
    ids = jnp.arange(logits.shape[-1])
    out = ids >= vocab_size if vocab_size else jnp.zeros(ids.shape, bool)
    for token in banned:
        out |= ids == token
    return jnp.where(out, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Temperature(Control):
    """Logits / temperature; a row at 0 keeps its likeliest token alone."""

    pure = True
    dials = ("temperature",)

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return sampling.tempered(logits, p.dials["temperature"]), None


@dataclasses.dataclass(frozen=True)
class Rule(Control):
    """One of `sampling.RULES`, with each row's own value."""

    pure = True

    name: str = ""

    @property
    def dials(self) -> tuple[str, ...]:
        """The knob of the rule's name."""
        return (self.name,)

    def process(
        self, models: Mapping[str, Any], side: Any, logits: jax.Array, p: Any, tree: Tree, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """See `Control.process`."""
        return jax.vmap(sampling.RULES[self.name])(logits, p.dials[self.name]), None


PARTS = {
    "allowed": Allowed,
    "temperature": Temperature,
    **{name: functools.partial(Rule, name=name) for name in sampling.RULES},
}
