"""What a rule is: what it holds of a prompt, attends to, and holds after a token. `replay` runs rules over masks."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.mixers.memory import budgets


class Prompt(NamedTuple):
    """The prompt's n queries: logits `x` and probabilities `p [N, n, n]`, `seen [n, n]`; all T keys and values."""

    x: jax.Array
    p: jax.Array
    seen: jax.Array
    k: jax.Array  # [K, T, H]
    v: jax.Array
    n: int
    T: int

    @property
    def K(self) -> int:
        return self.k.shape[0]


class Row(NamedTuple):
    """One new token's query: `x`, `p`, `seen [N, T]`, `wanted [K|N, T]` as the policy said, its position `t`, and K."""

    x: jax.Array
    p: jax.Array
    seen: jax.Array
    wanted: jax.Array
    t: jax.Array
    K: int


class State(NamedTuple):
    """`held` bool and `score [K, T]`, keys and values `[K, T, H]` (merging changes them), and what else a policy
    has."""

    held: jax.Array
    score: jax.Array
    k: jax.Array
    v: jax.Array
    extra: tuple = ()


def own(T: int, t) -> jax.Array:
    """bool `[T]`: the token at t."""
    return jnp.arange(T) == t


def placed(held: jax.Array) -> jax.Array:
    """`[..., T]`: the position of each held token, -1 elsewhere."""
    return jnp.where(held, jnp.arange(held.shape[-1]), -1)


def wide(x: jax.Array, s: Prompt) -> jax.Array:
    """`[K, T]` of `x [n]` or `[K, n]`, with zeros behind the prompt."""
    x = jnp.broadcast_to(x, (s.K, x.shape[-1]))
    return jnp.pad(x, ((0, 0), (0, s.T - x.shape[-1])))


@dataclasses.dataclass(frozen=True)
class Full:
    """Everything is kept."""

    slot = False

    def sized(self, prompt: int, length: int, theta: float | None, pairing: str) -> "Full":
        """This rule with what depends on the run: budgets that are shares of the prompt become tokens."""
        share = {
            name: budgets.tokens(getattr(self, name), prompt)
            for name in ("budget", "recent")
            if isinstance(getattr(self, name, None), float)
        }
        return dataclasses.replace(self, **share)

    def begin(self, s: Prompt) -> State:
        """What is held of the prompt."""
        held = wide(jnp.ones(s.n, bool), s)
        return State(held, jnp.zeros(held.shape, s.p.dtype), s.k, s.v)

    def attend(self, state: State, q: jax.Array, t: jax.Array) -> tuple[jax.Array, State]:
        """(bool `[K|N, T]`: what the query `q [N, H]` at position t attends to, state)."""
        return state.held | own(state.held.shape[1], t), state

    def after(self, state: State, row: Row) -> State:
        """What is held after a token."""
        return state._replace(held=row.wanted)
