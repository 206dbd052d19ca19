"""SwiReasoning: thinking in embeddings and in words (Shi et al. 2025, arXiv:2510.05069).

While it thinks softly, the model reads the expected embedding of the next token, and otherwise the drawn token's. It
changes over where the entropy crosses the value that it had at the last change.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
LEAST_P = 1e-12
SOFT, EXPLICIT = 0, 1


class Thinking(NamedTuple):
    """State, `[B]` each: soft now; stayed: steps since the last change; reference: entropy at it; locked: the thinking
    is over; switches: changes from soft to explicit."""

    soft: Array
    stayed: Array
    reference: Array
    locked: Array
    switches: Array


class Switched(NamedTuple):
    """to_explicit, to_soft `[B]`: rows that changed in this step; reads_soft: rows that read the expected embedding."""

    to_explicit: Array
    to_soft: Array
    reads_soft: Array


def entropy(p: Array) -> Array:
    """-sum p log(max(p, 1e-12)) over the last axis: `[..., V]` -> `[...]`."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, LEAST_P)), axis=-1)


def begin(entropy: Array, ends: Array | bool = False) -> Thinking:
    """The state after the first token: soft; the reference is its entropy `[B]`; ends: whether it ends the thinking."""
    entropy = jnp.asarray(entropy)
    none = jnp.zeros(entropy.shape, jnp.int32)
    return Thinking(none == SOFT, none, entropy, jnp.broadcast_to(ends, entropy.shape), none)


def think(
    state: Thinking, entropy: Array, ends: Array | bool = False, symbol: Array | bool = False, window: int = 512
) -> tuple[Thinking, Switched]:
    """One later step: `[B]` each.

    Soft thinking ends as soon as the entropy is below the reference; explicit thinking ends where it is above, after
    `window` steps, unless it is locked. A change makes this entropy the reference. `reads` says what is read next.

    Args:
      state: before the step.
      entropy: of the model's law without temperature or cuts.
      ends: whether the drawn token ends the thinking, which locks the explicit mode.
      symbol: whether the drawn token is one (of mathematics) that is always read as itself.
      window: steps that explicit thinking lasts at least.
    """
    locked, stayed = state.locked | ends, state.stayed + 1
    to_explicit = state.soft & (entropy < state.reference)
    to_soft = ~state.soft & (entropy > state.reference) & (stayed >= window) & ~locked
    changed = to_explicit | to_soft
    after = Thinking(
        soft=jnp.where(changed, to_soft, state.soft),
        stayed=jnp.where(changed, 0, stayed),
        reference=jnp.where(changed, entropy, state.reference),
        locked=locked,
        switches=state.switches + to_explicit,
    )
    return after, Switched(to_explicit, to_soft, reads(after, symbol))


def reads(state: Thinking, symbol: Array | bool = False) -> Array:
    """Whether the expected embedding is read next: soft, not locked, and the drawn token is no symbol. `[B]`."""
    return state.soft & ~state.locked & ~jnp.asarray(symbol)


def blended(expected: Array, mark: Array, share: float, step: int, steps: int) -> Array:
    """a expected + (1 - a) mark, a = share + (1 - share) step / steps: `[..., D]`, what is read at a change.

    To soft: mark is the embedding of the token that begins the thinking, share alpha_0 = 1. To explicit: that of the
    token that ends it, beta_0 = 0.7; the released code blends it with the expected embedding, too.
    """
    a = share + (1 - share) * step / steps
    return a * expected + (1 - a) * mark


def first_read(expected: Array, line_break: Array) -> Array:
    r"""0.9 expected + 0.1 line_break: what the first step reads in soft mode; line_break embeds "\n": `[..., D]`."""
    return 0.9 * expected + 0.1 * line_break


def injections(switches: int, most: int) -> str:
    """What a change to explicit thinking writes: "" below `most` switches, "converge" up to 2 most, then "answer".

    "converge" writes the end of thinking; "answer" writes it with the words before an answer, and caps its length.
    """
    if switches < most:
        return ""
    return "converge" if switches <= 2 * most else "answer"


def answer_left(left: Array, triggered: Array, most: int = 32) -> Array:
    """Tokens left of an answer, `[B]`; -1: no cap. `triggered` sets it to `most`, a step takes one, 0 ends the row."""
    left = jnp.where(triggered, most, left)
    return jnp.where(left >= 0, left - 1, left)
